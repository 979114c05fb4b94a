//! `heirloom train`.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::exit::ExitStatus;
use super::printer::Printer;
use super::target::{self, Run};
use crate::dataset::survey::SurveyedFile;
use crate::diagnose::{Diagnose, Failure};
use crate::job::{self, Device, Job};
use crate::provenance::{registry, tree};
use crate::recipe::lock::{Lock, LockedData};
use crate::recipe::plan::Again;
use crate::recipe::{self, Adapter, Literal};
use crate::run::RunFolder;
use crate::run::hold::Hold;
use crate::track::rows::Rows;

/// Where runs lie unless `--run` says something else.
const RUNS: &str = "runs";

/// Train what a recipe says.
///
/// Ctrl-C leaves a run that `--resume` goes on with, and so does everything else that can
/// stop a program.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  heirloom train recipes/quickstart.yaml
  heirloom train recipes/quickstart.yaml --resume
  heirloom train recipes/quickstart.yaml --set train.seed=18 --run runs/quickstart-18")]
pub(super) struct Arguments {
    /// The recipe, a YAML file.
    recipe: PathBuf,
    /// Change a value of the recipe; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Go on with a run that was stopped.
    #[arg(long)]
    resume: bool,
    /// The run folder [default: runs/NAME, by the recipe's name]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Where to compute: `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value_t)]
    device: Device,
}

