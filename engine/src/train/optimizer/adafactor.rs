//! Adafactor.
//!
//! Reference: `transformers.optimization.Adafactor` with `relative_step=False`. A tensor of
//! three dimensions is so many matrices, with one length of its step.

use heirloom::recipe;
use tch::{Kind, Tensor};

use super::{Algorithm, Time};
use crate::error::Result;
use crate::ops::optimizers::{AdafactorFactors, Squares, adafactor};
use crate::train::parameters::Parameters;

/// Adafactor over all weights.
#[derive(Debug)]
pub(super) struct Adafactor {
    settings: recipe::Adafactor,
    /// Running squares of all weights by row and by column, end to end.
    rows: Tensor,
    columns: Tensor,
    /// Running mean of steps, laid out as the weights.
    mean: Option<Tensor>,
    weights: Vec<Weight>,
}

/// Where a weight lies, and where what is remembered of it.
#[derive(Debug)]
struct Weight {
    segment: usize,
    start: i64,
    shape: Vec<i64>,
    row: i64,
    column: i64,
}

impl Weight {
    fn numel(&self) -> i64 {
        self.shape.iter().product()
    }

    /// The shapes of its running squares.
    fn squares(&self) -> [Vec<i64>; 2] {
        match self.shape.as_slice() {
            [batches @ .., rows, columns] => {
                [[batches, &[*rows]].concat(), [batches, &[*columns]].concat()]
            }
            vector => [vec![0], vector.to_vec()],
        }
    }
}

impl Adafactor {
    pub(super) fn new(settings: recipe::Adafactor, parameters: &Parameters) -> Result<Self> {
        let (mut weights, mut row, mut column) = (Vec::new(), 0, 0);
        for (start, shape) in parameters.places() {
            let holds = |segment: &super::Segment| segment.elements.contains(&start);
            let segment = parameters.segments.iter().position(holds).unwrap_or_default();
            let weight = Weight { segment, start, shape, row, column };
            let [rows, columns] = weight.squares().map(|shape| shape.iter().product::<i64>());
            (row, column) = (row + rows, column + columns);
            weights.push(weight);
        }
        let device = parameters.flat.device();
        let zeros = |length: i64| Tensor::f_zeros([length], (Kind::Float, device));
        let mean = settings.beta1.map(|_| parameters.zero_gradient()).transpose()?;
        Ok(Self { settings, rows: zeros(row)?, columns: zeros(column)?, mean, weights })
    }
}

/// Part of a flat tensor in a shape.
fn part(flat: &Tensor, start: i64, shape: &[i64]) -> Result<Tensor> {
    Ok(flat.f_narrow(0, start, shape.iter().product())?.f_view(shape)?)
}

impl Algorithm for Adafactor {
    fn update(&mut self, parameters: &mut Parameters, gradient: &Tensor, time: Time) -> Result<()> {
        let settings = &self.settings;
        for weight in self.weights.iter().filter(|weight| weight.numel() > 0) {
            let pace = parameters.segments[weight.segment].group.pace;
            let scaled = settings.scale_parameter;
            let factors = AdafactorFactors {
                decay: (1.0 - (time.update as f64).powf(settings.decay_rate)) as f32,
                eps: settings.eps.0 as f32,
                least_scale: if scaled { settings.eps.1 as f32 } else { -1.0 },
                clip_threshold: settings.clip_threshold as f32,
                lr: (time.lr * pace.lr_ratio) as f32,
                weight_decay: pace.weight_decay.unwrap_or(settings.weight_decay) as f32,
                beta1: settings.beta1.unwrap_or_default() as f32,
            };
            let [rows, columns] = weight.squares();
            let whole = |flat: &Tensor| part(flat, weight.start, &weight.shape);
            let mut state = Squares {
                rows: part(&self.rows, weight.row, &rows)?,
                columns: part(&self.columns, weight.column, &columns)?,
                mean: self.mean.as_ref().map(whole).transpose()?,
            };
            adafactor(&mut whole(&parameters.flat)?, &mut state, &whole(gradient)?, factors)?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        let both = [("rows", &self.rows), ("columns", &self.columns)];
        let mean = self.mean.as_ref().map(|mean| ("mean", mean));
        both.into_iter().chain(mean).map(|(name, tensor)| (name, tensor.shallow_clone())).collect()
    }
}
