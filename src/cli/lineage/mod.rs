//! `heirloom lineage`: one file per subcommand.

mod affected;
mod check_proof;
mod prove;

use super::exit::ExitStatus;
use super::printer::Printer;
use crate::diagnose::Failure;

/// Follow a record: which models it went into, and proofs of that.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Affected(affected::Arguments),
    Prove(prove::Arguments),
    CheckProof(check_proof::Arguments),
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    match &arguments.command {
        Command::Affected(arguments) => affected::run(arguments, printer),
        Command::Prove(arguments) => prove::run(arguments, printer),
        Command::CheckProof(arguments) => check_proof::run(arguments, printer),
    }
}
