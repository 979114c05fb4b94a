//! A linear layer and its low-rank update.

use tch::{Kind, Tensor};

use super::parts::Rows;
use super::weight::Weight;
use crate::error::{EngineError, Result};
use crate::ops;
use crate::ops::checkpointing::trained_linear;
use crate::ops::linear::Layer;

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
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_rows(&Rows::kept(x), train)
    }

    /// The same, to rows that need not be kept.
    pub(super) fn forward_rows(&self, rows: &Rows<'_>, train: bool) -> Result<Tensor> {
        let [y] = Self::forward_all([self], rows, train)?;
        Ok(y)
    }

    /// Applies several layers to the same rows.
    pub(super) fn forward_all<const N: usize>(
        layers: [&Self; N],
        rows: &Rows<'_>,
        train: bool,
    ) -> Result<[Tensor; N]> {
        let outputs = if layers.iter().any(|layer| layer.weight.is_trained()) {
            layers.iter().map(|layer| layer.trained(rows)).collect::<Result<Vec<_>>>()?
        } else {
            let layers = layers.iter().map(|layer| layer.frozen(rows.x.kind(), train));
            let layers = layers.collect::<Result<_>>()?;
            ops::linear::linears_over(&rows.x, rows.for_backward(), layers)?
        };
        outputs.try_into().map_err(|_| wrong_number())
    }

    /// Under full training, which keeps f32 weights under a bfloat16 computation.
    fn trained(&self, rows: &Rows<'_>) -> Result<Tensor> {
        let (x, kept) = (&rows.x, rows.for_backward());
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(x.kind())).transpose()?;
        match &self.weight {
            Weight::Dense(weight) if kept.is_made_again() => {
                trained_linear(x, kept, &weight.f_to_kind(x.kind())?, bias.as_ref())
            }
            weight => weight.linear(x, bias.as_ref()),
        }
    }

    fn frozen(&self, kind: Kind, train: bool) -> Result<Layer> {
        let low_rank = self.low_rank.as_ref().map(|low_rank| ops::linear::LowRank {
            a: low_rank.a.shallow_clone(),
            b: low_rank.b.shallow_clone(),
            scaling: low_rank.scaling,
            dropout: if train { low_rank.dropout } else { 0.0 },
        });
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(kind)).transpose()?;
        let product = self.weight.product(kind);
        Ok(Layer { weight: self.weight.matrix(kind), product, bias, low_rank })
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

/// As many results as layers: a defect of ours.
fn wrong_number() -> EngineError {
    EngineError::Defect("linear layers gave another number of results".to_owned())
}
