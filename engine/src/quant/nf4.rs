//! NF4 (arXiv 2305.14314): four bits a value, in blocks of 64 with a scale each.
//!
//! Owns the codes and how they lie: values in the order of rows, blocks going on from row to
//! row, the first of two values in the high half of a byte. Equal to bitsandbytes' CPU
//! implementation in every bit: it rounds to the nearest code of `value · (1 / absmax)`,
//! between two the lower; the last block, where it is not full, divides by its absmax, which
//! is then at least 1e-38.

use tch::{Device, Kind, Tensor};

use super::{Absmax, kernels, native};
use crate::error::Result;

/// Values that share an absmax.
pub(super) const BLOCK: i64 = 64;

/// What the sixteen codes stand for, as shares of the absmax.
pub(super) const CODES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// No block is divided by less.
const SMALLEST: f64 = 1e-38;

/// A weight in NF4.
#[derive(Debug)]
pub struct Nf4 {
    /// Two codes a byte, `[⌈out · in / 2⌉]`.
    pub packed: Tensor,
    /// The largest size in each block.
    pub absmax: Absmax,
    pub(super) size: (i64, i64),
    pub(super) kind: Kind,
}

impl Nf4 {
    /// Packs a weight `[out_features, in_features]` of f32, bfloat16 or f16.
    pub fn pack(weight: &Tensor) -> Result<Self> {
        let (packed, absmax) = match weight.device() {
            Device::Cpu => native::nf4_pack(weight, BLOCK)?,
            _ => pack(weight)?,
        };
        let (size, kind) = (weight.size2()?, weight.kind());
        Ok(Self { packed, absmax: Absmax::Plain(absmax), size, kind })
    }

    /// The same with the absmax quantised in turn.
    pub fn doubled(self) -> Result<Self> {
        Ok(Self { absmax: self.absmax.doubled()?, ..self })
    }

    /// The weight as a matrix of `kind`.
    pub fn unpack(&self, kind: Kind) -> Result<Tensor> {
        if kernels::serve(&self.packed, kind) {
            return kernels::nf4(&self.packed, &self.absmax, self.size, kind);
        }
        let absmax = self.absmax.unpack()?;
        match self.packed.device() {
            Device::Cpu => native::nf4_unpack(&self.packed, &absmax, self.size, kind),
            _ => unpack(&self.packed, &absmax, self.size, kind),
        }
    }

    pub(super) fn share(&self) -> Self {
        let (packed, absmax) = (self.packed.shallow_clone(), self.absmax.share());
        Self { packed, absmax, size: self.size, kind: self.kind }
    }

    pub(super) fn to(&self, device: Device) -> Result<Self> {
        let (packed, absmax) = (self.packed.f_to(device)?, self.absmax.to(device)?);
        Ok(Self { packed, absmax, size: self.size, kind: self.kind })
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        let mut tensors = vec![&self.packed];
        tensors.extend(self.absmax.tensors());
        tensors
    }
}

/// Two codes a byte, and the absmax of every block, in tensor calls.
pub(super) fn pack(weight: &Tensor) -> Result<(Tensor, Tensor)> {
    let flat = weight.f_reshape([-1])?.f_to_kind(Kind::Float)?;
    let numel = flat.numel() as i64;
    let full = numel / BLOCK * BLOCK;
    let blocks = flat.f_narrow(0, 0, full)?.f_view([full / BLOCK, BLOCK])?;
    let mut absmax = blocks.f_abs()?.f_amax([1i64].as_slice(), true)?;
    let inverse = absmax.f_clamp_min(SMALLEST)?.f_reciprocal()?;
    let mut scaled = blocks.f_mul(&inverse)?.f_reshape([-1])?;
    absmax = absmax.f_view([-1])?;
    if full < numel {
        let rest = flat.f_narrow(0, full, numel - full)?;
        let largest = rest.f_abs()?.f_amax([0i64].as_slice(), true)?.f_clamp_min(SMALLEST)?;
        scaled = Tensor::f_cat(&[scaled, rest.f_div(&largest)?], 0)?;
        absmax = Tensor::f_cat(&[absmax, largest], 0)?;
    }
    // An odd value has a zero beside it.
    let scaled = scaled.f_clamp(-1.0, 1.0)?.f_constant_pad_nd([0, numel % 2])?;
    let codes = Tensor::f_from_slice(&CODES)?;
    let between = codes.f_narrow(0, 0, 15)?.f_add(&codes.f_narrow(0, 1, 15)?)?.f_div_scalar(2.0)?;
    let index = scaled.f_bucketize(&between.f_to(weight.device())?, true, false)?;
    let pairs = index.f_to_kind(Kind::Uint8)?.f_view([-1, 2])?;
    let high = pairs.f_select(1, 0)?.f_bitwise_left_shift_tensor_scalar(4)?;
    Ok((high.f_bitwise_or_tensor(&pairs.f_select(1, 1)?)?, absmax))
}

/// The weight of this size that was packed, in tensor calls.
pub(super) fn unpack(
    packed: &Tensor,
    absmax: &Tensor,
    (rows, columns): (i64, i64),
    kind: Kind,
) -> Result<Tensor> {
    let halves = [packed.f_bitwise_right_shift_tensor_scalar(4)?, packed.f_bitwise_and(15)?];
    let codes = Tensor::f_stack(&halves, -1)?.f_view([-1])?.f_to_kind(Kind::Int)?;
    let numel = rows * columns;
    let table = Tensor::f_from_slice(&CODES)?.f_to(packed.device())?;
    let values = table.f_index_select(0, &codes.f_narrow(0, 0, numel)?)?;
    let absmax = absmax.f_repeat_interleave_self_int(BLOCK, 0, None)?.f_narrow(0, 0, numel)?;
    Ok(values.f_mul(&absmax)?.f_to_kind(kind)?.f_view([rows, columns])?)
}
