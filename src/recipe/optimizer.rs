//! How weights move: optimisers, learning-rate schedules and groups of weights, in the words of
//! PyTorch, Transformers, PEFT and bitsandbytes.
//!
//! Owns their settings, which weights a group names, and what of a model is left to AdamW
//! where an optimiser is not for every weight. Does not own the arithmetic
//! (`engine/src/train/optimizer`).

use serde::{Deserialize, Serialize};

use super::{Module, Train};

/// How weights move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Decoupled weight decay (arXiv 1711.05101), as `torch.optim.AdamW`.
    Adamw(Adamw),
    /// The same with both running means in blocks of eight bits (arXiv 2110.02861), as
    /// `bitsandbytes.optim.AdamW8bit`.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit(Adamw),
    /// Running squares by row and column alone (arXiv 1804.04235), as
    /// `transformers.optimization.Adafactor` with `relative_step=False`.
    Adafactor(Adafactor),
    /// The sign of a running mean (arXiv 2302.06675), as `bitsandbytes.optim.Lion`.
    Lion(Lion),
    /// Orthogonal steps for the matrices of the blocks, as `torch.optim.Muon`; AdamW for every
    /// other weight.
    Muon(Muon),
}

/// Settings of AdamW, in PyTorch's words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adamw {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the running mean and of the running square.
    #[serde(default = "default_betas")]
    pub betas: (f64, f64),
    /// Added to the denominator.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
}

/// Settings of Adafactor, in Transformers' words and with the defaults of its `Trainer`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adafactor {
    /// Peak learning rate.
    pub lr: f64,
    /// Added to squared gradients; least scale of a weight where `scale_parameter`.
    #[serde(default = "default_adafactor_eps")]
    pub eps: (f64, f64),
    /// Longest step of a weight, as the root mean square of its elements.
    #[serde(default = "default_one")]
    pub clip_threshold: f64,
    /// The running squares decay by `1 - step^decay_rate`.
    #[serde(default = "default_decay_rate")]
    pub decay_rate: f64,
    /// Decay of a running mean of steps; `null`: there is none.
    #[serde(default)]
    pub beta1: Option<f64>,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Whether a weight's learning rate is in proportion to its root mean square.
    #[serde(default)]
    pub scale_parameter: bool,
}

/// Settings of Lion, in bitsandbytes' words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lion {
    /// Peak learning rate.
    pub lr: f64,
    /// Weight of the running mean in a step, and its decay.
    #[serde(default = "default_lion_betas")]
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
}

/// Settings of Muon, in PyTorch's words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Muon {
    /// Peak learning rate of the matrices.
    pub lr: f64,
    /// Decoupled weight decay of the matrices.
    #[serde(default = "default_muon_decay")]
    pub weight_decay: f64,
    /// Decay of the running mean.
    #[serde(default = "default_momentum")]
    pub momentum: f64,
    /// Whether a step looks ahead of the running mean.
    #[serde(default = "default_true")]
    pub nesterov: bool,
    /// The polynomial of the Newton–Schulz iteration.
    #[serde(default = "default_coefficients")]
    pub ns_coefficients: (f64, f64, f64),
    /// Least norm that a step is divided by.
    #[serde(default = "default_muon_eps")]
    pub eps: f64,
    /// Newton–Schulz iterations.
    #[serde(default = "default_ns_steps")]
    pub ns_steps: u32,
    /// How the learning rate depends on the shape of a matrix.
    #[serde(default)]
    pub adjust_lr_fn: AdjustLr,
    /// How every other weight moves.
    pub adamw: Adamw,
}

/// How Muon's learning rate depends on the shape of a matrix with `A` rows and `B` columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdjustLr {
    /// Times `√max(1, A / B)`.
    #[default]
    Original,
    /// Times `0.2 · √max(A, B)`: steps as long as AdamW's (arXiv 2502.16982).
    MatchRmsAdamw,
}

fn default_betas() -> (f64, f64) {
    (0.9, 0.999)
}

fn default_eps() -> f64 {
    1e-8
}

fn default_adafactor_eps() -> (f64, f64) {
    (1e-30, 1e-3)
}

fn default_one() -> f64 {
    1.0
}

fn default_decay_rate() -> f64 {
    -0.8
}

