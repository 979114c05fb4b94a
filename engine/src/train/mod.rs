//! The train room: from a run folder to trained weights.
//!
//! Owns the loop ([`Trainer`]), what is learned ([`objective`]), the loss ([`loss`]), the optimiser and schedules
//! ([`optimizer`]), the trained weights ([`parameters`]), checkpoints ([`checkpoint`]), what is
//! done about bad steps ([`guard`]) and what a step has to compute ([`flops`]). Does not own
//! evaluation after training nor releases.
//!
//! The gradient of a step is that of the weighted mean over all its trained tokens, however
//! they are spread over micro-batches.

pub mod checkpoint;
pub mod distillation;
pub mod flops;
pub mod guard;
pub mod loss;
pub mod objective;
pub mod optimizer;
pub mod parameters;
mod step;
mod stop;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use heirloom::base::BaseFolder;
use heirloom::dataset::stream::{MicroBatch, Step};
use heirloom::recipe::lock::Size;
use heirloom::recipe::memory::smaller;
use heirloom::recipe::{Adapter, Objective, Recipe};
use heirloom::track::{Cause, Event, Happened, Sink, ValidationMetrics};
use tch::{Device, Kind, Tensor};

use crate::adapter;
use crate::error::{EngineError, Result};
use crate::memory;
use crate::model::{Decoder, Linear, weights};
use checkpoint::{Checkpoints, Progress};
use distillation::Distillation;
use objective::{Figures, Measure};
use optimizer::Optimizer;
use parameters::Parameters;
pub use step::Taken;
pub use stop::Stop;

/// A model, what of it is trained, and how.
#[derive(Debug)]
pub struct Trainer {
    /// The model; its trained weights are views into `parameters`.
    pub model: Decoder,
    /// The trained weights.
    pub parameters: Parameters,
    /// Where training stands.
    pub progress: Progress,
    recipe: Recipe,
    /// Who teaches, where somebody does.
    teacher: Option<Distillation>,
    optimizer: Optimizer,
    /// What the plan counted.
    size: Size,
    /// Steps after which it ends whatever the stream holds.
    most: Option<u64>,
    /// Where checkpoints go, if they are wanted.
    checkpoints: Option<Checkpoints>,
}

impl Trainer {
    /// Loads the base onto a device, adds what is trained, and goes to the newest checkpoint in
    /// `checkpoints`; without such a folder none is read or written. `size` has the length of
    /// the whole run; where that is an estimate, the run ends when the stream does, or at
    /// `train.max_steps`.
    pub fn open(
        recipe: &Recipe,
        base: &BaseFolder,
        size: &Size,
        checkpoints: Option<PathBuf>,
        device: Device,
    ) -> Result<Self> {
        // Before anything is drawn: the same recipe starts from the same weights.
        tch::manual_seed(recipe.train.seed as i64);
        let (mut model, mut parameters) = prepare(recipe, base, device)?;
        model.checkpointing = recipe.train.activation_checkpointing;
        model.offload = recipe.train.activation_offload;
        model.neftune_noise_alpha = recipe.train.neftune_noise_alpha;
        let teacher = match &recipe.objective {
            Objective::Distillation(settings) => Some(Distillation::open(settings, device)?),
            _ => None,
        };
        let mut optimizer = Optimizer::new(&recipe.train.optimizer, &parameters)?;
        let (keep, background) = (recipe.train.keep_checkpoints, recipe.writes_in_background());
        let open = |folder: PathBuf| Checkpoints::open(&folder, keep, background);
        let mut checkpoints = checkpoints.map(open).transpose()?;
        let restored = match &mut checkpoints {
            Some(checkpoints) => checkpoints.restore(&mut parameters, &mut optimizer)?,
            None => None,
        };
        let progress = restored.unwrap_or_default();
        let (recipe, size) = (recipe.clone(), size.clone());
        let most = if size.estimated { recipe.train.max_steps } else { Some(size.steps) };
        Ok(Self {
            model,
            parameters,
            progress,
            recipe,
            teacher,
            optimizer,
            size,
            most,
            checkpoints,
        })
    }

