//! The decoder: embedding, blocks, output projection.

use std::collections::BTreeSet;

use heirloom::base::{
    Architecture, BaseError, BaseFolder, EMBEDDING, EmbeddingScale, FeedForward, OUTPUT,
};
use heirloom::recipe::{ActivationCheckpointing, Dtype, Module, Quantization, Storage};
use tch::{Device, Kind, Tensor};

use super::block::{Block, Mode, Pass, Shared};
use super::expert_update::{AdaptedExpert, ExpertParameter};
use super::linear::Linear;
use super::parts::{Norm, Tensors};
use super::replacement::Replaced;
use super::weight::Weight;
use super::weights;
use crate::error::{EngineError, Result};
use crate::ops::profile::scope;
use crate::ops::rotary::{Angles, Rotary};
use crate::ops::{self, Layout};
use crate::quant::Quantized;

/// A decoder-only transformer of any supported family.
#[derive(Debug)]
pub struct Decoder {
    /// The architecture.
    pub architecture: Architecture,
    /// Dtype of the residual stream.
    pub kind: Kind,
    /// `[vocab_size, hidden_size]`.
    pub embedding: Tensor,
    /// What embedded tokens are multiplied with, rounded where the family rounds it.
    embedding_scale: Option<f64>,
    pub(super) ropes: Vec<Rotary>,
    pub(super) blocks: Vec<Shared>,
    norm: Norm,
    /// `[vocab_size, hidden_size]`; the embedding itself when tied.
    pub output: Tensor,
    /// What an adapter puts in the place of `embedding` and `output`.
    pub replaced: Replaced,
    /// What is kept of the blocks while training.
    pub checkpointing: ActivationCheckpointing,
    /// What is kept of checkpointed blocks is kept in host memory.
    pub offload: bool,
    /// Noise on embedded tokens while training, if there is any (NEFTune, arXiv 2310.05914).
    pub neftune_noise_alpha: Option<f64>,
}

impl Decoder {
    /// Builds the model from `get`, which is asked for every checkpoint key once.
    pub fn build(
        architecture: &Architecture,
        kind: Kind,
        mut get: impl FnMut(&str, &[usize]) -> Result<Weight>,
    ) -> Result<Self> {
        let mut tensors = Tensors::default();
        for (name, shape) in architecture.tensors() {
            let weight = get(&name, &shape)?;
            tensors.put(name, weight);
        }
        let embedding = tensors.take(EMBEDDING)?;
        let ropes = architecture.ropes.iter();
        let ropes = ropes.map(|rope| Rotary::new(rope, embedding.device()));
        Ok(Self {
            ropes: ropes.collect::<Result<_>>()?,
            blocks: architecture
                .layers
                .iter()
                .map(|layer| Ok(Shared::new(Block::build(layer, architecture, &mut tensors)?)))
                .collect::<Result<_>>()?,
            norm: tensors.norm(&architecture.norm)?,
            output: match architecture.tie_word_embeddings {
                true => embedding.shallow_clone(),
                false => tensors.take(OUTPUT)?,
            },
            embedding,
            embedding_scale: embedding_scale(architecture.embedding_scale, kind)?,
            architecture: architecture.clone(),
            kind,
            replaced: Replaced::default(),
            checkpointing: ActivationCheckpointing::None,
            offload: false,
            neftune_noise_alpha: None,
        })
    }

    /// Loads the frozen weights of a base folder as `dtype`.
    pub fn open(base: &BaseFolder, dtype: Dtype) -> Result<Self> {
        Self::open_as(base, &Storage::plain(dtype), Device::Cpu)
    }

