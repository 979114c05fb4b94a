//! Lion.
//!
//! Reference: `bitsandbytes.optim.Lion` in 32 bits.

use heirloom::recipe;
use tch::Tensor;

use super::{Algorithm, Time};
use crate::error::Result;
use crate::ops::optimizers::{LionFactors, lion};
use crate::train::parameters::Parameters;

/// Lion over all weights.
#[derive(Debug)]
pub(super) struct Lion {
    settings: recipe::Lion,
    /// Running mean of the gradient, laid out as the weights.
    mean: Tensor,
}

impl Lion {
    pub(super) fn new(settings: recipe::Lion, parameters: &Parameters) -> Result<Self> {
        Ok(Self { settings, mean: parameters.zero_gradient()? })
    }
}

impl Algorithm for Lion {
    fn update(&mut self, parameters: &mut Parameters, gradient: &Tensor, time: Time) -> Result<()> {
        let recipe::Lion { betas: (beta1, beta2), weight_decay, .. } = self.settings;
        for segment in &parameters.segments {
            let (lr, keep) = time.pace(segment, weight_decay);
            let factors = LionFactors {
                keep: keep as f32,
                lr: lr as f32,
                betas: [beta1 as f32, beta2 as f32],
                new: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
            };
            let (mut weights, mut mean) = (segment.of(&parameters.flat)?, segment.of(&self.mean)?);
            lion(&mut weights, &mut mean, &segment.of(gradient)?, factors)?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        vec![("mean", self.mean.shallow_clone())]
    }
}
