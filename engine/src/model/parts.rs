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
pub(super) struct Tensors(pub(super) BTreeMap<String, Tensor>);

impl Tensors {
    /// The tensor with this checkpoint key.
    pub(super) fn take(&mut self, name: &str) -> Result<Tensor> {
        self.0.remove(name).ok_or_else(|| missing(name))
    }

    /// A linear layer.
    pub(super) fn linear(&mut self, linear: &base::Linear) -> Result<Linear> {
        let name = linear.name.clone();
        let weight = Weight::Dense(self.take(&format!("{name}.weight"))?);
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
