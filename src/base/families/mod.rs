//! `config.json` to a description of what it computes, family by family.
//!
//! Owns the table of supported families, and [`Dense`]: what nearly all of them share, from
//! which a family says how it differs. Does not own the parts (`architecture`).
//! `docs/contributing/adding-a-family.md` shows how to add one.
//!
//! Reference: the `configuration_*.py` and `modeling_*.py` of Transformers 5.23, and configs
//! as they were published (older keys are read too).

mod deepseek;
mod gemma;
mod gpt_oss;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen;
mod smollm3;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::BaseError;
use super::architecture::{
    Activation, Architecture, Attention, EmbeddingScale, FeedForward, GateUp, Gated,
    GroupedAttention, Layer, LayerNorms, Linear, Norm, NormKind, Qkv, Scores,
};
use super::checkpoint::read_bounded;
use super::keys::Keys;
use super::rope::{self, RopeContext};
use crate::recipe::Dtype;

/// Reads one family.
type Family = fn(&Keys) -> Result<Architecture, BaseError>;

/// The supported families by their `model_type`, sorted.
const FAMILIES: [(&str, Family); 16] = [
    ("deepseek_v2", deepseek::v2),
    ("deepseek_v3", deepseek::v3),
    ("gemma", gemma::gemma),
    ("gemma2", gemma::gemma2),
    ("gemma3_text", gemma::gemma3),
    ("gpt_oss", gpt_oss::gpt_oss),
    ("granite", granite::granite),
    ("llama", llama::llama),
    ("mistral", mistral::mistral),
    ("mixtral", mixtral::mixtral),
    ("olmo2", olmo2::olmo2),
    ("phi3", phi3::phi3),
    ("qwen2", qwen::qwen2),
    ("qwen3", qwen::qwen3),
    ("qwen3_moe", qwen::qwen3_moe),
    ("smollm3", smollm3::smollm3),
];

/// Largest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Most blocks that are believed; the lists below grow with them.
const MAX_LAYERS: usize = 4096;

/// Most experts of all blocks together that are believed; DeepSeek-V3 has 14,848.
const MAX_EXPERTS: usize = 1 << 18;

/// The `model_type`s that are supported, sorted.
pub fn supported() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(model_type, _)| *model_type)
}

/// Reads `config.json` of a folder as `T`; gives its path too.
pub(super) fn read_config<T: DeserializeOwned>(folder: &Path) -> Result<(PathBuf, T), BaseError> {
    let path = folder.join("config.json");
    let text = read_bounded(&path, MAX_CONFIG_BYTES)?;
    match serde_json::from_slice(&text) {
        Ok(config) => Ok((path, config)),
        Err(source) => Err(BaseError::Json { path, source }),
    }
}

impl Architecture {
    /// Reads `config.json` of a folder.
    pub fn open(folder: &Path) -> Result<Self, BaseError> {
        let (path, map): (_, Map<String, Value>) = read_config(folder)?;
        let keys = Keys::new(&path, &map);
        let model_type = keys.text("model_type")?.unwrap_or("(absent)");
        let Some((_, family)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
            let model_type = model_type.to_owned();
            return Err(BaseError::UnsupportedFamily { path: path.clone(), model_type });
        };
        let architecture = family(&keys)?;
        keys.finish()?;
        Ok(architecture)
    }
}

/// A decoder as Llama computes it, in the numbers of `config.json`: what families start from.
struct Dense<'a> {
    keys: &'a Keys<'a>,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    positions: usize,
    eps: f64,
    norm: NormKind,
    activation: Activation,
    attention_dropout: f64,
}

/// Where families differ in what an absent key means.
struct Defaults {
    model_type: &'static str,
    theta: f64,
    tied: bool,
}

