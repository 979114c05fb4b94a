//! `heirloom generate`.

use std::path::PathBuf;

use super::exit::ExitStatus;
use super::printer::Printer;
use super::target;
use crate::diagnose::Failure;
use crate::job::{self, Generate, Job};
use crate::recipe::Dtype;

/// Let a model answer one message, to see what it now says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  heirloom generate runs/quickstart --prompt 'Three bags of marigold, please'")]
pub(super) struct Arguments {
    /// A base folder, a run folder, or an adapter folder in PEFT format.
    target: PathBuf,
    /// The user's message.
    #[arg(long, short)]
    prompt: String,
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = target::at_least_one)]
    max_new_tokens: usize,
    /// Precision to compute in [default: that of the run, or float32]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let target = target::resolve(&arguments.target, printer)?.target(arguments.dtype);
    let job = Job::Generate(Generate {
        target,
        prompt: arguments.prompt.clone(),
        max_new_tokens: arguments.max_new_tokens,
    });
    Err(job::start(printer.into(), job))
}
