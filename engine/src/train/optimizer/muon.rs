//! Muon for the matrices of the blocks, AdamW for every other weight.
//!
//! Reference: `torch.optim.Muon`. The Newton–Schulz iteration is done in bfloat16, as there.

use heirloom::recipe::{self, AdjustLr};
use tch::{Kind, Tensor};

use super::adamw::AdamW;
use super::{Algorithm, Time};
use crate::error::Result;
use crate::train::parameters::Parameters;

/// Muon over the weights that are not left, AdamW over those that are.
#[derive(Debug)]
pub(super) struct Muon {
    settings: recipe::Muon,
    /// Running mean of the gradient, laid out as the weights that are not left.
    momentum: Tensor,
    left: AdamW,
}

impl Muon {
    pub(super) fn new(settings: recipe::Muon, parameters: &Parameters) -> Result<Self> {
        let own = parameters.own();
        let momentum = parameters.flat.f_detach()?.f_narrow(0, 0, own)?.f_zeros_like()?;
        let left = AdamW::new(settings.adamw.clone(), own, parameters)?;
        Ok(Self { settings, momentum, left })
    }
}

impl Algorithm for Muon {
    fn update(&mut self, parameters: &mut Parameters, gradient: &Tensor, time: Time) -> Result<()> {
        let settings = &self.settings;
        let own = parameters.own();
        let mean = settings.momentum;
        // All at once; only the iteration goes by matrices.
        let gradients = gradient.f_narrow(0, 0, own)?;
        let _ = self.momentum.f_lerp_(&gradients, 1.0 - mean)?;
        let ahead = match settings.nesterov {
            true => gradients.f_lerp(&self.momentum, mean)?,
            false => self.momentum.shallow_clone(),
        };
        for (start, shape) in parameters.places().filter(|(start, _)| *start < own) {
            let [rows, columns] = shape.as_slice() else { continue };
            let holds = |segment: &&super::Segment| segment.elements.contains(&start);
            let Some(segment) = parameters.segments.iter().find(holds) else { continue };
            let matrix =
                |flat: &Tensor| flat.f_narrow(0, start, rows * columns)?.f_view([*rows, *columns]);
            let step = orthogonal(&matrix(&ahead)?, settings)?;
            let (lr, keep) = time.pace(segment, settings.weight_decay);
            let lr = lr * adjusted(settings.adjust_lr_fn, *rows as f64, *columns as f64);
            let mut weight = matrix(&parameters.flat)?;
            let step = step.f_to_kind(Kind::Float)?.f_mul_scalar(lr)?;
            let _ = weight.f_mul_scalar_(keep)?.f_sub_(&step)?;
        }
        let time = self.left.beside(time, settings.lr);
        self.left.update(parameters, gradient, time)
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        let mut state = vec![("momentum", self.momentum.shallow_clone())];
        state.extend(self.left.state());
        state
    }
}

/// A matrix whose singular values are all near 1, with the singular vectors of `matrix`.
fn orthogonal(matrix: &Tensor, settings: &recipe::Muon) -> Result<Tensor> {
    let (a, b, c) = settings.ns_coefficients;
    let (rows, columns) = matrix.size2()?;
    let turned = |x: Tensor| if rows > columns { x.f_tr() } else { Ok(x) };
    let mut x = turned(matrix.f_to_kind(Kind::BFloat16)?)?;
    // So that no singular value is above 1.
    let norm = x.f_norm()?.f_clamp_min(settings.eps)?;
    x = x.f_div(&norm)?;
    // Batches of one: products with both factors are given no other way.
    x = x.f_unsqueeze(0)?;
    for _ in 0..settings.ns_steps {
        let gram = x.f_matmul(&x.f_transpose(-2, -1)?)?;
        let by = gram.f_baddbmm(&gram, &gram, b, c)?;
        x = x.f_baddbmm(&by, &x, a, 1.0)?;
    }
    x = x.f_squeeze_dim(0)?;
    Ok(turned(x)?)
}

/// What the learning rate of a matrix is multiplied by.
fn adjusted(how: AdjustLr, rows: f64, columns: f64) -> f64 {
    match how {
        AdjustLr::Original => (rows / columns).max(1.0).sqrt(),
        AdjustLr::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
    }
}
