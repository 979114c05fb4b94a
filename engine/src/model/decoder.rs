//! The Decoder architecture.

use std::collections::BTreeMap;

use heirloom::base::{Architecture, BaseError, BaseFolder, EMBEDDING, OUTPUT};
use heirloom::recipe::Dtype;
use tch::{Kind, Tensor};

use super::linear::Linear;
use super::weights;
use crate::error::Result;
use crate::ops::{self, Layout, layout};

/// A decoder of the Decoder family.
#[derive(Debug)]
pub struct Decoder {
    /// The architecture.
    pub architecture: Architecture,
    /// Dtype of the residual stream.
    pub kind: Kind,
    /// `[vocab_size, hidden_size]`.
    pub embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    /// `[vocab_size, hidden_size]`; the embedding itself when tied.
    pub output: Tensor,
}

#[derive(Debug)]
struct Block {
    input_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Decoder {
    /// Builds the model from `get`, which is asked for every checkpoint key once.
    pub fn build(
        architecture: &Architecture,
        kind: Kind,
        mut get: impl FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in architecture.tensors() {
            let tensor = get(&name, &shape)?;
            tensors.insert(name, tensor);
        }
        let mut take = |name: String| -> Result<Tensor> {
            tensors.remove(&name).ok_or_else(|| missing(&name))
        };
        let mut blocks = Vec::with_capacity(architecture.num_hidden_layers);
        for layer in 0..architecture.num_hidden_layers {
            let path = |part: &str| format!("model.layers.{layer}.{part}");
            let mut linear = |part: &str| -> Result<Linear> {
                let name = path(part);
                Ok(Linear { weight: take(format!("{name}.weight"))?, name, low_rank: None })
            };
            let (q, k) = (linear("self_attn.q_proj")?, linear("self_attn.k_proj")?);
            let (v, o) = (linear("self_attn.v_proj")?, linear("self_attn.o_proj")?);
            let (gate, up) = (linear("mlp.gate_proj")?, linear("mlp.up_proj")?);
            let down = linear("mlp.down_proj")?;
            let input_norm = take(path("input_layernorm.weight"))?;
            let post_norm = take(path("post_attention_layernorm.weight"))?;
            blocks.push(Block { input_norm, q, k, v, o, post_norm, gate, up, down });
        }
        let embedding = take(EMBEDDING.to_owned())?;
        let norm = take("model.norm.weight".to_owned())?;
        let output = if architecture.tie_word_embeddings {
            embedding.shallow_clone()
        } else {
            take(OUTPUT.to_owned())?
        };
        Ok(Self { architecture: architecture.clone(), kind, embedding, blocks, norm, output })
    }

    /// Loads the frozen weights of a base folder as `dtype`.
    pub fn open(base: &BaseFolder, dtype: Dtype) -> Result<Self> {
        let kind = weights::kind(dtype);
        let checkpoint = base
            .checkpoint()
            .ok_or_else(|| BaseError::NoWeights { folder: base.folder().to_owned() })?;
        Self::build(&base.architecture, kind, |name, _| {
            Ok(weights::load(checkpoint, name)?.f_to_kind(kind)?)
        })
    }

    /// The linear layers that an adapter can wrap, in the order of
    /// `Architecture::linear_layers`.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(|block| {
            let Block { q, k, v, o, gate, up, down, .. } = block;
            [q, k, v, o, gate, up, down]
        })
    }

    /// Like [`Decoder::linears`], to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(|block| {
            let Block { q, k, v, o, gate, up, down, .. } = block;
            [q, k, v, o, gate, up, down]
        })
    }

    /// Runs `use_base` with every adapter taken off, then puts them back: the base model and
    /// the adapted one are one model in memory.
    pub fn without_adapter<T>(&mut self, use_base: impl FnOnce(&Self) -> T) -> T {
        let taken: Vec<_> = self.linears_mut().map(|linear| linear.low_rank.take()).collect();
        let result = use_base(self);
        for (linear, low_rank) in self.linears_mut().zip(taken) {
            linear.low_rank = low_rank;
        }
        result
    }

    /// Final hidden states of token ids `[n]` (i64) that lie as `layout` says:
    /// `[n, hidden_size]`. `train` turns dropout on.
    pub fn hidden(&self, tokens: &Tensor, layout: &Layout, train: bool) -> Result<Tensor> {
        layout.check_length(0, self.architecture.max_position_embeddings)?;
        let angles =
            layout.rotary(self.architecture.rope_theta, self.architecture.head_dim, self.kind)?;
        let mut x = self.embed(tokens)?;
        for block in &self.blocks {
            x = block.forward(&self.architecture, x, &angles, train, |q, k, v| {
                ops::attention(&q, &k, &v, layout)
            })?;
        }
        self.final_norm(&x)
    }

    /// Logits of hidden states: `[m, vocab_size]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        if self.output.kind() == hidden.kind() {
            return Ok(hidden.f_linear(&self.output, None::<Tensor>)?);
        }
        Ok(hidden.f_linear(&self.output.f_to_kind(hidden.kind())?, None::<Tensor>)?)
    }

    fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        let rows = Tensor::f_embedding(&self.embedding, tokens, -1, false, false)?;
        Ok(rows.f_to_kind(self.kind)?)
    }

    fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        norm(x, &self.norm, self.architecture.rms_norm_eps)
    }
}

