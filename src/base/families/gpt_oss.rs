//! gpt-oss: attention sinks, alternating windows, clamped gates, experts in one tensor.
//!
//! Reference: `modeling_gpt_oss.py`.

use serde_json::json;

use super::mixtral::{self, Routed};
use super::{Defaults, Dense};
use crate::base::BaseError;
use crate::base::architecture::{
    Architecture, ExpertWeights, FeedForward, NormKind, Router, Scoring,
};
use crate::base::keys::Keys;

pub(super) fn gpt_oss(keys: &Keys) -> Result<Architecture, BaseError> {
    let mut dense = Dense::read(keys)?;
    if keys.get("head_dim").is_none() {
        dense.head_dim = 64;
    }
    if keys.get("rms_norm_eps").is_none() {
        dense.eps = 1e-5;
    }
    dense.norm = NormKind::WeightBeforeRounding;
    let bias = keys.maybe_flag("attention_bias")?.unwrap_or(true);
    let window = keys.size("sliding_window")?.unwrap_or(128);
    let windows = dense.windows(Some(window), |index| index % 2 == 0)?;
    let routed = Routed::read(keys, ["num_local_experts", "num_experts"], "intermediate_size")?;
    keys.only("hidden_act", &json!("silu"))?;
    // Absent, it would mean YaRN with numbers that no file states.
    if keys.get("rope_scaling").is_none() {
        keys.require("rope_parameters", |keys, key| Ok(keys.get(key)))?;
    }
    let alpha = keys.positive("swiglu_alpha")?.unwrap_or(1.702);
    let limit = keys.positive("swiglu_limit")?.unwrap_or(7.0);
    let defaults = Defaults { model_type: "gpt_oss", theta: 150_000.0, tied: false };
    dense.build(defaults, |dense, index| {
        let mut attention = dense.attention(index).with_bias(bias, bias);
        attention.scores.sliding_window = windows[index];
        attention.scores.sinks = Some(format!("model.layers.{index}.self_attn.sinks"));
        let router = Router {
            bias: Some(format!("model.layers.{index}.mlp.router.bias")),
            ..routed.router(dense, index, "mlp.router.weight", Scoring::SoftmaxOfChosen)
        };
        let experts = ExpertWeights::Stacked {
            name: format!("model.layers.{index}.mlp.experts"),
            count: routed.experts,
            hidden: dense.hidden,
            width: routed.width,
            alpha,
            limit,
        };
        let mut layer = dense.layer_with(index, attention);
        layer.feed_forward = FeedForward::Experts(mixtral::boxed(router, experts, None));
        Ok(layer)
    })
}
