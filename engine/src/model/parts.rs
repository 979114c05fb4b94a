//! What modules are built with: tensors by checkpoint key, and small modules.

use std::collections::BTreeMap;

use heirloom::base::{self, NormKind};
use tch::Tensor;

use super::linear::Linear;
use super::weight::Weight;
use crate::error::{EngineError, Result};
use crate::ops;
use crate::ops::profile::scope;

/// Tensors that modules take out one by one.
pub(super) struct Tensors(pub(super) BTreeMap<String, Weight>);

impl Tensors {
    /// The tensor with this checkpoint key, as it is.
    pub(super) fn take(&mut self, name: &str) -> Result<Tensor> {
        match self.0.remove(name) {
            Some(Weight::Dense(tensor)) => Ok(tensor),
            Some(Weight::Quantized(_)) => Err(quantized(name)),
            None => Err(missing(name)),
        }
    }

    /// The weight of the linear layer with this name.
    pub(super) fn weight(&mut self, linear: &base::Linear) -> Result<Weight> {
        let name = format!("{}.weight", linear.name);
        self.0.remove(&name).ok_or_else(|| missing(&name))
    }

    /// A linear layer.
    pub(super) fn linear(&mut self, linear: &base::Linear) -> Result<Linear> {
        let name = linear.name.clone();
        let weight = self.weight(linear)?;
        let bias = match linear.bias {
            true => Some(self.take(&format!("{name}.bias"))?),
            false => None,
        };
        Ok(Linear { name, weight, bias, low_rank: None })
    }

    /// A norm.
    pub(super) fn norm(&mut self, norm: &base::Norm) -> Result<Norm> {
        let weight = self.take(&format!("{}.weight", norm.name))?;
        Ok(Norm { weight, eps: norm.eps, kind: norm.kind })
    }

    /// A norm, if there is one.
    pub(super) fn maybe_norm(&mut self, norm: &Option<base::Norm>) -> Result<Option<Norm>> {
        norm.as_ref().map(|norm| self.norm(norm)).transpose()
    }
}

/// The architecture asked for a key that it did not list: a defect of ours.
fn missing(name: &str) -> EngineError {
    tch::TchError::Kind(format!("the architecture does not list `{name}`")).into()
}

/// A tensor that no linear layer multiplies with was quantised: a defect of ours.
fn quantized(name: &str) -> EngineError {
    tch::TchError::Kind(format!("`{name}` is needed as it is, but was quantised")).into()
}

/// A root-mean-square norm.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    eps: f64,
    kind: NormKind,
}

impl Norm {
    /// Features that are normed together.
    pub(super) fn width(&self) -> i64 {
        self.weight.numel() as i64
    }

    /// Norms the last dimension of `x`. The weight may be wider than the computation.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _scope = scope("norm");
        ops::rms_norm(x, &self.weight, self.eps, self.kind)
    }

    /// Adds a branch to the residual stream, and norms the sum: both.
    pub(super) fn forward_sum(&self, x: &Tensor, branch: &Tensor) -> Result<(Tensor, Tensor)> {
        let _scope = scope("norm");
        ops::add_rms_norm(x, branch, &self.weight, self.eps, self.kind)
    }
}
