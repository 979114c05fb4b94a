//! `heirloom logits`.

use std::path::PathBuf;

use super::check;
use super::exit::ExitStatus;
use super::printer::Printer;
use super::target;
use crate::dataset::logits::Header;
use crate::diagnose::{Diagnose, Failure};
use crate::files;
use crate::job::{self, Device, Job, Logits, Work};
use crate::recipe::{self, Objective};

/// Tokens that are kept at each position where nobody says.
const TOP_K: usize = 32;

/// Store what a teacher says to the rows of a recipe, to learn from it later without the teacher.
///
/// Asks the teacher of `objective.distillation` once for each trained token of `data.train` and
/// `data.validation` that may be used, and keeps its most likely tokens. A recipe whose
/// `objective.distillation.logits` names the file learns from that. What is kept was derived from
/// the rows, and is as private as they are: only its owner may read the file.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  heirloom logits recipes/distillation.yaml -o releases/said.parquet
  heirloom train recipes/distillation.yaml --set objective.distillation.logits=releases/said.parquet")]
pub(super) struct Arguments {
    /// The recipe, a YAML file.
    recipe: PathBuf,
    /// Change a value of the recipe; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The Parquet file that is written.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it holds what a teacher said before.
    #[arg(long)]
    force: bool,
    /// Tokens that are kept at each position.
    #[arg(long, value_name = "K", default_value_t = TOP_K, allow_negative_numbers = true, value_parser = target::at_least_one)]
    top_k: usize,
    /// Where to compute: `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value_t)]
    device: Device,
}

/// A recipe in which nobody can be asked, or a file that must not be written.
#[derive(Debug, thiserror::Error)]
enum LogitsError {
    #[error("`{}` has no teacher", recipe.display())]
    NoTeacher { recipe: PathBuf },
    #[error("`{}` exists already", output.display())]
    Exists { output: PathBuf },
    #[error("`{}` exists and does not hold what a teacher said", output.display())]
    Other { output: PathBuf },
}

impl Diagnose for LogitsError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoTeacher { .. } => {
                "write `objective: { distillation: { teacher: { model: DIR } } }`"
            }
            Self::Exists { .. } => "name another file, or add `--force` to replace it",
            Self::Other { .. } => "name another file: this one is not replaced, even by `--force`",
        };
        Some(hint.to_owned())
    }
}

impl Arguments {
    /// Looked at before anything is computed: a teacher may take hours. What is replaced is of
    /// the same kind, and so never rows, a recipe or a model.
    fn check_output(&self) -> Result<(), Failure> {
        let output = files::place_of_file(&self.output)?;
        if !output.exists() {
            return Ok(());
        }
        let output = self.output.clone();
        if Header::read(&output).is_err() {
            return Err(LogitsError::Other { output }.into());
        }
        if !self.force {
            return Err(LogitsError::Exists { output }.into());
        }
        Ok(())
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let mut literal = recipe::read(&arguments.recipe, &arguments.sets)?;
    if let Objective::Distillation(distillation) = &mut literal.recipe.objective {
        // Perhaps the very file that is to be written.
        distillation.logits = None;
    }
    if literal.recipe.objective.teacher().is_none() {
        return Err(LogitsError::NoTeacher { recipe: arguments.recipe.clone() }.into());
    }
    // Before the long look at the inputs: nothing of it would be of use.
    arguments.check_output()?;
    job::engine()?;
    let plan = check::plan(literal, printer)?;
    let work = Work { lock: plan.lock()?, recipe: plan.recipe };
    let (top_k, device) = (arguments.top_k, arguments.device);
    let job = Logits { top_k, device, output: arguments.output.clone() };
    Err(job::start_with(printer.into(), Job::Logits(job), &work))
}
