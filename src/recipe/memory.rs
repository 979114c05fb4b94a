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
//! | activations | `T·b·(6h + 2q + 2k + 4i)` for each of `L` layers: what autograd keeps of norms, projections, attention and gates |
//! | output | `12·T·vocabulary`: logits, their softmax and their gradient, f32 |
//!
//! The runtime itself comes on top and is not counted.

use serde::Serialize;

use super::{Adapter, DEFAULT_MICRO_BATCH_TOKENS, Dtype, Recipe};
use crate::base::Architecture;

/// Bytes of a weight, a gradient or a moment in f32.
const F32: u64 = 4;

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
    pub(super) fn estimate(
        recipe: &Recipe,
        architecture: &Architecture,
        total: u64,
        trained: u64,
    ) -> Self {
        let bytes = match recipe.base.dtype {
            Dtype::Float32 => 4,
            Dtype::Bfloat16 => 2,
        };
        let frozen = match recipe.adapter {
            Adapter::Lora(_) => total,
            Adapter::Full => 0,
        };
        let train = &recipe.train;
        let tokens = train.micro_batch_tokens.unwrap_or(DEFAULT_MICRO_BATCH_TOKENS);
        let tokens = tokens.min(train.tokens_per_step) as u64;
        let hidden = architecture.hidden_size as u64;
        let width = architecture.layers.iter().map(|layer| {
            let widths = layer.widths();
            let projections = [2 * widths.queries, 2 * widths.keys, 4 * widths.intermediate];
            sum(&[product(&[6, hidden]), sum(&projections.map(|width| width as u64))])
        });
        let width = width.fold(0, u64::saturating_add);
        let output = product(&[3, F32, tokens, architecture.vocab_size as u64]);
        let kept = product(&[tokens, bytes, width]);
        Self {
            weights: sum(&[product(&[frozen, bytes]), product(&[trained, F32])]),
            gradients: product(&[trained, F32]),
            optimizer: product(&[2, trained, F32]),
            activations: sum(&[kept, output]),
        }
    }

    /// Everything together.
    pub fn total(&self) -> u64 {
        sum(&[self.weights, self.gradients, self.optimizer, self.activations])
    }
}

// What is beyond all memory there is need not be told apart.

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |product, factor| product.saturating_mul(*factor))
}

fn sum(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |sum, part| sum.saturating_add(*part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let recipe = serde_json::json!({
            "heirloom": 1, "name": "test", "base": {"model": "base"},
            "adapter": {"lora": {"rank": 2, "alpha": 4}},
            "data": {"purpose": ["dpv:ServiceProvision"], "sequence_length": 128,
                     "train": [{"path": "train.parquet", "format": "chat"}]},
            "train": {"epochs": 1, "tokens_per_step": 256, "seed": 7,
                      "optimizer": {"adamw": {"lr": 0.001}}}
        });
        serde_json::from_value(recipe).unwrap()
    }

    fn llama(size: usize, layers: usize) -> Architecture {
        let folder = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": size, "hidden_size": size,
            "intermediate_size": size, "num_hidden_layers": layers,
            "num_attention_heads": size, "num_key_value_heads": size, "head_dim": size,
            "max_position_embeddings": 128,
        });
        fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Architecture::open(folder.path()).unwrap()
    }

    #[test]
    fn the_parts_are_those_of_the_table() {
        let memory = Memory::estimate(&recipe(), &llama(2, 2), 1000, 10);
        let expected = Memory {
            weights: 1000 * 4 + 10 * 4,
            gradients: 10 * 4,
            optimizer: 10 * 8,
            activations: 256 * 2 * 4 * (12 + 8 + 8 + 8) + 12 * 256 * 2,
        };
        assert_eq!(memory, expected);
        assert_eq!(memory.total(), 4040 + 40 + 80 + 73_728 + 6144);
    }

    #[test]
    fn numbers_beyond_all_memory_stay_the_largest_number() {
        let mut recipe = recipe();
        recipe.train.tokens_per_step = usize::MAX;
        recipe.train.micro_batch_tokens = Some(usize::MAX);
        let memory = Memory::estimate(&recipe, &llama(1 << 24, 4096), u64::MAX, u64::MAX);
        assert_eq!(memory.activations, u64::MAX);
        assert_eq!(memory.total(), u64::MAX);
    }
}
