//! What an [`Architecture`] is made of, listed: tensors, linear layers, norms.
//!
//! Owns the order, which is that of initial weights drawn from a seed and of trained
//! parameters; changing it changes runs. Does not own the description itself.

use super::architecture::{
    Architecture, Attention, EMBEDDING, ExpertParameter, ExpertWeights, FeedForward, GateUp, Gated,
    GroupedAttention, LatentAttention, LatentQuery, Layer, LayerNorms, Linear, Norm, OUTPUT, Qkv,
};

impl Architecture {
    /// Every tensor of the checkpoint with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let embedding = vec![self.vocab_size, self.hidden_size];
        let mut tensors = vec![(EMBEDDING.to_owned(), embedding.clone())];
        for layer in &self.layers {
            layer.linears().into_iter().for_each(|linear| linear.list(&mut tensors));
            layer.other_tensors(&mut tensors);
        }
        self.norm.list(&mut tensors);
        if !self.tie_word_embeddings {
            tensors.push((OUTPUT.to_owned(), embedding));
        }
        tensors
    }

    /// The linear layers that an adapter can wrap: all but the output projection, routers
    /// and routed experts, as PEFT's `all-linear` finds them in Transformers' modules.
    pub fn linear_layers(&self) -> Vec<Linear> {
        self.layers.iter().flat_map(Layer::linears).cloned().collect()
    }

    /// The linear layers whose weights can be kept in fewer bits: those of
    /// [`Architecture::linear_layers`], and routed experts that have weights of their own.
    pub fn quantizable_layers(&self) -> Vec<Linear> {
        let experts = |layer: &Layer| match &layer.feed_forward {
            FeedForward::Experts(experts) => match &experts.experts {
                ExpertWeights::Each { experts, .. } => experts.iter().flatten().cloned().collect(),
                ExpertWeights::Stacked { .. } => Vec::new(),
            },
            FeedForward::Gated(_) => Vec::new(),
        };
        let mut layers = self.linear_layers();
        layers.extend(self.layers.iter().flat_map(experts));
        layers
    }

    /// The weights of routed experts that an adapter can reach, as PEFT's `target_parameters`
    /// does: two for each block that has experts.
    pub fn expert_parameters(&self) -> Vec<ExpertParameter> {
        self.layers.iter().flat_map(Layer::expert_parameters).flatten().collect()
    }

    /// Weights of the model; tied ones count once. Dimensions that no model has together
    /// give the largest number there is.
    pub fn parameter_count(&self) -> u64 {
        let count = |(_, shape): &(String, Vec<usize>)| {
            shape.iter().fold(1, |count: u64, size| count.saturating_mul(*size as u64))
        };
        self.tensors().iter().map(count).fold(0, u64::saturating_add)
    }

    /// Whether a checkpoint may hold this tensor without the model having it: rotary
    /// frequencies of old checkpoints, a copy of a tied embedding, and the blocks after the
    /// last with which DeepSeek-V3 predicts further tokens (Transformers drops them too).
    pub fn leaves_out(&self, tensor: &str) -> bool {
        let beyond = || {
            let layer = tensor.strip_prefix("model.layers.")?.split('.').next()?;
            Some(layer.parse::<usize>().ok()? >= self.layers.len())
        };
        tensor.ends_with(".rotary_emb.inv_freq")
            || (self.tie_word_embeddings && tensor == OUTPUT)
            || (self.model_type == "deepseek_v3" && beyond() == Some(true))
    }
}

type Listed = Vec<(String, Vec<usize>)>;

impl Linear {
    fn list(&self, tensors: &mut Listed) {
        let weight = vec![self.out_features, self.in_features];
        tensors.push((format!("{}.weight", self.name), weight));
        if self.bias {
            tensors.push((format!("{}.bias", self.name), vec![self.out_features]));
        }
    }
}

impl Norm {
    fn list(&self, tensors: &mut Listed) {
        tensors.push((format!("{}.weight", self.name), vec![self.width]));
    }
}

/// Features that a block keeps for every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// Of all queries together.
    pub queries: usize,
    /// Of all keys together.
    pub keys: usize,
    /// Inside the feed-forward part; of the experts of one token together.
    pub intermediate: usize,
}

