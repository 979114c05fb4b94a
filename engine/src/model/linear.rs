//! A linear layer and its low-rank update.

use tch::{Kind, Tensor};

use super::weight::Weight;
use crate::error::Result;

/// `y = x Wᵀ + bias`, plus the update of an adapter if there is one.
#[derive(Debug)]
pub struct Linear {
    /// Module path: the checkpoint key without `.weight`.
    pub name: String,
    /// `[out_features, in_features]`.
    pub weight: Weight,
    /// `[out_features]`, if there is one.
    pub bias: Option<Tensor>,
    /// The adapter, if this layer has one.
    pub low_rank: Option<LowRank>,
}

/// The update `scaling · B A` of LoRA (arXiv 2106.09685), in PEFT's conventions.
#[derive(Debug)]
pub struct LowRank {
    /// `lora_A.weight`, `[r, in_features]`.
    pub a: Tensor,
    /// `lora_B.weight`, `[out_features, r]`.
    pub b: Tensor,
    /// `lora_alpha / r`.
    pub scaling: f64,
    /// Probability of dropping an input, while training.
    pub dropout: f64,
}

impl Linear {
    /// Applies the layer to `[n, in_features]`. `train` turns dropout on.
    ///
    /// As PEFT's `lora.Linear.forward`: the low-rank path computes in the dtype of A, its
    /// result is added to the base's and cast back to the base's dtype.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        // Full training keeps f32 weights under a bfloat16 computation.
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(x.kind())).transpose()?;
        let base = self.weight.linear(x, bias.as_ref())?;
        let Some(low_rank) = &self.low_rank else {
            return Ok(base);
        };
        let mut input = x.f_to_kind(low_rank.a.kind())?;
        if train && low_rank.dropout > 0.0 {
            input = input.f_dropout(low_rank.dropout, true)?;
        }
        let inner = input.f_linear(&low_rank.a, None::<Tensor>)?.f_mul_scalar(low_rank.scaling)?;
        let update = inner.f_linear(&low_rank.b, None::<Tensor>)?;
        Ok(base.f_add(&update)?.f_to_kind(x.kind())?)
    }

    /// The weight with the update merged in: `W + scaling · B A`, computed in f32 and cast
    /// to the dtype of `W`. The counterpart of [`Linear::forward`].
    pub fn merged(&self) -> Result<Tensor> {
        let Some(low_rank) = &self.low_rank else {
            return self.weight.dense(self.weight.kind());
        };
        let (a, b) = (low_rank.a.f_to_kind(Kind::Float)?, low_rank.b.f_to_kind(Kind::Float)?);
        let delta = b.f_matmul(&a)?.f_mul_scalar(low_rank.scaling)?;
        let merged = self.weight.dense(Kind::Float)?.f_add(&delta)?;
        Ok(merged.f_to_kind(self.weight.kind())?)
    }
}
