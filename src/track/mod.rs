//! The track room: where metrics go.
//!
//! Owns the [`Sink`] trait and its sinks, progress bars included. The training loop never
//! asks which sinks there are. Training text never reaches a sink.
//!
//! `metrics.jsonl` is the one true record: what every tracker holds is made of its lines
//! ([`line`]), so that a tracker which was away, or a file of a run that is resumed, is filled
//! from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod jsonl;
pub mod line;
pub mod mlflow;
mod plot;
pub mod progress;
pub mod request;
pub mod rows;
pub mod service;
pub mod summary;
pub mod tensorboard;
pub mod trackers;
pub mod trained;
pub mod transfers;
pub mod wandb;
mod wire;

/// One optimiser step, as in `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimiser steps finished.
    pub step: u64,
    /// Passes over the data finished, with fraction.
    pub epoch: f64,
    /// Mean negative log-likelihood of the trained tokens of this step, in nats.
    #[serde(deserialize_with = "number_or_nan")]
    pub loss: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// 2-norm of the gradient before clipping.
    #[serde(deserialize_with = "number_or_nan")]
    pub grad_norm: f64,
    /// Tokens processed since the run began, resumed parts included.
    pub tokens: u64,
    /// Tokens that carried loss, in this step.
    pub trained_tokens: u64,
    /// Tokens per second of this step.
    pub tokens_per_second: f64,
    /// Seconds since the run began, resumed parts included.
    pub seconds: f64,
    /// What the objective tells beside its loss, by names of [`FIGURES`].
    #[serde(flatten, deserialize_with = "numbers_or_nan")]
    pub figures: BTreeMap<String, f64>,
}

/// What objectives tell of a step, by TRL's names; of validation rows with `validation_` before
/// them.
pub const FIGURES: [&str; 10] = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "kl",
    "nll_loss",
    "log_odds_chosen",
    "log_odds_ratio",
];

/// One measurement of the validation loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationMetrics {
    /// Optimiser steps finished.
    pub step: u64,
    /// Passes over the data finished, with fraction.
    pub epoch: f64,
    /// Mean negative log-likelihood over all trained tokens of the validation rows, in nats.
    #[serde(deserialize_with = "number_or_nan")]
    pub validation_loss: f64,
    /// Tokens that it was measured on.
    pub validation_tokens: u64,
    /// Seconds since the run began, resumed parts included.
    pub seconds: f64,
    /// As [`StepMetrics::figures`].
    #[serde(flatten, deserialize_with = "numbers_or_nan")]
    pub figures: BTreeMap<String, f64>,
}

/// Something out of the ordinary at a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The step at which it happened.
    pub step: u64,
    /// Passes over the data finished, with fraction.
    pub epoch: f64,
    /// What was done.
    pub event: Happened,
    /// Why.
    pub cause: Cause,
    /// The number that was the reason; as text, since JSON has no infinity.
    pub value: String,
    /// Where the weights come from now, after a roll-back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_step: Option<u64>,
    /// Seconds since the run began, resumed parts included.
    pub seconds: f64,
}

/// What is done about a step, by its word in a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happened {
    /// The weights stayed as they were.
    Skip,
    /// The weights became those of an earlier checkpoint.
    RollBack,
    /// The run ended with an error.
    Stop,
    /// The run ended, being done before its last step.
    EarlyStop,
}

/// Why something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The loss is infinite or no number.
    NonFiniteLoss,
    /// The gradient is infinite or no number.
    NonFiniteGradient,
    /// The loss is far above that of the steps before.
    LossSpike,
    /// The validation loss does not fall any more.
    ValidationLoss,
}