impl Layer {
    /// The widths of the block, for estimates.
    pub fn widths(&self) -> Widths {
        let (queries, keys) = match &self.attention {
            Attention::Grouped(attention) => {
                let GroupedAttention { heads, kv_heads, head_dim, .. } = attention;
                (heads * head_dim, kv_heads * head_dim)
            }
            Attention::Latent(attention) => {
                let width = attention.heads * (attention.nope_dim + attention.rope_dim);
                (width, width)
            }
        };
        let gated = |gated: &Gated| gated.down.in_features;
        let intermediate = match &self.feed_forward {
            FeedForward::Gated(unit) => gated(unit),
            FeedForward::Experts(experts) => {
                let routed = match &experts.experts {
                    ExpertWeights::Each { experts, .. } => {
                        experts.first().map_or(0, |[_, _, down]| down.in_features)
                    }
                    ExpertWeights::Stacked { width, .. } => *width,
                };
                routed * experts.router.per_token + experts.shared.as_ref().map_or(0, gated)
            }
        };
        Widths { queries, keys, intermediate }
    }

    /// The linear layers that an adapter can wrap.
    pub fn linears(&self) -> Vec<&Linear> {
        let mut linears = match &self.attention {
            Attention::Grouped(attention) => {
                let mut linears: Vec<&Linear> = match &attention.qkv {
                    Qkv::Separate(each) => each.iter().collect(),
                    Qkv::Fused(fused) => vec![fused],
                };
                linears.push(&attention.o);
                linears
            }
            Attention::Latent(attention) => {
                let LatentAttention { q, kv_a, kv_b, o, .. } = attention;
                match q {
                    LatentQuery::Full(q) => vec![q, kv_a, kv_b, o],
                    LatentQuery::LowRank(a, _, b) => vec![a, b, kv_a, kv_b, o],
                }
            }
        };
        match &self.feed_forward {
            FeedForward::Gated(gated) => linears.extend(gated.linears()),
            FeedForward::Experts(experts) => {
                linears.extend(experts.shared.iter().flat_map(Gated::linears));
            }
        }
        linears
    }

    /// The weights of its routed experts, if it has any.
    pub fn expert_parameters(&self) -> Option<[ExpertParameter; 2]> {
        match &self.feed_forward {
            FeedForward::Gated(_) => None,
            FeedForward::Experts(experts) => Some(experts.experts.parameters()),
        }
    }

    /// The norms, in the order in which they are applied.
    fn norms(&self) -> Vec<&Norm> {
        let LayerNorms {
            before_attention,
            after_attention,
            before_feed_forward,
            after_feed_forward,
        } = &self.norms;
        let mut norms: Vec<&Norm> =
            [before_attention, after_attention, before_feed_forward, after_feed_forward]
                .into_iter()
                .flatten()
                .collect();
        match &self.attention {
            Attention::Grouped(GroupedAttention { qk_norm: Some((q, k)), .. }) => {
                norms.extend([q, k]);
            }
            Attention::Grouped(_) => {}
            Attention::Latent(attention) => {
                if let LatentQuery::LowRank(_, norm, _) = &attention.q {
                    norms.push(norm);
                }
                norms.push(&attention.kv_a_norm);
            }
        }
        norms
    }

    /// Appends every tensor that is not of an adaptable linear layer.
    fn other_tensors(&self, tensors: &mut Listed) {
        self.norms().into_iter().for_each(|norm| norm.list(tensors));
        if let Attention::Grouped(attention) = &self.attention
            && let Some(sinks) = &attention.scores.sinks
        {
            tensors.push((sinks.clone(), vec![attention.heads]));
        }
        let FeedForward::Experts(experts) = &self.feed_forward else { return };
        let router = &experts.router;
        tensors.push((router.weight.clone(), vec![router.experts, router.hidden]));
        for bias in [&router.bias, &router.correction_bias].into_iter().flatten() {
            tensors.push((bias.clone(), vec![router.experts]));
        }
        match &experts.experts {
            ExpertWeights::Each { experts, .. } => {
                experts.iter().flatten().for_each(|linear| linear.list(tensors));
            }
            ExpertWeights::Stacked { name, count, hidden, width, .. } => {
                let (count, hidden, width) = (*count, *hidden, *width);
                tensors.push((format!("{name}.gate_up_proj"), vec![count, hidden, 2 * width]));
                tensors.push((format!("{name}.gate_up_proj_bias"), vec![count, 2 * width]));
                tensors.push((format!("{name}.down_proj"), vec![count, width, hidden]));
                tensors.push((format!("{name}.down_proj_bias"), vec![count, hidden]));
            }
        }
    }
}

impl Gated {
    fn linears(&self) -> Vec<&Linear> {
        match &self.gate_up {
            GateUp::Separate([gate, up]) => vec![gate, up, &self.down],
            GateUp::Fused(both) => vec![both, &self.down],
        }
    }
}
