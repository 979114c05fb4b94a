//! `heirloom data …`: one file per command.

mod consent;
mod import;
mod look;
mod show;
mod stats;
mod tokens;
mod visible;
mod withdraw;
mod words;

use clap::Subcommand;

use super::exit::ExitStatus;
use super::printer::Printer;
use crate::diagnose::Failure;
pub(super) use withdraw::subject;

/// Bring rows in with their consent, look at them, and record withdrawals.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
In this order, with rows of your own: import, consent, show, stats; docs/guide/your-data.md walks
through it. `heirloom data COMMAND --help` says more about each.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Import(import::Arguments),
    Consent(consent::Arguments),
    Withdraw(withdraw::Arguments),
    Show(Box<show::Arguments>),
    Stats(stats::Arguments),
}

pub(super) fn run(arguments: Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    match arguments.command {
        Command::Import(arguments) => import::run(arguments, printer),
        Command::Consent(arguments) => consent::run(&arguments, printer),
        Command::Withdraw(arguments) => withdraw::run(&arguments, printer),
        Command::Show(arguments) => show::run(&arguments, printer),
        Command::Stats(arguments) => stats::run(&arguments, printer),
    }
}
