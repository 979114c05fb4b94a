//! DeepSeek V2 and V3 (R1): latent attention, shared experts, choice among groups of experts.
//!
//! Reference: `modeling_deepseek_v2.py`, `modeling_deepseek_v3.py`. The norms of the latents
//! have their own epsilon there, whatever `rms_norm_eps` says.

use serde_json::{Value, json};

use super::mixtral::{self, Routed};
use super::{Defaults, Dense, linear};
use crate::base::BaseError;
use crate::base::architecture::{
    Architecture, Attention, FeedForward, Groups, LatentAttention, LatentQuery, Norm, NormKind,
    Router, Scores, Scoring,
};
use crate::base::keys::Keys;
use crate::base::rope::{self, RopeContext};

/// Epsilon of the norms of latents.
const LATENT_EPS: f64 = 1e-6;

pub(super) fn v2(keys: &Keys) -> Result<Architecture, BaseError> {
    keys.only("scoring_func", &json!("softmax"))?;
    // Transformers reads this key and never applies it; the original model would.
    keys.only("norm_topk_prob", &Value::Bool(false))?;
    let method = keys.text("topk_method")?.unwrap_or("greedy");
    let best_of = match method {
        "greedy" => None,
        "group_limited_greedy" => Some(1),
        other => return Err(keys.refuse("topk_method", other)),
    };
    let choice = Choice {
        groups: Choice::groups(keys, best_of)?,
        scoring: Scoring::Softmax,
        normalize: false,
        corrected: false,
    };
    build(keys, "deepseek_v2", choice, [0, 2], 1.0, true)
}

pub(super) fn v3(keys: &Keys) -> Result<Architecture, BaseError> {
    keys.only("scoring_func", &json!("sigmoid"))?;
    keys.only("topk_method", &json!("noaux_tc"))?;
    let choice = Choice {
        groups: Choice::groups(keys, Some(2))?,
        scoring: Scoring::Sigmoid,
        normalize: keys.maybe_flag("norm_topk_prob")?.unwrap_or(true),
        corrected: true,
    };
    let interleaved = keys.maybe_flag("rope_interleave")?.unwrap_or(true);
    build(keys, "deepseek_v3", choice, [3, 1], 2.5, interleaved)
}

/// How experts are chosen.
#[derive(Clone, Copy)]
struct Choice {
    groups: Option<Groups>,
    scoring: Scoring,
    normalize: bool,
    corrected: bool,
}

impl Choice {
    fn groups(keys: &Keys, best_of: Option<usize>) -> Result<Option<Groups>, BaseError> {
        let (count, chosen) = (keys.size("n_group")?, keys.size("topk_group")?);
        let Some(best_of) = best_of else { return Ok(None) };
        let (count, chosen) = (count.unwrap_or(1), chosen.unwrap_or(1));
        let experts = keys.require("n_routed_experts", Keys::size)?;
        if chosen > count || experts % count != 0 || experts / count < best_of {
            return Err(keys.refuse("n_group", count));
        }
        // With fewer in the chosen groups, the rest would have to come from the others.
        let per_token = keys.require("num_experts_per_tok", Keys::size)?;
        if per_token > experts / count * chosen {
            return Err(keys.refuse("topk_group", chosen));
        }
        Ok(Some(Groups { count, chosen, best_of }))
    }
}

