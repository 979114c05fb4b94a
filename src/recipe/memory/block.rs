//! What a block of the model holds for the tokens of a forward and backward pass.
//!
//! Follows the engine operation by operation (`engine/src/ops`): what each node of the graph
//! keeps until its backward pass, and what lies beside that while one of them computes. All
//! numbers are bytes, in f64: what is beyond all memory need not be told apart.

use super::bytes_of;
use crate::base::{
    Attention, ExpertParameter, ExpertWeights, FeedForward, GateUp, Gated, GroupedAttention,
    LatentAttention, LatentQuery, Layer, Linear, Qkv,
};
use crate::recipe::{ActivationCheckpointing, Adapter, Lora, Quantization, Recipe, Storage};

/// Bytes of an f32.
const F32: f64 = 4.0;

/// A recipe's view of a block.
pub(super) struct Pass<'a> {
    /// Tokens of the micro-batch.
    pub(super) rows: f64,
    /// Bytes of a number of the computing dtype.
    pub(super) width: f64,
    /// Width of the residual stream.
    pub(super) hidden: f64,
    pub(super) recipe: &'a Recipe,
    pub(super) storage: Storage,
}

/// Bytes of one block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Block {
    /// Kept from the forward to the backward pass.
    pub(super) kept: f64,
    /// The most at one time of its forward pass, what it keeps included.
    pub(super) forward: f64,
    /// The most at one time of its backward pass, what is still kept included.
    pub(super) backward: f64,
    /// Gradients of its trained weights, f32.
    pub(super) gradients: f64,
}

/// Features of a token that the parts of a block are wide.
struct Widths {
    queries: f64,
    keys: f64,
    values: f64,
    /// The output of attention.
    attended: f64,
    inner: f64,
}

