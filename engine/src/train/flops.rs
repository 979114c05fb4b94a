//! What a step has to compute, counted by hand.
//!
//! Owns the number of floating-point operations of the matrix products that a step cannot do
//! without: the forward pass, the gradient of every product's input, and those of the weights
//! that are trained. A multiplication and an addition are two. Nothing is counted twice that is
//! computed twice, as activation checkpointing does, and nothing of what is not a product, as in the "model FLOPs" of PaLM
//! (arXiv 2204.02311, appendix B); but of attention only the pairs that the mask allows count.

use heirloom::base::{Architecture, Attention, ExpertWeights, FeedForward, Layer};
use heirloom::dataset::stream::{MicroBatch, Step};
use heirloom::recipe::Adapter;

use crate::model::Decoder;

/// Floating-point operations of a step's matrix products.
pub fn of_step(model: &Decoder, adapter: &Adapter, step: &Step) -> f64 {
    let architecture = &model.architecture;
    let tokens: f64 = step.micro_batches.iter().map(|batch| batch.tokens.len() as f64).sum();
    let trained: f64 = step.micro_batches.iter().map(|batch| batch.trained_tokens() as f64).sum();
    // Forward, the gradient of the input, that of the weight where it is trained.
    let base = if matches!(adapter, Adapter::Full(_)) { 3.0 } else { 2.0 };
    let weights: f64 = architecture.layers.iter().map(of_layer).sum();
    let output = architecture.vocab_size as f64 * architecture.hidden_size as f64;
    let pairs: f64 = step.micro_batches.iter().map(|batch| attention(architecture, batch)).sum();
    // Attention has two products, and each has the gradients of both its sides.
    2.0 * (base * (weights * tokens + output * trained)
        + 3.0 * low_rank(model) * tokens
        + 3.0 * pairs)
}

/// Weights of a layer that each token is multiplied with.
fn of_layer(layer: &Layer) -> f64 {
    let linears = layer.linears().into_iter();
    let dense: f64 = linears.map(|linear| area(linear.in_features, linear.out_features)).sum();
    let FeedForward::Experts(experts) = &layer.feed_forward else { return dense };
    let router = &experts.router;
    let expert = match &experts.experts {
        ExpertWeights::Each { experts, .. } => experts.first().map_or(0.0, |linears| {
            linears.iter().map(|linear| area(linear.in_features, linear.out_features)).sum()
        }),
        ExpertWeights::Stacked { hidden, width, .. } => 3.0 * area(*hidden, *width),
    };
    dense + area(router.hidden, router.experts) + router.per_token as f64 * expert
}

fn area(width: usize, height: usize) -> f64 {
    width as f64 * height as f64
}

/// Weights of the low-rank pairs that each token is multiplied with.
fn low_rank(model: &Decoder) -> f64 {
    let pairs = model.linears().filter_map(|linear| linear.low_rank.as_ref());
    let layers: f64 = pairs.map(|pair| (pair.a.numel() + pair.b.numel()) as f64).sum();
    let routers = model.architecture.layers.iter().filter_map(|layer| match &layer.feed_forward {
        FeedForward::Experts(experts) => Some(&experts.router),
        FeedForward::Gated(_) => None,
    });
    let experts = model.expert_parameters().zip(routers).map(|(both, router)| {
        let pairs = both.iter().filter_map(|parameter| parameter.low_rank.as_ref());
        let all: f64 = pairs.map(|pair| (pair.a.numel() + pair.b.numel()) as f64).sum();
        all * router.per_token as f64 / router.experts.max(1) as f64
    });
    layers + experts.sum::<f64>()
}

/// Multiplications of queries with keys and of weights with values, in all layers.
fn attention(architecture: &Architecture, batch: &MicroBatch) -> f64 {
    let of_layer = |layer: &Layer| {
        let (heads, widths, scores) = match &layer.attention {
            Attention::Grouped(grouped) => (grouped.heads, 2 * grouped.head_dim, &grouped.scores),
            Attention::Latent(latent) => {
                let widths = latent.nope_dim + latent.rope_dim + latent.value_dim;
                (latent.heads, widths, &latent.scores)
            }
        };
        let window = scores.sliding_window;
        let pairs: f64 = batch.lengths.iter().map(|length| pairs(*length as usize, window)).sum();
        pairs * area(heads, widths)
    };
    architecture.layers.iter().map(of_layer).sum()
}

/// Keys that the queries of a document see, all together.
fn pairs(length: usize, window: Option<usize>) -> f64 {
    let window = window.unwrap_or(length).min(length) as f64;
    // Those of the first `window` queries, and a full window for every other.
    window * (window + 1.0) / 2.0 + (length as f64 - window) * window
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_cuts_pairs_off() {
        let by_hand = |length: usize, window: usize| -> usize {
            (1..=length).map(|query| query.min(window)).sum()
        };
        for (length, window) in [(0, 3), (1, 3), (3, 3), (7, 3), (7, 1), (7, 9)] {
            assert_eq!(pairs(length, Some(window)), by_hand(length, window) as f64);
        }
        assert_eq!(pairs(5, None), 15.0);
    }
}