/// [`ops::rms_norm`] with a weight that full training may keep wider than the computation.
fn norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if weight.kind() == x.kind() {
        return ops::rms_norm(x, weight, eps);
    }
    ops::rms_norm(x, &weight.f_to_kind(x.kind())?, eps)
}

impl Block {
    /// One block over rows `[n, hidden_size]`; `attend` gets q `[n, heads, d]` and k, v
    /// `[n, kv_heads, d]` after rotation and gives `[n, heads * d]`.
    fn forward(
        &self,
        architecture: &Architecture,
        x: Tensor,
        (cos, sin): &(Tensor, Tensor),
        train: bool,
        attend: impl FnOnce(Tensor, Tensor, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let width = architecture.head_dim as i64;
        let heads = |rows: Tensor| rows.f_view([x.size()[0], -1, width]);
        let normed = norm(&x, &self.input_norm, architecture.rms_norm_eps)?;
        let q = ops::rotary(&heads(self.q.forward(&normed, train)?)?, cos, sin)?;
        let k = ops::rotary(&heads(self.k.forward(&normed, train)?)?, cos, sin)?;
        let v = heads(self.v.forward(&normed, train)?)?;
        let x = x.f_add(&self.o.forward(&attend(q, k, v)?, train)?)?;
        let normed = norm(&x, &self.post_norm, architecture.rms_norm_eps)?;
        let gate = self.gate.forward(&normed, train)?;
        let inner = ops::swiglu(&gate, &self.up.forward(&normed, train)?)?;
        Ok(x.f_add(&self.down.forward(&inner, train)?)?)
    }
}

/// Keys and values of a batch of sequences that grow token by token.
///
/// Row `b` has `lengths[b]` tokens; its keys lie at `0..lengths[b]` of its row.
#[derive(Debug)]
pub struct Cache {
    /// Per block, `[rows, kv_heads, capacity, d]`.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    lengths: Vec<i64>,
}

impl Decoder {
    /// Runs prompts of these lengths, laid end to end in `tokens`, and keeps their keys
    /// and values with room for `extra` more tokens each.
    ///
    /// Gives the hidden state of each prompt's last token, `[rows, hidden_size]`.
    pub fn prefill(
        &self,
        tokens: &Tensor,
        lengths: &[u32],
        extra: usize,
    ) -> Result<(Tensor, Cache)> {
        let layout = Layout::new(lengths, tokens.device())?;
        layout.check_length(extra, self.architecture.max_position_embeddings)?;
        let angles =
            layout.rotary(self.architecture.rope_theta, self.architecture.head_dim, self.kind)?;
        let starts: Vec<i64> = lengths
            .iter()
            .scan(0, |row, length| {
                let start = *row;
                *row += i64::from(*length);
                Some(start)
            })
            .collect();
        let mut cache = Cache {
            keys: Vec::new(),
            values: Vec::new(),
            lengths: lengths.iter().map(|length| i64::from(*length)).collect(),
        };
        let capacity = layout.longest as i64 + extra as i64;
        // For every cached row the packed row it comes from; beyond a prompt, its first.
        let gather: Vec<i64> = starts
            .iter()
            .zip(&cache.lengths)
            .flat_map(|(start, length)| {
                (0..capacity).map(move |row| start + if row < *length { row } else { 0 })
            })
            .collect();
        let gather = Tensor::f_from_slice(&gather)?.f_to(tokens.device())?;
        let rows = lengths.len() as i64;
        let cached = |x: &Tensor| -> Result<Tensor> {
            let (_, heads, width) = x.size3()?;
            let padded = x.f_index_select(0, &gather)?.f_view([rows, capacity, heads, width])?;
            Ok(padded.f_transpose(1, 2)?.f_contiguous()?)
        };
        let mut x = self.embed(tokens)?;
        for block in &self.blocks {
            x = block.forward(&self.architecture, x, &angles, false, |q, k, v| {
                cache.keys.push(cached(&k)?);
                cache.values.push(cached(&v)?);
                ops::attention(&q, &k, &v, &layout)
            })?;
        }
        let last: Vec<i64> =
            starts.iter().zip(&cache.lengths).map(|(start, length)| start + length - 1).collect();
        let last = Tensor::f_from_slice(&last)?.f_to(tokens.device())?;
        Ok((self.final_norm(&x.f_index_select(0, &last)?)?, cache))
    }

