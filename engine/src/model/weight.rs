//! The frozen or trained matrix of a linear layer, however it is held.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::ops::linear::{Matrix, Product};
use crate::quant::{self, Quantized};

/// A weight `[out_features, in_features]`.
#[derive(Debug)]
pub enum Weight {
    /// As it is computed with, or wider.
    Dense(Tensor),
    /// In fewer bits; frozen.
    Quantized(Box<Quantized>),
}

impl From<Tensor> for Weight {
    fn from(weight: Tensor) -> Self {
        Self::Dense(weight)
    }
}

impl Weight {
    /// `x Wᵀ + bias`, in the dtype of `x`.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => Ok(x.f_linear(&weight.f_to_kind(x.kind())?, bias)?),
            Self::Quantized(weight) => quant::linear(x, weight, bias),
        }
    }

    /// The weight as a matrix of `kind`: itself where it is that already. Of a quantised one
    /// a new matrix, outside every graph.
    pub fn dense(&self, kind: Kind) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => Ok(weight.f_to_kind(kind)?),
            Self::Quantized(weight) => weight.unpack(kind),
        }
    }

    /// The same for a backward pass, which comes when this may be gone: nothing is unpacked
    /// until it is asked for.
    pub fn matrix(&self, kind: Kind) -> Matrix {
        match self {
            Self::Dense(weight) => {
                let weight = weight.shallow_clone();
                Box::new(move || Ok(weight.f_to_kind(kind)?))
            }
            Self::Quantized(weight) => {
                let weight = weight.share();
                Box::new(move || weight.unpack(kind))
            }
        }
    }

    /// What multiplies rows of `kind` with this weight without unpacking it, where something can.
    pub fn product(&self, kind: Kind) -> Option<Product> {
        match self {
            Self::Dense(_) => None,
            Self::Quantized(weight) => weight.product(kind),
        }
    }

    /// Whether it is trained.
    pub fn is_trained(&self) -> bool {
        match self {
            Self::Dense(weight) => weight.requires_grad(),
            Self::Quantized(_) => false,
        }
    }

    /// `(out_features, in_features)`.
    pub fn size2(&self) -> Result<(i64, i64)> {
        match self {
            Self::Dense(weight) => Ok(weight.size2()?),
            Self::Quantized(weight) => Ok(weight.size2()),
        }
    }

    /// The dtype of a merge of this weight.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Dense(weight) => weight.kind(),
            Self::Quantized(weight) => weight.kind(),
        }
    }
}