fn default_lion_betas() -> (f64, f64) {
    (0.9, 0.99)
}

fn default_muon_decay() -> f64 {
    0.1
}

fn default_momentum() -> f64 {
    0.95
}

fn default_true() -> bool {
    true
}

fn default_coefficients() -> (f64, f64, f64) {
    (3.4445, -4.775, 2.0315)
}

fn default_muon_eps() -> f64 {
    1e-7
}

fn default_ns_steps() -> u32 {
    5
}

/// A tensor of fewer elements keeps its running means in 32 bits: bitsandbytes' `min_8bit_size`.
pub const MIN_8BIT_SIZE: usize = 4096;

impl Optimizer {
    /// Peak learning rate.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Adamw(adamw) | Self::Adamw8bit(adamw) => adamw.lr,
            Self::Adafactor(adafactor) => adafactor.lr,
            Self::Lion(lion) => lion.lr,
            Self::Muon(muon) => muon.lr,
        }
    }

    /// Its word in a recipe.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Adamw(_) => "adamw",
            Self::Adamw8bit(_) => "adamw_8bit",
            Self::Adafactor(_) => "adafactor",
            Self::Lion(_) => "lion",
            Self::Muon(_) => "muon",
        }
    }

    /// Whether a weight of this name and shape is left to AdamW in 32 bits: small tensors and
    /// the embedding with eight bits, as in Transformers' `Trainer`; with Muon everything but
    /// the matrices of the blocks.
    pub fn leaves(&self, name: &str, shape: &[usize]) -> bool {
        let table = |module: Module| has_part(name, module.name());
        match self {
            Self::Adamw(_) | Self::Adafactor(_) | Self::Lion(_) => false,
            Self::Adamw8bit(_) => {
                shape.iter().product::<usize>() < MIN_8BIT_SIZE || table(Module::EmbedTokens)
            }
            Self::Muon(_) => shape.len() != 2 || Module::ALL.into_iter().any(table),
        }
    }
}

/// Weights that move otherwise than the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamGroup {
    /// Names of weights: some of their parts, one after the other, with `*` for anything
    /// within a part. A weight belongs to the first group that names it.
    pub params: Vec<String>,
    /// Their learning rate, as a share of the optimiser's.
    #[serde(default = "default_one")]
    pub lr_ratio: f64,
    /// Their weight decay; `null`: the optimiser's, for matrices alone.
    #[serde(default)]
    pub weight_decay: Option<f64>,
}

impl ParamGroup {
    /// Whether it names a weight.
    pub fn names(&self, weight: &str) -> bool {
        self.params.iter().any(|pattern| matches(pattern, weight))
    }
}

/// Whether the parts of `pattern` stand in `name`, one after the other.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    let parts: Vec<&str> = name.split('.').collect();
    let fits = |window: &[&str]| pattern.iter().zip(window).all(|(part, name)| fits(part, name));
    parts.windows(pattern.len()).any(fits)
}

/// Whether `text` is `pattern` with anything in the place of each `*`.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    let mut places = text.char_indices().map(|(place, _)| place).chain([text.len()]);
    places.any(|place| text.get(place..).is_some_and(|text| fits(rest, text)))
}

fn has_part(name: &str, part: &str) -> bool {
    name.split('.').any(|known| known == part)
}

/// The learning rate and the decay of a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// A share of the optimiser's learning rate.
    pub lr_ratio: f64,
    /// Weight decay, where it is not the optimiser's.
    pub weight_decay: Option<f64>,
}

impl Train {
    /// How the weight `name` of so many dimensions moves. As in Transformers' `Trainer`,
    /// matrices decay and vectors do not, unless a group says otherwise; LoRA+
    /// (arXiv 2402.12354) as in PEFT's `create_loraplus_optimizer`.
    pub fn pace(&self, name: &str, dimensions: usize) -> Pace {
        let group = self.param_groups.iter().find(|group| group.names(name));
        let faster = dimensions == 1 || has_part(name, "lora_B");
        let loraplus = self.loraplus_lr_ratio.filter(|_| faster).unwrap_or(1.0);
        let own = (dimensions < 2).then_some(0.0);
        Pace {
            lr_ratio: loraplus * group.map_or(1.0, |group| group.lr_ratio),
            weight_decay: group.and_then(|group| group.weight_decay).or(own),
        }
    }
}

