//! Rotary position embeddings (arXiv 2104.09864): frequencies, angles, rotation.
//!
//! Follows `modeling_rope_utils.py` of Transformers 5.23 operation by operation, in f32 tensors
//! as there: computed in another order or precision, angles at late positions differ.

use heirloom::base::{Rope, RopeScaling};
use tch::{Device, Kind, Tensor};

use super::{fused, loops, reference};
use crate::error::Result;

/// A rotary embedding with its frequencies computed.
#[derive(Debug)]
pub struct Rotary {
    /// As `config.json` has it.
    pub rope: Rope,
    /// Inverse frequencies of sequences up to the original length, `[dim / 2]` f32.
    short: Tensor,
    /// Those of longer sequences, where they are the same for all of them.
    long: Option<Tensor>,
}

/// Cosines and sines of rows, `[n, 1, dim / 2]` each.
#[derive(Debug)]
pub struct Angles {
    /// Cosines, times the attention factor.
    pub cos: Tensor,
    /// Sines, times the attention factor.
    pub sin: Tensor,
}

impl Angles {
    /// The same angles under another owner.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }
}

impl Rotary {
    /// Computes the frequencies.
    pub fn new(rope: &Rope, device: Device) -> Result<Self> {
        let powers = |theta: f64| -> Result<Tensor> {
            let steps = Tensor::f_arange_start_step(0, rope.dim as i64, 2, (Kind::Float, device))?;
            Ok(Tensor::f_pow_scalar(theta, &steps.f_div_scalar(rope.dim as i64)?)?)
        };
        let plain = powers(rope.theta)?;
        let mut long = None;
        let short = match &rope.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => plain.f_reciprocal()?,
            RopeScaling::Linear { factor } => plain.f_reciprocal()?.f_div_scalar(*factor)?,
            RopeScaling::Llama3 { .. } => llama3(&plain.f_reciprocal()?, &rope.scaling)?,
            RopeScaling::Yarn { .. } => yarn(&plain, rope)?,
            RopeScaling::LongRope { short_factor, long_factor, .. } => {
                let scaled = |factors: &[f64]| -> Result<Tensor> {
                    let factors = Tensor::f_from_slice(factors)?.f_to_kind(Kind::Float)?;
                    Ok(factors.f_to(device)?.f_mul(&plain)?.f_reciprocal()?)
                };
                long = Some(scaled(long_factor)?);
                scaled(short_factor)?
            }
        };
        Ok(Self { rope: rope.clone(), short, long })
    }

    /// Angles of rows at `positions` (`[n]` i64), of sequences that are `lengths` long and
    /// have `rows` rows each. With dynamic scaling and LongRoPE the length of a sequence
    /// decides about its frequencies.
    pub fn angles(
        &self,
        positions: &Tensor,
        lengths: impl Iterator<Item = i64> + Clone,
        rows: impl Iterator<Item = i64>,
        kind: Kind,
    ) -> Result<Angles> {
        let positions = positions.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?;
        let original = match &self.rope.scaling {
            RopeScaling::Dynamic { original, .. } | RopeScaling::LongRope { original, .. } => {
                *original as i64
            }
            _ => i64::MAX,
        };
        let angles = if lengths.clone().all(|length| length <= original) {
            positions.f_mul(&self.short)?
        } else {
            let mut parts = Vec::new();
            let mut start = 0;
            for (length, rows) in lengths.zip(rows) {
                let positions = positions.f_narrow(0, start, rows)?;
                parts.push(positions.f_mul(&self.frequencies(length, original)?)?);
                start += rows;
            }
            Tensor::f_cat(&parts, 0)?
        };
        let angles = angles.f_unsqueeze(1)?;
        let kind = if self.rope.wide { Kind::Float } else { kind };
        let finish = |table: Tensor| -> Result<Tensor> {
            let factor = self.rope.attention_factor;
            let table = if factor == 1.0 { table } else { table.f_mul_scalar(factor)? };
            Ok(table.f_to_kind(kind)?)
        };
        Ok(Angles { cos: finish(angles.f_cos()?)?, sin: finish(angles.f_sin()?)? })
    }

    /// Whether keys of a sequence that grows from one length to another would have to be
    /// rotated again.
    pub fn changes(&self, from: i64, to: i64) -> bool {
        match &self.rope.scaling {
            RopeScaling::LongRope { original, .. } => {
                let original = *original as i64;
                from <= original && to > original
            }
            _ => false,
        }
    }

    fn frequencies(&self, length: i64, original: i64) -> Result<Tensor> {
        match (&self.rope.scaling, &self.long) {
            (RopeScaling::Dynamic { factor, .. }, _) if length > original => {
                self.dynamic(*factor, length, original)
            }
            (_, Some(long)) if length > original => Ok(long.shallow_clone()),
            _ => Ok(self.short.shallow_clone()),
        }
    }

    /// The base grows with the sequence; a number of f32 there, as the length is a tensor.
    fn dynamic(&self, factor: f64, length: i64, original: i64) -> Result<Tensor> {
        let dim = self.rope.dim as f64;
        let stretch = Tensor::f_from_slice(&[length])?
            .f_to(self.short.device())?
            .f_mul_scalar(factor)?
            .f_to_kind(Kind::Float)?
            .f_div_scalar(original)?
            .f_sub_scalar(factor - 1.0)?;
        let base = stretch.f_pow_tensor_scalar(dim / (dim - 2.0))?.f_mul_scalar(self.rope.theta)?;
        let options = (Kind::Float, self.short.device());
        let steps = Tensor::f_arange_start_step(0, self.rope.dim as i64, 2, options)?;
        Ok(base.f_pow(&steps.f_div_scalar(self.rope.dim as i64)?)?.f_reciprocal()?)
    }
}