fn build(
    keys: &Keys,
    model_type: &'static str,
    choice: Choice,
    [first_sparse, shared]: [usize; 2],
    scale: f64,
    interleaved: bool,
) -> Result<Architecture, BaseError> {
    let dense = Dense::read(keys)?;
    keys.only("moe_layer_freq", &json!(1))?;
    // Listed in configs of V2, where Transformers gives the layers it names no bias.
    keys.only("mlp_bias", &Value::Bool(false))?;
    let routed =
        Routed::read(keys, ["n_routed_experts", "num_local_experts"], "moe_intermediate_size")?;
    let first_sparse = keys.count("first_k_dense_replace")?.unwrap_or(first_sparse);
    let shared = keys.size("n_shared_experts")?.unwrap_or(shared);
    let scale = keys.positive("routed_scaling_factor")?.unwrap_or(scale);
    let rope_dim = keys.size("qk_rope_head_dim")?.unwrap_or(64);
    let context = RopeContext { head_dim: rope_dim, ..dense.rope(10_000.0) };
    let mut rope = rope::read(keys, context)?;
    rope.rope.interleaved = interleaved;
    // Complex numbers, in V2, are rotated in f32.
    rope.rope.wide = model_type == "deepseek_v2";
    let latent = Latent::read(keys, rope_dim, rope.score_factor)?;
    let defaults = Defaults { model_type, theta: 10_000.0, tied: false };
    dense.build_with(defaults, vec![rope], |dense, index| {
        let mut layer = dense.layer(index);
        layer.attention = Attention::Latent(latent.attention(dense, index));
        if index >= first_sparse {
            let corrected = format!("model.layers.{index}.mlp.gate.e_score_correction_bias");
            let router = Router {
                groups: choice.groups,
                normalize: choice.normalize,
                correction_bias: choice.corrected.then_some(corrected),
                scale,
                wide: true,
                ..routed.router(dense, index, "mlp.gate.weight", choice.scoring)
            };
            let names = ["gate_proj", "up_proj", "down_proj"];
            let experts = routed.experts(dense, index, "mlp.experts", names);
            let shared = dense.gated(index, "mlp.shared_experts", routed.width * shared);
            layer.feed_forward =
                FeedForward::Experts(mixtral::boxed(router, experts, Some(shared)));
        }
        Ok(layer)
    })
}

/// The sizes of latent attention.
struct Latent {
    q_rank: Option<usize>,
    kv_rank: usize,
    nope: usize,
    rope: usize,
    value: usize,
    bias: bool,
    scale: f64,
}

impl Latent {
    fn read(keys: &Keys, rope: usize, score_factor: f64) -> Result<Self, BaseError> {
        let nope = keys.size("qk_nope_head_dim")?.unwrap_or(128);
        // Transformers writes what follows from the two.
        keys.only("qk_head_dim", &json!(nope + rope))?;
        // A rank that is null means a full projection; one that is absent, the usual rank.
        let q_rank = match keys.has("q_lora_rank") {
            true => keys.size("q_lora_rank")?,
            false => Some(1536),
        };
        Ok(Self {
            q_rank,
            kv_rank: keys.size("kv_lora_rank")?.unwrap_or(512),
            nope,
            rope,
            value: keys.size("v_head_dim")?.unwrap_or(128),
            bias: keys.flag("attention_bias")?,
            scale: ((nope + rope) as f64).powf(-0.5) * score_factor * score_factor,
        })
    }

    fn attention(&self, dense: &Dense, index: usize) -> LatentAttention {
        let linear = |part: &str, in_features, out_features, bias| crate::base::Linear {
            bias,
            ..linear(index, &format!("self_attn.{part}"), in_features, out_features)
        };
        let norm = |part: &str, width| Norm {
            name: format!("model.layers.{index}.self_attn.{part}"),
            width,
            eps: LATENT_EPS,
            kind: NormKind::WeightAfterRounding,
        };
        let queries = dense.heads * (self.nope + self.rope);
        let q = match self.q_rank {
            None => LatentQuery::Full(linear("q_proj", dense.hidden, queries, false)),
            Some(rank) => LatentQuery::LowRank(
                linear("q_a_proj", dense.hidden, rank, self.bias),
                norm("q_a_layernorm", rank),
                linear("q_b_proj", rank, queries, false),
            ),
        };
        let keys_and_values = dense.heads * (self.nope + self.value);
        let (kv_rank, rope) = (self.kv_rank, self.rope);
        LatentAttention {
            heads: dense.heads,
            nope_dim: self.nope,
            rope_dim: self.rope,
            value_dim: self.value,
            latent: kv_rank,
            q,
            kv_a: linear("kv_a_proj_with_mqa", dense.hidden, kv_rank + rope, self.bias),
            kv_a_norm: norm("kv_a_layernorm", kv_rank),
            kv_b: linear("kv_b_proj", kv_rank, keys_and_values, false),
            o: linear("o_proj", dense.heads * self.value, dense.hidden, self.bias),
            rope: 0,
            scores: Scores {
                scale: self.scale,
                sliding_window: None,
                softcap: None,
                sinks: None,
                dropout: dense.attention_dropout,
            },
        }
    }
}
