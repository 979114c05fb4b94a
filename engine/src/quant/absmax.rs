//! The scales of NF4's blocks, plain or quantised in turn ("double quantisation").
//!
//! Owns bitsandbytes' `compress_statistics=True`: from the scales their mean is taken off;
//! what is left goes in blocks of 256 to the nearest of 256 codes whose steps widen tenfold
//! (arXiv 1511.04561). The CPU implementation does not look for the nearest code of a value
//! but for that of the nearest of 65,536 points between -1 and 1; so does this one, for the
//! same bits.

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Scales that share a scale of their own.
pub(super) const BLOCK: i64 = 256;

/// The last of the points that lie evenly between -1 and 1, numbered from 0.
const LAST_POINT: f64 = 65_535.0;

/// Decades of the codes.
const DECADES: i32 = 7;

/// The scale of every block of a weight.
#[derive(Debug)]
pub enum Absmax {
    /// `[blocks]`, f32.
    Plain(Tensor),
    /// `table[codes] · scales + offset`.
    Double {
        /// `[blocks]`, a byte each.
        codes: Tensor,
        /// The largest size in each block of codes, f32.
        scales: Tensor,
        /// The mean of all scales, one f32.
        offset: Tensor,
        /// What the codes stand for, `[256]` f32.
        table: Tensor,
    },
}

impl Absmax {
    /// Quantises plain scales.
    pub(super) fn doubled(self) -> Result<Self> {
        let Self::Plain(absmax) = self else { return Ok(self) };
        let offset = absmax.f_mean(Kind::Float)?;
        let table = table()?.f_to(absmax.device())?;
        let (codes, scales) = pack(&absmax.f_sub(&offset)?, &table)?;
        Ok(Self::Double { codes, scales, offset, table })
    }

    /// The scales, `[blocks]` f32.
    pub fn unpack(&self) -> Result<Tensor> {
        let (codes, scales, offset, table) = match self {
            Self::Plain(absmax) => return Ok(absmax.shallow_clone()),
            Self::Double { codes, scales, offset, table } => (codes, scales, offset, table),
        };
        let values = table.f_index_select(0, &codes.f_to_kind(Kind::Int)?)?;
        let scales = scales.f_repeat_interleave_self_int(BLOCK, 0, None)?;
        let mut values = values.f_mul(&scales.f_narrow(0, 0, values.numel() as i64)?)?;
        Ok(values.f_add_(offset)?)
    }

    pub(super) fn share(&self) -> Self {
        match self {
            Self::Plain(absmax) => Self::Plain(absmax.shallow_clone()),
            Self::Double { codes, scales, offset, table } => Self::Double {
                codes: codes.shallow_clone(),
                scales: scales.shallow_clone(),
                offset: offset.shallow_clone(),
                table: table.shallow_clone(),
            },
        }
    }

    pub(super) fn to(&self, device: Device) -> Result<Self> {
        Ok(match self {
            Self::Plain(absmax) => Self::Plain(absmax.f_to(device)?),
            Self::Double { codes, scales, offset, table } => Self::Double {
                codes: codes.f_to(device)?,
                scales: scales.f_to(device)?,
                offset: offset.f_to(device)?,
                table: table.f_to(device)?,
            },
        })
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Plain(absmax) => vec![absmax],
            Self::Double { codes, scales, offset, table } => vec![codes, scales, offset, table],
        }
    }
}

/// The codes of values, and the largest size in each block.
fn pack(values: &Tensor, table: &Tensor) -> Result<(Tensor, Tensor)> {
    let numel = values.numel() as i64;
    let blocks = (numel + BLOCK - 1) / BLOCK;
    let padded = values.f_constant_pad_nd([0, blocks * BLOCK - numel])?.f_view([blocks, BLOCK])?;
    let scales = padded.f_abs()?.f_amax([1i64].as_slice(), true)?;
    let scaled = padded.f_mul(&scales.f_reciprocal()?)?.f_clamp(-1.0, 1.0)?;
    // The number of the nearest point. In double, as a fused multiplication and addition
    // in single precision rounds it.
    let point = scaled.f_add_scalar(1.0)?.f_mul_scalar(0.5)?.f_to_kind(Kind::Double)?;
    let point = point.f_mul_scalar(LAST_POINT)?.f_add_scalar(0.5)?.f_to_kind(Kind::Float)?;
    let point = point.f_floor()?;
    let point = point.f_mul_scalar(2.0)?.f_div_scalar(LAST_POINT)?.f_sub_scalar(1.0)?;
    let between = table.f_narrow(0, 0, 255)?.f_add(&table.f_narrow(0, 1, 255)?)?;
    let codes = point.f_bucketize(&between.f_mul_scalar(0.5)?, true, false)?;
    // A block of zeros has no inverse; bitsandbytes gives it the first code.
    let codes = codes.f_masked_fill(&scales.f_eq(0.0)?, 0.0)?.f_to_kind(Kind::Uint8)?;
    Ok((codes.f_view([-1])?.f_narrow(0, 0, numel)?.f_contiguous()?, scales.f_view([-1])?))
}

/// bitsandbytes' `create_dynamic_map()`: for every decade from 1e-6 to 1 twice as many steps
/// as for the one below, on both sides of zero; and zero, and one.
pub(super) fn table() -> Result<Tensor> {
    let options = (Kind::Float, Device::Cpu);
    let mut values = vec![0.0f32, 1.0];
    for decade in 0..DECADES {
        let steps = 1i64 << decade;
        let bounds = Tensor::f_linspace(0.1, 1.0, steps + 1, options)?;
        let sum = bounds.f_narrow(0, 0, steps)?.f_add(&bounds.f_narrow(0, 1, steps)?)?;
        let scale = 10f64.powi(decade - (DECADES - 1));
        let means = sum.f_div_scalar(2.0)?.f_mul_scalar(scale)?;
        for mean in Vec::<f32>::try_from(&means)? {
            values.extend([mean, -mean]);
        }
    }
    values.sort_by(f32::total_cmp);
    Ok(Tensor::f_from_slice(&values)?)
}
