//! `heirloom generate`.

use std::path::PathBuf;

use super::exit::ExitStatus;
use super::printer::Printer;
use super::target;
use crate::diagnose::{Diagnose, Failure};
use crate::files;
use crate::generation::Options;
use crate::job::{self, Asked, Generate, Job};
use crate::recipe::Dtype;

/// Requests that are decoded together where nobody says.
const BATCH_SIZE: usize = 16;

/// Let a model answer one message, or a file of them, to see what it now says.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "heirloom generate [OPTIONS] <TARGET> <PROMPT|--file <FILE>|--input <FILE>>",
    after_help = "\
How tokens are chosen is what the model's `generation_config.json` says, as in Transformers'
`generate`; options replace it one by one. Any option of sampling turns sampling on.

Examples:
  heirloom generate runs/quickstart 'Three bags of marigold, please'
  heirloom generate runs/quickstart --file letter.txt --temperature 0.7 --seed 3
  heirloom generate runs/quickstart --input requests.jsonl --output answers.jsonl"
)]
pub(super) struct Arguments {
    /// A base folder, a run folder, an adapter folder in PEFT format, or a model of the hub:
    /// `hf://org/name@revision`
    target: PathBuf,
    #[command(flatten)]
    asked: AskedArguments,
    /// A system message, where a conversation has none
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Go on from plain text, without the chat template
    #[arg(long)]
    raw: bool,
    /// Write the answers to this file, as JSONL
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Requests that are decoded together
    #[arg(long, default_value_t = BATCH_SIZE, value_name = "N", allow_negative_numbers = true, value_parser = target::at_least_one)]
    batch_size: usize,
    /// Precision to compute in [default: that of the run, or float32]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Say how fast it was
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    options: Options,
}

/// What the model is asked: exactly one of these.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct AskedArguments {
    /// The user's message
    #[arg(value_name = "PROMPT")]
    text: Option<String>,
    /// The user's message, as an option
    #[arg(long, short, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file that holds the user's message; `-` is the standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A file of requests, `.jsonl` or `.parquet`, with `prompt` or `messages`
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

impl AskedArguments {
    /// clap sees to it that one is given.
    fn asked(&self) -> Asked {
        match (&self.file, &self.input) {
            (Some(path), _) => Asked::File(path.clone()),
            (_, Some(path)) => Asked::Requests(path.clone()),
            _ => {
                Asked::Prompt(self.text.clone().or_else(|| self.prompt.clone()).unwrap_or_default())
            }
        }
    }
}

/// An output that would be lost, or would lose the input.
#[derive(Debug, thiserror::Error)]
enum GenerateError {
    #[error("`--output` names the file of the requests, `{}`", path.display())]
    OverInput { path: PathBuf },
}

impl Diagnose for GenerateError {
    fn hint(&self) -> Option<String> {
        Some("give the answers a file of their own".to_owned())
    }
}

impl Arguments {
    /// Looked at before anything is computed: an answer may take hours.
    fn check_output(&self) -> Result<(), Failure> {
        let Some(output) = &self.output else { return Ok(()) };
        let place = files::place_of_file(output)?.canonicalize().ok();
        let inputs = [&self.asked.file, &self.asked.input].into_iter().flatten();
        for path in inputs {
            if place.is_some() && path.canonicalize().ok() == place {
                return Err(GenerateError::OverInput { path: path.clone() }.into());
            }
        }
        Ok(())
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    arguments.check_output()?;
    let target = target::resolve(&arguments.target, printer)?.target(arguments.dtype);
    let settings = arguments.options.resolve(&target.base)?;
    let job = Job::Generate(Generate {
        target,
        asked: arguments.asked.asked(),
        system: arguments.system.clone(),
        raw: arguments.raw,
        settings,
        batch_size: arguments.batch_size,
        output: arguments.output.clone(),
        stats: arguments.stats,
    });
    Err(job::start(printer.into(), job))
}