impl Pass<'_> {
    /// What a block holds.
    pub(super) fn block(&self, layer: &Layer, first: bool) -> Block {
        let attention = self.attention(layer);
        let (feed, inner) = self.feed_forward(layer);
        let Widths { queries, keys, values, attended, .. } = widths(layer);
        let norms = &layer.norms;
        let h = self.rows(self.hidden);
        let count = |norm: &Option<_>| f64::from(u8::from(norm.is_some()));
        // Both sums of the residual stream, and what is normed of them unless it is made again;
        // norms of branches keep the branch. Nothing in the first block leads back from its
        // input, which is kept only to make something of it again.
        let frozen_start = f64::from(u8::from(first && self.is_adapter()));
        let normed = count(&norms.before_attention) + count(&norms.before_feed_forward);
        let stream = h * if self.again() { 2.0 } else { 2.0 + normed - frozen_start };
        let branches = h * (count(&norms.after_attention) + count(&norms.after_feed_forward));
        let dropped =
            if layer.residual_dropout > 0.0 { 2.0 * self.rows * self.hidden } else { 0.0 };
        let scales = 4.0 * self.rows * F32;
        let kept = stream + branches + dropped + scales + attention + feed;

        let (down, up) = self.largest(layer);
        // The branch of the attention stays until the block is done; the last product is added.
        let forward = kept + h + (2.0 * h).max(h + down).max(self.rows(inner));
        // The gradient of the stream goes along all the while; what is made again is there for
        // as long as the product that reads it.
        let ranks = self.rows(3.0 * self.rank());
        let (gates, again, normed) =
            if self.again() { (2.0, self.rows(inner), h) } else { (3.0, 0.0, 0.0) };
        let at_down = kept + again + h + self.rows(inner) + down + ranks;
        let at_gate = kept - self.rows((gates - 2.0) * inner) + h + self.rows(3.0 * inner);
        let at_up = kept - self.rows(gates * inner)
            + normed
            + 2.0 * h
            + self.rows(2.0 * inner)
            + up
            + ranks;
        let after_feed = kept - feed - (h - normed);
        let at_output = after_feed + h + self.rows(attended) + self.output(layer) + ranks;
        let at_attention = after_feed + h + self.rows(attended + queries + keys + values);
        let at_rotation = at_attention - self.rows(attended) + self.rows(queries);
        let backward = [at_down, at_gate, at_up, at_output, at_attention, at_rotation];
        Block {
            kept,
            forward,
            backward: backward.into_iter().fold(kept, f64::max),
            gradients: layer.linears().into_iter().map(|linear| self.gradient(linear)).sum::<f64>()
                + self.experts_gradient(layer),
        }
    }

    /// Bytes of so many features of every token.
    pub(super) fn rows(&self, features: f64) -> f64 {
        self.rows * self.width * features
    }

    pub(super) fn is_adapter(&self) -> bool {
        matches!(self.recipe.adapter, Adapter::Lora(_))
    }

    /// Whether norms and gated units are made again.
    fn again(&self) -> bool {
        self.recipe.train.activation_checkpointing == ActivationCheckpointing::Selective
    }

    fn rank(&self) -> f64 {
        match &self.recipe.adapter {
            Adapter::Lora(lora) => lora.largest_rank().into(),
            Adapter::Full(_) => 0.0,
        }
    }

    /// What linear layers that read the same rows keep besides these.
    fn linears<'l>(&self, linears: impl IntoIterator<Item = &'l Linear>) -> f64 {
        linears.into_iter().map(|linear| self.linear(linear)).sum()
    }

    fn linear(&self, linear: &Linear) -> f64 {
        let narrow = self.width < F32;
        match &self.recipe.adapter {
            // The weight in the dtype of the rows.
            adapter @ Adapter::Full(_) if narrow && adapter.trains(&key(linear)) => {
                area(linear) * self.width
            }
            Adapter::Full(_) => 0.0,
            Adapter::Lora(lora) if lora.chooses(&linear.name) => self.wrapped(lora, linear),
            Adapter::Lora(_) => 0.0,
        }
    }

    /// What a layer with an adapter keeps.
    fn wrapped(&self, lora: &Lora, linear: &Linear) -> f64 {
        let (inputs, outputs) = (linear.in_features as f64, linear.out_features as f64);
        // What was taken out of the base stands beside the update, end to end with it.
        let taken_out = lora.init_lora_weights.is_taken_out();
        let rank = f64::from(lora.rank_of(&linear.name)) * if taken_out { 2.0 } else { 1.0 };
        let copy = if self.width < F32 { self.width } else { 0.0 };
        // And rows of what VeRA shares are scaled anew for each layer.
        let anew = taken_out || lora.vera.is_some();
        let copies = copy + if anew { F32 } else { 0.0 };
        // Which inputs dropout keeps, a byte each.
        let mut kept = if lora.dropout > 0.0 { self.rows * inputs } else { 0.0 };
        if lora.use_dora {
            // What its magnitude scales; with dropout, inputs with and without it.
            let dropped = if lora.dropout > 0.0 { 2.0 * inputs + outputs } else { 0.0 };
            kept += self.rows(outputs + dropped);
        }
        self.rows(rank) + rank * (inputs + outputs) * copies + kept
    }

    /// The gradient of what is trained of a layer, f32.
    fn gradient(&self, linear: &Linear) -> f64 {
        F32 * match &self.recipe.adapter {
            adapter @ Adapter::Full(_) if adapter.trains(&key(linear)) => area(linear),
            Adapter::Full(_) => 0.0,
            Adapter::Lora(lora) if lora.chooses(&linear.name) => {
                let rank = f64::from(lora.rank_of(&linear.name));
                if lora.vera.is_some() {
                    return F32 * (rank + linear.out_features as f64);
                }
                rank * (linear.in_features + linear.out_features) as f64
            }
            Adapter::Lora(_) => 0.0,
        }
    }

    /// A weight as it is while a product is made: unpacked, or its gradient.
    fn product(&self, linear: &Linear) -> f64 {
        if !self.is_adapter() {
            return area(linear) * if self.width < F32 { self.width } else { 0.0 };
        }
        // After that, the rows without what dropout takes away, or the gradient of these.
        let dropped = match &self.recipe.adapter {
            Adapter::Lora(lora) if lora.dropout > 0.0 && lora.chooses(&linear.name) => {
                self.rows(linear.in_features as f64)
            }
            _ => 0.0,
        };
        // The gradients of the scaled rows of what VeRA shares.
        let dropped = dropped
            + match &self.recipe.adapter {
                Adapter::Lora(lora) if lora.vera.is_some() && lora.chooses(&linear.name) => {
                    let features = (linear.in_features + linear.out_features) as f64;
                    2.0 * F32 * f64::from(lora.rank) * features
                }
                _ => 0.0,
            };
        if !self.storage.quantizes(&linear.name) {
            return dropped;
        }
        // Scales that are packed themselves are unpacked by tensor calls: codes and two tables.
        let scales = match self.storage.quantization {
            Quantization::Nf4Double => area(linear) / 64.0 * 3.0 * F32,
            _ => 0.0,
        };
        (area(linear) * self.width + scales).max(dropped)
    }

    /// What the attention keeps besides its input.
    fn attention(&self, layer: &Layer) -> f64 {
        let Widths { queries, keys, values, attended, .. } = widths(layer);
        match &layer.attention {
            Attention::Grouped(grouped) => {
                let GroupedAttention { heads, qkv, o, qk_norm, .. } = grouped;
                let mut features = queries + keys + values + attended;
                let mut bytes = self.linears([o]) + self.rows * *heads as f64 * F32;
                match qkv {
                    Qkv::Separate(each) => bytes += self.linears(each),
                    Qkv::Fused(fused) => {
                        bytes += self.linears([fused]);
                        // Values are part of one result, which stays as a whole.
                        features += queries + keys;
                    }
                }
                if qk_norm.is_some() {
                    features += queries + keys;
                }
                bytes + self.rows(features)
            }
            Attention::Latent(latent) => self.latent(latent),
        }
    }

    fn latent(&self, latent: &LatentAttention) -> f64 {
        let LatentAttention { heads, nope_dim, rope_dim, value_dim, q, kv_a, kv_b, o, .. } = latent;
        let compressed = latent.latent as f64;
        let of_heads = |width: usize| (heads * width) as f64;
        // Queries and keys are put together anew; values are part of what `kv_b` gives.
        let mut features = 2.0 * of_heads(nope_dim + rope_dim)
            + of_heads(nope_dim + value_dim)
            + of_heads(*value_dim)
            + 2.0 * compressed
            + *rope_dim as f64;
        let mut bytes = self.linears([kv_a, kv_b, o]) + self.rows * *heads as f64 * F32;
        match q {
            LatentQuery::Full(q) => bytes += self.linears([q]),
            LatentQuery::LowRank(a, _, b) => {
                bytes += self.linears([a, b]);
                features += 2.0 * a.out_features as f64;
            }
        }
        bytes + self.rows(features)
    }

    /// What the feed-forward part keeps besides its input, and how wide it is inside.
    fn feed_forward(&self, layer: &Layer) -> (f64, f64) {
        let inner = widths(layer).inner;
        match &layer.feed_forward {
            FeedForward::Gated(gated) => (self.gated(gated), inner),
            FeedForward::Experts(experts) => {
                let per_token = experts.router.per_token as f64;
                // Scores and choices in f32 and i64.
                let routed =
                    self.rows * (2.0 * F32 * experts.router.experts as f64 + 16.0 * per_token);
                let answers = match &experts.experts {
                    ExpertWeights::Each { experts, .. } => {
                        let first = experts.first();
                        let width = first.map_or(0.0, |[gate, ..]| gate.out_features as f64);
                        let packed =
                            first.is_some_and(|[gate, ..]| self.storage.quantizes(&gate.name));
                        // Products with weights as they are keep nothing of their input.
                        let inputs = if packed { self.hidden + width } else { 0.0 };
                        2.0 * width + self.hidden + inputs
                    }
                    // Both halves, cut off, their sigmoid and products.
                    ExpertWeights::Stacked { width, .. } => 8.0 * *width as f64 + self.hidden,
                };
                let shared = experts.shared.as_ref().map_or(0.0, |gated| self.gated(gated));
                let updates = self.expert_updates(layer, per_token);
                (routed + self.rows(per_token * answers + self.hidden) + shared + updates, inner)
            }
        }
    }

    /// The weights of routed experts that have an adapter, with the ranks of all experts together.
    fn adapted_experts<'l>(
        &'l self,
        layer: &Layer,
    ) -> impl Iterator<Item = (ExpertParameter, f64)> + use<'l> {
        let chosen = move |parameter: ExpertParameter| match &self.recipe.adapter {
            Adapter::Lora(lora) if lora.chooses_parameter(&parameter.name) => {
                let rank = f64::from(lora.rank_of(&parameter.name));
                let ranks = rank * parameter.experts as f64;
                Some((parameter, ranks))
            }
            _ => None,
        };
        layer.expert_parameters().into_iter().flatten().filter_map(chosen)
    }

    /// What the updates of routed experts keep: their inputs, what is between A and B twice, B
    /// laid out anew and, in bfloat16, both in it.
    fn expert_updates(&self, layer: &Layer, per_token: f64) -> f64 {
        let one = |(parameter, ranks): (ExpertParameter, f64)| {
            let (inputs, outputs) = (parameter.in_features as f64, parameter.out_features as f64);
            let rank = ranks / parameter.experts as f64;
            let copy = if self.width < F32 { inputs + outputs } else { 0.0 };
            self.rows(per_token * (inputs + 2.0 * rank)) + ranks * self.width * (outputs + copy)
        };
        self.adapted_experts(layer).map(one).sum()
    }

    /// The gradients of these updates, f32.
    fn experts_gradient(&self, layer: &Layer) -> f64 {
        let area = |(parameter, ranks): (ExpertParameter, f64)| {
            ranks * (parameter.in_features + parameter.out_features) as f64
        };
        F32 * self.adapted_experts(layer).map(area).sum::<f64>()
    }

    fn gated(&self, gated: &Gated) -> f64 {
        let first = match &gated.gate_up {
            GateUp::Separate(each) => self.linears(each),
            GateUp::Fused(both) => self.linears([both]),
        };
        let kept = if self.again() { 2.0 } else { 3.0 };
        first + self.linears([&gated.down]) + self.rows(kept * gated.down.in_features as f64)
    }

    /// The weight of the last layer of the feed-forward part while its product is made, and the
    /// largest of the others.
    fn largest(&self, layer: &Layer) -> (f64, f64) {
        let of = |gated: &Gated| {
            let first = match &gated.gate_up {
                GateUp::Separate([gate, up]) => self.product(gate).max(self.product(up)),
                GateUp::Fused(both) => self.product(both),
            };
            (self.product(&gated.down), first)
        };
        match &layer.feed_forward {
            FeedForward::Gated(gated) => of(gated),
            FeedForward::Experts(experts) => match (&experts.experts, &experts.shared) {
                (ExpertWeights::Each { experts, .. }, _) if !experts.is_empty() => experts
                    .first()
                    .map_or((0.0, 0.0), |[gate, _, down]| (self.product(down), self.product(gate))),
                (_, Some(shared)) => of(shared),
                _ => (0.0, 0.0),
            },
        }
    }

    fn output(&self, layer: &Layer) -> f64 {
        match &layer.attention {
            Attention::Grouped(grouped) => self.product(&grouped.o),
            Attention::Latent(latent) => self.product(&latent.o),
        }
    }
}

fn area(linear: &Linear) -> f64 {
    bytes_of(&[linear.out_features, linear.in_features], 1.0)
}

fn widths(layer: &Layer) -> Widths {
    let plain = layer.widths();
    let inner = plain.intermediate as f64;
    match &layer.attention {
        Attention::Grouped(grouped) => Widths {
            queries: plain.queries as f64,
            keys: plain.keys as f64,
            values: plain.keys as f64,
            attended: (grouped.heads * grouped.head_dim) as f64,
            inner,
        },
        Attention::Latent(latent) => Widths {
            queries: plain.queries as f64,
            keys: plain.keys as f64,
            values: (latent.heads * latent.value_dim) as f64,
            attended: (latent.heads * latent.value_dim) as f64,
            inner,
        },
    }
}

/// The checkpoint key of a layer's weight.
fn key(linear: &Linear) -> String {
    format!("{}.weight", linear.name)
}
