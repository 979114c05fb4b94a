//! The train room: from a run folder to trained weights.
//!
//! Owns the loop ([`Trainer`]), the loss ([`loss`]), the optimiser and schedules
//! ([`optimizer`]), the trained weights ([`parameters`]), checkpoints ([`checkpoint`]) and what
//! a step has to compute ([`flops`]). Does not own evaluation after training nor releases.
//!
//! The gradient of a step is that of the weighted mean over all its trained tokens, however
//! they are spread over micro-batches.

pub mod checkpoint;
pub mod flops;
pub mod loss;
pub mod optimizer;
pub mod parameters;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use heirloom::base::BaseFolder;
use heirloom::dataset::stream::{MicroBatch, Step};
use heirloom::recipe::lock::Size;
use heirloom::recipe::{Adapter, Optimizer, Recipe};
use heirloom::track::{Sink, StepMetrics, ValidationMetrics};
use tch::{Device, Kind, Tensor};

use crate::adapter;
use crate::error::{EngineError, Result};
use crate::model::{Decoder, Linear, weights};
use crate::ops::profile::scope;
use checkpoint::Progress;
use optimizer::AdamW;
use parameters::Parameters;

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
    optimizer: AdamW,
    /// Steps of the run, by the plan.
    steps: u64,
    /// Steps after which it ends whatever the stream holds.
    most: Option<u64>,
    /// Where checkpoints go, if they are wanted.
    checkpoints: Option<PathBuf>,
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
        let Optimizer::Adamw(settings) = &recipe.train.optimizer;
        let mut optimizer = AdamW::new(settings.clone(), &parameters)?;
        let restored = match &checkpoints {
            Some(folder) => checkpoint::restore(folder, &mut parameters, &mut optimizer)?,
            None => None,
        };
        let progress = restored.unwrap_or_default();
        let (recipe, steps) = (recipe.clone(), size.steps);
        let most = if size.estimated { recipe.train.max_steps } else { Some(steps) };
        Ok(Self { model, parameters, progress, recipe, optimizer, steps, most, checkpoints })
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
        while self.progress.step < most {
            // The clock runs while rows are waited for: that is time too.
            let started = Instant::now();
            if stop.load(Ordering::Relaxed) {
                self.save()?;
                return Ok(Outcome::Stopped);
            }
            let ended = EngineError::StreamEnded { step: self.progress.step, steps: self.steps };
            let Some(step) = stream.next().transpose()? else {
                if self.most == Some(self.steps) {
                    return Err(ended.into());
                }
                break;
            };
            let of_epoch = epoch_steps.get(step.epoch as usize).copied().unwrap_or(1).max(1);
            let metrics = self.step(&step, of_epoch, started)?;
            sink.step(&metrics).map_err(EngineError::from)?;
            let last = self.progress.step == most;
            let train = &self.recipe.train;
            let due = |every: u64| {
                last || step.ends_epoch || (every > 0 && self.progress.step.is_multiple_of(every))
            };
            let (validate, save) = (due(train.validate_every), due(train.checkpoint_every));
            if validate {
                if let Some(read) = validation()? {
                    batches = read;
                }
                if !batches.is_empty() {
                    let measured = self.validate(&batches, metrics.epoch)?;
                    sink.validation(&measured).map_err(EngineError::from)?;
                }
            }
            if save {
                self.save()?;
                look(self.progress.step)?;
            }
        }
        Ok(Outcome::Complete)
    }

    /// One optimiser step of a pass of `of_epoch` steps, whose rows were asked for at `started`.
    pub fn step(&mut self, step: &Step, of_epoch: u64, started: Instant) -> Result<StepMetrics> {
        let number = self.progress.step + 1;
        let seed = mix(self.recipe.train.seed, number);
        let trained: u64 = step.micro_batches.iter().map(MicroBatch::trained_tokens).sum();
        let tokens: u64 = step.micro_batches.iter().map(|batch| batch.tokens.len() as u64).sum();
        let weight: f64 = step.micro_batches.iter().map(MicroBatch::weight).sum();
        let mut gradient = self.parameters.zero_gradient()?;
        let mut nll = 0.0;
        for (place, batch) in step.micro_batches.iter().enumerate() {
            // Dropout depends on the step and the place in it alone, so that a resumed run drops
            // the same, and so does one whose backward passes draw numbers again.
            tch::manual_seed(mix(seed as u64, place as u64));
            let sum = {
                let _scope = scope("loss");
                loss::nll_sum(&self.model, batch, true)?
            };
            if let Some(sum) = sum {
                nll += sum.f_double_value(&[])?;
                // Of what no operation of ours claims: torch's own nodes.
                let _scope = scope("other backward");
                let mean = sum.f_div_scalar(weight)?;
                self.parameters.add_gradient(&mean, &gradient)?;
            }
        }
        let mean_loss = nll / if weight > 0.0 { weight } else { 1.0 };
        if !mean_loss.is_finite() {
            return Err(EngineError::Diverged { step: number, what: "loss", value: mean_loss });
        }
        let train = &self.recipe.train;
        let grad_norm = {
            let _scope = scope("optimizer");
            optimizer::clip(&mut gradient, train.clip_grad_norm)?
        };
        if !grad_norm.is_finite() {
            return Err(EngineError::Diverged { step: number, what: "gradient", value: grad_norm });
        }
        let Optimizer::Adamw(settings) = &train.optimizer;
        let lr = settings.lr * optimizer::factor(&train.schedule, self.progress.step, self.steps);
        // A step whose rows were all withdrawn moves nothing.
        if weight > 0.0 {
            let _scope = scope("optimizer");
            self.optimizer.update(&mut self.parameters, &gradient, lr)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let progress = &mut self.progress;
        progress.step = number;
        progress.tokens += tokens;
        progress.trained_tokens += trained;
        progress.seconds += seconds;
        progress.step_in_epoch = if step.ends_epoch { 0 } else { progress.step_in_epoch + 1 };
        progress.position = step.position.clone();
        let into_epoch = if step.ends_epoch { of_epoch } else { progress.step_in_epoch };
        Ok(StepMetrics {
            step: number,
            epoch: f64::from(step.epoch) + into_epoch as f64 / of_epoch as f64,
            loss: mean_loss,
            lr,
            grad_norm,
            tokens: progress.tokens,
            trained_tokens: trained,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            seconds: progress.seconds,
        })
    }

    fn validate(&mut self, batches: &[MicroBatch], epoch: f64) -> Result<ValidationMetrics> {
        let (validation_loss, validation_tokens) = mean_nll(&self.model, batches)?;
        let (step, seconds) = (self.progress.step, self.progress.seconds);
        Ok(ValidationMetrics { step, epoch, validation_loss, validation_tokens, seconds })
    }

    fn save(&self) -> Result<()> {
        let keep = self.recipe.train.keep_checkpoints;
        let Some(folder) = &self.checkpoints else { return Ok(()) };
        checkpoint::save(folder, &self.progress, &self.parameters, &self.optimizer, keep)
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

/// What SIGINT and SIGTERM do.
#[derive(Debug)]
pub struct Stop {
    /// Set by the first signal; a second one ends the program at once.
    pub asked: Arc<AtomicBool>,
    armed: Arc<AtomicBool>,
}

impl Stop {
    /// Listens from now on.
    pub fn on_signals() -> Result<Self> {
        let stop = Self { asked: Arc::default(), armed: Arc::default() };
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // In this order: the first signal only arms the end that the second one brings.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop.armed))?;
            signal_hook::flag::register(signal, Arc::clone(&stop.armed))?;
            signal_hook::flag::register(signal, Arc::clone(&stop.asked))?;
        }
        Ok(stop)
    }

    /// From now on the first signal ends the program.
    pub fn end_at_once(&self) {
        self.armed.store(true, Ordering::Relaxed);
    }
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
            let parameters = Parameters::new(initial, device)?;
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
    let parameters = Parameters::new(initial, device)?;
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

/// A seed for every step, and for every part of it (the finaliser of SplitMix64).
fn mix(seed: u64, number: u64) -> i64 {
    let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ (mixed >> 31)) as i64
}