/// How the learning rate moves: up to `optimizer`'s peak, and on from there. The names are
/// those of Transformers' `get_scheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Linear warm-up, then half a cosine down, as Transformers'
    /// `get_cosine_schedule_with_warmup` with a floor.
    Cosine(Cosine),
    /// Linear warm-up, then the peak.
    Constant(Constant),
    /// Linear warm-up, then linearly down to nothing.
    Linear(Linear),
    /// Linear warm-up, then several times half a cosine down.
    CosineWithRestarts(CosineWithRestarts),
    /// Warm-up, the peak, and a decay at the end.
    WarmupStableDecay(WarmupStableDecay),
    /// Linear warm-up, then down with the square root of the steps.
    InverseSqrt(InverseSqrt),
}

impl Default for Schedule {
    fn default() -> Self {
        let warmup_ratio = default_warmup();
        Self::Cosine(Cosine { warmup_ratio, warmup_steps: None, min_lr_ratio: 0.0 })
    }
}

fn default_warmup() -> f64 {
    0.03
}

fn default_cycles() -> u32 {
    1
}

fn default_decay_ratio() -> f64 {
    0.1
}

fn default_cosine() -> Curve {
    Curve::Cosine
}

/// Settings of [`Schedule::Cosine`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cosine {
    /// Share of all steps spent warming up.
    #[serde(default = "default_warmup")]
    pub warmup_ratio: f64,
    /// The same as a number of steps; goes before `warmup_ratio`.
    #[serde(default)]
    pub warmup_steps: Option<u64>,
    /// The floor, as a share of the peak.
    #[serde(default)]
    pub min_lr_ratio: f64,
}

/// Settings of [`Schedule::Constant`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// Share of all steps spent warming up.
    #[serde(default = "default_warmup")]
    pub warmup_ratio: f64,
    /// The same as a number of steps; goes before `warmup_ratio`.
    #[serde(default)]
    pub warmup_steps: Option<u64>,
}

/// Settings of [`Schedule::Linear`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Share of all steps spent warming up.
    #[serde(default = "default_warmup")]
    pub warmup_ratio: f64,
    /// The same as a number of steps; goes before `warmup_ratio`.
    #[serde(default)]
    pub warmup_steps: Option<u64>,
}

/// Settings of [`Schedule::CosineWithRestarts`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CosineWithRestarts {
    /// Share of all steps spent warming up.
    #[serde(default = "default_warmup")]
    pub warmup_ratio: f64,
    /// The same as a number of steps; goes before `warmup_ratio`.
    #[serde(default)]
    pub warmup_steps: Option<u64>,
    /// How often it goes down.
    #[serde(default = "default_cycles")]
    pub num_cycles: u32,
}

/// Settings of [`Schedule::WarmupStableDecay`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupStableDecay {
    /// Share of all steps spent warming up.
    #[serde(default = "default_warmup")]
    pub warmup_ratio: f64,
    /// The same as a number of steps; goes before `warmup_ratio`.
    #[serde(default)]
    pub warmup_steps: Option<u64>,
    /// Share of all steps spent decaying, at the end.
    #[serde(default = "default_decay_ratio")]
    pub decay_ratio: f64,
    /// The same as a number of steps, `num_decay_steps`; goes before `decay_ratio`.
    #[serde(default)]
    pub decay_steps: Option<u64>,
    /// How it warms up.
    #[serde(default)]
    pub warmup_type: Curve,
    /// How it decays.
    #[serde(default = "default_cosine")]
    pub decay_type: Curve,
    /// Where it begins and ends, as a share of the peak.
    #[serde(default)]
    pub min_lr_ratio: f64,
}

/// Settings of [`Schedule::InverseSqrt`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InverseSqrt {
    /// Share of all steps spent warming up.
    #[serde(default = "default_warmup")]
    pub warmup_ratio: f64,
    /// The same as a number of steps; goes before `warmup_ratio`.
    #[serde(default)]
    pub warmup_steps: Option<u64>,
    /// After three times as many steps beyond the warm-up the rate is half the peak; `null`: the
    /// steps of the warm-up, or 10,000 without one.
    #[serde(default)]
    pub timescale: Option<u64>,
}