    /// Appends one token to every row (`tokens` is `[rows]`, i64) and gives its hidden
    /// state, `[rows, hidden_size]`.
    pub fn decode(&self, tokens: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let rows = cache.lengths.len() as i64;
        let positions = Tensor::f_from_slice(&cache.lengths)?.f_to(tokens.device())?;
        let angles = layout::rotary_angles(
            &positions,
            self.architecture.rope_theta,
            self.architecture.head_dim,
            self.kind,
        )?;
        let used = cache.lengths.iter().max().copied().unwrap_or(0) + 1;
        // Row b sees keys 0..=lengths[b]: `[rows, 1, 1, used]`.
        let keys = Tensor::f_arange(used, (Kind::Int64, tokens.device()))?;
        let mask = keys.f_unsqueeze(0)?.f_le_tensor(&positions.f_unsqueeze(1)?)?;
        let mask = mask.f_view([rows, 1, 1, used])?;
        let row_index = Tensor::f_arange(rows, (Kind::Int64, tokens.device()))?;
        let mut x = self.embed(tokens)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (keys, values) = (&mut cache.keys[layer], &mut cache.values[layer]);
            x = block.forward(&self.architecture, x, &angles, false, |q, k, v| {
                let place = [Some(&row_index), None, Some(&positions)];
                let _ = keys.f_index_put_(&place, &k, false)?;
                let _ = values.f_index_put_(&place, &v, false)?;
                let heads = q.size3()?.1;
                let expand = |x: &Tensor| -> Result<Tensor> {
                    let (rows, kv, _, width) = x.size4()?;
                    let x = x.f_narrow(2, 0, used)?.f_unsqueeze(2)?;
                    let x = x.f_expand([rows, kv, heads / kv, used, width], false)?;
                    Ok(x.f_reshape([rows, heads, used, width])?)
                };
                let attended = Tensor::f_scaled_dot_product_attention(
                    &q.f_unsqueeze(2)?,
                    &expand(keys)?,
                    &expand(values)?,
                    Some(&mask),
                    0.0,
                    false,
                    None,
                    false,
                )?;
                Ok(attended.f_reshape([rows, -1])?)
            })?;
        }
        for length in &mut cache.lengths {
            *length += 1;
        }
        self.final_norm(&x)
    }
}

/// The architecture asked for a key that it did not list: a defect of ours.
fn missing(name: &str) -> crate::error::EngineError {
    tch::TchError::Kind(format!("the architecture does not list `{name}`")).into()
}
