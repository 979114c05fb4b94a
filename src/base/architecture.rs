//! The description of an architecture: everything that is computed, in parts, by name.
//!
//! Owns the vocabulary of parts (attention, feed-forward, norms, rotary embeddings) with the
//! checkpoint key of every tensor, so that the tensors of a model are listed, loaded, adapted
//! and exported from one source. Does not own reading `config.json` (`families`) nor
//! computing (the engine's `model`). Widths are numbers of features, shapes are
//! `[out_features, in_features]` as PyTorch stores them.

use super::rope::Rope;
use crate::recipe::Dtype;

/// A decoder-only transformer. Names as in Transformers where it has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// As in `config.json`.
    pub model_type: &'static str,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest sequence that the model was made for, rotary scaling included.
    pub max_position_embeddings: usize,
    /// What embedded tokens are multiplied with.
    pub embedding_scale: EmbeddingScale,
    /// The rotary embeddings; layers name theirs by index.
    pub ropes: Vec<Rope>,
    /// The blocks.
    pub layers: Vec<Layer>,
    /// The norm after the last block.
    pub norm: Norm,
    /// What logits are divided by.
    pub logits_scaling: f64,
    /// `cap · tanh(logits / cap)`, where there is a cap.
    pub final_logit_softcapping: Option<f64>,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// In which the weights are stored, or were before they were quantised.
    pub dtype: Dtype,
}

/// The factor of embedded tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmbeddingScale {
    /// None.
    One,
    /// This number.
    Exact(f64),
    /// This number, rounded to the dtype of the computation (Gemma).
    Rounded(f64),
}

/// One block: attention, then feed-forward, each added to the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The attention.
    pub attention: Attention,
    /// What follows it.
    pub feed_forward: FeedForward,
    /// Norms before and after both.
    pub norms: LayerNorms,
    /// What either branch is multiplied with before it is added.
    pub residual_multiplier: f64,
    /// Dropout of either branch, while training.
    pub residual_dropout: f64,
}

/// Where a block has norms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerNorms {
    /// On the input of the attention.
    pub before_attention: Option<Norm>,
    /// On the output of the attention.
    pub after_attention: Option<Norm>,
    /// On the input of the feed-forward part.
    pub before_feed_forward: Option<Norm>,
    /// On the output of the feed-forward part.
    pub after_feed_forward: Option<Norm>,
}

/// A root-mean-square norm.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Module path: the checkpoint key without `.weight`.
    pub name: String,
    /// Features.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f64,
    /// How the weight is applied.
    pub kind: NormKind,
}

/// How a norm applies its weight; the same in f32, different in bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `w · round(x̂)` (Llama).
    WeightAfterRounding,
    /// `round(w · x̂)` (OLMo 2, gpt-oss).
    WeightBeforeRounding,
    /// `round((1 + w) · x̂)` (Gemma).
    OnePlusWeight,
}

/// A linear layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Its module path, which is its checkpoint key without `.weight`.
    pub name: String,
    /// Width of its input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
    /// Whether it has a `.bias`.
    pub bias: bool,
}

/// The kinds of attention.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    /// Query heads that share key and value heads (arXiv 2305.13245).
    Grouped(GroupedAttention),
    /// Keys and values from a compressed latent (DeepSeek-V2, arXiv 2405.04434).
    Latent(LatentAttention),
}

/// How queries meet keys, whatever the kind of attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// What query–key products are multiplied with.
    pub scale: f64,
    /// A query sees this many keys, its own included; all where there is no window.
    pub sliding_window: Option<usize>,
    /// `cap · tanh(score / cap)`, where there is a cap.
    pub softcap: Option<f64>,
    /// Checkpoint key of one learned logit a head that takes part in the softmax and adds
    /// nothing (gpt-oss).
    pub sinks: Option<String>,
    /// Dropout of attention weights, while training.
    pub dropout: f64,
}

/// Attention whose heads are all projected from the hidden state.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedAttention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides the query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Projections of queries, keys and values.
    pub qkv: Qkv,
    /// Output projection.
    pub o: Linear,
    /// Norms of queries and keys, per head where as wide as a head, else over all heads.
    pub qk_norm: Option<(Norm, Norm)>,
    /// Index of the rotary embedding; none in layers without positions.
    pub rope: Option<usize>,
    /// How scores are made.
    pub scores: Scores,
}

/// Projections of queries, keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qkv {
    /// One layer each.
    Separate([Linear; 3]),
    /// One layer that gives queries, keys and values side by side (Phi-3).
    Fused(Linear),
}

/// Multi-head latent attention.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentAttention {
    /// Heads.
    pub heads: usize,
    /// Width of the part of a query or key head that carries no position.
    pub nope_dim: usize,
    /// Width of the part that is rotated; its key is shared by all heads.
    pub rope_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Width of the latent of keys and values.
    pub latent: usize,
    /// Projection of queries.
    pub q: LatentQuery,
    /// `kv_a_proj_with_mqa`: hidden state to latent and rotated key.
    pub kv_a: Linear,
    /// Norm of the latent.
    pub kv_a_norm: Norm,
    /// Latent to keys and values of every head.
    pub kv_b: Linear,
    /// Output projection.
    pub o: Linear,
    /// Index of the rotary embedding.
    pub rope: usize,
    /// How scores are made.
    pub scores: Scores,
}