/// A run that cannot be begun or gone on with.
#[derive(Debug, thiserror::Error)]
enum TrainError {
    #[error("the run `{}` is already there, and finished", run.display())]
    Finished { run: PathBuf, kind: &'static str },
    #[error("the run `{}` is already there, and not finished", run.display())]
    Resumable { run: PathBuf },
    #[error("`{}` is already there, and not a run", path.display())]
    Occupied { path: PathBuf },
    #[error("there is no run `{}` to resume", run.display())]
    NothingToResume { run: PathBuf },
    #[error("the recipe is not the one that the run `{}` was begun with", run.display())]
    OtherRecipe { run: PathBuf, differences: Vec<String> },
    #[error("{} not there when the run began", added(.files))]
    OtherBase { files: Vec<PathBuf> },
    #[error("{} of {} may be used no longer", counted(*.rows), files(.changes))]
    OtherRows { rows: u64, changes: Vec<RowChange> },
    #[error("the run was begun with version {began}, and this is {}", crate::VERSION)]
    OtherVersion { began: String },
}

/// A file of rows on which the gate's verdict is another than it was.
#[derive(Debug)]
struct RowChange {
    path: PathBuf,
    before: u64,
    now: u64,
}

fn counted(rows: u64) -> String {
    if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") }
}

fn added(files: &[PathBuf]) -> String {
    match files {
        [file] => format!("`{}` was", file.display()),
        _ => format!("{} files of the base were", files.len()),
    }
}

fn files(changes: &[RowChange]) -> String {
    match changes {
        [change] => format!("`{}`", change.path.display()),
        _ => format!("{} files", changes.len()),
    }
}

impl Diagnose for TrainError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Finished { run, kind } => format!(
                "export it with `heirloom export {} --to {kind} -o DIR`, or train anew with \
                 another `--run`",
                run.display()
            ),
            Self::Resumable { .. } => {
                "go on with `--resume`, or train anew with another `--run`".to_owned()
            }
            Self::Occupied { .. } => "choose another folder with `--run`".to_owned(),
            Self::NothingToResume { .. } => "leave `--resume` out to begin it".to_owned(),
            Self::OtherRecipe { .. } => {
                "undo the changes to the recipe and give the same `--set`, or train anew with \
                 another `--run`"
                    .to_owned()
            }
            Self::OtherBase { .. } => {
                "move it away, or train anew with another `--run`: it would change the model \
                 or its tokens"
                    .to_owned()
            }
            Self::OtherVersion { began } => format!(
                "use version {began}, which makes the same steps of the same rows, or train \
                 anew with another `--run`"
            ),
            Self::OtherRows { .. } => {
                "train anew with another `--run`: a run is one set of rows".to_owned()
            }
        })
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::OtherRecipe { differences, .. } => differences.clone(),
            Self::OtherBase { files } if files.len() > 1 => {
                files.iter().map(|file| file.display().to_string()).collect()
            }
            Self::OtherRows { changes, .. } => changes
                .iter()
                .map(|change| {
                    let path = change.path.display();
                    format!("{path}: {} rows when the run began, {} now", change.before, change.now)
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let mut literal = recipe::read(&arguments.recipe, &arguments.sets)?;
    let default = || Path::new(RUNS).join(&literal.recipe.name);
    let path = arguments.run.clone().unwrap_or_else(default);
    let run = RunFolder::new(&path);
    // Before the long look at the inputs: nothing of it would be of use.
    check_place(&run, arguments.resume)?;
    // Also before it: a run that can never start should not leave a folder behind.
    job::engine()?;
    if arguments.resume {
        resume(&mut literal, &path, printer)?;
    } else {
        let plan = super::check::plan(literal, printer)?;
        super::check::fits(&plan, arguments.device)?;
        let rows = Rows::new(printer.into());
        plan.begin(&run, |folder, spec| {
            tree::commit(folder, spec, &|more| rows.advance(more)).map(drop)
        })?;
        rows.finish();
        printer.warn_of(registry::enter_run(&run));
    }
    Err(job::start(printer.into(), Job::Train { run: path, device: arguments.device }))
}

/// Refuses a place where this run cannot be.
fn check_place(run: &RunFolder, resume: bool) -> Result<(), Failure> {
    let path = run.path().to_owned();
    if !run.lock().is_file() {
        // An empty folder gives way to the run.
        let empty = || fs_err::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
        return Err(match resume {
            true => TrainError::NothingToResume { run: path }.into(),
            false if path.exists() && !empty() => TrainError::Occupied { path }.into(),
            false => return Ok(()),
        });
    }
    let begun = target::open(&path)?;
    let kind = match begun.recipe.adapter {
        Adapter::Lora(_) => "adapter",
        Adapter::Full(_) => "merged",
    };
    match (begun.is_finished(), resume) {
        (true, _) => Err(TrainError::Finished { run: path, kind }.into()),
        (false, false) => Err(TrainError::Resumable { run: path }.into()),
        // The engine takes it for good; here nobody waits for a look at the inputs in vain.
        (false, true) => Ok(Hold::look(run)?),
    }
}

/// Checks that a run may go on: the same recipe, the same inputs, the same rows allowed now
/// as when it began, and the same steps made of them.
fn resume(literal: &mut Literal, path: &Path, printer: Printer) -> Result<(), Failure> {
    let mut run = target::open(path)?;
    keep_commit(literal, &run.lock)?;
    same_recipe(literal, &run)?;
    run.fetch_base(printer)?;
    run.lock.verify()?;
    same_version(&run.lock)?;
    let rows = Rows::new(printer.into());
    let again = Again::look(literal, &run.lock, Timestamp::now(), &|more| rows.advance(more))?;
    rows.finish();
    same_base(&run.lock, &again)?;
    same_rows(&run.lock, &again)
}

/// Another version might make other tokens or other steps of the same rows.
fn same_version(lock: &Lock) -> Result<(), Failure> {
    let began = lock.heirloom.clone();
    if began == crate::VERSION { Ok(()) } else { Err(TrainError::OtherVersion { began }.into()) }
}

/// A branch may have moved since: the run stays with the commit that it began with.
fn keep_commit(literal: &mut Literal, lock: &Lock) -> Result<(), Failure> {
    if let Some((address, pin)) = literal.hub_base().zip(lock.hub.as_ref()) {
        let address = address?;
        if address.to_string() == pin.model {
            literal.pin(&address, &pin.commit, 0);
        }
    }
    Ok(())
}

fn same_recipe(literal: &Literal, run: &Run) -> Result<(), Failure> {
    let same = literal.recipe == run.recipe;
    if same && literal.sha256 == run.lock.recipe_sha256 {
        return Ok(());
    }
    let before = recipe::write(&run.recipe)?;
    let now = recipe::write(&literal.recipe)?;
    let mut differences = differences(&before, &now);
    if same {
        differences.push("only its comments or its layout differ".to_owned());
    }
    Err(TrainError::OtherRecipe { run: run.folder.path().to_owned(), differences }.into())
}

/// Lines that only one of two texts has, first those of the first.
fn differences(before: &str, now: &str) -> Vec<String> {
    let only = |one: &str, other: &str, mark: &str| {
        let lines = one.lines().filter(|line| !other.lines().any(|known| known == *line));
        lines.map(|line| format!("{mark} {}", line.trim())).collect::<Vec<_>>()
    };
    [only(before, now, "-"), only(now, before, "+")].concat()
}

/// The lock's files are as they were; so only one that is not in it can make a difference.
fn same_base(lock: &Lock, again: &Again) -> Result<(), Failure> {
    let unknown = |path: &&PathBuf| !lock.base.iter().any(|file| file.path == **path);
    let files: Vec<PathBuf> = again.base_files.iter().filter(unknown).cloned().collect();
    if files.is_empty() { Ok(()) } else { Err(TrainError::OtherBase { files }.into()) }
}

fn same_rows(lock: &Lock, again: &Again) -> Result<(), Failure> {
    let differs =
        |(before, now): &(&LockedData, &SurveyedFile)| before.used_sha256 != now.used_sha256;
    let changed = lock.data.iter().zip(&again.data).filter(differs);
    let changes: Vec<RowChange> = changed
        .map(|(before, now)| RowChange {
            path: now.file.path.clone(),
            before: before.rows.used,
            now: now.rows.used,
        })
        .collect();
    if changes.is_empty() {
        return Ok(());
    }
    // The files are the same, so that only time can have moved rows across the gate, and
    // time only takes away.
    let rows = changes.iter().map(|change| change.before.abs_diff(change.now).max(1)).sum();
    Err(TrainError::OtherRows { rows, changes }.into())
}