    /// Loads the frozen weights of a base folder onto a device. Those that are quantised are
    /// packed before the next is read, so that the base never is in memory as a whole in
    /// `storage.dtype`.
    pub fn open_as(base: &BaseFolder, storage: &Storage, device: Device) -> Result<Self> {
        let (chosen, kind) = (quantized_weights(base, storage), weights::kind(storage.dtype));
        let checkpoint = base
            .checkpoint()
            .ok_or_else(|| BaseError::NoWeights { folder: base.folder().to_owned() })?;
        Self::build(&base.architecture, kind, |name, shape| {
            let chosen = chosen.contains(name);
            let how = if chosen { storage.quantization } else { Quantization::None };
            if let Some(packed) = weights::load_quantized(checkpoint, name, kind, how)? {
                return Ok(Weight::Quantized(Box::new(packed.to(device)?)));
            }
            Ok(weights::frozen(checkpoint, name, shape, kind)?.f_to(device)?.into())
        })
    }

    /// As [`Decoder::open_as`], with weights drawn on the device instead of those of the folder,
    /// which needs none: a base as large as any, to measure with.
    pub fn drawn_as(base: &BaseFolder, storage: &Storage, device: Device) -> Result<Self> {
        let (chosen, kind) = (quantized_weights(base, storage), weights::kind(storage.dtype));
        Self::build(&base.architecture, kind, |name, shape| {
            let drawn = weights::draw(&base.architecture, name, shape, device)?;
            let how = if chosen.contains(name) { storage.quantization } else { Quantization::None };
            let wide = name.ends_with("e_score_correction_bias");
            let drawn = drawn.f_to_kind(if wide { Kind::Float } else { kind })?;
            match Quantized::pack(&drawn, how)? {
                Some(packed) => Ok(Weight::Quantized(Box::new(packed))),
                None => Ok(drawn.into()),
            }
        })
    }

