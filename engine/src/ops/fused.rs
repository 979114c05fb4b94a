//! The fused operations as nodes of the graph: one loop forward, one by hand backward.
//!
//! Owns what is kept for the backward pass, which is as little as can be: of a norm its input
//! and a number for each row, of a gated unit its inputs, of a rotation nothing. The loops
//! are [`super::loops`], the same in tensor calls [`super::reference`].

use heirloom::base::{Activation, NormKind};
use tch::Tensor;

use super::loops::{self, Gated, RmsNorm};
use super::native::node;
use super::rotary::Angles;
use crate::error::{EngineError, Result};

/// See [`super::rms_norm`].
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: NormKind) -> Result<Tensor> {
    let (norm, _, y) = tch::no_grad(|| RmsNorm::forward(x, None, weight, eps, kind))?;
    let weight_kind = weight.requires_grad().then(|| weight.kind());
    let [y] = node(&[x, weight], [y], move |gradients| {
        let [Some(y)] = gradients else { return Ok(vec![None, None]) };
        let weight = weight_kind.map(|kind| norm.weight_backward(y, kind));
        Ok(vec![Some(norm.backward(y, None)?), weight.transpose()?])
    })?;
    Ok(y)
}

/// See [`super::add_rms_norm`].
pub(super) fn add_rms_norm(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    eps: f64,
    kind: NormKind,
) -> Result<(Tensor, Tensor)> {
    let (norm, sum, y) = tch::no_grad(|| RmsNorm::forward(x, Some(branch), weight, eps, kind))?;
    let weight_kind = weight.requires_grad().then(|| weight.kind());
    let sum = sum.ok_or_else(|| EngineError::Defect("a norm did not add".to_owned()))?;
    let [sum, y] = node(&[x, branch, weight], [sum, y], move |gradients| {
        let [sum, Some(y)] = gradients else {
            // Nothing depends on the norm: what there is passes the sum.
            let sum = gradients.first().and_then(Option::as_ref).map(Tensor::shallow_clone);
            return Ok(vec![sum.as_ref().map(Tensor::shallow_clone), sum, None]);
        };
        let weight = weight_kind.map(|kind| norm.weight_backward(y, kind));
        let both = norm.backward(y, sum.as_ref())?;
        Ok(vec![Some(both.shallow_clone()), Some(both), weight.transpose()?])
    })?;
    Ok((sum, y))
}

/// See [`super::gated`].
pub(super) fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let (gated, y) = tch::no_grad(|| Gated::forward(gate, up, activation))?;
    let [y] = node(&[gate, up], [y], move |gradients| match gradients {
        [Some(y)] => Ok(gated.backward(y)?.into_iter().map(Some).collect()),
        _ => Ok(vec![None, None]),
    })?;
    Ok(y)
}

/// See [`super::rotary::rotate`]: turned back, a gradient is the one before the rotation.
pub(super) fn rotate(x: &Tensor, angles: &Angles, interleaved: bool) -> Result<Tensor> {
    let y = tch::no_grad(|| loops::rotate(x, angles, false, [interleaved, false]))?;
    let angles = angles.share();
    let [y] = node(&[x], [y], move |gradients| match gradients {
        [Some(y)] => Ok(vec![Some(loops::rotate(y, &angles, true, [false, interleaved])?)]),
        _ => Ok(vec![None]),
    })?;
    Ok(y)
}
