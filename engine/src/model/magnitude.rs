//! The lengths of a weight's rows, trained by themselves: DoRA (arXiv 2402.09353).
//!
//! Owns what a row of a layer's product is multiplied with: its magnitude over the length that it
//! has in `W + s B A`. That length is a constant for the backward pass, as section 4.3 of the
//! paper has it and PEFT's `DoraLinearLayer` does.
//!
//! The length is found without the matrix: of row i it is the root of
//! `‖wᵢ‖² + 2 s (W Aᵀ)ᵢ · bᵢ + s² (B (A Aᵀ))ᵢ · bᵢ`, of which the first part never changes. PEFT
//! makes the whole matrix in every forward pass.

use tch::{Kind, Tensor};

use super::weight::Weight;
use crate::error::Result;

/// Rows of a weight that are squared at a time, so that the squares take little memory.
const SQUARED_ROWS: i64 = 1024;

/// The trained lengths of the rows of one weight.
#[derive(Debug)]
pub struct Magnitude {
    /// `lora_magnitude_vector`, `[out_features]`.
    pub vector: Tensor,
    /// `‖wᵢ‖²` of every row of the base's weight, f32.
    squares: Tensor,
    /// What [`Magnitude::scale`] is once nothing changes any more.
    settled: Option<Tensor>,
}

impl Magnitude {
    /// Magnitudes of the rows of `weight`.
    pub fn new(vector: Tensor, weight: &Weight) -> Result<Self> {
        let squares = tch::no_grad(|| squares(&weight.dense(weight.kind())?))?;
        Ok(Self { vector, squares, settled: None })
    }

    /// What each row of `x (W + scaling · B A)ᵀ` is multiplied with, f32.
    pub fn scale(&self, weight: &Weight, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
        if let Some(settled) = &self.settled {
            return Ok(settled.shallow_clone());
        }
        let lengths = tch::no_grad(|| self.lengths(weight, a, b, scaling))?;
        Ok(self.vector.f_div(&lengths)?)
    }

    /// The lengths of the rows of `W + scaling · B A`.
    fn lengths(&self, weight: &Weight, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
        let (a, b) = (a.f_to_kind(Kind::Float)?, b.f_to_kind(Kind::Float)?);
        let kind = weight.kind();
        let across = weight.dense(kind)?.f_mm(&a.f_to_kind(kind)?.f_tr()?)?;
        let twice = across.f_to_kind(Kind::Float)?.f_mul_scalar(2.0 * scaling)?;
        let own = b.f_mm(&a.f_mm(&a.f_tr()?)?)?.f_mul_scalar(scaling * scaling)?;
        let more = twice.f_add(&own)?.f_mul(&b)?;
        let more = more.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
        // Rounding may take a row that was all but taken away below zero.
        Ok(self.squares.f_add(&more)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?.f_sqrt()?)
    }

    /// A matrix with its rows as long as the magnitudes.
    pub fn merged(&self, matrix: &Tensor) -> Result<Tensor> {
        let lengths = squares(matrix)?.f_sqrt()?;
        Ok(matrix.f_mul(&self.vector.f_div(&lengths)?.f_unsqueeze(1)?)?)
    }

    /// From now on nothing changes any more, and `scale` is this.
    pub fn settle(&mut self, scale: Option<Tensor>) {
        self.settled = scale;
    }
}

/// The lengths of a matrix' rows, in f32.
pub fn lengths(matrix: &Tensor) -> Result<Tensor> {
    Ok(squares(matrix)?.f_sqrt()?)
}

/// The squares of the lengths of a matrix' rows, in f32.
fn squares(matrix: &Tensor) -> Result<Tensor> {
    let (rows, _) = matrix.size2()?;
    let mut parts = Vec::new();
    for first in (0..rows).step_by(SQUARED_ROWS as usize) {
        let part = matrix.f_narrow(0, first, SQUARED_ROWS.min(rows - first))?;
        let squared = part.f_to_kind(Kind::Float)?.f_square()?;
        parts.push(squared.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?);
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}