impl<'a> Dense<'a> {
    fn read(keys: &'a Keys<'a>) -> Result<Self, BaseError> {
        let heads = keys.require("num_attention_heads", Keys::size)?;
        let hidden = keys.require("hidden_size", Keys::size)?;
        let layers = keys.require("num_hidden_layers", Keys::size)?;
        if layers > MAX_LAYERS {
            return Err(keys.refuse("num_hidden_layers", layers));
        }
        let kv_heads = keys.size("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(keys.refuse("num_key_value_heads", kv_heads));
        }
        keys.only("is_causal", &Value::Bool(true))?;
        Ok(Self {
            keys,
            hidden,
            intermediate: keys.require("intermediate_size", Keys::size)?,
            layers,
            heads,
            kv_heads,
            head_dim: keys.size("head_dim")?.unwrap_or((hidden / heads).max(1)),
            positions: keys.require("max_position_embeddings", Keys::size)?,
            eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            norm: NormKind::WeightAfterRounding,
            activation: activation(keys, "hidden_act")?.unwrap_or(Activation::Silu),
            attention_dropout: keys.dropout("attention_dropout")?,
        })
    }

    /// The rotary embedding that all layers share.
    fn rope(&self, theta: f64) -> RopeContext {
        RopeContext {
            theta,
            head_dim: self.head_dim,
            positions: self.positions,
            original: None,
            partial: 1.0,
            phi3: false,
        }
    }

    /// The whole model, from its blocks; rotary embeddings are read here.
    fn build(
        &self,
        defaults: Defaults,
        layer: impl Fn(&Self, usize) -> Result<Layer, BaseError>,
    ) -> Result<Architecture, BaseError> {
        let rope = rope::read(self.keys, self.rope(defaults.theta))?;
        self.build_with(defaults, vec![rope], layer)
    }

    /// Like [`Dense::build`], with rotary embeddings that the family has read.
    fn build_with(
        &self,
        defaults: Defaults,
        ropes: Vec<rope::ReadRope>,
        layer: impl Fn(&Self, usize) -> Result<Layer, BaseError>,
    ) -> Result<Architecture, BaseError> {
        let keys = self.keys;
        let old = keys.text("torch_dtype")?;
        let dtype = match keys.text("dtype")?.or(old) {
            // float16 weights load as what the recipe asks; nothing is ever stored in it.
            None | Some("float32" | "float16") => Dtype::Float32,
            Some("bfloat16") => Dtype::Bfloat16,
            Some(other) => return Err(keys.refuse("dtype", other)),
        };
        Ok(Architecture {
            model_type: defaults.model_type,
            vocab_size: keys.require("vocab_size", Keys::size)?,
            hidden_size: self.hidden,
            max_position_embeddings: ropes
                .iter()
                .map(|rope| rope.positions)
                .max()
                .unwrap_or(self.positions),
            embedding_scale: EmbeddingScale::One,
            ropes: ropes.into_iter().map(|rope| rope.rope).collect(),
            layers: (0..self.layers).map(|index| layer(self, index)).collect::<Result<_, _>>()?,
            norm: self.norm("model.norm", self.hidden),
            logits_scaling: 1.0,
            final_logit_softcapping: None,
            tie_word_embeddings: keys.maybe_flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
            initializer_range: keys.positive("initializer_range")?.unwrap_or(0.02),
            dtype,
        })
    }

    /// A block of Llama: norms before attention and feed-forward, no biases.
    fn layer(&self, index: usize) -> Layer {
        Layer {
            attention: Attention::Grouped(self.attention(index)),
            feed_forward: FeedForward::Gated(self.gated(index, "mlp", self.intermediate)),
            norms: LayerNorms {
                before_attention: Some(self.layer_norm(index, "input_layernorm")),
                before_feed_forward: Some(self.layer_norm(index, "post_attention_layernorm")),
                ..LayerNorms::default()
            },
            residual_multiplier: 1.0,
            residual_dropout: 0.0,
        }
    }

    /// A block of Llama with another attention.
    fn layer_with(&self, index: usize, attention: GroupedAttention) -> Layer {
        Layer { attention: Attention::Grouped(attention), ..self.layer(index) }
    }