/// JSON has no NaN and no infinity: they are written as `null`.
fn number_or_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The same of all that have no name of their own.
fn numbers_or_nan<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, f64>, D::Error> {
    let found = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?.into_iter();
    Ok(found.map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// Something that receives metrics.
pub trait Sink {
    /// A step has finished.
    fn step(&mut self, metrics: &StepMetrics) -> std::io::Result<()>;
    /// The validation loss has been measured.
    fn validation(&mut self, metrics: &ValidationMetrics) -> std::io::Result<()>;
    /// Something out of the ordinary has happened.
    fn event(&mut self, event: &Event) -> std::io::Result<()>;
    /// Nothing more will come.
    fn finish(&mut self, _end: End) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// With its last step, or early by its recipe.
    Complete,
    /// By a signal; it can be resumed.
    Stopped,
    /// By an error.
    Failed,
}

impl End {
    /// As the exit status of a program.
    pub fn code(self) -> u64 {
        u64::from(self != Self::Complete)
    }
}

/// Several sinks as one. Each gets everything, even when another fails; the first failure
/// is reported.
#[derive(Default)]
pub struct Sinks(Vec<Box<dyn Sink>>);

impl Sinks {
    /// Adds a sink.
    pub fn push(&mut self, sink: impl Sink + 'static) {
        self.0.push(Box::new(sink));
    }

    fn each(
        &mut self,
        mut tell: impl FnMut(&mut dyn Sink) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let told = self.0.iter_mut().map(|sink| tell(sink.as_mut()));
        told.fold(Ok(()), std::io::Result::and)
    }
}

impl Sink for Sinks {
    fn step(&mut self, metrics: &StepMetrics) -> std::io::Result<()> {
        self.each(|sink| sink.step(metrics))
    }

    fn validation(&mut self, metrics: &ValidationMetrics) -> std::io::Result<()> {
        self.each(|sink| sink.validation(metrics))
    }

    fn event(&mut self, event: &Event) -> std::io::Result<()> {
        self.each(|sink| sink.event(event))
    }

    fn finish(&mut self, end: End) -> std::io::Result<()> {
        self.each(|sink| sink.finish(end))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::rc::Rc;

    use super::*;

    pub(super) fn step(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: step as f64 / 4.0,
            loss: 1.0 / step as f64,
            lr: 1e-4,
            grad_norm: 0.5,
            tokens: step * 100,
            trained_tokens: 40,
            tokens_per_second: 100.0,
            seconds: step as f64,
            figures: BTreeMap::new(),
        }
    }

    pub(super) fn validation(step: u64) -> ValidationMetrics {
        ValidationMetrics {
            step,
            epoch: step as f64 / 4.0,
            validation_loss: 2.0,
            validation_tokens: 7,
            seconds: step as f64,
            figures: BTreeMap::new(),
        }
    }

    pub(super) fn event(step: u64) -> Event {
        Event {
            step,
            epoch: step as f64 / 4.0,
            event: Happened::Skip,
            cause: Cause::NonFiniteLoss,
            value: "NaN".to_owned(),
            to_step: None,
            seconds: step as f64,
        }
    }

    pub(super) struct Full;

    impl Sink for Full {
        fn step(&mut self, _: &StepMetrics) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn validation(&mut self, _: &ValidationMetrics) -> io::Result<()> {
            Ok(())
        }
        fn event(&mut self, _: &Event) -> io::Result<()> {
            Ok(())
        }
    }

    struct Count(Rc<RefCell<u64>>);

    impl Sink for Count {
        fn step(&mut self, _: &StepMetrics) -> io::Result<()> {
            *self.0.borrow_mut() += 1;
            Ok(())
        }
        fn validation(&mut self, _: &ValidationMetrics) -> io::Result<()> {
            *self.0.borrow_mut() += 10;
            Ok(())
        }
        fn event(&mut self, _: &Event) -> io::Result<()> {
            *self.0.borrow_mut() += 1000;
            Ok(())
        }
        fn finish(&mut self, _: End) -> io::Result<()> {
            *self.0.borrow_mut() += 100;
            Ok(())
        }
    }

    #[test]
    fn a_sink_that_fails_silences_no_other_and_is_reported() {
        let count = Rc::new(RefCell::new(0));
        let mut sinks = Sinks::default();
        sinks.push(Full);
        sinks.push(Count(count.clone()));
        let error = sinks.step(&step(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        sinks.validation(&validation(1)).unwrap();
        sinks.event(&event(1)).unwrap();
        sinks.finish(End::Complete).unwrap();
        assert_eq!(*count.borrow(), 1111);
    }
}
