//! `config.json` to an architecture description.
//!
//! Reads the Llama family as Transformers writes it (`LlamaConfig`, versions 4 and 5).
//! A setting that changes the computation and is not understood is an error, never ignored.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use super::BaseError;
use crate::recipe::Dtype;

/// Largest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Largest dimension that is believed; keeps products of two within 64 bits.
const MAX_DIMENSION: usize = 1 << 24;

/// Most blocks that are believed; the lists below grow with them.
const MAX_LAYERS: usize = 4096;

/// A Llama model in numbers. Names as in `LlamaConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// In which the weights are stored.
    pub dtype: Dtype,
}

/// A linear layer without bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Its module path, which is its checkpoint key without `.weight`.
    pub name: String,
    /// Width of its input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
}

/// The file as it is written.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<RopeParameters>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    initializer_range: Option<f64>,
    #[serde(alias = "torch_dtype")]
    dtype: Option<String>,
    quantization_config: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

impl Architecture {
    /// Reads `config.json` of a folder.
    pub fn open(folder: &Path) -> Result<Self, BaseError> {
        let path = folder.join("config.json");
        let bytes = fs::metadata(&path).map_err(BaseError::read(&path))?.len();
        if bytes > MAX_CONFIG_BYTES {
            return Err(BaseError::TooLarge { path, bytes, limit: MAX_CONFIG_BYTES });
        }
        let text = fs::read_to_string(&path).map_err(BaseError::read(&path))?;
        let raw: Raw = serde_json::from_str(&text)
            .map_err(|source| BaseError::Json { path: path.clone(), source })?;
        raw.understand(&path)
    }

    /// Every tensor of the checkpoint with its shape, in the order in which Transformers
    /// makes them.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![(EMBEDDING.to_owned(), vec![self.vocab_size, self.hidden_size])];
        for layer in 0..self.num_hidden_layers {
            let linears = self.layer_linears(layer);
            tensors.extend(linears.into_iter().map(|linear| {
                (format!("{}.weight", linear.name), vec![linear.out_features, linear.in_features])
            }));
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                let name = format!("model.layers.{layer}.{norm}.weight");
                tensors.push((name, vec![self.hidden_size]));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![self.hidden_size]));
        if !self.tie_word_embeddings {
            tensors.push((OUTPUT.to_owned(), vec![self.vocab_size, self.hidden_size]));
        }
        tensors
    }

    /// The linear layers that an adapter can wrap: all but the output projection.
    pub fn linear_layers(&self) -> Vec<Linear> {
        (0..self.num_hidden_layers).flat_map(|layer| self.layer_linears(layer)).collect()
    }

    /// Weights of the model; tied ones count once. Dimensions that no model has together
    /// give the largest number there is.
    pub fn parameter_count(&self) -> u64 {
        let count = |(_, shape): &(String, Vec<usize>)| {
            shape.iter().fold(1, |count: u64, size| count.saturating_mul(*size as u64))
        };
        self.tensors().iter().map(count).fold(0, u64::saturating_add)
    }

    fn layer_linears(&self, layer: usize) -> Vec<Linear> {
        let hidden = self.hidden_size;
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        [
            ("self_attn.q_proj", hidden, queries),
            ("self_attn.k_proj", hidden, keys),
            ("self_attn.v_proj", hidden, keys),
            ("self_attn.o_proj", queries, hidden),
            ("mlp.gate_proj", hidden, self.intermediate_size),
            ("mlp.up_proj", hidden, self.intermediate_size),
            ("mlp.down_proj", self.intermediate_size, hidden),
        ]
        .map(|(name, in_features, out_features)| Linear {
            name: format!("model.layers.{layer}.{name}"),
            in_features,
            out_features,
        })
        .into()
    }
}

/// Checkpoint key of the token embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Checkpoint key of an untied output projection.
pub const OUTPUT: &str = "lm_head.weight";

impl Raw {
    fn understand(self, path: &Path) -> Result<Architecture, BaseError> {
        let refuse = |key: &'static str, value: String| {
            Err(BaseError::Unsupported { path: path.to_owned(), key, value })
        };
        match self.model_type.as_deref() {
            Some("llama") => {}
            other => return refuse("model_type", other.unwrap_or("(absent)").to_owned()),
        }
        if let Some(act) = self.hidden_act.filter(|act| act != "silu") {
            return refuse("hidden_act", act);
        }
        if self.attention_bias == Some(true) {
            return refuse("attention_bias", "true".to_owned());
        }
        if self.mlp_bias == Some(true) {
            return refuse("mlp_bias", "true".to_owned());
        }
        if self.quantization_config.is_some_and(|value| !value.is_null()) {
            return refuse("quantization_config", "a pre-quantised checkpoint".to_owned());
        }
        let mut rope_theta = self.rope_theta;
        for rope in [&self.rope_scaling, &self.rope_parameters].into_iter().flatten() {
            if let Some(kind) = rope.rope_type.as_deref().filter(|kind| *kind != "default") {
                return refuse("rope_parameters.rope_type", kind.to_owned());
            }
            rope_theta = rope.rope_theta.or(rope_theta);
        }
        let dtype = match self.dtype.as_deref() {
            // float16 weights load as what the recipe asks; nothing is ever stored in it.
            None | Some("float32" | "float16") => Dtype::Float32,
            Some("bfloat16") => Dtype::Bfloat16,
            Some(other) => return refuse("dtype", other.to_owned()),
        };
        let dimensions = Dimensions { path };
        let heads = dimensions.positive("num_attention_heads", self.num_attention_heads)?;
        let hidden_size = dimensions.positive("hidden_size", self.hidden_size)?;
        let key_value = self.num_key_value_heads.or(Some(heads));
        let config = Architecture {
            vocab_size: dimensions.positive("vocab_size", self.vocab_size)?,
            hidden_size,
            intermediate_size: dimensions.positive("intermediate_size", self.intermediate_size)?,
            num_hidden_layers: dimensions.positive("num_hidden_layers", self.num_hidden_layers)?,
            num_attention_heads: heads,
            num_key_value_heads: dimensions.positive("num_key_value_heads", key_value)?,
            head_dim: dimensions
                .positive("head_dim", self.head_dim.or(Some(hidden_size / heads)))?,
            max_position_embeddings: dimensions
                .positive("max_position_embeddings", self.max_position_embeddings.or(Some(2048)))?,
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: rope_theta.unwrap_or(10_000.0),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            initializer_range: self.initializer_range.unwrap_or(0.02),
            dtype,
        };
        if heads % config.num_key_value_heads != 0 {
            return refuse("num_key_value_heads", config.num_key_value_heads.to_string());
        }
        if config.num_hidden_layers > MAX_LAYERS {
            return refuse("num_hidden_layers", config.num_hidden_layers.to_string());
        }
        if !config.head_dim.is_multiple_of(2) {
            return refuse("head_dim", config.head_dim.to_string());
        }
        Ok(config)
    }
}

struct Dimensions<'a> {
    path: &'a Path,
}

impl Dimensions<'_> {
    fn positive(&self, key: &'static str, value: Option<usize>) -> Result<usize, BaseError> {
        let path = || PathBuf::from(self.path);
        let value = value.ok_or_else(|| BaseError::MissingKey { path: path(), key })?;
        if (1..=MAX_DIMENSION).contains(&value) {
            return Ok(value);
        }
        Err(BaseError::Unsupported { path: path(), key, value: value.to_string() })
    }
}
