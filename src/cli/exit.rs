//! How a program of the project ends.

use std::process::ExitCode;

use super::printer::Printer;
use crate::diagnose::{Blame, Failure};

/// What the shell is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done, and the answer is yes.
    Success,
    /// The user can fix it, or the answer is no.
    Failure,
    /// A defect of ours.
    Error,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Success => 0.into(),
            ExitStatus::Failure => 1.into(),
            ExitStatus::Error => 2.into(),
        }
    }
}

/// Ends a program: prints the failure, if there is one, and says whose fault it was.
pub fn conclude(printer: Printer, result: Result<ExitStatus, Failure>) -> ExitCode {
    let status = result.unwrap_or_else(|failure| {
        printer.failure(&failure);
        match failure.blame() {
            Blame::User => ExitStatus::Failure,
            Blame::Defect => ExitStatus::Error,
        }
    });
    status.into()
}
