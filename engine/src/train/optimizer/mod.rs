//! Optimisers over the flat weights, and learning-rate schedules ([`schedule`]).
//!
//! Owns which optimiser a recipe asks for ([`Optimizer`]), clipping, and what of an optimiser
//! goes into a checkpoint: its tensors by name, and the number of updates, which is that of
//! steps. Does not own the loops (`crate::ops`).
//!
//! References: `torch.optim.AdamW` and `torch.optim.Muon` (single-tensor paths), bitsandbytes'
//! `AdamW8bit` and `Lion`, `transformers.optimization.Adafactor`, number for number.

mod adafactor;
mod adamw;
mod adamw_8bit;
mod lion;
mod muon;
mod schedule;

use std::fmt::Debug;

use heirloom::recipe;
use tch::Tensor;

use super::parameters::{Parameters, Segment};
use crate::error::Result;
pub use schedule::factor;

/// An optimiser and what it remembers.
#[derive(Debug)]
pub struct Optimizer {
    algorithm: Box<dyn Algorithm>,
    /// Updates done.
    pub updates: u64,
}

impl Optimizer {
    /// A fresh optimiser for weights that were laid out for it.
    pub fn new(settings: &recipe::Optimizer, parameters: &Parameters) -> Result<Self> {
        use recipe::Optimizer as Asked;
        let algorithm: Box<dyn Algorithm> = match settings.clone() {
            Asked::Adamw(settings) => Box::new(adamw::AdamW::new(settings, 0, parameters)?),
            Asked::Adamw8bit(settings) => {
                Box::new(adamw_8bit::AdamW8bit::new(settings, parameters)?)
            }
            Asked::Adafactor(settings) => {
                Box::new(adafactor::Adafactor::new(settings, parameters)?)
            }
            Asked::Lion(settings) => Box::new(lion::Lion::new(settings, parameters)?),
            Asked::Muon(settings) => Box::new(muon::Muon::new(settings, parameters)?),
        };
        Ok(Self { algorithm, updates: 0 })
    }

    /// Moves the weights along `gradient` with learning rate `lr`.
    pub fn update(
        &mut self,
        parameters: &mut Parameters,
        gradient: &Tensor,
        lr: f64,
    ) -> Result<()> {
        self.updates += 1;
        tch::no_grad(|| {
            self.algorithm.update(parameters, gradient, Time { lr, update: self.updates })
        })
    }

    /// What a checkpoint keeps, by name; the same tensors that the next update changes.
    pub fn state(&self) -> Vec<(&'static str, Tensor)> {
        self.algorithm.state()
    }
}

/// When an update is done.
#[derive(Clone, Copy, Debug)]
struct Time {
    /// The learning rate.
    lr: f64,
    /// Its number, from 1.
    update: u64,
}

impl Time {
    /// How far a segment goes: its learning rate, and what it keeps of its weights.
    fn pace(self, segment: &Segment, weight_decay: f64) -> (f64, f64) {
        let pace = segment.group.pace;
        let lr = self.lr * pace.lr_ratio;
        (lr, 1.0 - lr * pace.weight_decay.unwrap_or(weight_decay))
    }
}

/// How weights move.
trait Algorithm: Debug {
    /// Moves the weights along `gradient`.
    fn update(&mut self, parameters: &mut Parameters, gradient: &Tensor, time: Time) -> Result<()>;

    /// All tensors that the next update depends on.
    fn state(&self) -> Vec<(&'static str, Tensor)>;
}

/// Scales `gradient` down to `longest` if it is longer (0: never), as
/// `torch.nn.utils.clip_grad_norm_`; gives the 2-norm before.
pub fn clip(gradient: &mut Tensor, longest: f64) -> Result<f64> {
    let norm = gradient.f_norm()?.f_double_value(&[])?;
    if longest > 0.0 {
        let factor = longest / (norm + 1e-6);
        if factor < 1.0 {
            let _ = gradient.f_mul_scalar_(factor)?;
        }
    }
    Ok(norm)
}
