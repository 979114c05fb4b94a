//! What an adapter makes of the weights of routed experts.
//!
//! Owns applying an update and merging it, side by side. Only rows that chose an expert go the
//! way of its update, `x Aᵀ Bᵀ`; no matrix as large as the weights is made, which PEFT does in
//! every forward pass. Which weights have an update is the adapter's.
//!
//! Reference: `lora.ParamWrapper` of PEFT 0.21.2, which lays the updates of all experts out in one
//! A and one B: A has the rows of one expert after another, B the columns of one rank of all
//! experts after another.

use heirloom::base;
use tch::{Device, Kind, Tensor};

use super::weight::Weight;
use crate::error::Result;

/// One weight of all experts of a block, in Transformers' words, and its update.
#[derive(Debug)]
pub struct ExpertParameter {
    /// Its path and sizes.
    pub parameter: base::ExpertParameter,
    /// The adapter, if this weight has one.
    pub low_rank: Option<ExpertLowRank>,
}

/// The update `scaling · B A` of every expert.
#[derive(Debug)]
pub struct ExpertLowRank {
    /// `lora_A.weight`, `[experts · r, in_features]`.
    pub a: Tensor,
    /// `lora_B.weight`, `[out_features, r · experts]`.
    pub b: Tensor,
    /// `lora_alpha / r`, or as `use_rslora` has it.
    pub scaling: f64,
}

/// An update by expert, in the dtype of the rows.
pub(super) struct Updates {
    /// `[r, in_features]` each.
    a: Vec<Tensor>,
    /// Bᵀ, `[r, out_features]` each.
    b: Vec<Tensor>,
    scaling: f64,
}

impl ExpertParameter {
    /// Without an update.
    pub(super) fn new(parameter: base::ExpertParameter) -> Self {
        Self { parameter, low_rank: None }
    }

    /// A `[experts, r, in_features]` and Bᵀ `[experts, r, out_features]`.
    fn stacks(&self, low_rank: &ExpertLowRank, kind: Kind) -> Result<(Tensor, Tensor)> {
        let base::ExpertParameter { experts, in_features, out_features, .. } = &self.parameter;
        let (experts, inputs) = (*experts as i64, *in_features as i64);
        let a = low_rank.a.f_to_kind(kind)?.f_view([experts, -1, inputs])?;
        let b = low_rank.b.f_to_kind(kind)?.f_view([*out_features as i64, -1, experts])?;
        Ok((a, b.f_permute([2, 1, 0])?.f_contiguous()?))
    }

    /// The update by expert, for rows of `kind`.
    pub(super) fn updates(&self, kind: Kind) -> Result<Option<Updates>> {
        let Some(low_rank) = &self.low_rank else { return Ok(None) };
        let (a, b) = self.stacks(low_rank, kind)?;
        // One node of the graph for all experts: each by itself would have a gradient as large
        // as all of them.
        let (a, b) = (a.f_unbind(0)?, b.f_unbind(0)?);
        Ok(Some(Updates { a, b, scaling: low_rank.scaling }))
    }

    /// What the adapter trains of it.
    pub(super) fn trained_leaves(&self) -> impl Iterator<Item = &Tensor> {
        self.low_rank.iter().flat_map(|low_rank| [&low_rank.a, &low_rank.b])
    }

    /// Moves the adapter to a device.
    pub(super) fn settle(&mut self, device: Device) -> Result<()> {
        if let Some(low_rank) = &mut self.low_rank {
            (low_rank.a, low_rank.b) = (low_rank.a.f_to(device)?, low_rank.b.f_to(device)?);
        }
        Ok(())
    }
}

impl Updates {
    /// `scaling · x Aᵀ` of an expert's rows.
    pub(super) fn inner(&self, expert: usize, x: &Tensor) -> Result<Tensor> {
        let inner = x.f_linear(&self.a[expert], None::<Tensor>)?;
        Ok(inner.f_mul_scalar(self.scaling)?)
    }

    /// `y + inner Bᵀ`, of those columns of Bᵀ that `y` has from `first` on.
    pub(super) fn add(
        &self,
        expert: usize,
        y: &Tensor,
        inner: &Tensor,
        first: i64,
    ) -> Result<Tensor> {
        let b = self.b[expert].f_narrow(1, first, y.size2()?.1)?;
        Ok(y.f_addmm(inner, &b)?)
    }
}

/// A weight of routed experts as a checkpoint has it, which has an update.
pub struct AdaptedExpert<'a> {
    /// Its checkpoint key.
    pub key: String,
    parameter: &'a ExpertParameter,
    place: Place<'a>,
}

/// What part of a parameter it is.
enum Place<'a> {
    /// All of it, `[experts, in_features, out_features]`.
    All(&'a Tensor),
    /// Rows of one expert's from `first` on.
    Each { weight: &'a Weight, expert: i64, first: i64 },
}

impl<'a> AdaptedExpert<'a> {
    pub(super) fn all(parameter: &'a ExpertParameter, weight: &'a Tensor) -> Self {
        let key = parameter.parameter.name.clone();
        Self { key, parameter, place: Place::All(weight) }
    }

    pub(super) fn each(
        parameter: &'a ExpertParameter,
        key: String,
        weight: &'a Weight,
        expert: usize,
        first: i64,
    ) -> Self {
        Self { key, parameter, place: Place::Each { weight, expert: expert as i64, first } }
    }

    /// Whether it has an update.
    pub(super) fn is_adapted(&self) -> bool {
        self.parameter.low_rank.is_some()
    }

    /// The dtype of a merge.
    pub fn kind(&self) -> Kind {
        match self.place {
            Place::All(weight) => weight.kind(),
            Place::Each { weight, .. } => weight.kind(),
        }
    }

    /// The weight with the update merged in, computed in f32 and cast to its dtype. The
    /// counterpart of [`Updates`].
    pub fn merged(&self) -> Result<Tensor> {
        let weight = match self.place {
            Place::All(weight) => weight.f_to_kind(Kind::Float)?,
            Place::Each { weight, .. } => weight.dense(Kind::Float)?,
        };
        let Some(low_rank) = &self.parameter.low_rank else {
            return Ok(weight.f_to_kind(self.kind())?);
        };
        let (a, b) = self.parameter.stacks(low_rank, Kind::Float)?;
        let delta = match &self.place {
            Place::All(_) => a.f_transpose(1, 2)?.f_matmul(&b)?,
            Place::Each { expert, first, .. } => {
                let (a, b) = (a.f_select(0, *expert)?, b.f_select(0, *expert)?);
                b.f_narrow(1, *first, weight.size2()?.0)?.f_tr()?.f_matmul(&a)?
            }
        };
        let merged = weight.f_add(&delta.f_mul_scalar(low_rank.scaling)?)?;
        Ok(merged.f_to_kind(self.kind())?)
    }
}
