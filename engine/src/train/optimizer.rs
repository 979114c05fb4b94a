//! AdamW and learning-rate schedules.
//!
//! References: `torch.optim.AdamW` (single-tensor path) and Transformers'
//! `get_cosine_schedule_with_warmup`, number for number.

use heirloom::recipe::{Adamw, Schedule};
use tch::Tensor;

use super::parameters::Parameters;
use crate::error::Result;
use crate::ops::{self, AdamWFactors};

/// AdamW over the flat weights.
#[derive(Debug)]
pub struct AdamW {
    settings: Adamw,
    /// Running mean of the gradient, laid out as the weights.
    pub mean: Tensor,
    /// Running mean of its square.
    pub square: Tensor,
    /// Updates done.
    pub updates: u64,
}

impl AdamW {
    /// A fresh optimiser.
    pub fn new(settings: Adamw, parameters: &Parameters) -> Result<Self> {
        let (mean, square) = (parameters.zero_gradient()?, parameters.zero_gradient()?);
        Ok(Self { settings, mean, square, updates: 0 })
    }

    /// Moves the weights along `gradient` with learning rate `lr`.
    pub fn update(
        &mut self,
        parameters: &mut Parameters,
        gradient: &Tensor,
        lr: f64,
    ) -> Result<()> {
        let Adamw { betas: (beta1, beta2), eps, weight_decay, .. } = self.settings;
        self.updates += 1;
        let updates = self.updates as f64;
        let correction1 = 1.0 - beta1.powf(updates);
        let correction2 = 1.0 - beta2.powf(updates);
        let factors = AdamWFactors {
            keep: (1.0 - lr * weight_decay) as f32,
            betas: [beta1 as f32, beta2 as f32],
            new: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
            step: (lr / correction1) as f32,
            root: correction2.sqrt() as f32,
            eps: eps as f32,
        };
        let Parameters { flat, decayed, .. } = parameters;
        ops::adamw([flat, &mut self.mean, &mut self.square], gradient, *decayed, factors)
    }
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

/// What the peak learning rate is multiplied by in the step that follows `done` steps.
pub fn factor(schedule: &Schedule, done: u64, steps: u64) -> f64 {
    let warmup_ratio = match schedule {
        Schedule::Cosine(cosine) => cosine.warmup_ratio,
        Schedule::Constant(constant) => constant.warmup_ratio,
    };
    // As Transformers' `TrainingArguments.get_warmup_steps`.
    let warmup = (steps as f64 * warmup_ratio).ceil() as u64;
    if done < warmup {
        return done as f64 / warmup.max(1) as f64;
    }
    match schedule {
        Schedule::Constant(_) => 1.0,
        Schedule::Cosine(cosine) => {
            let progress = (done - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
            // A run whose steps were estimated may be longer.
            let progress = progress.min(1.0);
            let wave = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
            cosine.min_lr_ratio + (1.0 - cosine.min_lr_ratio) * wave
        }
    }
}