/// Projection of the queries of latent attention.
#[derive(Clone, Debug, PartialEq)]
pub enum LatentQuery {
    /// One layer.
    Full(Linear),
    /// Down, norm, up.
    LowRank(Linear, Norm, Linear),
}

/// What follows the attention.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedForward {
    /// A gated unit.
    Gated(Gated),
    /// A mixture of experts.
    Experts(Box<Experts>),
}

/// `down(activation(gate(x)) · up(x))` (arXiv 2002.05202).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gated {
    /// The first two layers.
    pub gate_up: GateUp,
    /// The last.
    pub down: Linear,
    /// On the gate.
    pub activation: Activation,
}

/// The first two layers of a gated unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GateUp {
    /// One each.
    Separate([Linear; 2]),
    /// One that gives the gate and then the other (Phi-3).
    Fused(Linear),
}

/// Activations, by their names in Transformers' `ACT2FN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu` or `swish`.
    Silu,
    /// `gelu`: with the error function.
    Gelu,
    /// `gelu_pytorch_tanh`: the tanh approximation.
    GeluTanh,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Chooses experts for every token.
    pub router: Router,
    /// The experts.
    pub experts: ExpertWeights,
    /// A gated unit that every token passes through as well.
    pub shared: Option<Gated>,
}

/// Chooses experts, and weighs what they say.
#[derive(Clone, Debug, PartialEq)]
pub struct Router {
    /// Checkpoint key of `[experts, hidden_size]`.
    pub weight: String,
    /// Checkpoint key of `[experts]`, added to the logits.
    pub bias: Option<String>,
    /// Checkpoint key of `[experts]`, added to the scores for the choice and left out of the
    /// weights (DeepSeek-V3).
    pub correction_bias: Option<String>,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Experts to choose from.
    pub experts: usize,
    /// How many each token goes to.
    pub per_token: usize,
    /// Logits to scores.
    pub scoring: Scoring,
    /// Choice limited to the best groups of experts.
    pub groups: Option<Groups>,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalize: bool,
    /// What the weights are multiplied with.
    pub scale: f64,
    /// Whether logits are computed in f32 whatever the dtype of the model.
    pub wide: bool,
    /// Whether weights are rounded to the dtype of the model before they are used.
    pub rounded: bool,
}

/// How a router turns logits into scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts, in f32.
    Softmax,
    /// Softmax over the logits of the chosen, in the dtype of the model (gpt-oss).
    SoftmaxOfChosen,
    /// Sigmoid (DeepSeek-V3).
    Sigmoid,
}

/// Choice among groups of experts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups, of equal size.
    pub count: usize,
    /// Groups from which experts are chosen.
    pub chosen: usize,
    /// A group is as good as the sum of its so many best experts.
    pub best_of: usize,
}

/// Where the weights of experts stand.
#[derive(Clone, Debug, PartialEq)]
pub enum ExpertWeights {
    /// Three linear layers without bias for each expert: gate, up, down.
    Each {
        /// Module path of all of them in Transformers.
        name: String,
        /// By expert.
        experts: Vec<[Linear; 3]>,
        /// On the gate.
        activation: Activation,
    },
    /// All experts in one tensor (gpt-oss): `gate_up_proj` `[experts, hidden, 2 · width]` with
    /// gate and up in turn, `down_proj` `[experts, width, hidden]`, both with biases.
    Stacked {
        /// Module path.
        name: String,
        /// Number of experts.
        count: usize,
        /// Width of the residual stream.
        hidden: usize,
        /// Width inside an expert.
        width: usize,
        /// In `gate · sigmoid(alpha · gate)`.
        alpha: f64,
        /// Gates are cut off above, the other half on both sides.
        limit: f64,
    },
}

/// A weight of all experts of a block, which Transformers keeps in one tensor whatever the
/// checkpoint does: `gate_up_proj` or `down_proj`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertParameter {
    /// Its path in Transformers.
    pub name: String,
    /// Number of experts.
    pub experts: usize,
    /// Width of an expert's input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
}

impl ExpertWeights {
    /// Both of them, `gate_up_proj` first.
    pub fn parameters(&self) -> [ExpertParameter; 2] {
        let (name, experts, hidden, width) = match self {
            Self::Each { name, experts, .. } => {
                let first = experts.first().map(|[gate, ..]| (gate.in_features, gate.out_features));
                let (hidden, width) = first.unwrap_or_default();
                (name, experts.len(), hidden, width)
            }
            Self::Stacked { name, count, hidden, width, .. } => (name, *count, *hidden, *width),
        };
        let parameter = |part: &str, in_features, out_features| ExpertParameter {
            name: format!("{name}.{part}"),
            experts,
            in_features,
            out_features,
        };
        [parameter("gate_up_proj", hidden, 2 * width), parameter("down_proj", width, hidden)]
    }
}

/// Checkpoint key of the token embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Checkpoint key of an untied output projection.
pub const OUTPUT: &str = "lm_head.weight";
