//! The command line: clap types, one file per command, exit status, the printer.
//!
//! Owns what users type and what they see. Does not own what a command does: each one calls
//! the rooms, and for everything with tensors becomes `heirloom-engine` (see [`crate::job`]).
//! Nothing outside [`printer`] prints.

mod bench;
mod chat;
mod check;
mod completions;
mod data;
mod doctor;
mod eval;
pub mod exit;
mod export;
mod generate;
mod lineage;
mod logits;
pub mod printer;
mod target;
mod track;
mod train;
mod verify;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::dataset::source::remote::on_retry;
use crate::diagnose::Failure;
use exit::ExitStatus;
use printer::Printer;

const AFTER_HELP: &str = "\
Examples:
  heirloom data import letters.jsonl -o letters.parquet --consent consent.yaml
                                             rows with their consent, from JSONL, CSV or Parquet
  heirloom check recipes/quickstart.yaml     what a recipe would do, and all that is wrong with it
  heirloom train recipes/quickstart.yaml     train it; the result lies in runs/quickstart
  heirloom eval runs/quickstart --suite catalogue --baseline data/seedling
  heirloom export runs/quickstart --to adapter -o releases/quickstart
  heirloom verify releases/quickstart        prove that a release is what its manifest says
  heirloom lineage affected --record ID      which runs and models used a record

`heirloom COMMAND --help` says more about each command.";

/// Adapt a language model from one recipe, on data that carries its consent.
#[derive(Debug, Parser)]
#[command(name = "heirloom", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    /// Print data and errors only.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Arguments),
    Data(data::Arguments),
    Train(train::Arguments),
    Bench(bench::Arguments),
    Logits(logits::Arguments),
    Eval(eval::Arguments),
    Generate(Box<generate::Arguments>),
    Chat(Box<chat::Arguments>),
    Export(export::Arguments),
    Verify(verify::Arguments),
    Lineage(lineage::Arguments),
    Track(track::Arguments),
    Doctor(doctor::Arguments),
    Completions(completions::Arguments),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return explain(&error).into(),
    };
    let printer = if arguments.quiet { Printer::Quiet } else { Printer::Normal };
    say_retries(printer);
    exit::conclude(printer, run(arguments.command, printer))
}

/// A server that stalls should not look like a program that does.
pub fn say_retries(printer: Printer) {
    on_retry(Arc::new(move |words| printer.note(words)));
}

fn run(command: Command, printer: Printer) -> Result<ExitStatus, Failure> {
    match command {
        Command::Check(arguments) => check::run(&arguments, printer),
        Command::Data(arguments) => data::run(arguments, printer),
        Command::Train(arguments) => train::run(&arguments, printer),
        Command::Bench(arguments) => bench::run(&arguments, printer),
        Command::Logits(arguments) => logits::run(&arguments, printer),
        Command::Eval(arguments) => eval::run(&arguments, printer),
        Command::Generate(arguments) => generate::run(&arguments, printer),
        Command::Chat(arguments) => chat::run(&arguments, printer),
        Command::Export(arguments) => export::run(&arguments, printer),
        Command::Verify(arguments) => verify::run(&arguments, printer),
        Command::Lineage(arguments) => lineage::run(&arguments, printer),
        Command::Track(arguments) => track::run(&arguments, printer),
        Command::Doctor(arguments) => doctor::run(&arguments, printer),
        Command::Completions(arguments) => {
            completions::run(&arguments, &mut self::Arguments::command(), printer)
        }
    }
}

/// Prints what clap has to say: help and version are data; anything else is a mistake that
/// the user can fix.
fn explain(error: &clap::Error) -> ExitStatus {
    // A closed pipe is all that can go wrong, and then nobody reads.
    let _ = error.print();
    if error.use_stderr() { ExitStatus::Failure } else { ExitStatus::Success }
}