    /// Takes steps from `stream` until the run is complete or `stop` is set, reporting to
    /// `sink`. `epoch_steps` are the steps of each pass. Stopping leaves a checkpoint.
    ///
    /// `validation` is asked whenever the validation loss is due, so that the first step does
    /// not wait for it, and gives its rows when they are others than before. `look` is asked at every checkpoint, which each
    /// pass ends with, whether the run may go on.
    pub fn run<E>(
        &mut self,
        stream: impl Iterator<Item = Result<Step, E>>,
        mut validation: impl FnMut() -> Result<Option<Vec<MicroBatch>>, E>,
        mut look: impl FnMut(u64) -> Result<(), E>,
        epoch_steps: &[u64],
        sink: &mut dyn Sink,
        stop: &AtomicBool,
    ) -> Result<Outcome, E>
    where
        E: From<EngineError>,
    {
        let (mut stream, mut batches) = (stream, Vec::new());
        let most = self.most.unwrap_or(u64::MAX);
        while self.progress.step < most && !self.progress.seen.done_early {
            // The clock runs while rows are waited for: that is time too.
            let started = Instant::now();
            if stop.load(Ordering::Relaxed) {
                return self.stopped().map_err(E::from);
            }
            let ended =
                EngineError::StreamEnded { step: self.progress.step, steps: self.size.steps };
            let Some(step) = stream.next().transpose()? else {
                if self.most == Some(self.size.steps) {
                    return Err(ended.into());
                }
                break;
            };
            let of_epoch = epoch_steps.get(step.epoch as usize).copied().unwrap_or(1).max(1);
            let taken = self.step_unless(&step, of_epoch, started, stop);
            let Some(taken) = taken.map_err(|error| self.advised(error))? else {
                return self.stopped().map_err(E::from);
            };
            let metrics = taken.metrics;
            sink.step(&metrics).map_err(EngineError::from)?;
            if let Some(event) = &taken.event {
                sink.event(event).map_err(EngineError::from)?;
            }
            if let Some(error) = taken.error {
                return Err(error.into());
            }
            let last = self.progress.step == most;
            let train = &self.recipe.train;
            let due = |every: u64| {
                last || step.ends_epoch || (every > 0 && self.progress.step.is_multiple_of(every))
            };
            let (validate, mut save) = (due(train.validate_every), due(train.checkpoint_every));
            if validate {
                if let Some(read) = validation()? {
                    batches = read;
                }
                if !batches.is_empty() {
                    save |= self.validate(&batches, metrics.epoch, sink)?;
                }
            }
            if save {
                self.progress.seen.anchor = Some(self.progress.step);
                self.save()?;
                look(self.progress.step)?;
            }
            if let Some(checkpoints) = &mut self.checkpoints {
                checkpoints.look()?;
            }
        }
        self.finish_checkpoints()?;
        self.take_best()?;
        Ok(Outcome::Complete)
    }

    /// Leaves a checkpoint of the last whole step.
    fn stopped(&mut self) -> Result<Outcome> {
        self.save()?;
        self.finish_checkpoints()?;
        Ok(Outcome::Stopped)
    }

    /// Measures the validation loss; whether it is the best so far and has to be saved.
    fn validate(
        &mut self,
        batches: &[MicroBatch],
        epoch: f64,
        sink: &mut dyn Sink,
    ) -> Result<bool> {
        let measure = Measure::of(&self.recipe.objective, 0.0, &mut self.model, batches, false)?;
        let measure = measure.taught_by(self.teacher.as_ref());
        let (mut sum, mut figures) = (0.0, Figures::default());
        for batch in batches {
            if let Some(part) = measure.part(&mut self.model, batch)? {
                sum += part.sum;
                figures.extend(&part.figures);
            }
        }
        let validation_loss = measure.mean(sum);
        let validation_tokens = batches.iter().map(MicroBatch::trained_tokens).sum();
        let figures = measure.told(figures).into_iter();
        let figures = figures.map(|(name, value)| (format!("validation_{name}"), value)).collect();
        let (step, seconds) = (self.progress.step, self.progress.seconds);
        let metrics =
            ValidationMetrics { step, epoch, validation_loss, validation_tokens, seconds, figures };
        sink.validation(&metrics)?;
        let train = &self.recipe.train;
        let verdict = self.progress.seen.validated(train, step, validation_loss);
        if verdict.done {
            let (event, cause) = (Happened::EarlyStop, Cause::ValidationLoss);
            let value = validation_loss.to_string();
            sink.event(&Event { step, epoch, event, cause, value, to_step: None, seconds })?;
        }
        let keep_best = train.keep_best_checkpoint || train.load_best_at_end;
        Ok(verdict.done || (verdict.best && keep_best))
    }

    /// An error with settings that would fit into what the process had, if that was too little.
    fn advised(&self, mut error: EngineError) -> EngineError {
        if let EngineError::OutOfMemory { fitting, .. } = &mut error
            && let Some(limit) = memory::resident_peak()
        {
            let (architecture, count) = (&self.model.architecture, self.parameters.count);
            let teacher = self.teacher.as_ref().and_then(Distillation::teacher);
            let teacher = teacher.map(|teacher| &teacher.architecture);
            *fitting = smaller(&self.recipe, architecture, teacher, count, &self.size, limit);
        }
        error
    }

