//! Qwen 2, 2.5 (biases of queries, keys and values), Qwen 3 (norms of queries and keys) and
//! its mixtures of experts; DeepSeek-R1-Distill-Qwen is Qwen 2.
//!
//! Reference: `modeling_qwen2.py`, `modeling_qwen3.py`, `modeling_qwen3_moe.py`.

use serde_json::Value;

use super::mixtral::{self, Routed};
use super::{Defaults, Dense};
use crate::base::BaseError;
use crate::base::architecture::{Architecture, FeedForward, GroupedAttention, Router, Scoring};
use crate::base::keys::Keys;

pub(super) fn qwen2(keys: &Keys) -> Result<Architecture, BaseError> {
    let dense = Dense::read(keys)?;
    let windows = windows(&dense)?;
    let defaults = Defaults { model_type: "qwen2", theta: 10_000.0, tied: false };
    dense.build(defaults, |dense, index| {
        let mut attention = dense.attention(index).with_bias(true, false);
        attention.scores.sliding_window = windows[index];
        Ok(dense.layer_with(index, attention))
    })
}

pub(super) fn qwen3(keys: &Keys) -> Result<Architecture, BaseError> {
    let dense = normed(keys)?;
    let bias = keys.flag("attention_bias")?;
    let windows = windows(&dense)?;
    let defaults = Defaults { model_type: "qwen3", theta: 10_000.0, tied: false };
    dense.build(defaults, |dense, index| {
        Ok(dense.layer_with(index, normed_attention(dense, index, bias, windows[index])))
    })
}

pub(super) fn qwen3_moe(keys: &Keys) -> Result<Architecture, BaseError> {
    let dense = normed(keys)?;
    let bias = keys.flag("attention_bias")?;
    let used = keys.flag("use_sliding_window")?;
    let window = keys.size("sliding_window")?.filter(|_| used);
    // Qwen 2 leaves the first layers without a window; here all have one.
    keys.get("max_window_layers");
    let routed = Routed::read(keys, ["num_experts", "num_local_experts"], "moe_intermediate_size")?;
    let normalize = keys.flag("norm_topk_prob")?;
    let step = keys.size("decoder_sparse_step")?.unwrap_or(1);
    let dense_layers = keys.list("mlp_only_layers", Value::as_u64)?.unwrap_or_default();
    let defaults = Defaults { model_type: "qwen3_moe", theta: 10_000.0, tied: false };
    dense.build(defaults, |dense, index| {
        let mut layer = dense.layer_with(index, normed_attention(dense, index, bias, window));
        if !dense_layers.contains(&(index as u64)) && (index + 1).is_multiple_of(step) {
            let router = Router {
                normalize,
                rounded: true,
                ..routed.router(dense, index, "mlp.gate.weight", Scoring::Softmax)
            };
            let names = ["gate_proj", "up_proj", "down_proj"];
            let experts = routed.experts(dense, index, "mlp.experts", names);
            layer.feed_forward = FeedForward::Experts(mixtral::boxed(router, experts, None));
        }
        Ok(layer)
    })
}

/// What Qwen 3 takes for granted.
fn normed<'a>(keys: &'a Keys<'a>) -> Result<Dense<'a>, BaseError> {
    let mut dense = Dense::read(keys)?;
    // `Qwen3MoeConfig` has no default of its own and falls back on the width of the model.
    if keys.get("head_dim").is_none() && keys.text("model_type")? == Some("qwen3") {
        dense.head_dim = 128;
    }
    Ok(dense)
}

fn normed_attention(
    dense: &Dense,
    index: usize,
    bias: bool,
    window: Option<usize>,
) -> GroupedAttention {
    let mut attention = dense.attention(index).with_bias(bias, bias);
    attention.qk_norm = dense.qk_norm(index, [dense.head_dim; 2]);
    attention.scores.sliding_window = window;
    attention
}

/// Windows count only where `use_sliding_window` says so, and from `max_window_layers` on.
fn windows(dense: &Dense) -> Result<Vec<Option<usize>>, BaseError> {
    let keys = dense.keys;
    let used = keys.flag("use_sliding_window")?;
    let window = keys.size("sliding_window")?.unwrap_or(4096);
    let first = keys.count("max_window_layers")?.unwrap_or(28);
    dense.windows(Some(window).filter(|_| used), |index| index >= first)
}
