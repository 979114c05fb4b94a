//! AdamW in 32 bits: every weight, or those that another optimiser leaves.
//!
//! Reference: `torch.optim.AdamW`, single-tensor path.

use heirloom::recipe::Adamw;
use tch::Tensor;

use super::{Algorithm, Time};
use crate::error::Result;
use crate::ops::{self, AdamWFactors};
use crate::train::parameters::{Parameters, Segment};

/// AdamW over the weights from `first` on.
#[derive(Debug)]
pub(super) struct AdamW {
    settings: Adamw,
    first: i64,
    /// Running mean of the gradient, laid out as the weights.
    mean: Tensor,
    /// Running mean of its square.
    square: Tensor,
}

impl AdamW {
    pub(super) fn new(settings: Adamw, first: i64, parameters: &Parameters) -> Result<Self> {
        let length = parameters.flat.numel() as i64 - first;
        let zeros = || parameters.flat.f_detach()?.f_narrow(0, first, length)?.f_zeros_like();
        Ok(Self { settings, first, mean: zeros()?, square: zeros()? })
    }

    /// The same with another learning rate than that of the optimiser it stands beside.
    pub(super) fn beside(&mut self, time: Time, lr: f64) -> Time {
        Time { lr: time.lr * (self.settings.lr / lr), ..time }
    }
}

/// The numbers of an update of a segment.
pub(super) fn factors(settings: &Adamw, segment: &Segment, time: Time) -> AdamWFactors {
    let Adamw { betas: (beta1, beta2), eps, weight_decay, .. } = *settings;
    let updates = time.update as f64;
    let (lr, keep) = time.pace(segment, weight_decay);
    AdamWFactors {
        keep: keep as f32,
        betas: [beta1 as f32, beta2 as f32],
        new: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
        step: (lr / (1.0 - beta1.powf(updates))) as f32,
        root: (1.0 - beta2.powf(updates)).sqrt() as f32,
        eps: eps as f32,
    }
}

impl Algorithm for AdamW {
    fn update(&mut self, parameters: &mut Parameters, gradient: &Tensor, time: Time) -> Result<()> {
        let Parameters { flat, segments, .. } = parameters;
        let mine = segments.iter().filter(|segment| segment.elements.start >= self.first);
        for segment in mine {
            let (start, length) = (
                segment.elements.start - self.first,
                segment.elements.end - segment.elements.start,
            );
            let mut weights = segment.of(flat)?;
            let mut mean = self.mean.f_narrow(0, start, length)?;
            let mut square = self.square.f_narrow(0, start, length)?;
            let factors = factors(&self.settings, segment, time);
            let state = [&mut weights, &mut mean, &mut square];
            ops::adamw(state, &segment.of(gradient)?, factors)?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        vec![("mean", self.mean.shallow_clone()), ("square", self.square.shallow_clone())]
    }
}
