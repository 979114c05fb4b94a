//! `heirloom track`.

use std::path::{Path, PathBuf};

use super::exit::ExitStatus;
use super::printer::Printer;
use super::target;
use crate::diagnose::{Diagnose, Failure};
use crate::recipe::Tracker;
use crate::run::hold::Hold;
use crate::track::End;
use crate::track::trackers::{self, About};

/// Look after what trackers hold of a run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  heirloom track sync runs/quickstart     send what a tracker missed while it was away")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Sync(Sync),
}

/// Send the trackers of a run what they have not got yet.
///
/// Everything is in the run's metrics.jsonl; only the trackers that its recipe names are sent
/// anything.
#[derive(Debug, clap::Args)]
struct Sync {
    /// The run folder.
    run: PathBuf,
}

/// Something that cannot be sent.
#[derive(Debug, thiserror::Error)]
enum TrackError {
    #[error("the recipe of the run `{}` names no tracker on a server", run.display())]
    Nowhere { run: PathBuf, offline: bool },
    #[error("{failed} of {all} trackers did not get everything")]
    Unsent { failed: usize, all: usize },
}

impl Diagnose for TrackError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Nowhere { run, offline: true } => {
                let run = run.display();
                format!("its files for Weights & Biases are sent by `wandb sync {run}/wandb/*`")
            }
            Self::Nowhere { offline: false, .. } => {
                "its numbers are in metrics.jsonl; name trackers with `track` in the recipe before \
                 training"
                    .to_owned()
            }
            Self::Unsent { .. } => "the warnings above say why; nothing is lost".to_owned(),
        })
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let Command::Sync(arguments) = &arguments.command;
    sync(&arguments.run, printer)?;
    Ok(ExitStatus::Success)
}

fn sync(path: &Path, printer: Printer) -> Result<(), Failure> {
    let run = target::open(path)?;
    // A run that is going on sends by itself.
    let _hold = Hold::take(&run.folder)?;
    let about = About::new(&run.folder, &run.recipe, &run.lock)?;
    let end = if run.is_trained() { End::Complete } else { End::Stopped };
    let (mut all, mut failed, mut offline) = (0, 0, false);
    for tracker in &run.recipe.track {
        let feed = match trackers::feed(&about, tracker) {
            Ok(Some(feed)) => Ok(feed),
            Ok(None) => {
                offline |= matches!(tracker, Tracker::Wandb(_));
                continue;
            }
            Err(error) => Err(error),
        };
        all += 1;
        let sent = feed.and_then(|mut feed| {
            let lines = feed.catch_up()?;
            feed.end(end)?;
            Ok(lines)
        });
        match sent {
            Ok(lines) => printer.note(&format!("{}: {lines} lines sent", tracker.name())),
            Err(error) => {
                failed += 1;
                printer.warn_of(Err(error));
            }
        }
    }
    match (all, failed) {
        (0, _) => Err(TrackError::Nowhere { run: path.to_owned(), offline }.into()),
        (_, 0) => Ok(()),
        _ => Err(TrackError::Unsent { failed, all }.into()),
    }
}
