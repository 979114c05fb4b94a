//! `heirloom verify`.

use std::path::PathBuf;

use super::exit::ExitStatus;
use super::printer::Printer;
use crate::diagnose::{Failure, amount};
use crate::provenance;

/// Prove that a release is what its manifest says: every digest is recomputed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  heirloom verify releases/quickstart && echo whole")]
pub(super) struct Arguments {
    /// A release folder.
    release: PathBuf,
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let verified = provenance::verify::verify(&arguments.release)?;
    let mut lines = vec![
        format!("{}: everything holds", arguments.release.display()),
        format!(
            "files       {} ({}), every digest recomputed",
            verified.files,
            amount(verified.bytes)
        ),
        format!("base        {}, licence {}", verified.base, verified.licence),
        format!("made by     heirloom {}", verified.heirloom),
    ];
    for (split, rows) in &verified.rows {
        lines.push(format!("rows        {split}: {} used", rows.used));
    }
    for evaluation in &verified.evaluations {
        let exact = 100.0 * evaluation.target.exact_match;
        lines.push(format!("measured    {}: {exact:.1} % exact match", evaluation.suite));
    }
    printer.data(&lines.join("\n"))?;
    Ok(ExitStatus::Success)
}
