//! What modules are built with: tensors by checkpoint key, and small modules.

use std::collections::BTreeMap;

use heirloom::base::{self, Activation, NormKind};
use tch::Tensor;

use super::linear::Linear;
use super::weight::Weight;
use crate::error::{EngineError, Result};
use crate::ops;
use crate::ops::checkpointing::Kept;
use crate::ops::profile::scope;

/// Tensors that modules take out one by one.
#[derive(Default)]
pub(super) struct Tensors {
    left: BTreeMap<String, Weight>,
    /// Those that were taken and are trained.
    trained: Vec<Tensor>,
}

impl Tensors {
    /// Puts a tensor in.
    pub(super) fn put(&mut self, name: String, weight: Weight) {
        self.left.insert(name, weight);
    }

    /// The tensor with this checkpoint key, as it is.
    pub(super) fn take(&mut self, name: &str) -> Result<Tensor> {
        match self.remove(name)? {
            Weight::Dense(tensor) => Ok(tensor),
            Weight::Quantized(_) => Err(quantized(name)),
        }
    }

    /// The weight of the linear layer with this name.
    pub(super) fn weight(&mut self, linear: &base::Linear) -> Result<Weight> {
        self.remove(&format!("{}.weight", linear.name))
    }

    /// The trained tensors that were taken since the last call.
    pub(super) fn trained(&mut self) -> Vec<Tensor> {
        std::mem::take(&mut self.trained)
    }

    fn remove(&mut self, name: &str) -> Result<Weight> {
        let weight = self.left.remove(name).ok_or_else(|| missing(name))?;
        if let (Weight::Dense(tensor), true) = (&weight, weight.is_trained()) {
            self.trained.push(tensor.shallow_clone());
        }
        Ok(weight)
    }

    /// A linear layer.
    pub(super) fn linear(&mut self, linear: &base::Linear) -> Result<Linear> {
        let name = linear.name.clone();
        let weight = self.weight(linear)?;
        let bias = match linear.bias {
            true => Some(self.take(&format!("{name}.bias"))?),
            false => None,
        };
        Ok(Linear { name, weight, bias, trained_bias: None, low_rank: None })
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
    EngineError::Defect(format!("the architecture does not list `{name}`"))
}

/// A tensor that no linear layer multiplies with was quantised: a defect of ours.
fn quantized(name: &str) -> EngineError {
    EngineError::Defect(format!("`{name}` is needed as it is, but was quantised"))
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

    /// The same norm under another owner.
    fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps, kind: self.kind }
    }

    /// Adds a branch to the residual stream, and norms the sum: both.
    pub(super) fn forward_sum(&self, x: &Tensor, branch: &Tensor) -> Result<(Tensor, Tensor)> {
        let _scope = scope("norm");
        ops::add_rms_norm(x, branch, &self.weight, self.eps, self.kind)
    }
}

/// Rows that linear layers read, and what their backward pass gets them from.
pub(super) struct Rows<'a> {
    pub(super) x: Tensor,
    source: Source<'a>,
}

/// What rows are made of where they are made again.
enum Source<'a> {
    /// They are kept.
    Kept,
    Normed(&'a Norm, Tensor),
    Gated(Tensor, Tensor, Activation),
}

impl<'a> Rows<'a> {
    /// Rows that are kept.
    pub(super) fn kept(x: &Tensor) -> Self {
        Self { x: x.shallow_clone(), source: Source::Kept }
    }

    /// Rows after a norm, if there is one.
    pub(super) fn normed(norm: Option<&'a Norm>, x: &Tensor, again: bool) -> Result<Self> {
        let Some(norm) = norm else { return Ok(Self::kept(x)) };
        let source = if again { Source::Normed(norm, x.detach()) } else { Source::Kept };
        Ok(Self { x: norm.forward(x)?, source })
    }

    /// The residual stream with a branch added, and those rows after a norm.
    pub(super) fn normed_sum(
        norm: &'a Norm,
        x: &Tensor,
        branch: &Tensor,
        again: bool,
    ) -> Result<(Tensor, Self)> {
        let (sum, x) = norm.forward_sum(x, branch)?;
        let source = if again { Source::Normed(norm, sum.detach()) } else { Source::Kept };
        Ok((sum, Self { x, source }))
    }

    /// `activation(gate) · up`.
    pub(super) fn gated(
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
        again: bool,
    ) -> Result<Self> {
        let _scope = scope("gate");
        let x = ops::gated(gate, up, activation)?;
        let source = match again {
            true => Source::Gated(gate.detach(), up.detach(), activation),
            false => Source::Kept,
        };
        Ok(Self { x, source })
    }

    /// For the backward pass of one layer.
    pub(super) fn for_backward(&self) -> Kept {
        match &self.source {
            Source::Kept => Kept::here(&self.x),
            // Of these libtorch keeps what it needs.
            _ if ops::reference::asked() => Kept::here(&self.x),
            Source::Normed(norm, x) => {
                let (norm, x) = (norm.share(), x.shallow_clone());
                Kept::again(move || norm.forward(&x))
            }
            Source::Gated(gate, up, activation) => {
                let (gate, up, activation) =
                    (gate.shallow_clone(), up.shallow_clone(), *activation);
                Kept::again(move || {
                    let _scope = scope("gate");
                    ops::gated(&gate, &up, activation)
                })
            }
        }
    }
}
