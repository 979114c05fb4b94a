//! The engine's own errors.

use std::io;
use std::path::PathBuf;

use heirloom::base::{BaseError, Mismatch};
use heirloom::dataset::logits::LogitsError;
use heirloom::diagnose::{Blame, Diagnose};
use heirloom::hub::HubError;
use heirloom::peft::PeftError;
use heirloom::recipe::UnknownToken;
use heirloom::recipe::memory::Setting;
use tch::TchError;

use crate::ops::CudaError;

/// What can go wrong while computing.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// libtorch refused an operation; shapes and dtypes were checked before, so this is a
    /// defect of ours or a lack of memory.
    #[error("libtorch could not compute an operation")]
    Torch(#[from] TchError),
    /// A step takes more memory than there is.
    #[error("step {step} ran out of memory in the {pass} pass of {tokens} tokens: {wanted}")]
    OutOfMemory {
        /// Optimiser step.
        step: u64,
        /// Forward or backward.
        pass: &'static str,
        /// Tokens of the micro-batch.
        tokens: usize,
        /// What was being allocated, as libtorch says it.
        wanted: String,
        /// Settings that are predicted to fit into what there was.
        fitting: Vec<Setting>,
    },
    /// Parts of this program that do not fit each other: a defect of ours.
    #[error("{0}")]
    Defect(String),
    /// The base or a safetensors file.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// A file of what a teacher said.
    #[error(transparent)]
    Logits(#[from] LogitsError),
    /// More tokens are asked for than there are.
    #[error("`--top-k {top_k}` leaves none of {vocabulary} tokens for the rest")]
    TopK {
        /// What was asked for.
        top_k: usize,
        /// What there is.
        vocabulary: usize,
    },
    /// A model of the hub that is not in the cache.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// JSON of ours or of PEFT is not what it should be.
    #[error("`{}` is not valid", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Safetensors cannot be written.
    #[error("cannot write `{}`", path.display())]
    WriteSafetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// The settings of an adapter are not those of one that can be used.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// The tensors of an adapter or a checkpoint are not those that belong there.
    #[error("`{}` does not fit: {}", path.display(), problems.iter().map(Mismatch::to_string).collect::<Vec<_>>().join(", "))]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Every difference.
        problems: Vec<Mismatch>,
    },
    /// A token without a row.
    #[error("the token {id} is to be trained, but the base has only {rows} rows")]
    NoSuchToken {
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        rows: u64,
    },
    /// A token that the tokenizer does not have; the plan looked for it.
    #[error("`{0}` is no token of the base")]
    UnknownToken(String),
    /// The loss or the gradient is not a number any more.
    #[error("the {what} of step {step} is {value}")]
    Diverged {
        /// Optimiser step.
        step: u64,
        /// Loss or gradient.
        what: &'static str,
        /// What was computed.
        value: f64,
    },
    /// Rows of the run were withdrawn while it was going.
    #[error("{} of the run `{}` {} withdrawn; it stopped after step {step}", counted_rows(*.rows), run.display(), if *.rows == 1 { "was" } else { "were" })]
    Withdrawn {
        /// How many.
        rows: u64,
        /// The last step that was taken.
        step: u64,
        /// The run folder.
        run: PathBuf,
    },
    /// The stream had fewer steps than the plan counted: a defect of ours.
    #[error("the rows ended after step {step} of {steps}")]
    StreamEnded {
        /// Finished optimiser steps.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
    },
    /// A sequence is longer than the model can take.
    #[error(
        "{tokens} tokens, {extra} of them for the answer, are more than the {limit} that the model was made for"
    )]
    TooLong {
        /// Length of the longest sequence, room for its answer included.
        tokens: usize,
        /// Room for the answer.
        extra: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// A chat over a pipe, some of whose lines came to nothing.
    #[error("{failed} of {lines} lines could not be done")]
    Unanswered {
        /// How many.
        failed: usize,
        /// Of how many.
        lines: usize,
    },
    /// Windows that leave tokens out between them.
    #[error("a stride of {stride} tokens would skip some between windows of {window}")]
    Stride {
        /// From one window to the next.
        stride: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// A window that the model was not made for.
    #[error("a window of {window} tokens is more than the {limit} that the model was made for")]
    Window {
        /// Tokens of a window.
        window: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// A loss that is infinite or no number at all.
    #[error("the loss of tokens {first} to {last} is not a finite number")]
    NoNumber {
        /// First token of the windows that were run together.
        first: usize,
        /// The token after their last.
        last: usize,
    },
    /// A kernel that cannot be compiled or launched.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A device that is not there.
    #[error("there is no device `{device}`: {reason}")]
    NoDevice {
        /// What was asked for.
        device: heirloom::job::Device,
        /// What the loader or libtorch says.
        reason: String,
    },
    /// The model computed no number for any token.
    #[error("the model's scores are not numbers, so no token can be chosen")]
    NoToken,
    /// The variable that chooses operations says something else.
    #[error("`HEIRLOOM_OPS` cannot be `{value}`")]
    OpsVariable {
        /// What it is.
        value: String,
    },
    /// Training was interrupted and can go on.
    #[error("stopped by a signal after step {step} of {steps}; `{}` can be resumed", run.display())]
    Interrupted {
        /// Finished optimiser steps.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// The run folder.
        run: PathBuf,
    },
    /// A run folder lacks what only a finished run has.
    #[error("the run in `{}` is not finished", run.display())]
    Unfinished {
        /// The run folder.
        run: PathBuf,
    },
    /// Full training makes no adapter.
    #[error("the run in `{}` trained the whole model, so there is no adapter", run.display())]
    NoAdapter {
        /// The run folder.
        run: PathBuf,
    },
    /// A gate of the recipe does not hold.
    #[error("`{metric}` is {value:.4}, but the recipe wants {wanted}")]
    Gate {
        /// `SUITE/METRIC`.
        metric: String,
        /// What was measured.
        value: f64,
        /// The condition in words.
        wanted: String,
    },
    /// The envelope is not from this version of `heirloom`.
    #[error("`heirloom-engine` {engine} was started by `heirloom` {sender}")]
    Version {
        /// Of the engine.
        engine: String,
        /// Of the sender.
        sender: String,
    },
    /// The argument is no job.
    #[error("`heirloom-engine` is started by `heirloom`, not by hand")]
    NoJob {
        /// What the JSON reader said.
        source: serde_json::Error,
    },
}

/// The engine's results.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// How allocators say that there is no more: ours, libtorch's on the CPU, libtorch's on CUDA.
const LACKS: [&str; 3] = ["not enough memory", "can't allocate memory", "out of memory"];

impl EngineError {
    /// What was asked of an allocator that had no more, in one line.
    pub fn lack_of_memory(&self) -> Option<String> {
        let Self::Torch(error) = self else { return None };
        let message = error.to_string();
        let lack = |line: &str| {
            let place = LACKS.iter().find_map(|lack| line.find(lack))?;
            line.get(place..).map(|words| words.trim().to_owned())
        };
        message.lines().find_map(lack)
    }
}

impl From<UnknownToken> for EngineError {
    fn from(UnknownToken(token): UnknownToken) -> Self {
        Self::UnknownToken(token)
    }
}

impl Diagnose for EngineError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Peft(error) => return error.hint(),
            Self::Base(error) => return error.hint(),
            Self::Hub(error) => return error.hint(),
            Self::Logits(error) => return error.hint(),
            Self::TopK { .. } => "write a smaller number, such as 32",
            Self::Io(error) => return error.hint(),
            Self::Cuda(error) => return error.hint(),
            Self::Torch(_) => {
                "if the machine ran out of memory, lower `train.micro_batch_tokens`; otherwise \
                 please report this as a defect"
            }
            Self::OutOfMemory { fitting, .. } if fitting.is_empty() => {
                "lower `train.micro_batch_tokens` or `data.sequence_length`, or write \
                 `train.activation_checkpointing: block`, and train anew; checkpoints are kept"
            }
            Self::OutOfMemory { .. } => {
                "train anew with one of these settings, which are predicted to fit; checkpoints \
                 are kept, for a machine with more memory"
            }
            Self::Json { .. } | Self::Tensors { .. } => {
                "the file is damaged or belongs to another model: copy it again"
            }
            Self::WriteSafetensors { .. } => "check the free space and the rights of the folder",
            Self::NoSuchToken { .. } => "use the base that the tokens belong to",
            Self::UnknownToken(_) => "check the recipe again with `heirloom check`",
            Self::Diverged { .. } => {
                "lower the learning rate of `train.optimizer` or lengthen the warm-up"
            }
            Self::Withdrawn { .. } => {
                "train anew with another `--run`, which leaves them out; with \
                 `data.consent.on_withdrawal: drop` a run goes on without such rows"
            }
            Self::Defect(_) | Self::StreamEnded { .. } => {
                "please report this as a defect, with the recipe"
            }
            Self::TooLong { .. } => {
                "shorten the text (`/reset` begins a chat anew), lower `--max-new-tokens`, or choose a \
                 base with a longer context"
            }
            Self::Unanswered { .. } => "the errors above say why",
            Self::Stride { .. } => "give a smaller `--stride`, or a larger `--window`",
            Self::Window { .. } => "give a smaller `--window`",
            Self::NoNumber { .. } => {
                "try `--dtype float32`; if it stays so, the weights are damaged: copy them again"
            }
            Self::NoDevice { .. } => {
                "use `--device cpu`, or install the driver and the libtorch with CUDA that \
                 `scripts/libtorch-cuda.txt` lists; `heirloom doctor` shows what is there"
            }
            Self::NoToken => "compute in float32 (`--dtype`), or copy the model again",
            Self::OpsVariable { .. } => "unset it, or write `HEIRLOOM_OPS=reference`",
            Self::Interrupted { .. } => "go on with the same command and `--resume`",
            Self::Unfinished { .. } => "finish it with `heirloom train RECIPE --resume`",
            Self::NoAdapter { .. } => "export it with `--to merged`",
            Self::Gate { .. } => "the run is kept; train longer, or change `eval.gates`",
            Self::Version { .. } => "build both programs together: `cargo build --release`",
            Self::NoJob { .. } => "see `heirloom --help`",
        };
        Some(hint.to_owned())
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Base(error) => error.details(),
            Self::OutOfMemory { fitting, .. } => fitting.iter().map(Setting::words).collect(),
            _ => Vec::new(),
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Cuda(error) => error.blame(),
            Self::Logits(error) => error.blame(),
            Self::Torch(_) | Self::Defect(_) | Self::StreamEnded { .. } => Blame::Defect,
            _ => Blame::User,
        }
    }
}

/// So many rows, in words.
pub(crate) fn counted_rows(number: u64) -> String {
    if number == 1 { "1 row".to_owned() } else { format!("{number} rows") }
}
