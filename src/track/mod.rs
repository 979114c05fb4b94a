//! The track room: where metrics go.
//!
//! Owns the [`Sink`] trait and its sinks, progress bars included. The training loop never
//! asks which sinks there are. Training text never reaches a sink.

use serde::{Deserialize, Serialize};

pub mod jsonl;
pub mod progress;

/// One optimiser step, as in `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimiser steps finished.
    pub step: u64,
    /// Passes over the data finished, with fraction.
    pub epoch: f64,
    /// Mean negative log-likelihood of the trained tokens of this step, in nats.
    pub loss: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// 2-norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens processed since the run began, resumed parts included.
    pub tokens: u64,
    /// Tokens that carried loss, in this step.
    pub trained_tokens: u64,
    /// Tokens per second of this step.
    pub tokens_per_second: f64,
    /// Seconds since the run began, resumed parts included.
    pub seconds: f64,
}

/// One measurement of the validation loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationMetrics {
    /// Optimiser steps finished.
    pub step: u64,
    /// Passes over the data finished, with fraction.
    pub epoch: f64,
    /// Mean negative log-likelihood over all trained tokens of the validation rows, in nats.
    pub validation_loss: f64,
    /// Tokens that it was measured on.
    pub validation_tokens: u64,
    /// Seconds since the run began, resumed parts included.
    pub seconds: f64,
}

/// Something that receives metrics.
pub trait Sink {
    /// A step has finished.
    fn step(&mut self, metrics: &StepMetrics) -> std::io::Result<()>;
    /// The validation loss has been measured.
    fn validation(&mut self, metrics: &ValidationMetrics) -> std::io::Result<()>;
    /// Nothing more will come.
    fn finish(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