/// The way between two learning rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Curve {
    /// A straight line.
    #[default]
    #[serde(rename = "linear")]
    Linear,
    /// Half a cosine.
    #[serde(rename = "cosine")]
    Cosine,
    /// One minus the square root of what is left.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl Schedule {
    /// Share of all steps that are spent warming up, and their number where it is given.
    pub fn warmup(&self) -> (f64, Option<u64>) {
        match self {
            Self::Cosine(s) => (s.warmup_ratio, s.warmup_steps),
            Self::Constant(s) => (s.warmup_ratio, s.warmup_steps),
            Self::Linear(s) => (s.warmup_ratio, s.warmup_steps),
            Self::CosineWithRestarts(s) => (s.warmup_ratio, s.warmup_steps),
            Self::WarmupStableDecay(s) => (s.warmup_ratio, s.warmup_steps),
            Self::InverseSqrt(s) => (s.warmup_ratio, s.warmup_steps),
        }
    }

    /// Its word in a recipe.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Cosine(_) => "cosine",
            Self::Constant(_) => "constant",
            Self::Linear(_) => "linear",
            Self::CosineWithRestarts(_) => "cosine_with_restarts",
            Self::WarmupStableDecay(_) => "warmup_stable_decay",
            Self::InverseSqrt(_) => "inverse_sqrt",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_parts_of_names_in_their_order() {
        let name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";
        for (pattern, expected) in [
            ("lora_B", true),
            ("lora_*", true),
            ("layers.1", true),
            ("layers.*.self_attn", true),
            ("*_proj.lora_B", true),
            ("q_proj.weight", false),
            ("layers", true),
            ("layer", false),
            ("proj", false),
            ("layers.11", false),
            ("*", true),
            ("*a*_*B", true),
            ("", false),
            (name, true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern}");
        }
    }

    #[test]
    fn a_weight_belongs_to_the_first_group_that_names_it() {
        let train = serde_json::json!({
            "epochs": 1, "tokens_per_step": 8, "seed": 1, "optimizer": {"adamw": {"lr": 1.0}},
            "loraplus_lr_ratio": 16.0,
            "param_groups": [
                {"params": ["layers.0"], "lr_ratio": 0.5},
                {"params": ["lora_B", "norm"], "lr_ratio": 3.0, "weight_decay": 0.2},
            ],
        });
        let train: Train = serde_json::from_value(train).unwrap();
        let pace = |name: &str, dimensions| {
            let Pace { lr_ratio, weight_decay } = train.pace(name, dimensions);
            (lr_ratio, weight_decay)
        };
        assert_eq!(pace("layers.0.q_proj.lora_A.weight", 2), (0.5, None));
        assert_eq!(pace("layers.0.q_proj.lora_B.weight", 2), (8.0, None));
        assert_eq!(pace("layers.1.q_proj.lora_B.weight", 2), (48.0, Some(0.2)));
        assert_eq!(pace("layers.1.q_proj.lora_A.weight", 2), (1.0, None));
        assert_eq!(pace("layers.1.q_proj.lora_magnitude_vector", 1), (16.0, Some(0.0)));
        assert_eq!(pace("norm.weight", 1), (48.0, Some(0.2)));
    }

    #[test]
    fn what_an_optimiser_is_not_for_is_left_to_adamw() {
        let of = |text: &str| -> Optimizer { serde_json::from_str(text).unwrap() };
        let bits = of(r#"{"adamw_8bit": {"lr": 1.0}}"#);
        assert!(bits.leaves("q_proj.weight", &[64, 63]));
        assert!(!bits.leaves("q_proj.weight", &[64, 64]));
        assert!(bits.leaves("model.embed_tokens.weight", &[640, 64]));
        let muon = of(r#"{"muon": {"lr": 1.0, "adamw": {"lr": 0.1}}}"#);
        assert!(!muon.leaves("model.layers.0.mlp.up_proj.weight", &[4, 8]));
        assert!(muon.leaves("model.layers.0.mlp.experts.up_proj", &[2, 4, 8]));
        assert!(muon.leaves("lm_head.weight", &[9, 8]) && muon.leaves("norm.weight", &[8]));
    }
}
