//! `heirloom completions`.

use clap_complete::Shell;

use super::exit::ExitStatus;
use super::printer::Printer;
use crate::diagnose::Failure;

/// Print the completions of a shell.
///
/// For bash: heirloom completions bash > ~/.local/share/bash-completion/completions/heirloom
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which shell.
    shell: Shell,
}

pub(super) fn run(
    arguments: &Arguments,
    command: &mut clap::Command,
    printer: Printer,
) -> Result<ExitStatus, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "heirloom", &mut script);
    printer.data(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitStatus::Success)
}