fn llama3(plain: &Tensor, scaling: &RopeScaling) -> Result<Tensor> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } = scaling
    else {
        return Ok(plain.shallow_clone());
    };
    let original = *original as f64;
    let (low, high) = (*low_freq_factor, *high_freq_factor);
    let wavelength = plain.f_reciprocal()?.f_mul_scalar(2.0 * std::f64::consts::PI)?;
    let is_low = wavelength.f_gt(original / low)?;
    let scaled = plain.f_div_scalar(*factor)?.f_where_self(&is_low, plain)?;
    let smooth = wavelength
        .f_reciprocal()?
        .f_mul_scalar(original)?
        .f_sub_scalar(low)?
        .f_div_scalar(high - low)?;
    let kept = smooth.f_mul(&scaled)?;
    let rest = smooth.f_neg()?.f_add_scalar(1.0)?.f_mul(&scaled)?.f_div_scalar(*factor)?;
    let is_medium = wavelength.f_ge(original / high)?.f_logical_and(&is_low.f_logical_not()?)?;
    Ok(rest.f_add(&kept)?.f_where_self(&is_medium, &scaled)?)
}

fn yarn(powers: &Tensor, rope: &Rope) -> Result<Tensor> {
    let RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original } = &rope.scaling
    else {
        return Ok(powers.f_reciprocal()?);
    };
    let dim = rope.dim as f64;
    // The feature that turns so often within the original length.
    let feature = |rotations: f64| {
        let turns = *original as f64 / (rotations * 2.0 * std::f64::consts::PI);
        dim * turns.ln() / (2.0 * rope.theta.ln())
    };
    let (mut low, mut high) = (feature(*beta_fast), feature(*beta_slow));
    if *truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let ramp = Tensor::f_arange(rope.dim as i64 / 2, (Kind::Float, powers.device()))?
        .f_sub_scalar(low)?
        .f_div_scalar(high - low)?
        .f_clamp(0.0, 1.0)?;
    let kept = ramp.f_neg()?.f_add_scalar(1.0)?;
    let divided = kept.f_neg()?.f_add_scalar(1.0)?;
    let interpolated = powers.f_mul_scalar(*factor)?.f_reciprocal()?.f_mul(&divided)?;
    Ok(interpolated.f_add(&powers.f_reciprocal()?.f_mul(&kept)?)?)
}

/// Rotates the first features of each head, as many as the angles have; the rest passes.
///
/// `x` is `[n, heads, d]`, and so is the result, in the dtype of `x`. Interleaved pairs come
/// out as halves: queries and keys alike, so that their products are the same.
pub fn rotate(x: &Tensor, angles: &Angles, interleaved: bool) -> Result<Tensor> {
    if loops::serve(&[x]) && loops::fit(x, angles) {
        fused::rotate(x, angles, interleaved)
    } else {
        reference::rotate(x, angles, interleaved)
    }
}
