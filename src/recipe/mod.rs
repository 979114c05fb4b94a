//! The recipe room: from the words in a file to a checked, locked plan.
//!
//! Owns the recipe format (this file), reading it with every problem placed at its line and
//! column (`read`), overrides (`--set`), the checks that need the inputs (`plan`) and the
//! lock that pins every input by digest (`lock`). Does not own reading data (that is
//! [`crate::dataset`]) nor the base folder (that is [`crate::base`]), and never touches
//! libtorch.
//!
//! Two stages, as in ripgrep's arguments: the literal [`Recipe`] does no input and output
//! and knows only what the file says; `plan::Plan` has looked at every input.

mod adapter;
mod data;
mod decode;
mod distillation;
pub mod lock;
pub mod memory;
mod objective;
mod optimizer;
mod overrides;
pub mod plan;
pub mod problem;
pub mod read;
mod rules;
mod safety;
mod tokens;
mod track;
mod yaml;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use adapter::{
    Adapter, Bias, FEED_FORWARD_AS_PARAMETERS, Lora, PairKeys, Pattern, Start, Targets, Vectors,
    parameter_keys,
};
pub use data::{
    Consent, DEFAULT_MAX_HOURS, DEFAULT_MAX_NEW_TOKENS, DEFAULT_PROCESSING, Data, EndOfTurn,
    Format, OnWithdrawal, Overlong, PUBLISHING, Packing, Source, StoppingStrategy, Suite, SurveyOf,
    TrainOn,
};
pub use distillation::{Distillation, Teacher};
pub use objective::{Dpo, Kto, LossType, Objective, Orpo, RowsOf, Simpo};
pub use optimizer::{
    Adafactor, Adamw, AdjustLr, Constant, Cosine, CosineWithRestarts, Curve, InverseSqrt, Linear,
    Lion, MIN_8BIT_SIZE, Muon, Optimizer, Pace, ParamGroup, Schedule, WarmupStableDecay,
};
pub use read::{Literal, read};
pub use safety::{EarlyStopping, LossSpike, OnBadStep};
pub use tokens::{Module, TokenIndex, TokenIndices, UnknownToken};
pub use track::{Mlflow, Tracker, Wandb, WandbMode};
pub use yaml::Unwritable;

use crate::diagnose::{Blame, Diagnose};

/// The recipe format that this version reads and writes.
pub const FORMAT: u32 = 1;

/// A recipe with its defaults filled in. Field order is the order in the written file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The recipe format: 1.
    pub heirloom: u32,
    /// Name of the run and of its folder: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// What is adapted.
    pub base: Base,
    /// How it is adapted.
    pub adapter: Adapter,
    /// What it is trained towards.
    #[serde(default)]
    pub objective: Objective,
    /// On what, and for what.
    pub data: Data,
    /// How the optimiser goes.
    pub train: Train,
    /// What is measured afterwards.
    #[serde(default)]
    pub eval: Eval,
    /// Where the metrics go; `jsonl` is always on.
    #[serde(default)]
    pub track: Vec<Tracker>,
}

/// The model that is adapted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Folder in Hugging Face format, relative to the current directory.
    pub model: PathBuf,
    /// Precision of the base in memory and of the computation.
    #[serde(default)]
    pub dtype: Dtype,
    /// How the frozen weights are stored in memory.
    #[serde(default)]
    pub quantization: Quantization,
    /// Linear layers that are not quantised, by their full path or its first or last parts;
    /// `llm_int8_skip_modules` in Transformers. Embeddings, the output projection, norms and
    /// routers never are.
    #[serde(default)]
    pub unquantized: Vec<String>,
    /// Ignore the folder's weights and draw new ones from `train.seed`, as Transformers'
    /// `initializer_range` says: growing a model rather than adapting one.
    #[serde(default)]
    pub from_scratch: bool,
    /// A Jinja file that takes the place of the folder's chat template.
    #[serde(default)]
    pub chat_template: Option<PathBuf>,
    /// Special tokens that the tokenizer gets where it lacks them, as Transformers'
    /// `add_tokens(…, special_tokens=True)`; their rows are trained.
    #[serde(default)]
    pub added_tokens: Vec<String>,
}

/// How the frozen weights of a base are held in memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    /// Precision of what is not quantised, and of the computation.
    pub dtype: Dtype,
    /// How linear layers are quantised.
    pub quantization: Quantization,
    /// See [`Base::unquantized`].
    pub unquantized: Vec<String>,
}

impl Base {
    /// How its weights are held.
    pub fn storage(&self) -> Storage {
        let Self { dtype, quantization, unquantized, .. } = self;
        Storage { dtype: *dtype, quantization: *quantization, unquantized: unquantized.clone() }
    }
}

impl Storage {
    /// As `dtype`, not quantised.
    pub fn plain(dtype: Dtype) -> Self {
        Self { dtype, ..Self::default() }
    }

    /// Whether the frozen weight of the linear layer `name` is quantised.
    pub fn quantizes(&self, name: &str) -> bool {
        self.quantization != Quantization::None
            && !self.unquantized.iter().any(|part| is_part(name, part))
    }
}

/// Floating-point formats, by their names in PyTorch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    Float32,
    /// 16 bits with the exponent of 32.
    Bfloat16,
}

/// Storage of the frozen base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantization {
    /// As `dtype` says.
    #[default]
    None,
    /// Four bits, in blocks of 64 with a scale in f32 (arXiv 2305.14314), as bitsandbytes.
    Nf4,
    /// The same with scales of eight bits: `bnb_4bit_use_double_quant`.
    Nf4Double,
    /// Eight bits, whole numbers, with a scale for each row.
    Int8,
    /// Eight bits, E4M3, with a scale for each row; blocks where the checkpoint has them.
    Fp8,
}

