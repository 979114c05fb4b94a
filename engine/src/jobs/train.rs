//! `heirloom train`: from a run folder with a recipe and a lock to a finished run.

use std::path::Path;
use std::sync::Arc;

use fs_err as fs;
use heirloom::base::BaseFolder;
use heirloom::cli::printer::Printer;
use heirloom::dataset::chat::ChatEncoder;
use heirloom::dataset::evaluation::validation_rows;
use heirloom::dataset::gate::Gate;
use heirloom::dataset::stream::{Spec, Stream};
use heirloom::dataset::vocabulary::{self, Vocabulary};
use heirloom::diagnose::Failure;
use heirloom::files::{self, FolderInProgress};
use heirloom::hub;
use heirloom::job::Device;
use heirloom::provenance::registry;
use heirloom::provenance::watch::Watch;
use heirloom::recipe::lock::{Lock, Split};
use heirloom::recipe::{Adapter, OnWithdrawal, Recipe};
use heirloom::run::hold::Hold;
use heirloom::run::{RunFolder, Summary};
use heirloom::track::progress::{Extent, Progress};
use heirloom::track::trackers::{self, About};
use heirloom::track::{End, Sink as _};
use heirloom::track::{line, summary, trained};

use super::evaluate;
use crate::adapter::peft;
use crate::device;
use crate::error::{EngineError, Result};
use crate::eval;
use crate::export;
use crate::memory;
use crate::model::weights::{self, Lazy};
use crate::train::{self, Outcome, Trainer};

/// Trains what `folder` says, then measures the recipe's suites and judges its gates.
pub(super) fn train(folder: &Path, device: Device, printer: Printer) -> Result<(), Failure> {
    // Before anything else asks libtorch: it learns of CUDA now or never.
    let device = device::open(device)?;
    let run = RunFolder::new(folder);
    // Until the end of the program: nobody else writes into the folder.
    let _hold = Hold::take(&run)?;
    let mut recipe = heirloom::recipe::read(&run.recipe(), &[])?.recipe;
    if recipe.train.deterministic {
        device::only_deterministic(device)?;
    }
    let lock = Lock::read(&run.lock())?;
    let stop = train::Stop::on_signals()?;
    fs::create_dir_all(run.checkpoints()).map_err(EngineError::from)?;

    let (base, encoder, files) = open(&mut recipe, &lock)?;
    let checkpoints = Some(run.checkpoints());
    let mut trainer = Trainer::open(&recipe, &base, &lock.training, checkpoints, device)?;
    // Reads and tokenises ahead on threads of its own.
    let spec = Spec::locked(&recipe, &lock)?;
    let from = trainer.progress.position.clone();
    let stream = Stream::open(spec, Arc::clone(&encoder), from)?;
    let watch = Watch::open(&recipe.data.consent, lock.ask.clone(), &lock.ledgers)?;
    let stream = stream.without(watch.refused());
    let mut heed = Heed { watch, on: recipe.data.consent.on_withdrawal, rows: 0, printer };
    // A run that goes on may have slept through a withdrawal.
    heed.count(&run, trainer.progress.step)?;
    // What is measured is read as the ledgers are by then: it moves no training row.
    let judged_now = || -> Result<Spec, Failure> {
        let gate = Gate::open(lock.ask.clone(), &recipe.data.consent.ledgers)?;
        Ok(Spec::judged_by(&recipe, &lock, Arc::new(gate)))
    };
    let (watch, mut read_at) = (Arc::clone(&heed.watch), None);
    let validation = || -> Result<_, Failure> {
        let heads = Some(watch.heads());
        if read_at == heads {
            return Ok(None);
        }
        read_at = heads;
        let spec = judged_now()?;
        let rows = validation_rows(&spec, &encoder)?;
        Ok(Some(eval::batches(&rows, spec.micro_batch_tokens)))
    };
    let done = trainer.progress.step;
    say_beginning(&trainer, &base, &recipe, printer);
    let extent = Extent { steps: lock.training.steps, done, epochs: recipe.train.epochs };
    let progress = Progress::new(printer.into(), extent, memory::resident);
    let about = About::new(&run, &recipe, &lock).map_err(EngineError::from)?;
    let mut sinks = trackers::open(&about, done, &progress.voice()).map_err(EngineError::from)?;
    sinks.push(progress);
    let epoch_steps = &lock.training.steps_by_epoch;
    let stream = stream.map(|step| step.map_err(Failure::from));
    let outcome = trainer.run(
        stream,
        validation,
        |step| heed.look(&run, step),
        epoch_steps,
        &mut sinks,
        &stop.asked,
    );
    let end = match &outcome {
        Ok(Outcome::Complete) => End::Complete,
        Ok(Outcome::Stopped) => End::Stopped,
        Err(_) => End::Failed,
    };
    let finished = sinks.finish(end).map_err(EngineError::from);
    if outcome? == Outcome::Stopped {
        let (step, steps, run) = (trainer.progress.step, lock.training.steps, folder.to_owned());
        return Err(EngineError::Interrupted { step, steps, run }.into());
    }
    finished?;
    keep(&run, &recipe, &trainer, &base, files.as_ref(), heed.rows)?;
    say_end(&run, printer)?;
    printer.warn_of(registry::enter_trained(&run));
    // Training is safe: from here on Ctrl-C simply ends the program.
    stop.end_at_once();
    trainer.model.settle(device)?;

    let (mut reports, spec) = (Vec::new(), judged_now()?);
    for name in &recipe.eval.suites {
        let Some(suite) = recipe.data.test.iter().find(|suite| suite.name == *name) else {
            continue;
        };
        let files = spec.files_of(&Split::Test(name.clone())).cloned().collect::<Vec<_>>();
        let rows = evaluate::read(&files, &encoder, &spec.gate)?;
        let with_baseline = matches!(recipe.adapter, Adapter::Lora(_));
        let report =
            evaluate::report(&mut trainer.model, &encoder, suite, &rows, with_baseline, printer)?;
        evaluate::write(&run.eval(name), &report)?;
        reports.push(report);
    }
    evaluate::print(&reports, printer)?;
    eval::check_gates(&recipe.eval.gates, &reports)?;
    printer.note(&format!("\nnext: heirloom chat {}", run.path().display()));
    Ok(())
}

