//! `heirloom export`.

use std::path::PathBuf;

use super::exit::ExitStatus;
use super::printer::Printer;
use super::target;
use crate::diagnose::{Diagnose, Failure};
use crate::job::{self, Export, ExportKind, Job};
use crate::recipe::Adapter;

/// Write a release folder from a finished run: weights, model card and provenance.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  heirloom export runs/quickstart --to adapter -o releases/quickstart
  heirloom export runs/quickstart --to merged -o releases/quickstart-merged --force")]
pub(super) struct Arguments {
    /// The folder of a finished run.
    run: PathBuf,
    /// The shape of the release.
    #[arg(long, value_enum)]
    to: ExportKind,
    /// The release folder.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Replace an existing folder.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("`{}` is already there", path.display())]
    Exists { path: PathBuf },
    #[error("the run `{}` trained the whole model and has no adapter", path.display())]
    NoAdapter { path: PathBuf },
}

impl Diagnose for ExportError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Exists { .. } => "choose another folder, or replace it with `--force`".to_owned(),
            Self::NoAdapter { .. } => "export it with `--to merged`".to_owned(),
        })
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let run = target::finished(&arguments.run, printer)?;
    if arguments.to == ExportKind::Adapter && matches!(run.recipe.adapter, Adapter::Full(_)) {
        return Err(ExportError::NoAdapter { path: arguments.run.clone() }.into());
    }
    if !arguments.force && arguments.output.exists() {
        return Err(ExportError::Exists { path: arguments.output.clone() }.into());
    }
    let job = Job::Export(Export {
        run: arguments.run.clone(),
        to: arguments.to,
        output: arguments.output.clone(),
        force: arguments.force,
    });
    Err(job::start(printer.into(), job))
}