/// The course of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Passes over the data.
    pub epochs: u32,
    /// Stop after so many optimiser steps.
    #[serde(default)]
    pub max_steps: Option<u64>,
    /// Size of an optimiser step in tokens: so many windows of `data.sequence_length`.
    pub tokens_per_step: usize,
    /// Most tokens in one forward pass; larger steps accumulate. `null`: the whole step, at
    /// most [`DEFAULT_MICRO_BATCH_TOKENS`].
    #[serde(default)]
    pub micro_batch_tokens: Option<usize>,
    /// What of the forward pass is computed again in the backward pass, to keep less until
    /// then. The results are the same bits.
    #[serde(default)]
    pub activation_checkpointing: ActivationCheckpointing,
    /// Keep the inputs of checkpointed blocks in host memory rather than on the CUDA device.
    #[serde(default)]
    pub activation_offload: bool,
    /// How weights move.
    pub optimizer: Optimizer,
    /// Weights that move otherwise than the rest.
    #[serde(default)]
    pub param_groups: Vec<ParamGroup>,
    /// Learning rate of LoRA's B as a multiple of that of A (arXiv 2402.12354).
    #[serde(default)]
    pub loraplus_lr_ratio: Option<f64>,
    /// How the learning rate moves.
    #[serde(default)]
    pub schedule: Schedule,
    /// Share of every target that all tokens have alike; Transformers'
    /// `label_smoothing_factor`.
    #[serde(default)]
    pub label_smoothing_factor: f64,
    /// Noise on embedded tokens (arXiv 2310.05914); Transformers' `neftune_noise_alpha`.
    #[serde(default)]
    pub neftune_noise_alpha: Option<f64>,
    /// Longest gradient, in the 2-norm over all trained weights; 0 never clips.
    #[serde(default = "default_clip")]
    pub clip_grad_norm: f64,
    /// Seed of everything random: initial adapter, dropout, order of rows.
    pub seed: u64,
    /// Optimiser steps between two measurements of the validation loss; 0: only at the end
    /// of each epoch.
    #[serde(default)]
    pub validate_every: u64,
    /// Optimiser steps between two checkpoints; 0: only at the end of each epoch.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// How many checkpoints are kept, newest first.
    #[serde(default = "default_keep")]
    pub keep_checkpoints: usize,
    /// Go on training while a checkpoint is written, from a copy of what it holds; `null`: where
    /// that is an adapter, and not 12 bytes for every weight of the base.
    #[serde(default)]
    pub checkpoint_in_background: Option<bool>,
    /// Keep the checkpoint with the lowest validation loss as well.
    #[serde(default)]
    pub keep_best_checkpoint: bool,
    /// The result is that of the lowest validation loss, not of the last step;
    /// `load_best_model_at_end` in Transformers.
    #[serde(default)]
    pub load_best_at_end: bool,
    /// When to end before the last step.
    #[serde(default)]
    pub early_stopping: Option<EarlyStopping>,
    /// Whether a device of CUDA is held to operations that give the same bytes again, which may
    /// be slower, and refuses those that have none. A CPU always does.
    #[serde(default)]
    pub deterministic: bool,
    /// What is done about a loss or a gradient that is infinite or no number.
    #[serde(default)]
    pub on_non_finite: OnBadStep,
    /// What is done about a loss far above those before; `null`: nothing.
    #[serde(default)]
    pub loss_spike: Option<LossSpike>,
}

impl Recipe {
    /// Whether training goes on while a checkpoint is written.
    pub fn writes_in_background(&self) -> bool {
        let usual = !matches!(self.adapter, Adapter::Full(_));
        self.train.checkpoint_in_background.unwrap_or(usual)
    }
}

/// How much is kept for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationCheckpointing {
    /// Everything that it needs.
    #[default]
    None,
    /// Of every block its input alone (arXiv 1604.06174); `gradient_checkpointing` in
    /// Transformers.
    Block,
    /// All but what is cheap to compute again: what norms and gated units give (after
    /// arXiv 2205.05198).
    Selective,
}

/// Most tokens in one forward pass unless the recipe says something else.
pub const DEFAULT_MICRO_BATCH_TOKENS: usize = 8192;

fn default_clip() -> f64 {
    1.0
}

fn default_checkpoint_every() -> u64 {
    100
}

fn default_keep() -> usize {
    2
}

/// What is measured after training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Names of `data.test` entries.
    #[serde(default)]
    pub suites: Vec<String>,
    /// What the result must reach.
    #[serde(default)]
    pub gates: Vec<Gate>,
}

/// A condition on a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// `SUITE/METRIC`; metrics are `exact_match` (share, 0 to 1) and `loss` (nats per token).
    pub metric: String,
    /// No worse than the base model.
    #[serde(default)]
    pub at_least_baseline: bool,
    /// No less than this.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// No more than this.
    #[serde(default)]
    pub at_most: Option<f64>,
}

/// A recipe cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// As YAML.
    #[error("cannot write the resolved recipe")]
    Yaml(#[source] Unwritable),
    /// As JSON.
    #[error("cannot write the papers of the run")]
    Json(#[source] serde_json::Error),
}

impl Diagnose for WriteError {
    fn blame(&self) -> Blame {
        Blame::Defect
    }
}

/// The text of a recipe, every default written out; reads back as the same recipe.
pub fn write(recipe: &Recipe) -> Result<String, WriteError> {
    yaml::write(recipe).map_err(WriteError::Yaml)
}

/// Whether `tail` is `path` or the last parts of it.
fn is_tail(path: &str, tail: &str) -> bool {
    path.strip_suffix(tail).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether `part` is `path`, or the first or the last parts of it.
fn is_part(path: &str, part: &str) -> bool {
    is_tail(path, part) || path.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'))
}
