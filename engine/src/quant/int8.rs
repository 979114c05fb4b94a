//! int8: whole numbers from -127 to 127, with a scale for each row.
//!
//! Reference: bitsandbytes' `int8_vectorwise_quant` and `int8_vectorwise_dequant`. Its layer
//! `Linear8bitLt` rounds weights to f16 before; here they are quantised as they are.

use tch::{Device, Kind, Tensor};

use super::{bands, kernels, native};
use crate::error::Result;

/// The largest number.
const LARGEST: f64 = 127.0;

/// What bitsandbytes multiplies with instead of dividing by [`LARGEST`].
const INVERSE: f64 = 7.874_015_718_698_502e-3;

/// A weight in int8.
#[derive(Debug)]
pub struct Int8 {
    /// `[out_features, in_features]`, i8.
    pub values: Tensor,
    /// The largest size in each row, `[out_features]` f32.
    pub absmax: Tensor,
    pub(super) size: (i64, i64),
    pub(super) kind: Kind,
}

impl Int8 {
    /// Quantises a weight `[out_features, in_features]`.
    pub fn pack(weight: &Tensor) -> Result<Self> {
        let size = weight.size2()?;
        let values = Tensor::f_empty([size.0, size.1], (Kind::Int8, weight.device()))?;
        let absmax = Tensor::f_empty([size.0], (Kind::Float, weight.device()))?;
        bands(size, 1, |first, count| {
            let band = weight.f_narrow(0, first, count)?.f_to_kind(Kind::Float)?;
            let largest = band.f_abs()?.f_amax([1i64].as_slice(), true)?;
            // A row of zeros stays one.
            let divisor = largest.f_masked_fill(&largest.f_eq(0.0)?, 1.0)?;
            let factor = divisor.f_full_like(LARGEST)?.f_div(&divisor)?;
            let rounded = band.f_mul(&factor)?.f_round()?;
            values.f_narrow(0, first, count)?.f_copy_(&rounded)?;
            absmax.f_narrow(0, first, count)?.f_copy_(&largest.f_view([-1])?)?;
            Ok(())
        })?;
        Ok(Self { values, absmax, size, kind: weight.kind() })
    }

    /// The weight as a matrix of `kind`.
    pub fn unpack(&self, kind: Kind) -> Result<Tensor> {
        match self.values.device() {
            _ if kernels::serve(&self.values, kind) => {
                kernels::int8(&self.values, &self.absmax, self.size, kind)
            }
            Device::Cpu => native::int8_unpack(&self.values, &self.absmax, self.size, kind),
            _ => unpack(&self.values, &self.absmax, kind),
        }
    }

    pub(super) fn share(&self) -> Self {
        let (values, absmax) = (self.values.shallow_clone(), self.absmax.shallow_clone());
        Self { values, absmax, size: self.size, kind: self.kind }
    }

    pub(super) fn to(&self, device: Device) -> Result<Self> {
        let (values, absmax) = (self.values.f_to(device)?, self.absmax.f_to(device)?);
        Ok(Self { values, absmax, size: self.size, kind: self.kind })
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.values, &self.absmax]
    }
}

/// The weight that was quantised, in tensor calls.
pub(super) fn unpack(values: &Tensor, absmax: &Tensor, kind: Kind) -> Result<Tensor> {
    let wide = values.f_to_kind(Kind::Float)?.f_mul(&absmax.f_unsqueeze(1)?)?;
    Ok(wide.f_mul_scalar(INVERSE)?.f_to_kind(kind)?)
}
