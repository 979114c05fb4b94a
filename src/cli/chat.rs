//! `heirloom chat`.

use std::path::PathBuf;

use super::exit::ExitStatus;
use super::printer::Printer;
use super::target;
use crate::diagnose::Failure;
use crate::generation::Options;
use crate::job::{self, Chat, Job};
use crate::recipe::Dtype;

/// Talk with a model in the terminal, with or without its adapter.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Type a message, or /help. Ctrl-C stops an answer, Ctrl-D leaves. From a pipe, each line is
a message. Nothing of the conversation is kept on disk.

Example:
  heirloom chat runs/quickstart --temperature 0.7")]
pub(super) struct Arguments {
    /// A base folder, a run folder, an adapter folder in PEFT format, or a model of the hub:
    /// `hf://org/name@revision`
    target: PathBuf,
    /// The first message of the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Precision to compute in [default: that of the run, or float32]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Say after each answer how fast it was
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let target = target::resolve(&arguments.target, printer)?.target(arguments.dtype);
    // The engine resolves them again after each `/set`; what is wrong is told at once.
    arguments.options.resolve(&target.base)?;
    let job = Job::Chat(Chat {
        target,
        system: arguments.system.clone(),
        options: arguments.options.clone(),
        stats: arguments.stats,
    });
    Err(job::start(printer.into(), job))
}
