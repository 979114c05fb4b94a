//! Phi-3 and Phi-4: fused projections, rotation of a part of each head, LongRoPE.
//!
//! Reference: `modeling_phi3.py`.

use serde_json::json;

use super::{Defaults, Dense, linear};
use crate::base::BaseError;
use crate::base::architecture::{Architecture, FeedForward, GateUp, Qkv};
use crate::base::keys::Keys;
use crate::base::rope::{self, RopeContext};

pub(super) fn phi3(keys: &Keys) -> Result<Architecture, BaseError> {
    let mut dense = Dense::read(keys)?;
    if keys.get("rms_norm_eps").is_none() {
        dense.eps = 1e-5;
    }
    let window = keys.size("sliding_window")?;
    let residual_dropout = keys.dropout("resid_pdrop")?;
    // Transformers reads `embd_pdrop` and never applies it.
    keys.dropout("embd_pdrop")?;
    for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        keys.only(key, &json!(false))?;
    }
    for key in ["full_attn_mod", "interpolate_factor"] {
        keys.only(key, &json!(1))?;
    }
    // Where it is absent, Transformers takes this length, whatever the scaling itself says.
    let context = RopeContext { phi3: true, original: Some(4096), ..dense.rope(10_000.0) };
    let rope = rope::read(keys, context)?;
    let defaults = Defaults { model_type: "phi3", theta: 10_000.0, tied: false };
    dense.build_with(defaults, vec![rope], |dense, index| {
        let mut attention = dense.attention(index);
        let width = (dense.heads + 2 * dense.kv_heads) * dense.head_dim;
        attention.qkv = Qkv::Fused(linear(index, "self_attn.qkv_proj", dense.hidden, width));
        attention.scores.sliding_window = window;
        let mut gated = dense.gated(index, "mlp", dense.intermediate);
        let both = linear(index, "mlp.gate_up_proj", dense.hidden, 2 * dense.intermediate);
        gated.gate_up = GateUp::Fused(both);
        let mut layer = dense.layer_with(index, attention);
        layer.feed_forward = FeedForward::Gated(gated);
        layer.residual_dropout = residual_dropout;
        Ok(layer)
    })
}
