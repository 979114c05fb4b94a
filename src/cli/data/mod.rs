//! `heirloom data …`: one file per command.

mod import;

use clap::Subcommand;

use super::exit::ExitStatus;
use super::printer::Printer;
use crate::diagnose::Failure;

/// Bring rows in with their consent, and look at them.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Import(import::Arguments),
}

pub(super) fn run(arguments: Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    match arguments.command {
        Command::Import(arguments) => import::run(arguments, printer),
    }
}
