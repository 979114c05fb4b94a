//! OLMo 2: norms after attention and feed-forward, and over all queries and keys together.
//!
//! Reference: `modeling_olmo2.py`.

use super::{Defaults, Dense};
use crate::base::BaseError;
use crate::base::architecture::{Architecture, LayerNorms, NormKind};
use crate::base::keys::Keys;

pub(super) fn olmo2(keys: &Keys) -> Result<Architecture, BaseError> {
    let mut dense = Dense::read(keys)?;
    if keys.get("rms_norm_eps").is_none() {
        dense.eps = 1e-5;
    }
    dense.norm = NormKind::WeightBeforeRounding;
    let bias = keys.flag("attention_bias")?;
    let defaults = Defaults { model_type: "olmo2", theta: 10_000.0, tied: false };
    let mut architecture = dense.build(defaults, |dense, index| {
        let widths = [dense.heads, dense.kv_heads].map(|heads| heads * dense.head_dim);
        let mut attention = dense.attention(index).with_bias(bias, bias);
        attention.qk_norm = dense.qk_norm(index, widths);
        let mut layer = dense.layer_with(index, attention);
        layer.norms = LayerNorms {
            after_attention: Some(dense.layer_norm(index, "post_attention_layernorm")),
            after_feed_forward: Some(dense.layer_norm(index, "post_feedforward_layernorm")),
            ..LayerNorms::default()
        };
        Ok(layer)
    })?;
    architecture.ropes.iter_mut().for_each(|rope| rope.wide = true);
    Ok(architecture)
}
