//! Gemma 1, 2 and 3 (text): scaled embeddings, `1 + weight` norms, GeGLU; soft-capping and
//! alternating windows from 2 on; two rotary bases in 3.
//!
//! Reference: `modeling_gemma.py`, `modeling_gemma2.py`, `modeling_gemma3.py`.

use serde_json::{Value, json};

use super::{Defaults, Dense, activation};
use crate::base::BaseError;
use crate::base::architecture::{
    Activation, Architecture, EmbeddingScale, GroupedAttention, Layer, LayerNorms, NormKind,
};
use crate::base::keys::Keys;
use crate::base::rope;

pub(super) fn gemma(keys: &Keys) -> Result<Architecture, BaseError> {
    let mut dense = read(keys)?;
    // Published with `gelu`, meant as the tanh approximation, as Transformers corrects it; the
    // key of later families stands in some files and is not read there.
    let found = activation(keys, "hidden_act")?.filter(|found| *found != Activation::Gelu);
    dense.activation = found.unwrap_or(Activation::GeluTanh);
    keys.only("hidden_activation", &json!("gelu_pytorch_tanh"))?;
    let bias = keys.flag("attention_bias")?;
    let defaults = Defaults { model_type: "gemma", theta: 10_000.0, tied: true };
    let architecture = dense.build(defaults, |dense, index| {
        Ok(dense.layer_with(index, dense.attention(index).with_bias(bias, bias)))
    })?;
    Ok(scaled(architecture))
}

pub(super) fn gemma2(keys: &Keys) -> Result<Architecture, BaseError> {
    let dense = read(keys)?;
    let soft = SoftCaps::read(keys, Some(50.0), Some(30.0))?;
    let window = keys.size("sliding_window")?.unwrap_or(4096);
    // Published beside the other, with the same number.
    keys.only("sliding_window_size", &json!(window))?;
    let windows = dense.windows(Some(window), |index| index % 2 == 0)?;
    let defaults = Defaults { model_type: "gemma2", theta: 10_000.0, tied: true };
    let mut architecture = dense.build(defaults, |dense, index| {
        let mut attention = soft.attention(dense, index);
        attention.scores.sliding_window = windows[index];
        Ok(four_norms(dense, index, attention))
    })?;
    architecture.final_logit_softcapping = soft.logits;
    Ok(scaled(architecture))
}

pub(super) fn gemma3(keys: &Keys) -> Result<Architecture, BaseError> {
    let dense = read(keys)?;
    let soft = SoftCaps::read(keys, None, None)?;
    // Transformers has the key and never applies it.
    if let Some(cap) = soft.scores {
        return Err(keys.refuse("attn_logit_softcapping", cap));
    }
    let window = keys.size("sliding_window")?.unwrap_or(4096);
    let pattern = keys.size("sliding_window_pattern")?;
    let pattern = keys.size("_sliding_window_pattern")?.or(pattern).unwrap_or(6);
    let windows = dense.windows(Some(window), |index| !(index + 1).is_multiple_of(pattern))?;
    // The base of layers with a window, and of those without.
    let local_theta = keys.positive("rope_local_base_freq")?.unwrap_or(10_000.0);
    let theta = keys.positive("rope_theta")?.unwrap_or(1_000_000.0);
    let parameters = keys.object("rope_parameters")?;
    let by_type = |key| parameters.as_ref().map_or(Ok(None), |all| all.object(key));
    let (local, global) = (by_type("sliding_attention")?, by_type("full_attention")?);
    let scaling = keys.object("rope_scaling")?;
    if scaling.is_some() && parameters.is_some() {
        return Err(keys.refuse("rope_scaling", "something beside `rope_parameters`"));
    }
    let global = scaling.or(global);
    let ropes = vec![
        rope::read_object(keys, global, dense.rope(theta))?,
        rope::read_object(keys, local, dense.rope(local_theta))?,
    ];
    parameters.map_or(Ok(()), Keys::finish)?;
    let defaults = Defaults { model_type: "gemma3_text", theta, tied: true };
    let mut architecture = dense.build_with(defaults, ropes, |dense, index| {
        let mut attention = soft.attention(dense, index);
        attention.scores.sliding_window = windows[index];
        attention.rope = Some(usize::from(windows[index].is_some()));
        attention.qk_norm = dense.qk_norm(index, [dense.head_dim; 2]);
        Ok(four_norms(dense, index, attention))
    })?;
    architecture.final_logit_softcapping = soft.logits;
    Ok(scaled(architecture))
}

fn read<'a>(keys: &'a Keys<'a>) -> Result<Dense<'a>, BaseError> {
    let mut dense = Dense::read(keys)?;
    if keys.get("head_dim").is_none() {
        dense.head_dim = 256;
    }
    // `hidden_act` stands beside it in published files, and is not read by Gemma 2 and 3.
    dense.activation = activation(keys, "hidden_activation")?.unwrap_or(Activation::GeluTanh);
    dense.norm = NormKind::OnePlusWeight;
    keys.only("use_bidirectional_attention", &Value::Bool(false))?;
    Ok(dense)
}

/// What Gemma 2 and 3 say about scores and logits.
struct SoftCaps {
    scale: f64,
    scores: Option<f64>,
    logits: Option<f64>,
    bias: bool,
}

impl SoftCaps {
    fn read(keys: &Keys, scores: Option<f64>, logits: Option<f64>) -> Result<Self, BaseError> {
        // A cap that is null is none; one that is absent is the family's.
        let cap = |key, usual| match keys.has(key) {
            true => keys.positive(key),
            false => Ok(usual),
        };
        Ok(Self {
            scale: keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5),
            scores: cap("attn_logit_softcapping", scores)?,
            logits: cap("final_logit_softcapping", logits)?,
            bias: keys.flag("attention_bias")?,
        })
    }

    fn attention(&self, dense: &Dense, index: usize) -> GroupedAttention {
        let mut attention = dense.attention(index).with_bias(self.bias, self.bias);
        attention.scores.scale = self.scale;
        attention.scores.softcap = self.scores;
        attention
    }
}

/// A block with norms before and after both of its parts.
fn four_norms(dense: &Dense, index: usize, attention: GroupedAttention) -> Layer {
    let norm = |name| Some(dense.layer_norm(index, name));
    Layer {
        norms: LayerNorms {
            before_attention: norm("input_layernorm"),
            after_attention: norm("post_attention_layernorm"),
            before_feed_forward: norm("pre_feedforward_layernorm"),
            after_feed_forward: norm("post_feedforward_layernorm"),
        },
        ..dense.layer_with(index, attention)
    }
}

fn scaled(mut architecture: Architecture) -> Architecture {
    let scale = (architecture.hidden_size as f64).sqrt();
    architecture.embedding_scale = EmbeddingScale::Rounded(scale);
    architecture
}
