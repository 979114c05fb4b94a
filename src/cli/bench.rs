//! `heirloom bench`.

use std::path::PathBuf;

use super::check::{self, Output};
use super::exit::ExitStatus;
use super::printer::Printer;
use super::target;
use crate::diagnose::Failure;
use crate::job::{self, Bench, Device, Job, Work};
use crate::recipe;

/// Measure how fast this machine trains a recipe, and where the time goes.
///
/// Looks at everything as `train` does, trains a few steps in memory and throws them away: no
/// run folder is made. The first three steps warm up and are not counted. What is reported is
/// the median step.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  heirloom bench recipes/quickstart.yaml
  heirloom bench recipes/quickstart.yaml --set base.dtype=bfloat16 --steps 30
  heirloom bench recipes/quickstart.yaml --format json > before.json
  heirloom bench recipes/quickstart.yaml --random-weights --device cuda

For numbers to compare, let nothing else run meanwhile: the report names the machine's load. \
OMP_NUM_THREADS is how many threads compute.")]
pub(super) struct Arguments {
    /// The recipe, a YAML file.
    recipe: PathBuf,
    /// Change a value of the recipe; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Optimiser steps that are measured.
    #[arg(long, value_name = "N", default_value_t = 10, allow_negative_numbers = true, value_parser = target::at_least_one)]
    steps: usize,
    /// Where to compute: `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value_t)]
    device: Device,
    /// Draw the base's weights instead of reading them: its folder needs none. For speed and
    /// memory that is as good; what is learned means nothing.
    #[arg(long)]
    random_weights: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let mut literal = recipe::read(&arguments.recipe, &arguments.sets)?;
    // Under an adapter no recipe may say so: a run would be of no use.
    literal.recipe.base.from_scratch |= arguments.random_weights;
    // Before the long look at the inputs: nothing of it would be of use.
    job::engine()?;
    let plan = check::plan(literal, printer)?;
    if let Some(limit) = check::limit_of(arguments.device)? {
        plan.steps_fit(limit)?;
    }
    let work = Work { lock: plan.lock()?, recipe: plan.recipe };
    let json = arguments.format == Output::Json;
    let bench = Bench { steps: arguments.steps, device: arguments.device, json };
    Err(job::start_with(printer.into(), Job::Bench(bench), &work))
}
