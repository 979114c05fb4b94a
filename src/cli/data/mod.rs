//! `heirloom data`: one file per subcommand.

mod consent;
mod withdraw;

use super::exit::ExitStatus;
use super::printer::Printer;
use crate::diagnose::Failure;
pub(super) use withdraw::subject;

/// Look after rows and their consent.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Consent(consent::Arguments),
    Withdraw(withdraw::Arguments),
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    match &arguments.command {
        Command::Consent(arguments) => consent::run(arguments, printer),
        Command::Withdraw(arguments) => withdraw::run(arguments, printer),
    }
}
