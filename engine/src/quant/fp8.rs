//! fp8: numbers of E4M3 (a sign, four bits of exponent, three of mantissa), with a scale for
//! each row, or for each block of rows and columns.
//!
//! Reference: Transformers' `Fp8Quantize` and `Fp8Dequantize`
//! (`integrations/finegrained_fp8.py`); blocks at the edges may be cut off, as DeepSeek's are.
//! A weight that a checkpoint stores so is taken as it is.

use tch::{Device, Kind, Tensor};

use super::{bands, kernels, native};
use crate::error::Result;

/// The largest number of E4M3.
const LARGEST: f64 = 448.0;

/// A weight in fp8.
#[derive(Debug)]
pub struct Fp8 {
    /// `[out_features, in_features]`, E4M3.
    pub values: Tensor,
    /// What the values of each block are multiplied with, f32: `[⌈out_features / rows⌉,
    /// ⌈in_features / columns⌉]`.
    pub scales: Tensor,
    /// Rows and columns of a block.
    pub block: (i64, i64),
    pub(super) size: (i64, i64),
    pub(super) kind: Kind,
}

impl Fp8 {
    /// Quantises a weight `[out_features, in_features]` with a scale for each row.
    pub fn pack_rows(weight: &Tensor) -> Result<Self> {
        Self::pack_blocks(weight, (1, weight.size2()?.1.max(1)))
    }

    /// Quantises a weight with a scale for each block of rows and columns.
    pub fn pack_blocks(weight: &Tensor, block: (i64, i64)) -> Result<Self> {
        let (size, kind) = (weight.size2()?, weight.kind());
        let (down, across) = (blocks(size.0, block.0), blocks(size.1, block.1));
        let values = Tensor::f_empty([size.0, size.1], (Kind::Float8e4m3fn, weight.device()))?;
        let scales = Tensor::f_empty([down, across], (Kind::Float, weight.device()))?;
        bands(size, block.0, |first, count| {
            let band = weight.f_narrow(0, first, count)?.f_to_kind(Kind::Float)?;
            let rows = blocks(count, block.0);
            let missing = [0, across * block.1 - size.1, 0, rows * block.0 - count];
            let tiles = band.f_constant_pad_nd(missing)?;
            let tiles = tiles.f_view([rows, block.0, across, block.1])?;
            let largest = tiles.f_abs()?.f_amax([1i64, 3].as_slice(), true)?;
            // A block of zeros has the scale 1.
            let empty = largest.f_eq(0.0)?;
            // In Python a number over a tensor is the tensor's reciprocal times the number.
            let factor = largest.f_reciprocal()?.f_mul_scalar(LARGEST)?;
            let factor = factor.f_masked_fill(&empty, 1.0)?;
            let scaled = tiles.f_mul(&factor)?.f_clamp(-LARGEST, LARGEST)?;
            let scaled = scaled.f_view([rows * block.0, across * block.1])?;
            let scaled = scaled.f_narrow(0, 0, count)?.f_narrow(1, 0, size.1)?;
            let mut place = values.f_narrow(0, first, count)?;
            place.f_copy_(&scaled.f_to_kind(Kind::Float8e4m3fn)?)?;
            let inverse = factor.f_reciprocal()?.f_view([rows, across])?;
            scales.f_narrow(0, first / block.0, rows)?.f_copy_(&inverse)?;
            Ok(())
        })?;
        Ok(Self { values, scales, block, size, kind })
    }

    /// A weight that is stored so: its values, and its scales with one for each block or a
    /// single one. `kind` is the dtype that it counts as.
    pub fn stored(values: Tensor, scales: &Tensor, block: (i64, i64), kind: Kind) -> Result<Self> {
        let size = values.size2()?;
        let shape = [blocks(size.0, block.0), blocks(size.1, block.1)];
        let scales = scales.f_to_kind(Kind::Float)?.f_reshape(shape)?;
        Ok(Self { values, scales, block, size, kind })
    }

    /// The weight as a matrix of `kind`.
    pub fn unpack(&self, kind: Kind) -> Result<Tensor> {
        let (values, scales) = (&self.values, &self.scales);
        match values.device() {
            _ if kernels::serve(values, kind) => {
                kernels::fp8(values, scales, self.block, self.size, kind)
            }
            Device::Cpu => native::fp8_unpack(values, scales, self.block, self.size, kind),
            _ => unpack(values, scales, self.block, kind),
        }
    }

    pub(super) fn share(&self) -> Self {
        let (values, scales) = (self.values.shallow_clone(), self.scales.shallow_clone());
        Self { values, scales, block: self.block, size: self.size, kind: self.kind }
    }

    pub(super) fn to(&self, device: Device) -> Result<Self> {
        let (values, scales) = (self.values.f_to(device)?, self.scales.f_to(device)?);
        Ok(Self { values, scales, block: self.block, size: self.size, kind: self.kind })
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.values, &self.scales]
    }
}

/// So many blocks of a size make up a length; the last may be cut off.
fn blocks(length: i64, each: i64) -> i64 {
    (length + each - 1) / each.max(1)
}

/// The weight that was quantised, in tensor calls.
pub(super) fn unpack(
    values: &Tensor,
    scales: &Tensor,
    block: (i64, i64),
    kind: Kind,
) -> Result<Tensor> {
    let (rows, columns) = values.size2()?;
    let scales = scales.f_repeat_interleave_self_int(block.0, 0, None)?.f_narrow(0, 0, rows)?;
    let scales = scales.f_repeat_interleave_self_int(block.1, 1, None)?.f_narrow(1, 0, columns)?;
    Ok(values.f_to_kind(Kind::Float)?.f_mul(&scales)?.f_to_kind(kind)?)
}
