//! One optimiser step: its gradient, what is thought of it, the update.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use heirloom::dataset::stream::{MicroBatch, Step};
use heirloom::recipe::OnBadStep;
use heirloom::track::{Cause, Event, Happened, StepMetrics};
use tch::Tensor;

use super::guard::Bad;
use super::objective::{Figures, Measure};
use super::{Trainer, optimizer};
use crate::error::{EngineError, Result};
use crate::ops::profile::scope;

/// A step that was taken, or not.
#[derive(Debug)]
pub struct Taken {
    /// Its numbers.
    pub metrics: StepMetrics,
    /// What was out of the ordinary with it.
    pub event: Option<Event>,
    /// Why the run ends here, where it does.
    pub error: Option<EngineError>,
}

/// What a step is measured by.
struct Slope {
    /// The mean loss.
    loss: f64,
    gradient: Tensor,
    /// What else is told of it.
    figures: BTreeMap<String, f64>,
}

impl Trainer {
    /// One optimiser step of a pass of `of_epoch` steps, whose rows were asked for at `started`.
    pub fn step(&mut self, step: &Step, of_epoch: u64, started: Instant) -> Result<Taken> {
        let taken = self.step_unless(step, of_epoch, started, &AtomicBool::new(false))?;
        taken.ok_or_else(|| EngineError::Defect("a step stopped by itself".to_owned()))
    }

    /// The same; or nothing, once `stop` is set: looked at before every micro-batch, so that a
    /// long step fits into the grace that a scheduler gives.
    pub(super) fn step_unless(
        &mut self,
        step: &Step,
        of_epoch: u64,
        started: Instant,
        stop: &AtomicBool,
    ) -> Result<Option<Taken>> {
        let number = self.progress.step + 1;
        let weight: f64 = step.micro_batches.iter().map(MicroBatch::weight).sum();
        let Some(slope) = self.gradient(step, number, stop)? else { return Ok(None) };
        let Slope { loss, mut gradient, figures } = slope;
        let grad_norm = {
            let _scope = scope("optimizer");
            optimizer::clip(&mut gradient, self.recipe.train.clip_grad_norm)?
        };
        // A step whose rows were all withdrawn moves nothing, and says nothing of others.
        let bad = match weight > 0.0 {
            true => self.progress.seen.judge(&self.recipe.train, loss, grad_norm),
            false => None,
        };
        let peak = self.recipe.train.optimizer.lr();
        let schedule = &self.recipe.train.schedule;
        let lr = peak * optimizer::factor(schedule, self.progress.step, self.size.steps);
        if weight > 0.0 && bad.is_none() {
            let _scope = scope("optimizer");
            self.optimizer.update(&mut self.parameters, &gradient, lr)?;
            self.progress.updates += 1;
        }
        let event = bad.map(|bad| self.mend(&bad)).transpose()?;
        let error = bad.filter(|bad| bad.action == OnBadStep::Stop);
        let error = error.map(|bad| diverged(number, &bad));
        let seconds = started.elapsed().as_secs_f64();
        let metrics = self.advance(step, of_epoch, seconds);
        let metrics = StepMetrics { loss, lr, grad_norm, figures, ..metrics };
        let event = event.map(|event| Event {
            step: number,
            epoch: metrics.epoch,
            seconds: metrics.seconds,
            ..event
        });
        Ok(Some(Taken { metrics, event, error }))
    }

