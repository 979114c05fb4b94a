//! The operations of a model: fused ones, with readable references in tensor calls.
//!
//! Owns the mathematics between tensors, over rows laid end to end (see [`layout`]): functions
//! take `[n, …]` where `n` counts the tokens of all documents of a micro-batch. Does not own
//! weights or modules.
//!
//! Functions that have a fused version take it where it serves, which is on the CPU in f32 and
//! bfloat16, and the plain one of [`reference`] elsewhere and where it is asked for. What of
//! them is kept for the backward pass, [`checkpointing`] can make less.
//!
//! Follows Transformers' modelling files operation by operation, so that numbers agree:
//! norms are computed in f32, and what is rounded when is part of each family.

pub mod attention;
pub mod checkpointing;
pub mod chunked;
pub mod cross_entropy;
pub(crate) mod cuda;
pub mod divergence;
pub mod experts;
mod fused;
#[cfg(test)]
mod fused_tests;
pub mod layout;
pub mod linear;
mod loops;
pub mod native;
pub mod optimizers;
pub mod profile;
pub mod reference;
pub mod rotary;

use heirloom::base::{Activation, NormKind};
use tch::{Kind, Reduction, Tensor};

use crate::error::Result;
use cross_entropy::Targets;
pub use cuda::CudaError;
pub use layout::Layout;

/// Root-mean-square norm (arXiv 1910.07467): `weight * x / sqrt(mean(x²) + eps)`, with the
/// weight applied as `kind` says.
///
/// `x` is `[…, width]`, `weight` `[width]`; the result has the dtype of `x`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: NormKind) -> Result<Tensor> {
    if loops::serve(&[x]) {
        fused::rms_norm(x, weight, eps, kind)
    } else {
        reference::rms_norm(x, weight, eps, kind)
    }
}

/// The sum of a residual and a branch, and the norm of that sum; see [`rms_norm`].
pub fn add_rms_norm(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    eps: f64,
    kind: NormKind,
) -> Result<(Tensor, Tensor)> {
    if loops::serve(&[x, branch]) {
        fused::add_rms_norm(x, branch, weight, eps, kind)
    } else {
        reference::add_rms_norm(x, branch, weight, eps, kind)
    }
}

/// Gated unit (arXiv 2002.05202): `activation(gate) * up`, elementwise.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if loops::serve(&[gate, up]) {
        fused::gated(gate, up, activation)
    } else {
        reference::gated(gate, up, activation)
    }
}

/// `cap · tanh(x / cap)`, elementwise.
pub fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    Ok(x.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?)
}

/// Sum of the negative log-likelihoods of `targets` under logits (`[m, vocabulary]`), in nats,
/// computed in f32.
pub fn cross_entropy_sum(logits: &Tensor, targets: Targets<'_>) -> Result<Tensor> {
    let logits = logits.f_to_kind(Kind::Float)?;
    let Targets { ids, weights, smoothing } = targets;
    let loss = |reduction: Reduction| {
        logits.f_cross_entropy_loss(ids, None::<Tensor>, reduction, -100, smoothing)
    };
    match weights {
        Some(weights) => Ok(loss(Reduction::None)?.f_mul(weights)?.f_sum(Kind::Float)?),
        None => Ok(loss(Reduction::Sum)?),
    }
}

/// The numbers of one step of AdamW.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AdamWFactors {
    /// 1 - learning rate × weight decay.
    pub keep: f32,
    /// β₁ and β₂.
    pub betas: [f32; 2],
    /// 1 - β₁ and 1 - β₂.
    pub new: [f32; 2],
    /// Learning rate / (1 - β₁ⁿ) at the nth step.
    pub step: f32,
    /// √(1 - β₂ⁿ).
    pub root: f32,
    /// ε.
    pub eps: f32,
}

/// One step of AdamW (arXiv 1711.05101, as `torch.optim.AdamW` takes it) over weights and both
/// running means, flat f32 tensors that are changed in place.
pub fn adamw(state: [&mut Tensor; 3], gradient: &Tensor, factors: AdamWFactors) -> Result<()> {
    if loops::serve(&[&*state[0], &*state[1], &*state[2], gradient]) {
        loops::adamw(state, gradient, factors)
    } else {
        reference::adamw(state, gradient, factors)
    }
}