/// The base of a run, what makes tokens for it, and the words that the recipe changed; names
/// of tokens in the recipe become their ids.
pub(super) fn open(
    recipe: &mut Recipe,
    lock: &Lock,
) -> Result<(BaseFolder, Arc<ChatEncoder>, Option<vocabulary::Files>), Failure> {
    let folder = hub::local(&recipe.base.model)?;
    let mut base = BaseFolder::open(&folder, recipe.base.from_scratch)?;
    let vocabulary = Vocabulary::open(base.folder(), &recipe.base)?;
    vocabulary.fit(&mut base)?;
    if let Adapter::Lora(lora) = &mut recipe.adapter {
        let tied = base.architecture.tie_word_embeddings;
        *lora = vocabulary.resolve(lora, tied).map_err(EngineError::from)?;
    }
    let Vocabulary { encoder, files, .. } = vocabulary;
    Ok((base, Arc::new(encoder.with_clock(lock.created)), files))
}

/// Shows what is trained.
fn say_beginning(trainer: &Trainer, base: &BaseFolder, recipe: &Recipe, printer: Printer) {
    let parameters = &trainer.parameters;
    let trained: Vec<_> =
        parameters.split(&parameters.flat).map(|(name, part)| (name, part.size())).collect();
    let numel = |shape: &[usize]| shape.iter().map(|size| *size as u64).product::<u64>();
    let base: u64 = base.architecture.tensors().iter().map(|(_, shape)| numel(shape)).sum();
    let own = if matches!(recipe.adapter, Adapter::Full(_)) { parameters.count } else { 0 };
    let frozen = base.saturating_sub(own);
    printer.note(&trained::table(&trained, frozen));
}