    /// What a step is measured by; nothing once `stop` is set.
    fn gradient(&mut self, step: &Step, number: u64, stop: &AtomicBool) -> Result<Option<Slope>> {
        let Self { model, parameters, recipe, teacher, .. } = self;
        let seed = mix(recipe.train.seed, number);
        let gradient = parameters.zero_gradient()?;
        let (objective, smoothing) = (&recipe.objective, recipe.train.label_smoothing_factor);
        let measure = Measure::of(objective, smoothing, model, &step.micro_batches, true);
        let measure = measure.map_err(|error| match step.micro_batches.first() {
            Some(batch) => out_of_memory(error, number, "forward", batch),
            None => error,
        })?;
        let measure = measure.taught_by(teacher.as_ref());
        let (mut sum, mut figures) = (0.0, Figures::default());
        for (place, batch) in step.micro_batches.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            // Dropout depends on the step and the place in it alone, so that a resumed run drops
            // the same, and so does one whose backward passes draw numbers again.
            tch::manual_seed(mix(seed as u64, place as u64));
            let part = {
                let _scope = scope("loss");
                let part = measure.part(model, batch);
                part.map_err(|error| out_of_memory(error, number, "forward", batch))?
            };
            let Some(part) = part else { continue };
            sum += part.sum;
            figures.extend(&part.figures);
            if let Some(mean) = part.graph {
                // Of what no operation of ours claims: torch's own nodes.
                let _scope = scope("other backward");
                let added = parameters.add_gradient(&mean, &gradient);
                added.map_err(|error| out_of_memory(error, number, "backward", batch))?;
            }
        }
        let (loss, figures) = (measure.mean(sum), measure.told(figures));
        Ok(Some(Slope { loss, gradient, figures }))
    }

    /// Counts a step; gives its counters as metrics.
    fn advance(&mut self, step: &Step, of_epoch: u64, seconds: f64) -> StepMetrics {
        let trained_tokens: u64 = step.micro_batches.iter().map(MicroBatch::trained_tokens).sum();
        let tokens: u64 = step.micro_batches.iter().map(|batch| batch.tokens.len() as u64).sum();
        let progress = &mut self.progress;
        progress.step += 1;
        progress.tokens += tokens;
        progress.trained_tokens += trained_tokens;
        progress.seconds += seconds;
        progress.step_in_epoch = if step.ends_epoch { 0 } else { progress.step_in_epoch + 1 };
        progress.position = step.position.clone();
        let into_epoch = if step.ends_epoch { of_epoch } else { progress.step_in_epoch };
        StepMetrics {
            step: progress.step,
            epoch: f64::from(step.epoch) + into_epoch as f64 / of_epoch as f64,
            loss: 0.0,
            lr: 0.0,
            grad_norm: 0.0,
            tokens: progress.tokens,
            trained_tokens,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            seconds: progress.seconds,
            figures: BTreeMap::new(),
        }
    }

    /// Does what the recipe says about a bad step; its place and time are still to be filled in.
    fn mend(&mut self, bad: &Bad) -> Result<Event> {
        let (mut event, mut to_step) = (Happened::Skip, None);
        match bad.action {
            OnBadStep::Skip => {}
            OnBadStep::Stop => event = Happened::Stop,
            OnBadStep::RollBack => {
                // Before the first checkpoint there is nowhere to go.
                if let Some((anchor, checkpoints)) =
                    self.progress.seen.anchor.zip(self.checkpoints.as_mut())
                {
                    let Self { parameters, optimizer, .. } = self;
                    let then = checkpoints.load(anchor, parameters, Some(optimizer))?;
                    self.progress.updates = then.updates;
                    (event, to_step) = (Happened::RollBack, Some(anchor));
                }
            }
        }
        let value = bad.value.to_string();
        Ok(Event { step: 0, epoch: 0.0, event, cause: bad.cause, value, to_step, seconds: 0.0 })
    }
}

/// Says where memory ended, if it was that; the job knows which settings would fit.
fn out_of_memory(
    error: EngineError,
    step: u64,
    pass: &'static str,
    batch: &MicroBatch,
) -> EngineError {
    match error.lack_of_memory() {
        Some(wanted) => {
            let (tokens, fitting) = (batch.tokens.len(), Vec::new());
            EngineError::OutOfMemory { step, pass, tokens, wanted, fitting }
        }
        None => error,
    }
}

/// The error of a run that its recipe stops.
fn diverged(step: u64, bad: &Bad) -> EngineError {
    let what = if bad.cause == Cause::NonFiniteGradient { "gradient" } else { "loss" };
    EngineError::Diverged { step, what, value: bad.value }
}

/// A seed for every step, and for every part of it (the finaliser of SplitMix64).
fn mix(seed: u64, number: u64) -> i64 {
    let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ (mixed >> 31)) as i64
}
