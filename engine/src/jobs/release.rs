//! `heirloom export`: a finished run becomes a release folder.

use fs_err as fs;
use heirloom::base::BaseFolder;
use heirloom::cli::printer::Printer;
use heirloom::diagnose::Failure;
use heirloom::files::FolderInProgress;
use heirloom::hub;
use heirloom::job::{Export, ExportKind};
use heirloom::provenance::counts::Published;
use heirloom::provenance::registry;
use heirloom::provenance::release::{self, Facts};
use heirloom::provenance::statement::Training;
use heirloom::recipe::Adapter;
use heirloom::recipe::lock::Lock;
use heirloom::run::{RunFolder, Summary};

use crate::error::EngineError;
use crate::export;

/// Writes the release of a finished run.
pub(super) fn export(job: &Export, printer: Printer) -> Result<(), Failure> {
    release::check_target(&job.output, job.force)?;
    let run = RunFolder::new(&job.run);
    if !run.summary().is_file() {
        return Err(EngineError::Unfinished { run: job.run.clone() }.into());
    }
    let recipe = heirloom::recipe::read(&run.recipe(), &[])?.recipe;
    let lock = Lock::read(&run.lock())?;
    let text = fs::read_to_string(run.summary()).map_err(EngineError::from)?;
    let summary: Summary = serde_json::from_str(&text)
        .map_err(|source| EngineError::Json { path: run.summary(), source })?;
    lock.verify_base()?;

    let folder = FolderInProgress::beside(&job.output).map_err(EngineError::from)?;
    let mut base = BaseFolder::open(&hub::local(&recipe.base.model)?, recipe.base.from_scratch)?;
    match (&recipe.adapter, job.to) {
        (Adapter::Lora(_), ExportKind::Adapter) => export::adapter(&run, folder.path())?,
        (Adapter::Lora(_), ExportKind::Merged) => export::merged(&run, &mut base, folder.path())?,
        (Adapter::Full(_), ExportKind::Merged) => export::full(&run, folder.path())?,
        (Adapter::Full(_), ExportKind::Adapter) => {
            return Err(EngineError::NoAdapter { run: job.run.clone() }.into());
        }
    }
    let facts = Facts {
        run: &run,
        recipe: &recipe,
        lock: &lock,
        kind: job.to,
        training: Training {
            steps: summary.steps,
            tokens: summary.tokens,
            seconds: summary.seconds,
            peak_memory_bytes: summary.peak_memory_bytes,
            withdrawn_rows: Published::of(summary.withdrawn_rows),
        },
        finished: summary.finished,
        device: "cpu",
        libtorch: &summary.libtorch,
        deterministic: true,
    };
    let place = release::finish(folder, &facts, job.force)?;
    printer.warn_of(registry::enter_release(&place));
    printer.note(&format!("wrote `{}`", place.display()));
    Ok(())
}
