//! What `heirloom` hands to `heirloom-engine`.
//!
//! Owns the words between the two programs and the start of the second: `heirloom` checks
//! everything it can without tensors, then replaces itself (`exec`) by the engine, which
//! lies beside it and receives one [`Job`] as JSON in its only argument. For training, the
//! run folder is the hand-over: it holds the resolved recipe and the lock.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How the engine shall talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Progress bars on a terminal, a plain line now and then elsewhere.
    Normal,
}

/// The envelope: the engine refuses a job of another version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Version of the `heirloom` that sent it.
    pub version: String,
    /// How to talk.
    pub verbosity: Verbosity,
    /// What to do.
    pub job: Job,
}

/// What the engine can be asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// Train what the run folder's `recipe.yaml` and `recipe.lock` say, from its newest
    /// checkpoint if it has one.
    Train {
        /// The run folder.
        run: PathBuf,
    },
    /// Measure a suite on a model, and on its baseline.
    Evaluate(Evaluate),
    /// Continue one prompt.
    Generate(Generate),
    /// Write a release folder from a finished run.
    Export(Export),
}

/// `heirloom eval`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluate {
    /// What is measured.
    pub target: Target,
    /// What it is compared with.
    pub baseline: Option<Target>,
    /// The rows.
    pub suite: crate::recipe::Suite,
    /// What the rows must allow; `None` measures without a purpose and uses no row that
    /// has a data subject.
    pub gate: crate::dataset::consent::Ask,
    /// Print JSON instead of a table.
    pub json: bool,
}

/// `heirloom generate`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generate {
    /// Which model answers.
    pub target: Target,
    /// The user's message.
    pub prompt: String,
    /// At most this many tokens are generated.
    pub max_new_tokens: usize,
}

/// `heirloom export`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Export {
    /// The finished run.
    pub run: PathBuf,
    /// The shape of the release.
    pub to: ExportKind,
    /// The release folder.
    pub output: PathBuf,
    /// Replace an existing folder.
    pub force: bool,
}

/// The shapes of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ExportKind {
    /// A PEFT adapter folder.
    Adapter,
    /// A whole model in Hugging Face format.
    Merged,
}

/// A model that can be run: a base folder, with or without a PEFT adapter folder over it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Folder in Hugging Face format.
    pub base: PathBuf,
    /// Folder in PEFT format.
    pub adapter: Option<PathBuf>,
    /// The precision to compute in.
    pub dtype: crate::recipe::Dtype,
}
