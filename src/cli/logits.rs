//! `heirloom logits`.

use std::path::PathBuf;

use jiff::Timestamp;

use super::check;
use super::exit::ExitStatus;
use super::printer::Printer;
use super::target;
use crate::diagnose::{Diagnose, Failure};
use crate::files;
use crate::hub::Need;
use crate::job::{self, Device, Job, Logits, Work};
use crate::recipe::plan::Plan;
use crate::recipe::{self, Objective};
use crate::track::rows::Rows;

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
    /// Tokens that are kept at each position.
    #[arg(long, value_name = "K", default_value_t = TOP_K, allow_negative_numbers = true, value_parser = target::at_least_one)]
    top_k: usize,
    /// Where to compute: `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value_t)]
    device: Device,
}

/// A recipe in which nobody can be asked.
#[derive(Debug, thiserror::Error)]
enum LogitsError {
    #[error("`{}` has no teacher", recipe.display())]
    NoTeacher { recipe: PathBuf },
}

impl Diagnose for LogitsError {
    fn hint(&self) -> Option<String> {
        Some("write `objective: { distillation: { teacher: { model: DIR } } }`".to_owned())
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
    job::engine()?;
    files::place_of_file(&arguments.output)?;
    let literal = target::pin(literal, Need::Model, printer)?;
    let rows = Rows::new(printer.into());
    let plan = Plan::make(&literal, Timestamp::now(), &|more| rows.advance(more));
    rows.finish();
    let plan = plan?;
    check::warn(&plan, printer);
    let work = Work { lock: plan.lock()?, recipe: plan.recipe };
    let (top_k, device) = (arguments.top_k, arguments.device);
    let job = Logits { top_k, device, output: arguments.output.clone() };
    Err(job::start_with(printer.into(), Job::Logits(job), &work))
}