    fn save(&mut self) -> Result<()> {
        let kept = self.progress.seen.kept(&self.recipe.train);
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        checkpoints.save(&self.progress, &self.parameters, &self.optimizer, kept)
    }

    fn finish_checkpoints(&mut self) -> Result<()> {
        self.checkpoints.as_mut().map_or(Ok(()), Checkpoints::finish)
    }

    /// Goes to the weights of the best validation, where the recipe wants those.
    fn take_best(&mut self) -> Result<()> {
        let best = self.progress.seen.best.filter(|_| self.recipe.train.load_best_at_end);
        if let Some((best, checkpoints)) = best.zip(self.checkpoints.as_mut()) {
            checkpoints.load(best.step, &mut self.parameters, None)?;
        }
        Ok(())
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Complete,
    /// It was asked to stop, and left a checkpoint.
    Stopped,
}

/// Mean negative log-likelihood of the trained tokens of all batches by their weights, in
/// nats, and their number.
pub fn mean_nll(model: &Decoder, batches: &[MicroBatch]) -> Result<(f64, u64)> {
    let (mut nll, mut weight, mut tokens) = (0.0, 0.0, 0);
    for batch in batches {
        let sum = tch::no_grad(|| loss::nll_sum(model, batch, false))?;
        if let Some(sum) = sum {
            nll += sum.f_double_value(&[])?;
            weight += batch.weight();
            tokens += batch.trained_tokens();
        }
    }
    Ok((if weight > 0.0 { nll / weight } else { 0.0 }, tokens))
}

/// The model with its trained weights as views into one flat tensor.
fn prepare(recipe: &Recipe, base: &BaseFolder, device: Device) -> Result<(Decoder, Parameters)> {
    match &recipe.adapter {
        Adapter::Full(_) => prepare_full(recipe, base, device),
        Adapter::Lora(lora) => {
            let storage = recipe.base.storage();
            let mut model = match recipe.base.from_scratch {
                true => Decoder::drawn_as(base, &storage, device)?,
                false => Decoder::open_as(base, &storage, device)?,
            };
            let stored = |linear: &Linear| match base.checkpoint() {
                Some(checkpoint) => {
                    let key = format!("{}.weight", linear.name);
                    Ok(weights::load_as(checkpoint, &key, Kind::Float)?.f_to(device)?)
                }
                None => linear.weight.dense(Kind::Float),
            };
            let initial = match adapter::peft::resume(&mut model, lora)? {
                Some(values) => values,
                None => adapter::initial(&model, lora, stored)?,
            };
            let parameters = Parameters::for_recipe(initial, &recipe.train, device)?;
            adapter::attach(&mut model, lora, |key, _| view(&parameters, key))?;
            adapter::start::keep(&mut model, lora)?;
            Ok((model, parameters))
        }
    }
}

/// Weights that are trained are kept in f32, whatever the dtype of the computation.
fn prepare_full(
    recipe: &Recipe,
    base: &BaseFolder,
    device: Device,
) -> Result<(Decoder, Parameters)> {
    let mut initial = Vec::new();
    let trained = |(name, _): &(String, Vec<usize>)| recipe.adapter.trains(name);
    for (name, shape) in base.architecture.tensors().into_iter().filter(trained) {
        let tensor = match base.checkpoint() {
            Some(checkpoint) => {
                let stored = weights::load_as(checkpoint, &name, Kind::Float)?;
                weights::grown(&name, stored, &shape)?
            }
            None => weights::draw(&base.architecture, &name, &shape, Device::Cpu)?,
        };
        initial.push((name, tensor));
    }
    let parameters = Parameters::for_recipe(initial, &recipe.train, device)?;
    let kind = weights::kind(recipe.base.dtype);
    let model = Decoder::build(&base.architecture, kind, |name, shape| {
        match (parameters.get(name), base.checkpoint()) {
            (None, Some(checkpoint)) => {
                let stored = weights::frozen(checkpoint, name, shape, kind)?;
                Ok(stored.f_to(device)?.into())
            }
            _ => Ok(view(&parameters, name)?.into()),
        }
    })?;
    Ok((model, parameters))
}

/// A leaf that was just made; its absence is a defect of ours.
fn view(parameters: &Parameters, name: &str) -> Result<Tensor> {
    let absent = || EngineError::Defect(format!("`{name}` was not laid out"));
    parameters.get(name).ok_or_else(absent)
}
