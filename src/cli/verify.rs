//! `heirloom verify`.

use std::path::PathBuf;

use super::exit::ExitStatus;
use super::printer::Printer;
use crate::diagnose::Failure;

/// Prove that a release is what its manifest says: every digest is recomputed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  heirloom verify releases/quickstart && echo whole")]
pub(super) struct Arguments {
    /// A release folder.
    release: PathBuf,
}
