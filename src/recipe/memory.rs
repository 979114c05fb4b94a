//! How much memory a run will take, before it takes any.
//!
//! An estimate from shapes alone. With `T` tokens in the largest micro-batch, `L` layers,
//! hidden width `h`, widths `q`, `k` of queries and keys, `i` of the MLP, and `b` bytes of
//! the computing dtype:
//!
//! | part | bytes |
//! |---|---|
//! | weights | frozen ones `b` each, trained ones 4 each (kept in f32) |
//! | gradients | 4 for each trained weight |
//! | optimiser | 8 for each trained weight (AdamW's two moments, f32) |
//! | activations | `T·L·b·(6h + 2q + 2k + 4i)`: what autograd keeps of norms, projections, attention and gates |
//! | output | `12·T·vocabulary`: logits, their softmax and their gradient, f32 |
//!
//! The runtime itself comes on top and is not counted.

use serde::Serialize;

use super::{Adapter, Dtype, Recipe};
use crate::base::Config;

/// Bytes of a weight, a gradient or a moment in f32.
const F32: u64 = 4;

/// Most tokens of a forward pass where the recipe does not say.
const MAX_MICRO_BATCH: usize = 8192;

/// Estimated bytes, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Frozen and trained weights.
    pub weights: u64,
    /// Gradients of trained weights.
    pub gradients: u64,
    /// The optimiser's state.
    pub optimizer: u64,
    /// What is kept between forward and backward pass, logits included.
    pub activations: u64,
}

impl Memory {
    /// Estimates a run of `recipe` on a base.
    pub(super) fn estimate(recipe: &Recipe, config: &Config, total: u64, trained: u64) -> Self {
        let bytes = match recipe.base.dtype {
            Dtype::Float32 => 4,
            Dtype::Bfloat16 => 2,
        };
        let frozen = match recipe.adapter {
            Adapter::Lora(_) => total,
            Adapter::Full => 0,
        };
        let step = recipe.train.tokens_per_step;
        let tokens = recipe.train.micro_batch_tokens.unwrap_or(MAX_MICRO_BATCH).min(step) as u64;
        let queries = (config.num_attention_heads * config.head_dim) as u64;
        let keys = (config.num_key_value_heads * config.head_dim) as u64;
        let width = 6 * config.hidden_size as u64
            + 2 * queries
            + 2 * keys
            + 4 * config.intermediate_size as u64;
        let layers = config.num_hidden_layers as u64;
        let output = 3 * F32 * tokens * config.vocab_size as u64;
        Self {
            weights: frozen * bytes + trained * F32,
            gradients: trained * F32,
            optimizer: 2 * trained * F32,
            activations: tokens * layers * bytes * width + output,
        }
    }

    /// Everything together.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations
    }
}
