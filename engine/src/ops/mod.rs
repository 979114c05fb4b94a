//! The operations of a model: readable references in tensor calls.
//!
//! Owns the mathematics between tensors, over rows laid end to end (see [`layout`]): functions
//! take `[n, …]` where `n` counts the tokens of all documents of a micro-batch. Does not own
//! weights or modules.
//!
//! Follows Transformers' modelling files operation by operation, so that numbers agree:
//! norms are computed in f32, and what is rounded when is part of each family.

pub mod attention;
pub mod experts;
pub mod layout;
pub mod native;
pub mod profile;
pub mod rotary;

use heirloom::base::{Activation, NormKind};
use tch::{Kind, Tensor};

use crate::error::Result;
pub use layout::Layout;

/// Root-mean-square norm (arXiv 1910.07467): `weight * x / sqrt(mean(x²) + eps)`, with the
/// weight applied as `kind` says.
///
/// `x` is `[…, width]`, `weight` `[width]`; the result has the dtype of `x`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: NormKind) -> Result<Tensor> {
    let wide = x.f_to_kind(Kind::Float)?;
    let square = wide.f_square()?.f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
    let normed = wide.f_mul(&square.f_add_scalar(eps)?.f_rsqrt()?)?;
    match kind {
        NormKind::WeightAfterRounding => {
            Ok(normed.f_to_kind(x.kind())?.f_mul(&weight.f_to_kind(x.kind())?)?)
        }
        NormKind::WeightBeforeRounding => {
            Ok(normed.f_mul(&weight.f_to_kind(Kind::Float)?)?.f_to_kind(x.kind())?)
        }
        NormKind::OnePlusWeight => {
            let weight = weight.f_to_kind(Kind::Float)?.f_add_scalar(1.0)?;
            Ok(normed.f_mul(&weight)?.f_to_kind(x.kind())?)
        }
    }
}

/// Gated unit (arXiv 2002.05202): `activation(gate) * up`, elementwise.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let gate = match activation {
        Activation::Silu => gate.f_silu()?,
        Activation::Gelu => gate.f_gelu("none")?,
        Activation::GeluTanh => gate.f_gelu("tanh")?,
    };
    Ok(gate.f_mul(up)?)
}

/// `cap · tanh(x / cap)`, elementwise.
pub fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    Ok(x.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?)
}

/// Sum of the negative log-likelihoods of `targets` (`[m]`, i64) under `logits`
/// (`[m, vocabulary]`), in nats, computed in f32.
pub fn cross_entropy_sum(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let logits = logits.f_to_kind(Kind::Float)?;
    Ok(logits.f_cross_entropy_loss(targets, None::<Tensor>, tch::Reduction::Sum, -100, 0.0)?)
}

/// As [`cross_entropy_sum`], each term times its weight (`[m]`, f32).
pub fn weighted_cross_entropy_sum(
    logits: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
) -> Result<Tensor> {
    let logits = logits.f_to_kind(Kind::Float)?;
    let each =
        logits.f_cross_entropy_loss(targets, None::<Tensor>, tch::Reduction::None, -100, 0.0)?;
    Ok(each.f_mul(weights)?.f_sum(Kind::Float)?)
}
