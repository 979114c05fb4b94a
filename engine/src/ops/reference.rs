//! The fused operations in plain tensor calls, each rounded as Transformers rounds it.
//!
//! They serve where the loops of [`super::loops`] cannot, and are what those are compared with.
//! Attention has its own beside it.

use std::cell::Cell;
use std::sync::OnceLock;

use heirloom::base::{Activation, NormKind};
use tch::{Kind, Tensor};

use super::AdamWFactors;
use super::linear::{Layer, LowRank};
use super::rotary::Angles;
use crate::error::{EngineError, Result};

/// `reference` here makes every operation of the process a plain one.
pub const OPS_VARIABLE: &str = "HEIRLOOM_OPS";

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// Refuses a value of [`OPS_VARIABLE`] that would be passed over in silence.
pub fn check_variable() -> Result<()> {
    match std::env::var_os(OPS_VARIABLE) {
        Some(value) if !value.is_empty() && value != "reference" => {
            Err(EngineError::OpsVariable { value: value.to_string_lossy().into_owned() })
        }
        _ => Ok(()),
    }
}

/// Runs `work` with plain operations alone, as far as they are called on this thread. What is
/// computed in the forward pass decides about the backward pass.
pub fn only<T>(work: impl FnOnce() -> T) -> T {
    let before = ASKED.replace(true);
    let result = work();
    ASKED.set(before);
    result
}

/// Whether plain operations are asked for.
pub(crate) fn asked() -> bool {
    static ALWAYS: OnceLock<bool> = OnceLock::new();
    let always = || std::env::var_os(OPS_VARIABLE).is_some_and(|value| value == "reference");
    ASKED.get() || *ALWAYS.get_or_init(always)
}

/// See [`super::rms_norm`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: NormKind) -> Result<Tensor> {
    // f64 stays, so that it can judge the others.
    let inside = if x.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let wide = x.f_to_kind(inside)?;
    let square = wide.f_square()?.f_mean_dim([-1i64].as_slice(), true, inside)?;
    let normed = wide.f_mul(&square.f_add_scalar(eps)?.f_rsqrt()?)?;
    match kind {
        NormKind::WeightAfterRounding => {
            Ok(normed.f_to_kind(x.kind())?.f_mul(&weight.f_to_kind(x.kind())?)?)
        }
        NormKind::WeightBeforeRounding => {
            Ok(normed.f_mul(&weight.f_to_kind(inside)?)?.f_to_kind(x.kind())?)
        }
        NormKind::OnePlusWeight => {
            let weight = weight.f_to_kind(inside)?.f_add_scalar(1.0)?;
            Ok(normed.f_mul(&weight)?.f_to_kind(x.kind())?)
        }
    }
}

/// See [`super::add_rms_norm`].
pub fn add_rms_norm(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    eps: f64,
    kind: NormKind,
) -> Result<(Tensor, Tensor)> {
    let sum = x.f_add(branch)?;
    let normed = rms_norm(&sum, weight, eps, kind)?;
    Ok((sum, normed))
}

/// See [`super::gated`].
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let gate = match activation {
        Activation::Silu => gate.f_silu()?,
        Activation::Gelu => gate.f_gelu("none")?,
        Activation::GeluTanh => gate.f_gelu("tanh")?,
    };
    Ok(gate.f_mul(up)?)
}

/// See [`super::rotary::rotate`].
pub fn rotate(x: &Tensor, angles: &Angles, interleaved: bool) -> Result<Tensor> {
    let Angles { cos, sin } = angles;
    let width = x.size().last().copied().unwrap_or(0);
    let half = cos.size().last().copied().unwrap_or(0);
    let (first, second) = if interleaved {
        (x.f_slice(-1, 0, 2 * half, 2)?, x.f_slice(-1, 1, 2 * half, 2)?)
    } else {
        (x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?)
    };
    let mut parts = vec![
        first.f_mul(cos)?.f_sub(&second.f_mul(sin)?)?,
        second.f_mul(cos)?.f_add(&first.f_mul(sin)?)?,
    ];
    if cos.kind() != x.kind() {
        for part in &mut parts {
            *part = part.f_to_kind(x.kind())?;
        }
    }
    if 2 * half < width {
        parts.push(x.f_narrow(-1, 2 * half, width - 2 * half)?);
    }
    Ok(Tensor::f_cat(&parts, -1)?)
}

/// See [`super::linear::linears`]. Everything is kept that plain autograd keeps, unpacked weights
/// included, and no product is made without the unpacked weight.
pub fn linears(x: &Tensor, layers: Vec<Layer>) -> Result<Vec<Tensor>> {
    let apply = |layer: Layer| -> Result<Tensor> {
        let Layer { weight, bias, low_rank, product: _ } = layer;
        let y = x.f_linear(&weight()?, bias)?;
        let Some(LowRank { a, b, scaling, dropout }) = low_rank else { return Ok(y) };
        let dropped = if dropout > 0.0 {
            let mask = Tensor::f_empty(x.size(), (Kind::Bool, x.device()))?;
            x.f_mul(&mask.f_bernoulli_p(1.0 - dropout)?)?.f_div_scalar(1.0 - dropout)?
        } else {
            x.shallow_clone()
        };
        let inner = dropped.f_linear(&a.f_to_kind(x.kind())?, None::<Tensor>)?;
        let update = inner.f_linear(&b.f_to_kind(x.kind())?, None::<Tensor>)?;
        Ok(y.f_add(&update.f_mul_scalar(scaling)?)?)
    };
    layers.into_iter().map(apply).collect()
}

/// See [`super::adamw`].
pub fn adamw(
    [weights, mean, square]: [&mut Tensor; 3],
    gradient: &Tensor,
    factors: AdamWFactors,
) -> Result<()> {
    let AdamWFactors { keep, betas: [_, beta2], new: [new1, new2], step, root, eps } = factors;
    tch::no_grad(|| {
        let _ = weights.f_mul_scalar_(f64::from(keep))?;
        let _ = mean.f_lerp_(gradient, f64::from(new1))?;
        let _ = square.f_mul_scalar_(f64::from(beta2))?;
        let _ = square.f_add_(&gradient.f_square()?.f_mul_scalar(f64::from(new2))?)?;
        let mut spread = square.f_sqrt()?;
        let _ = spread.f_div_scalar_(f64::from(root))?.f_add_scalar_(f64::from(eps))?;
        let _ = weights.f_addcdiv_(&mean.f_mul_scalar(-f64::from(step))?, &spread)?;
        Ok(())
    })
}