    /// Attention with separate projections, the model's first rotary embedding, no window.
    fn attention(&self, index: usize) -> GroupedAttention {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let linear = |part: &str, in_features, out_features| {
            linear(index, &format!("self_attn.{part}"), in_features, out_features)
        };
        GroupedAttention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            qkv: Qkv::Separate([
                linear("q_proj", self.hidden, queries),
                linear("k_proj", self.hidden, keys),
                linear("v_proj", self.hidden, keys),
            ]),
            o: linear("o_proj", queries, self.hidden),
            qk_norm: None,
            rope: Some(0),
            scores: Scores {
                scale: (self.head_dim as f64).powf(-0.5),
                sliding_window: None,
                softcap: None,
                sinks: None,
                dropout: self.attention_dropout,
            },
        }
    }

    /// A gated unit `intermediate` wide, at `path` within the block.
    fn gated(&self, index: usize, path: &str, intermediate: usize) -> Gated {
        let linear = |part: &str, in_features, out_features| {
            linear(index, &format!("{path}.{part}"), in_features, out_features)
        };
        Gated {
            gate_up: GateUp::Separate([
                linear("gate_proj", self.hidden, intermediate),
                linear("up_proj", self.hidden, intermediate),
            ]),
            down: linear("down_proj", intermediate, self.hidden),
            activation: self.activation,
        }
    }

    fn norm(&self, name: &str, width: usize) -> Norm {
        Norm { name: name.to_owned(), width, eps: self.eps, kind: self.norm }
    }

    fn layer_norm(&self, index: usize, name: &str) -> Norm {
        self.norm(&format!("model.layers.{index}.{name}"), self.hidden)
    }

    /// Norms of queries and keys, `widths` features wide.
    fn qk_norm(&self, index: usize, widths: [usize; 2]) -> Option<(Norm, Norm)> {
        let norm =
            |part, width| self.norm(&format!("model.layers.{index}.self_attn.{part}"), width);
        Some((norm("q_norm", widths[0]), norm("k_norm", widths[1])))
    }

    /// The window of each layer: `layer_types` where it stands, else by `slides`.
    fn windows(
        &self,
        window: Option<usize>,
        slides: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>, BaseError> {
        let types = self.keys.list("layer_types", Value::as_str)?;
        if let Some(types) = &types
            && types.len() != self.layers
        {
            return Err(self.keys.refuse("layer_types", format!("{} layers", types.len())));
        }
        (0..self.layers)
            .map(|index| match types.as_ref().map(|types| types[index]) {
                Some("sliding_attention") => Ok(window),
                Some("full_attention") => Ok(None),
                Some(other) => Err(self.keys.refuse("layer_types", other)),
                None => Ok(window.filter(|_| slides(index))),
            })
            .collect()
    }
}

impl Layer {
    /// Gives biases to all layers of a gated unit.
    fn set_mlp_bias(&mut self, bias: bool) {
        let FeedForward::Gated(Gated { gate_up, down, .. }) = &mut self.feed_forward else {
            return;
        };
        match gate_up {
            GateUp::Separate(linears) => linears.iter_mut().for_each(|linear| linear.bias = bias),
            GateUp::Fused(linear) => linear.bias = bias,
        }
        down.bias = bias;
    }
}

impl GroupedAttention {
    /// Gives biases to the projections of queries, keys and values, and to that of outputs.
    fn with_bias(mut self, qkv: bool, o: bool) -> Self {
        if let Qkv::Separate(linears) = &mut self.qkv {
            linears.iter_mut().for_each(|linear| linear.bias = qkv);
        }
        self.o.bias = o;
        self
    }
}

/// An activation by its name in `ACT2FN`.
fn activation(keys: &Keys, key: &'static str) -> Result<Option<Activation>, BaseError> {
    match keys.text(key)? {
        None => Ok(None),
        Some("silu" | "swish") => Ok(Some(Activation::Silu)),
        Some("gelu") => Ok(Some(Activation::Gelu)),
        Some("gelu_pytorch_tanh") => Ok(Some(Activation::GeluTanh)),
        Some(other) => Err(keys.refuse(key, other)),
    }
}

fn linear(index: usize, part: &str, in_features: usize, out_features: usize) -> Linear {
    let name = format!("model.layers.{index}.{part}");
    Linear { name, in_features, out_features, bias: false }
}