    /// The linear layers that an adapter can wrap, in the order of
    /// `Architecture::linear_layers`.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(|block| {
            block.attention().linears().into_iter().chain(block.feed_forward().linears())
        })
    }

    /// Like [`Decoder::linears`], to be changed, which must not be while a backward pass is yet
    /// to come.
    pub fn linears_mut(&mut self) -> Result<impl Iterator<Item = &mut Linear>> {
        let blocks = self.blocks.iter_mut().map(|block| block.get_mut().ok_or_else(held));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        Ok(blocks.into_iter().flat_map(|block| {
            let (attention, feed_forward) = block.parts_mut();
            attention.linears_mut().into_iter().chain(feed_forward.adaptable_mut().0)
        }))
    }

    /// The weights of routed experts that an adapter can reach, by block.
    pub fn expert_parameters(&self) -> impl Iterator<Item = &[ExpertParameter; 2]> {
        self.blocks.iter().filter_map(|block| Some(block.feed_forward().experts()?.parameters()))
    }

    /// Like [`Decoder::expert_parameters`], to be changed as [`Decoder::linears_mut`].
    pub fn expert_parameters_mut(
        &mut self,
    ) -> Result<impl Iterator<Item = &mut [ExpertParameter; 2]>> {
        let blocks = self.blocks.iter_mut().map(|block| block.get_mut().ok_or_else(held));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        Ok(blocks.into_iter().filter_map(|block| block.parts_mut().1.adaptable_mut().1))
    }

    /// The weights of routed experts that have an update, as the checkpoint has them.
    pub fn adapted_experts(&self) -> Vec<AdaptedExpert<'_>> {
        let blocks = self.blocks.iter().zip(&self.architecture.layers);
        let adapted = blocks.filter_map(|(block, layer)| match &layer.feed_forward {
            FeedForward::Experts(described) => {
                Some(block.feed_forward().experts()?.adapted(&described.experts))
            }
            FeedForward::Gated(_) => None,
        });
        adapted.flatten().collect()
    }

    /// The base's own weights of a module with a row for each token.
    pub fn table(&self, module: Module) -> &Tensor {
        match module {
            Module::EmbedTokens => &self.embedding,
            Module::LmHead => &self.output,
        }
    }

    /// Puts other base weights in that place, in both where they are tied.
    pub fn set_table(&mut self, module: Module, table: Tensor) {
        if self.architecture.tie_word_embeddings {
            (self.embedding, self.output) = (table.shallow_clone(), table);
        } else if module == Module::EmbedTokens {
            self.embedding = table;
        } else {
            self.output = table;
        }
    }

    /// Runs `use_base` with every adapter taken off, then puts them back: the base model and
    /// the adapted one are one model in memory.
    pub fn without_adapter<T>(&mut self, use_base: impl FnOnce(&Self) -> T) -> Result<T> {
        let taken = self.linears_mut()?.map(|it| (it.low_rank.take(), it.trained_bias.take()));
        let taken: Vec<_> = taken.collect();
        let both = self.expert_parameters_mut()?.flatten();
        let of_experts: Vec<_> = both.map(|parameter| parameter.low_rank.take()).collect();
        let replaced = std::mem::take(&mut self.replaced);
        let result = use_base(self);
        self.replaced = replaced;
        for (linear, (low_rank, trained_bias)) in self.linears_mut()?.zip(taken) {
            (linear.low_rank, linear.trained_bias) = (low_rank, trained_bias);
        }
        for (parameter, low_rank) in self.expert_parameters_mut()?.flatten().zip(of_experts) {
            parameter.low_rank = low_rank;
        }
        Ok(result)
    }

    /// Moves the adapters of linear layers and of experts to a device, and computes once what depends on them
    /// alone: they change no more.
    pub fn settle(&mut self, device: Device) -> Result<()> {
        self.linears_mut()?.try_for_each(|linear| linear.settle(device))?;
        let mut both = self.expert_parameters_mut()?.flatten();
        both.try_for_each(|parameter| parameter.settle(device))
    }

    /// Whether numbers of rows are rounded up: for each that it meets in bfloat16, oneDNN makes
    /// kernels and keeps them.
    pub fn rounds_rows(&self) -> bool {
        self.kind == Kind::BFloat16 && self.embedding.device() == Device::Cpu
    }

    /// Final hidden states of token ids `[n]` (i64) that lie as `layout` says:
    /// `[n, hidden_size]`. `train` turns dropout on, and checkpointing as the model says.
    pub fn hidden(&self, tokens: &Tensor, layout: &Layout, train: bool) -> Result<Tensor> {
        layout.check_length(0, self.architecture.max_position_embeddings)?;
        let angles = self.angles_of(layout)?;
        let mut x = self.embed(tokens)?;
        if let Some(alpha) = self.neftune_noise_alpha.filter(|_| train) {
            x = self.noisy(&x, layout, alpha)?;
        }
        let how = if train { self.checkpointing } else { ActivationCheckpointing::None };
        let mode = Mode { train, again: how == ActivationCheckpointing::Selective };
        let mut seeds = self.seeds(train)?;
        // On any other device it is in host memory already.
        let host = self.offload && x.device().is_cuda();
        for block in &self.blocks {
            let pass = Pass { layout, angles: &angles, mode, seed: seeds.next() };
            x = match how {
                ActivationCheckpointing::Block => block.checkpointed(&x, &pass, host)?,
                _ => block.packed(&x, &pass)?,
            };
        }
        self.norm.forward(&x)
    }

    /// Embedded tokens with uniform noise of at most `alpha / √(length · hidden)`, by the length of
    /// their document, as Transformers' `neftune_post_forward_hook` (of a document by itself).
    pub fn noisy(&self, x: &Tensor, layout: &Layout, alpha: f64) -> Result<Tensor> {
        let hidden = self.architecture.hidden_size as f64;
        // Granite multiplies what the hook gives.
        let scale = match &self.architecture.embedding_scale {
            EmbeddingScale::Exact(scale) => *scale,
            EmbeddingScale::One | EmbeddingScale::Rounded(_) => 1.0,
        };
        let largest = layout.lengths.iter().flat_map(|&length| {
            let most = scale * alpha / (length as f64 * hidden).sqrt();
            std::iter::repeat_n(most as f32, length as usize)
        });
        let largest = Tensor::f_from_slice(&largest.collect::<Vec<f32>>())?.f_to(x.device())?;
        let noise = Tensor::f_zeros(x.size(), (Kind::Float, x.device()))?.f_uniform_(-1.0, 1.0)?;
        let noise = noise.f_mul(&largest.f_unsqueeze(1)?)?;
        Ok(x.f_add(&noise.f_to_kind(x.kind())?)?)
    }

    /// A seed for every block, so that one drops the same when it is computed again; none
    /// where nothing is dropped. The first of them is drawn.
    fn seeds(&self, train: bool) -> Result<impl Iterator<Item = i64> + use<>> {
        let first = if train && self.blocks.iter().any(|block| block.drops()) {
            let drawn = Tensor::f_randint(i64::MAX, [1], (Kind::Int64, Device::Cpu))?;
            Some(drawn.f_int64_value(&[0])?)
        } else {
            None
        };
        Ok(first.into_iter().flat_map(|first| (0..).map(move |block| first.wrapping_add(block))))
    }

    /// Logits of hidden states: `[m, vocab_size]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let _scope = scope("output projection");
        let mut logits = match &self.replaced.output {
            Some(replacement) => replacement.project(&self.output, hidden)?,
            None => hidden.f_linear(&self.output.f_to_kind(hidden.kind())?, None::<Tensor>)?,
        };
        if self.architecture.logits_scaling != 1.0 {
            logits = logits.f_div_scalar(self.architecture.logits_scaling)?;
        }
        match self.architecture.final_logit_softcapping {
            Some(cap) => ops::soft_cap(&logits, cap),
            None => Ok(logits),
        }
    }

    /// Embeds tokens: `[n, hidden_size]`.
    pub(super) fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        let _scope = scope("embedding");
        let rows = match &self.replaced.embedding {
            Some(replacement) => replacement.embed(&self.embedding, tokens)?,
            None => Tensor::f_embedding(&self.embedding, tokens, -1, false, false)?,
        };
        let rows = rows.f_to_kind(self.kind)?;
        match self.embedding_scale {
            Some(scale) => Ok(rows.f_mul_scalar(scale)?),
            None => Ok(rows),
        }
    }

    /// Applies the norm after the last block.
    pub(super) fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }

    /// The angles of every rotary embedding for the rows of a layout.
    pub(super) fn angles_of(&self, layout: &Layout) -> Result<Vec<Angles>> {
        let _scope = scope("rotary");
        let lengths = || layout.lengths.iter().copied();
        let of = |rope: &Rotary| rope.angles(&layout.positions, lengths(), lengths(), self.kind);
        self.ropes.iter().map(of).collect()
    }
}

/// Something is to be changed that a backward pass may yet read: a defect of ours.
fn held() -> EngineError {
    EngineError::Defect("a graph holds the model".to_owned())
}

/// The keys of the weights that are to be quantised.
fn quantized_weights(base: &BaseFolder, storage: &Storage) -> BTreeSet<String> {
    let layers = base.architecture.quantizable_layers();
    let chosen = layers.iter().filter(|layer| storage.quantizes(&layer.name));
    chosen.map(|layer| format!("{}.weight", layer.name)).collect()
}

fn embedding_scale(scale: EmbeddingScale, kind: Kind) -> Result<Option<f64>> {
    match scale {
        EmbeddingScale::One => Ok(None),
        EmbeddingScale::Exact(scale) => Ok(Some(scale)),
        EmbeddingScale::Rounded(scale) => {
            let scale = Tensor::f_from_slice(&[scale])?.f_to_kind(Kind::Float)?;
            Ok(Some(scale.f_to_kind(kind)?.f_double_value(&[0])?))
        }
    }
}