/// Shows how it went.
fn say_end(run: &RunFolder, printer: Printer) -> Result<()> {
    let lines = line::read(&run.metrics(), 0)?;
    printer.note(&summary::summary(&lines, memory::resident_peak()));
    Ok(())
}

/// What the job does about withdrawals.
struct Heed {
    watch: Arc<Watch>,
    on: OnWithdrawal,
    /// Rows of the run that may be used no longer.
    rows: u64,
    printer: Printer,
}

impl Heed {
    /// Looks whether rows of the run were withdrawn since the last look.
    fn look(&mut self, run: &RunFolder, step: u64) -> Result<(), Failure> {
        if self.watch.look()? { self.count(run, step) } else { Ok(()) }
    }

    fn count(&mut self, run: &RunFolder, step: u64) -> Result<(), Failure> {
        if self.watch.is_empty() {
            return Ok(());
        }
        let rows = self.watch.concerned(&run.record_index())?;
        if rows > self.rows && self.on == OnWithdrawal::Stop {
            return Err(EngineError::Withdrawn { rows, step, run: run.path().to_owned() }.into());
        }
        if rows > self.rows {
            self.printer.note(&format!(
                "withdrawn since the run began: {}, left out from step {} on",
                crate::error::counted_rows(rows),
                step + 1
            ));
        }
        self.rows = rows;
        Ok(())
    }
}

/// Writes what was trained, with the tokenizer where the recipe changed it, then the summary that says that training is complete.
fn keep(
    run: &RunFolder,
    recipe: &Recipe,
    trainer: &Trainer,
    base: &BaseFolder,
    words: Option<&vocabulary::Files>,
    withdrawn_rows: u64,
) -> Result<()> {
    memory::give_back();
    match &recipe.adapter {
        Adapter::Lora(lora) => {
            let folder = FolderInProgress::beside(&run.adapter())?;
            peft::save(folder.path(), &trainer.model, lora, &recipe.base.model)?;
            if let Some(files) = words {
                vocabulary::write(files, folder.path())?;
            }
            folder.finish(true)?;
        }
        Adapter::Full(_) => {
            let folder = FolderInProgress::beside(&run.model())?;
            let kind = weights::kind(base.architecture.dtype);
            let flat = trainer.parameters.flat.detach();
            let trained = trainer.parameters.split(&flat);
            let trained =
                trained.map(|(name, tensor)| (name.to_owned(), Lazy::ready(tensor.to_kind(kind))));
            let mut tensors: Vec<_> = trained.collect();
            let stays = |(name, _): &(String, Vec<usize>)| !recipe.adapter.trains(name);
            let frozen = base.architecture.tensors().into_iter().filter(stays);
            for (name, shape) in frozen {
                let Some(checkpoint) = base.checkpoint() else { continue };
                let sizes: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
                let key = name.clone();
                let load = move || {
                    let stored = weights::load_as(checkpoint, &key, kind)?;
                    weights::grown(&key, stored, &shape)
                };
                tensors.push((name, Lazy::new(&sizes, kind, load)));
            }
            weights::save(&folder.path().join("model.safetensors"), tensors)?;
            match words {
                Some(files) => vocabulary::write(files, folder.path())?,
                None => export::companions(base.folder(), folder.path())?,
            }
            export::config(base, false, folder.path())?;
            folder.finish(true)?;
        }
    }
    let summary = Summary {
        steps: trainer.progress.step,
        tokens: trainer.progress.tokens,
        trained_tokens: trainer.progress.trained_tokens,
        seconds: trainer.progress.seconds,
        peak_memory_bytes: memory::resident_peak(),
        finished: jiff::Timestamp::now(),
        withdrawn_rows,
        trainable_parameters: trainer.parameters.count,
        threads: tch::get_num_threads() as u32,
        libtorch: crate::LIBTORCH.to_owned(),
    };
    let path = run.summary();
    let json = |source| EngineError::Json { path: path.clone(), source };
    let text = serde_json::to_string_pretty(&summary).map_err(json)? + "\n";
    Ok(files::write_atomically(&path, text.as_bytes())?)
}
