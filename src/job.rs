//! What `heirloom` hands to `heirloom-engine`.
//!
//! Owns the words between the two programs and the start of the second: `heirloom` checks
//! everything it can without tensors, then replaces itself (`exec`) by the engine, which
//! lies beside it and receives one [`Job`] as JSON in its only argument. For training, the
//! run folder is the hand-over: it holds the resolved recipe and the lock. Where there is no
//! such folder, they are its standard input: an argument has no room for a long lock.

use std::env;
use std::fmt;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::diagnose::{Blame, Diagnose, Failure};
use crate::generation::{Options, Settings};
use crate::recipe::Recipe;
use crate::recipe::lock::Lock;

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

/// Names another engine than the one beside this program.
pub const ENGINE_VARIABLE: &str = "HEIRLOOM_ENGINE";

/// The program that computes.
const ENGINE: &str = "heirloom-engine";

/// The engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// There is no such program.
    #[error("there is no program `{}`", path.display())]
    NoEngine {
        /// Where it should be.
        path: PathBuf,
    },
    /// The program is there and does not start.
    #[error("cannot start `{}`", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no temporary file for what the engine reads.
    #[error("cannot write a temporary file for the engine")]
    Input(#[source] io::Error),
    /// The job has no JSON.
    #[error("cannot write the job for the engine")]
    Words(#[source] serde_json::Error),
}

impl Diagnose for JobError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoEngine { .. } => format!(
                "build it beside this program with `scripts/setup` and then `cargo build \
                 --release`, or set `{ENGINE_VARIABLE}` to where it is"
            ),
            Self::Input(source) => return source.hint(),
            Self::Start { .. } => "`heirloom doctor` shows what the engine needs".to_owned(),
            Self::Words(_) => return None,
        })
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Words(_) => Blame::Defect,
            _ => Blame::User,
        }
    }
}

/// Where the engine is, or should be: `$HEIRLOOM_ENGINE`, or else beside this program.
pub fn engine() -> Result<PathBuf, JobError> {
    let path = match env::var_os(ENGINE_VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => {
            let missing = |source| JobError::Start { path: ENGINE.into(), source };
            // Through links: they point to the program, and the engine lies where it lies.
            let program = env::current_exe().and_then(|path| path.canonicalize());
            let program = program.map_err(missing)?;
            program.parent().unwrap_or(Path::new(".")).join(ENGINE)
        }
    };
    if path.is_file() { Ok(path) } else { Err(JobError::NoEngine { path }) }
}

/// Becomes the engine, doing `job`; returns only when that is not possible.
pub fn start(verbosity: Verbosity, job: Job) -> Failure {
    become_engine(verbosity, job, None).into()
}

/// As [`start`], with `work` as the engine's standard input.
pub fn start_with(verbosity: Verbosity, job: Job, work: &Work) -> Failure {
    match input(work) {
        Ok(input) => become_engine(verbosity, job, Some(input)).into(),
        Err(error) => error.into(),
    }
}

/// JSON in a file that has no name any more: nothing is left behind, however all ends.
fn input(work: &Work) -> Result<Stdio, JobError> {
    let words = serde_json::to_vec(work).map_err(JobError::Words)?;
    let written = tempfile::tempfile().and_then(|mut file| {
        file.write_all(&words)?;
        file.rewind()?;
        Ok(file)
    });
    written.map(Stdio::from).map_err(JobError::Input)
}

fn become_engine(verbosity: Verbosity, job: Job, input: Option<Stdio>) -> JobError {
    let envelope = Envelope { version: crate::VERSION.to_owned(), verbosity, job };
    let words = match serde_json::to_string(&envelope) {
        Ok(words) => words,
        Err(error) => return JobError::Words(error),
    };
    match engine() {
        Ok(path) => {
            let mut command = Command::new(&path);
            command.arg(words);
            if let Some(input) = input {
                command.stdin(input);
            }
            JobError::Start { source: command.exec(), path }
        }
        Err(error) => error,
    }
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
        /// Where to compute.
        device: Device,
    },
    /// Measure a few steps of the [`Work`] on the standard input.
    Bench(Bench),
    /// Store what a teacher says to the rows of the [`Work`] on the standard input.
    Logits(Logits),
    /// Measure a suite on a model, and on its baseline.
    Evaluate(Evaluate),
    /// Measure how well a model predicts a text.
    Perplexity(Perplexity),
    /// Answer one request, or a file of them.
    Generate(Generate),
    /// Talk with the user.
    Chat(Chat),
    /// Write a release folder from a finished run.
    Export(Export),
}

/// `heirloom bench`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bench {
    /// Optimiser steps that are measured.
    pub steps: usize,
    /// Where to compute.
    pub device: Device,
    /// Print JSON instead of a table.
    pub json: bool,
}

/// `heirloom logits`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Logits {
    /// Tokens that are kept at each position.
    pub top_k: usize,
    /// Where to compute.
    pub device: Device,
    /// The Parquet file.
    pub output: PathBuf,
}

/// A run without a run folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    /// The recipe with its defaults.
    pub recipe: Recipe,
    /// Its inputs.
    pub lock: Lock,
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
    /// What the rows must allow.
    pub gate: crate::dataset::consent::Ask,
    /// Ledgers of withdrawals.
    pub ledgers: Vec<PathBuf>,
    /// Print JSON instead of a table.
    pub json: bool,
}

/// `heirloom eval --suite perplexity`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Perplexity {
    /// What is measured.
    pub target: Target,
    /// The text, in UTF-8.
    pub text: PathBuf,
    /// Tokens that are run together, or what suits the model.
    pub window: Option<usize>,
    /// From the beginning of one window to that of the next, or the whole window.
    pub stride: Option<usize>,
    /// Where to compute.
    pub device: Device,
    /// Print JSON instead of a table.
    pub json: bool,
}

/// Where to compute, written as in PyTorch: `cpu`, `cuda` or `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A graphics processor, by its number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let index = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|index| index.parse().ok()),
        };
        index.map(Self::Cuda).ok_or_else(|| "it must be `cpu`, `cuda` or `cuda:N`".to_owned())
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// `heirloom generate`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generate {
    /// Which model answers.
    pub target: Target,
    /// What it is asked.
    pub asked: Asked,
    /// Goes before every conversation that has no system message of its own.
    pub system: Option<String>,
    /// Go on from plain text, without the chat template.
    pub raw: bool,
    /// How.
    pub settings: Settings,
    /// Requests that are decoded together.
    pub batch_size: usize,
    /// Where the answers go as JSONL, instead of the standard output.
    pub output: Option<PathBuf>,
    /// Say how fast it was.
    pub stats: bool,
}

/// What a model is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// The user's message.
    Prompt(String),
    /// A file that holds the user's message.
    File(PathBuf),
    /// A file of requests.
    Requests(PathBuf),
}

/// `heirloom chat`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chat {
    /// Which model answers.
    pub target: Target,
    /// The first message, if there is one.
    pub system: Option<String>,
    /// How; what is left open, the model's own file decides.
    pub options: Options,
    /// Say after each answer how fast it was.
    pub stats: bool,
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
    /// How the base is held, and the precision to compute in.
    pub storage: crate::recipe::Storage,
}

impl Target {
    /// The folder whose tokenizer and template are used: the adapter's, where it brings its
    /// own, for that is what it was trained with.
    pub fn words(&self) -> &Path {
        let own = self.adapter.as_deref().filter(|folder| folder.join("tokenizer.json").is_file());
        own.unwrap_or(&self.base)
    }
}
