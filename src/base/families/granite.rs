//! Granite 3: Llama with multipliers on embeddings, scores, residuals and logits.
//!
//! Reference: `modeling_granite.py`.

use super::{Defaults, Dense};
use crate::base::BaseError;
use crate::base::architecture::{Architecture, EmbeddingScale};
use crate::base::keys::Keys;

pub(super) fn granite(keys: &Keys) -> Result<Architecture, BaseError> {
    let dense = Dense::read(keys)?;
    let multiplier = |key| Ok::<f64, BaseError>(keys.number(key)?.unwrap_or(1.0));
    let attention_multiplier = multiplier("attention_multiplier")?;
    let residual_multiplier = multiplier("residual_multiplier")?;
    let embedding_multiplier = multiplier("embedding_multiplier")?;
    let bias = keys.flag("attention_bias")?;
    let mlp_bias = keys.flag("mlp_bias")?;
    let defaults = Defaults { model_type: "granite", theta: 10_000.0, tied: false };
    let mut architecture = dense.build(defaults, |dense, index| {
        let mut attention = dense.attention(index).with_bias(bias, bias);
        attention.scores.scale = attention_multiplier;
        let mut layer = dense.layer_with(index, attention);
        layer.residual_multiplier = residual_multiplier;
        layer.set_mlp_bias(mlp_bias);
        Ok(layer)
    })?;
    architecture.embedding_scale = EmbeddingScale::Exact(embedding_multiplier);
    architecture.logits_scaling = keys.positive("logits_scaling")?.unwrap_or(1.0);
    Ok(architecture)
}
