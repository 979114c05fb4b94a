//! `heirloom eval`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::check::Output;
use super::exit::ExitStatus;
use super::printer::Printer;
use super::target::{self, Resolved};
use crate::dataset::consent::Ask;
use crate::dataset::text;
use crate::diagnose::{Diagnose, Failure};
use crate::job::{self, Device, Evaluate, Job, Perplexity};
use crate::recipe::lock::Split;
use crate::recipe::plan::ask;
use crate::recipe::problem::listed;
use crate::recipe::{DEFAULT_MAX_HOURS, DEFAULT_PROCESSING, Dtype, Format, Suite};

/// Measure a model on held-out rows, or by the perplexity of a text.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  heirloom eval runs/quickstart --suite catalogue --baseline data/seedling
  heirloom eval data/seedling --suite data/catalogue/test.parquet --purpose dpv:ServiceProvision
  heirloom eval data/seedling --suite perplexity --text README.md --window 512 --format json")]
pub(super) struct Arguments {
    /// A base folder, a run folder, an adapter folder in PEFT format, or a model of the hub:
    /// `hf://org/name@revision`
    target: PathBuf,
    /// Name of a suite in the run's recipe, a Parquet file, or `perplexity` with `--text`.
    #[arg(long)]
    suite: String,
    /// Another target, to compare with.
    #[arg(long, value_name = "TARGET")]
    baseline: Option<PathBuf>,
    /// What the rows must allow, as a DPV term; may be given again [default: the run's]
    #[arg(long, value_name = "TERM")]
    purpose: Vec<String>,
    /// Longest answer, in tokens [default: the suite's, or 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = target::at_least_one)]
    max_new_tokens: Option<usize>,
    /// Precision to compute in [default: that of the run, or float32]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// The text of the suite `perplexity`, a file in UTF-8.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["baseline", "purpose", "max_new_tokens"])]
    text: Option<PathBuf>,
    /// Tokens of the text that are run together [default: as many as the model was made for,
    /// at most 2048]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = at_least_two, requires = "text")]
    window: Option<usize>,
    /// Tokens from the beginning of one window to that of the next; a smaller one gives every
    /// token more of the text before it and takes longer. Overlapping windows score each token
    /// once, and the mean is over scored tokens [default: the window]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = target::at_least_one, requires = "text")]
    stride: Option<usize>,
    /// Where to compute the suite `perplexity`: `cpu`, `cuda` or `cuda:N` [default: cpu]
    #[arg(long, requires = "text")]
    device: Option<Device>,
    /// Ledger of withdrawals, where TARGET is not a run, whose recipe names them; may be given
    /// again.
    #[arg(long = "ledger", value_name = "FILE")]
    ledgers: Vec<PathBuf>,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

#[derive(Debug, thiserror::Error)]
enum EvalError {
    #[error("`{suite}` is neither a suite of the run nor a file")]
    NoSuite { suite: String, known: Vec<String> },
    #[error("nothing says for what purpose `{suite}` may be read")]
    NoPurpose { suite: String },
    #[error("the suite `{PERPLEXITY}` needs a text")]
    NoText,
    #[error("`--text` belongs to the suite `{PERPLEXITY}`, not to `{suite}`")]
    NotPerplexity { suite: String },
}

/// The suite that needs no rows.
const PERPLEXITY: &str = "perplexity";

/// A window: a token alone predicts nothing.
fn at_least_two(text: &str) -> Result<usize, String> {
    match target::at_least_one(text)? {
        1 => Err("it must be at least 2".to_owned()),
        number => Ok(number),
    }
}

impl Diagnose for EvalError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoSuite { known, .. } if known.is_empty() => {
                "give a Parquet file of chats".to_owned()
            }
            Self::NoSuite { known, .. } => {
                format!("the run's recipe has {}", listed(known.iter().map(String::as_str)))
            }
            Self::NoPurpose { .. } => {
                "add `--purpose` with a DPV term, such as `--purpose dpv:ServiceProvision`"
                    .to_owned()
            }
            Self::NoText => "add `--text` with a file".to_owned(),
            Self::NotPerplexity { .. } => format!("give `--suite {PERPLEXITY}`"),
        })
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let resolved = target::resolve(&arguments.target, printer)?;
    if let Some(text) = &arguments.text {
        let job = Job::Perplexity(perplexity(arguments, &resolved, text)?);
        return Err(job::start(printer.into(), job));
    }
    let baseline = arguments.baseline.as_deref();
    let baseline = baseline.map(|baseline| target::resolve(baseline, printer)).transpose()?;
    let job = Job::Evaluate(Evaluate {
        target: resolved.target(arguments.dtype),
        // Both are compared in one precision, or the comparison would mean little.
        baseline: baseline
            .map(|baseline| baseline.target(Some(resolved.target(arguments.dtype).storage.dtype))),
        suite: suite(arguments, &resolved)?,
        gate: gate(arguments, &resolved)?,
        ledgers: match &resolved {
            Resolved::Run(run) => run.recipe.data.consent.ledgers.clone(),
            _ => arguments.ledgers.clone(),
        },
        json: arguments.format == Output::Json,
    });
    Err(job::start(printer.into(), job))
}

