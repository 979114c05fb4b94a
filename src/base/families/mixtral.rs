//! Mixtral, and [`Routed`]: what families with a mixture of experts share.
//!
//! Reference: `modeling_mixtral.py`; checkpoint keys as published (`block_sparse_moe`).

use super::{Defaults, Dense, MAX_EXPERTS, linear};
use crate::base::BaseError;
use crate::base::architecture::{
    Architecture, ExpertWeights, Experts, FeedForward, Gated, Router, Scoring,
};
use crate::base::keys::Keys;

pub(super) fn mixtral(keys: &Keys) -> Result<Architecture, BaseError> {
    let mut dense = Dense::read(keys)?;
    if keys.get("rms_norm_eps").is_none() {
        dense.eps = 1e-5;
    }
    let window = keys.size("sliding_window")?;
    let routed = Routed::read(keys, ["num_local_experts", "num_experts"], "intermediate_size")?;
    // Noise on the input of the router, while training.
    if keys.dropout("router_jitter_noise")? > 0.0 {
        return Err(keys.refuse("router_jitter_noise", "noise"));
    }
    let defaults = Defaults { model_type: "mixtral", theta: 1_000_000.0, tied: false };
    dense.build(defaults, |dense, index| {
        let mut attention = dense.attention(index);
        attention.scores.sliding_window = window;
        let gate = "block_sparse_moe.gate.weight";
        let router =
            Router { normalize: true, ..routed.router(dense, index, gate, Scoring::Softmax) };
        let experts = routed.experts(dense, index, "block_sparse_moe.experts", ["w1", "w3", "w2"]);
        let mut layer = dense.layer_with(index, attention);
        layer.feed_forward = FeedForward::Experts(boxed(router, experts, None));
        Ok(layer)
    })
}

/// The sizes of a mixture of experts.
pub(super) struct Routed {
    pub(super) experts: usize,
    pub(super) per_token: usize,
    /// Width inside an expert.
    pub(super) width: usize,
}

impl Routed {
    /// The number of experts stands under one of the `count` keys.
    pub(super) fn read(
        keys: &Keys,
        count: [&'static str; 2],
        width: &'static str,
    ) -> Result<Self, BaseError> {
        let other = keys.size(count[1])?;
        let experts = keys.require(count[0], |keys, key| Ok(keys.size(key)?.or(other)))?;
        let per_token = keys.require("num_experts_per_tok", Keys::size)?;
        if experts * keys.require("num_hidden_layers", Keys::size)? > MAX_EXPERTS {
            return Err(keys.refuse(count[0], experts));
        }
        if per_token > experts {
            return Err(keys.refuse("num_experts_per_tok", per_token));
        }
        Ok(Self { experts, per_token, width: keys.require(width, Keys::size)? })
    }

    /// A router with its weight at `path` within the block.
    pub(super) fn router(
        &self,
        dense: &Dense,
        index: usize,
        path: &str,
        scoring: Scoring,
    ) -> Router {
        Router {
            weight: format!("model.layers.{index}.{path}"),
            bias: None,
            correction_bias: None,
            hidden: dense.hidden,
            experts: self.experts,
            per_token: self.per_token,
            scoring,
            groups: None,
            normalize: false,
            scale: 1.0,
            wide: false,
            rounded: false,
        }
    }

    /// Experts of three layers each, called `names` (gate, up, down).
    pub(super) fn experts(
        &self,
        dense: &Dense,
        index: usize,
        path: &str,
        names: [&str; 3],
    ) -> ExpertWeights {
        let shapes =
            [(dense.hidden, self.width), (dense.hidden, self.width), (self.width, dense.hidden)];
        let layers = |expert: usize| {
            [0, 1, 2].map(|part: usize| {
                let (name, (in_features, out_features)) = (names[part], shapes[part]);
                linear(index, &format!("{path}.{expert}.{name}"), in_features, out_features)
            })
        };
        let experts = (0..self.experts).map(layers).collect();
        let name = format!("model.layers.{index}.mlp.experts");
        ExpertWeights::Each { name, experts, activation: dense.activation }
    }
}

pub(super) fn boxed(router: Router, experts: ExpertWeights, shared: Option<Gated>) -> Box<Experts> {
    Box::new(Experts { router, experts, shared })
}
