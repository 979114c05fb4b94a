//! The quant room: frozen weights in four or eight bits.
//!
//! Owns the formats ([`Nf4`], [`Int8`], [`Fp8`]): packing a weight, unpacking it, and the
//! linear layer that never keeps an unpacked one ([`linear`]). Does not own which layers are
//! quantised (the recipe) nor when (the model, while it loads).
//!
//! Every format is written in tensor calls, which serve on every device, on the CPU as a loop
//! of the shim (`engine/shim/quant.cpp`) and on CUDA, for unpacking, as a kernel (`kernels`):
//! all of them give the same bits.
//!
//! References: bitsandbytes 0.50 on the CPU for NF4, its double quantisation and int8;
//! Transformers' `Fp8Quantize` (`integrations/finegrained_fp8.py`) for fp8.

mod absmax;
mod fp8;
mod int8;
mod kernels;
mod native;
mod nf4;
mod scaled;

use heirloom::recipe::Quantization;
use tch::{Device, Kind, Tensor};

pub use absmax::Absmax;
pub use fp8::Fp8;
pub use int8::Int8;
pub use nf4::Nf4;

use crate::error::{EngineError, Result};
use crate::ops::linear::{Layer, Matrix, Product, linears};

/// Values of a weight that are at once in f32 while it is packed by tensor calls: 4 MiB.
const BAND_VALUES: i64 = 1 << 20;

/// A weight `[out_features, in_features]` in few bits.
#[derive(Debug)]
pub enum Quantized {
    /// Four bits, by the quantiles of a normal distribution.
    Nf4(Nf4),
    /// Whole numbers.
    Int8(Int8),
    /// Floating point in eight bits.
    Fp8(Fp8),
}

impl Quantized {
    /// Quantises a weight; `None` where `how` leaves it as it is.
    pub fn pack(weight: &Tensor, how: Quantization) -> Result<Option<Self>> {
        tch::no_grad(|| {
            Ok(Some(match how {
                Quantization::None => return Ok(None),
                Quantization::Nf4 => Self::Nf4(Nf4::pack(weight)?),
                Quantization::Nf4Double => Self::Nf4(Nf4::pack(weight)?.doubled()?),
                Quantization::Int8 => Self::Int8(Int8::pack(weight)?),
                Quantization::Fp8 => Self::Fp8(Fp8::pack_rows(weight)?),
            }))
        })
    }

    /// The weight as a matrix of `kind`, f32 or bfloat16: a new tensor, outside every graph.
    pub fn unpack(&self, kind: Kind) -> Result<Tensor> {
        tch::no_grad(|| match self {
            Self::Nf4(weight) => weight.unpack(kind),
            Self::Int8(weight) => weight.unpack(kind),
            Self::Fp8(weight) => weight.unpack(kind),
        })
    }

    /// What multiplies rows of `kind` with this weight as it is; `None` where it must be unpacked.
    pub fn product(&self, kind: Kind) -> Option<Product> {
        match self {
            Self::Fp8(weight) if scaled::serves(weight, kind) => {
                let weight = weight.share();
                Some(Box::new(move |x, bias| scaled::product(x, &weight, bias)))
            }
            _ => None,
        }
    }

    /// `(out_features, in_features)`.
    pub fn size2(&self) -> (i64, i64) {
        match self {
            Self::Nf4(weight) => weight.size,
            Self::Int8(weight) => weight.size,
            Self::Fp8(weight) => weight.size,
        }
    }

    /// The dtype of the weight that was packed.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Nf4(weight) => weight.kind,
            Self::Int8(weight) => weight.kind,
            Self::Fp8(weight) => weight.kind,
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        self.tensors().first().map_or(Device::Cpu, |tensor| tensor.device())
    }

    /// Bytes of all its tensors.
    pub fn bytes(&self) -> usize {
        let size = |tensor: &&Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        self.tensors().iter().map(size).sum()
    }

    /// The same weight under another owner.
    #[must_use]
    pub fn share(&self) -> Self {
        match self {
            Self::Nf4(weight) => Self::Nf4(weight.share()),
            Self::Int8(weight) => Self::Int8(weight.share()),
            Self::Fp8(weight) => Self::Fp8(weight.share()),
        }
    }

    /// The same weight on a device.
    pub fn to(&self, device: Device) -> Result<Self> {
        Ok(match self {
            Self::Nf4(weight) => Self::Nf4(weight.to(device)?),
            Self::Int8(weight) => Self::Int8(weight.to(device)?),
            Self::Fp8(weight) => Self::Fp8(weight.to(device)?),
        })
    }

    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Nf4(weight) => weight.tensors(),
            Self::Int8(weight) => weight.tensors(),
            Self::Fp8(weight) => weight.tensors(),
        }
    }
}

/// `x Wᵀ + bias` over a quantised weight, in the dtype of `x`, `[n, in_features]`.
///
/// What autograd keeps for the backward pass is the packed weight, which is unpacked again
/// there; neither the weight nor the bias gets a gradient.
pub fn linear(x: &Tensor, weight: &Quantized, bias: Option<&Tensor>) -> Result<Tensor> {
    let (product, weight, kind) = (weight.product(x.kind()), weight.share(), x.kind());
    let weight: Matrix = Box::new(move || weight.unpack(kind));
    let bias = bias.map(Tensor::shallow_clone);
    let outputs = linears(x, vec![Layer { weight, product, bias, low_rank: None }])?;
    let none = || EngineError::Defect("a node without its output".to_owned());
    outputs.into_iter().next().ok_or_else(none)
}

/// Calls `each` with the first row and the number of rows of bands of about
/// [`BAND_VALUES`] values, in multiples of `step` rows.
fn bands(
    (rows, columns): (i64, i64),
    step: i64,
    mut each: impl FnMut(i64, i64) -> Result<()>,
) -> Result<()> {
    let step = step.max(1);
    let band = (BAND_VALUES / columns.max(1) / step).max(1) * step;
    let mut first = 0;
    while first < rows {
        let count = band.min(rows - first);
        each(first, count)?;
        first += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