/// The text that is meant, looked at before the engine starts.
fn perplexity(
    arguments: &Arguments,
    resolved: &Resolved,
    text: &Path,
) -> Result<Perplexity, Failure> {
    let suite = &arguments.suite;
    if suite != PERPLEXITY {
        return Err(EvalError::NotPerplexity { suite: suite.clone() }.into());
    }
    text::read(text)?;
    Ok(Perplexity {
        target: resolved.target(arguments.dtype),
        text: text.to_owned(),
        window: arguments.window,
        stride: arguments.stride,
        device: arguments.device.unwrap_or_default(),
        json: arguments.format == Output::Json,
    })
}

/// The rows that are meant: a suite of the run as it was locked, or else a file.
fn suite(arguments: &Arguments, resolved: &Resolved) -> Result<Suite, Failure> {
    let suites = match resolved {
        Resolved::Run(run) => run.recipe.data.test.as_slice(),
        _ => &[],
    };
    let name = &arguments.suite;
    let mut suite = if let Some(suite) = suites.iter().find(|suite| suite.name == *name) {
        if let Resolved::Run(run) = resolved {
            run.lock.verify_split(&Split::Test(name.clone()))?;
        }
        suite.clone()
    } else if Path::new(name).is_file() {
        let stem = Path::new(name).file_stem().unwrap_or_default();
        Suite {
            name: stem.to_string_lossy().into_owned(),
            path: name.clone(),
            format: Format::Chat,
            columns: BTreeMap::new(),
            max_new_tokens: crate::recipe::DEFAULT_MAX_NEW_TOKENS,
        }
    } else {
        if name == PERPLEXITY {
            return Err(EvalError::NoText.into());
        }
        let known = suites.iter().map(|suite| suite.name.clone()).collect();
        return Err(EvalError::NoSuite { suite: name.clone(), known }.into());
    };
    suite.max_new_tokens = arguments.max_new_tokens.unwrap_or(suite.max_new_tokens);
    Ok(suite)
}

/// What the rows must allow, now.
fn gate(arguments: &Arguments, resolved: &Resolved) -> Result<Ask, Failure> {
    let now = Timestamp::now();
    let mut gate = match resolved {
        Resolved::Run(run) => ask(&run.recipe.data, now),
        _ if arguments.purpose.is_empty() => {
            return Err(EvalError::NoPurpose { suite: arguments.suite.clone() }.into());
        }
        _ => Ask {
            purpose: Vec::new(),
            processing: vec![DEFAULT_PROCESSING.to_owned()],
            at: now,
            until: crate::recipe::plan::hours_after(now, DEFAULT_MAX_HOURS),
        },
    };
    if !arguments.purpose.is_empty() {
        gate.purpose.clone_from(&arguments.purpose);
    }
    Ok(gate)
}
