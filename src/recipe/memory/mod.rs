//! How much memory a run on the CPU will take at most, before it takes any.
//!
//! Owns the prediction ([`Memory`]), what the machine has ([`limit`]) and which settings would
//! fit where a run does not (`advice`). Computes with shapes alone; that the engine takes what
//! is said here is its own affair (`engine/src/memory.rs`), and measured by `benches/memory`.
//!
//! The most is that of the largest of these moments:
//! | moment | beside runtime and weights |
//! |---|---|
//! | loading | the largest weight before it is packed; of full training everything twice |
//! | teaching | where a model teaches: one of its blocks' activations |
//! | loss | all activations, and the logits of a chunk |
//! | backward | activations up to a block, and what lies beside them while it is gone through |
//! | validation | one block's activations of as many tokens as a micro-batch has |
//! | reference | the same, where an objective compares with the base |
//! | answers | keys and values of the answers of a suite, and one block's activations of their prompts |
//!
//! With `T` tokens in the largest micro-batch, `b` bytes of the computing dtype, hidden width
//! `h`, widths `q`, `k` of queries and keys, `i` of the feed-forward part, rank `r`, `V` tokens
//! of the vocabulary and `P` trained weights, in a Llama:
//! | part | bytes |
//! |---|---|
//! | runtime | `RUNTIME`: libtorch, the engine, the stream; a little more in bfloat16, for each block and for each token of the vocabulary |
//! | weights | frozen ones `b` each, or packed with their scales; trained ones 4 each (f32) |
//! | gradients | `4·P`: those of the step so far. Those of the blocks gone through lie beside them |
//! | optimizer | `8·P`: AdamW's two moments; what others keep says `optimizer` |
//! | activations | `T·b·(4h + 2q + 2k + 3i)` for each block (the stream twice, normed twice; rotated queries and keys, values, what attention gives; gate, up, their product), `7·T·b·r` for the low-rank paths, copies of the adapter in bfloat16 |
//! | teacher | of a model that teaches: its weights; while it reads, one block's activations; then its last hidden states and, in the loss, what `teacher` says |
//! | workspace | a checkpoint that is written in the background, `12·P`; what lies beside these at the moment: gradients of activations, one unpacked weight, the logits of `LOSS_ROWS` rows |
//!
//! Activation checkpointing keeps less of a block: `2h + 2q + 2k + 2i` where it is `selective`,
//! and its input, `h`, where it is `block`, which makes one block's activations again beside
//! those inputs.

mod advice;
mod base;
mod block;
pub mod limit;
mod optimizer;
mod teacher;

use serde::Serialize;

use self::block::{Block, Pass};
use self::limit::Limit;
use super::lock::Size;
use super::{
    ActivationCheckpointing, Adapter, DEFAULT_MICRO_BATCH_TOKENS, Dtype, Format, Packing, Recipe,
};
use crate::base::Architecture;
pub use advice::{MemoryError, Setting};

/// What a run takes beside its tensors: libtorch, the engine, buffers of the stream and of
/// matrix kernels, on one thread. Measured by `benches/memory`.
const RUNTIME: f64 = 174e6;

/// What rendering chats takes, on all threads, where rows are more than text. Measured with one
/// template.
const RUNTIME_OF_CHATS: f64 = 6e6;

/// What the kernels for bfloat16 take beyond that. Measured likewise.
const RUNTIME_OF_BFLOAT16: f64 = 8e6;

/// What they take where micro-batches have several numbers of rows ([`rounded_rows`]): packed,
/// and with windows of one document, of which there are all sizes. Measured with one set of
/// rows each.
const RUNTIME_OF_ROWS: (f64, f64) = (35e6, 98e6);

/// What is noted of each block, small tensors and nodes of the graph. Measured likewise.
const RUNTIME_OF_BLOCK: f64 = 0.8e6;

/// What the tokenizer takes for each of its tokens. Measured likewise.
const RUNTIME_OF_TOKEN: f64 = 250.0;

/// Rows whose logits are there at a time (`engine/src/ops/cross_entropy.rs`).
const LOSS_ROWS: f64 = 512.0;

/// Rows of a suite that are answered together, at most: more would gain little on a CPU.
pub const SUITE_ROWS: usize = 64;

/// Their tokens, answers included, at most: so much cache is there.
pub const SUITE_TOKENS: usize = 8192;

/// Bytes of what is noted for each token: ids, positions, angles, targets, all of them twice.
const PER_TOKEN: f64 = 160.0;

/// Bytes of a number in f32.
const F32: f64 = 4.0;

/// Bytes of a file that are read at a time, twice (`engine/src/model/weights.rs`).
const PIECES: f64 = 8e6;

/// The moment at which a run takes most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Moment {
    /// The base is read.
    Loading,
    /// The model that teaches reads a micro-batch.
    Teaching,
    /// The loss of a micro-batch is found.
    Loss,
    /// A block's backward pass.
    Backward,
    /// The loss on rows that are not trained.
    Validation,
    /// The base is asked before a step.
    Reference,
    /// What the model answers to a suite, when it is trained.
    Answers,
}

/// How large the rows of a suite are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Rows.
    pub rows: u64,
    /// Tokens of all of them.
    pub tokens: u64,
    /// Longest answer.
    pub max_new_tokens: u64,
}

/// Predicted bytes at that moment, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The program and its libraries, the tokenizer, the stream.
    pub runtime: u64,
    /// Frozen and trained weights.
    pub weights: u64,
    /// Gradients of trained weights.
    pub gradients: u64,
    /// The optimiser's state.
    pub optimizer: u64,
    /// What is kept between forward and backward pass.
    pub activations: u64,
    /// What is needed beside all this for a moment.
    pub workspace: u64,
    /// When.
    #[serde(skip)]
    pub moment: Moment,
}

/// How many rows a micro-batch of so many tokens has in bfloat16 on a CPU, with those that are
/// there only so that few numbers of rows occur: at most an eighth more, or 15, and less than a
/// sixteenth on average.
pub fn rounded_rows(tokens: usize) -> usize {
    let step = (tokens / 16).next_power_of_two().max(16);
    tokens.next_multiple_of(step)
}

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) architecture: &'a Architecture,
    /// Weights that are trained.
    pub(super) trained: u64,
    /// What training takes.
    pub(super) size: &'a Size,
    /// Tokens of all rows that are not trained.
    pub(super) held_out: u64,
    /// The suites that are answered.
    pub(super) suites: &'a [Asked],
    /// The model that teaches, where there is one.
    pub(super) teacher: Option<&'a Architecture>,
}

impl Memory {
    /// Predicts a run.
    pub(super) fn predict(run: &Run<'_>) -> Self {
        let (adapter, storage) = (&run.recipe.adapter, run.recipe.base.storage());
        let mut frozen = base::frozen(run.architecture, &storage, |key| !adapter.trains(key));
        frozen.bytes += base::shared(run.architecture, adapter);
        let prediction = Prediction { run: *run, frozen };
        let most = larger(prediction.loading(), prediction.training());
        let beside = [prediction.reference(), prediction.teaching(), prediction.validation()];
        let most = beside.into_iter().flatten().fold(most, larger);
        run.suites.iter().map(|suite| prediction.answers(suite)).fold(most, larger)
    }

    /// Everything together.
    pub fn total(&self) -> u64 {
        let Self { runtime, weights, gradients, optimizer, activations, workspace, moment: _ } =
            *self;
        [runtime, weights, gradients, optimizer, activations, workspace]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// Settings with which a run that ran out of memory would take at most `limit` bytes, the
/// smallest change first. `trained` are its trained weights, `teacher` the model that teaches.
pub fn smaller(
    recipe: &Recipe,
    architecture: &Architecture,
    teacher: Option<&Architecture>,
    trained: u64,
    size: &Size,
    limit: u64,
) -> Vec<Setting> {
    // Rows that are not trained take no more than those that are.
    let run = Run { recipe, architecture, trained, size, held_out: 0, suites: &[], teacher };
    advice::fitting(&run, limit)
}

/// The first unless the second is larger.
fn larger(one: Memory, other: Memory) -> Memory {
    if other.total() > one.total() { other } else { one }
}

impl Run<'_> {
    /// Whether all micro-batches have as many rows, and as many of these predict: windows are
    /// full, and nearly every token is trained.
    fn is_even(&self) -> bool {
        let Size { tokens, trained_tokens, windows, .. } = *self.size;
        let room = windows as f64 * self.recipe.data.sequence_length as f64;
        tokens as f64 > 0.99 * room && trained_tokens as f64 > 0.9 * tokens as f64
    }

    /// Refuses the run that was predicted so where there is less.
    pub(super) fn fit(&self, predicted: &Memory, limit: Limit) -> Result<(), MemoryError> {
        match predicted.total() > limit.bytes {
            true => Err(advice::refusal(self, predicted, limit)),
            false => Ok(()),
        }
    }
}

/// A run, and what its weights take.
struct Prediction<'a> {
    run: Run<'a>,
    frozen: base::Base,
}

impl Prediction<'_> {
    fn window(&self) -> f64 {
        self.run.recipe.data.sequence_length.max(1) as f64
    }

    /// Tokens that a micro-batch may have. A window is never cut.
    fn limit(&self) -> f64 {
        let train = &self.run.recipe.train;
        let whole = (train.tokens_per_step as f64).max(self.window());
        let limit = train.micro_batch_tokens.unwrap_or(DEFAULT_MICRO_BATCH_TOKENS) as f64;
        limit.min(whole)
    }

    /// Tokens of the largest micro-batch: as many windows as may go together, as full as they
    /// are on average.
    fn rows(&self) -> f64 {
        let (window, limit) = (self.window(), self.limit());
        let full = self.run.size.tokens as f64 / (self.run.size.windows as f64 * window).max(1.0);
        let together = (limit / (window * full.clamp(0.01, 1.0))).floor().max(1.0);
        let most = limit.max(window).min(self.run.size.tokens.max(1) as f64);
        let rows = (together * window).min(most);
        match self.run.recipe.base.dtype {
            Dtype::Bfloat16 => rounded_rows(rows as usize) as f64,
            Dtype::Float32 => rows,
        }
    }

    fn pass(&self, rows: f64) -> Pass<'_> {
        Pass {
            rows,
            width: base::width(self.run.recipe.base.dtype),
            hidden: self.run.architecture.hidden_size as f64,
            recipe: self.run.recipe,
            storage: self.run.recipe.base.storage(),
        }
    }

    fn is_full(&self) -> bool {
        matches!(self.run.recipe.adapter, Adapter::Full(_))
    }

    fn runtime(&self) -> f64 {
        let Architecture { vocab_size, layers, .. } = self.run.architecture;
        let kernels = match self.run.recipe.base.dtype {
            Dtype::Bfloat16 if self.run.is_even() => RUNTIME_OF_BFLOAT16,
            Dtype::Bfloat16 if self.run.recipe.data.packing != Packing::None => {
                RUNTIME_OF_BFLOAT16 + RUNTIME_OF_ROWS.0
            }
            Dtype::Bfloat16 => RUNTIME_OF_BFLOAT16 + RUNTIME_OF_ROWS.1,
            Dtype::Float32 => 0.0,
        };
        let (blocks, words) = (layers.len() as f64, *vocab_size as f64);
        let chats = self.run.recipe.data.train.iter().any(|source| source.format != Format::Text);
        let chats = if chats { RUNTIME_OF_CHATS } else { 0.0 };
        RUNTIME + kernels + chats + blocks * RUNTIME_OF_BLOCK + words * RUNTIME_OF_TOKEN
    }

    /// Bytes of a number for each trained weight.
    fn trained(&self) -> f64 {
        self.run.trained as f64 * F32
    }

    fn memory(&self, moment: Moment, gradients: f64, activations: f64, workspace: f64) -> Memory {
        let Run { recipe, architecture, trained, .. } = &self.run;
        let state = optimizer::state(recipe, architecture, *trained as f64);
        let optimizer = if moment == Moment::Loading { 0.0 } else { state };
        // A checkpoint that is being written: weights and both moments once more.
        let copies = moment != Moment::Loading && self.run.recipe.writes_in_background();
        let workspace = workspace + if copies { self.trained() + state } else { 0.0 };
        Memory {
            runtime: self.runtime() as u64,
            weights: (self.frozen.bytes + self.trained() + self.teacher_weights()) as u64,
            gradients: gradients as u64,
            optimizer: optimizer as u64,
            activations: activations as u64,
            workspace: workspace as u64,
            moment,
        }
    }

    fn loading(&self) -> Memory {
        // Full training lays all weights out once more, end to end.
        let again = if self.is_full() { self.trained() } else { self.frozen.largest_unpacked };
        let again = again.max(self.teacher_unpacked());
        self.memory(Moment::Loading, 0.0, 0.0, again + PIECES)
    }

    /// The largest moment of a step.
    fn training(&self) -> Memory {
        let pass = self.pass(self.rows());
        let blocks = self.run.architecture.layers.iter().enumerate();
        let blocks: Vec<Block> =
            blocks.map(|(index, layer)| pass.block(layer, index == 0)).collect();
        let notes = pass.rows * PER_TOKEN;
        let h = pass.rows(pass.hidden);
        let train = &self.run.recipe.train;
        let again = train.activation_checkpointing == ActivationCheckpointing::Block;
        let kept = |block: &Block| if again { h } else { block.kept };
        let all: f64 = blocks.iter().map(kept).sum();
        // The input of the last norm is kept.
        let loss = self.memory(Moment::Loss, self.trained(), all + h + notes, self.loss(&pass));
        let mut most = loss;
        let (mut below, mut above) = (0.0, self.trained());
        for block in &blocks {
            let beside = |bytes: f64| (bytes - kept(block)).max(0.0);
            above -= block.gradients;
            let done =
                if self.is_full() { self.trained() + above.max(0.0) } else { 2.0 * self.trained() };
            let kept = below + kept(block) + notes;
            // A block that is made again goes forward beside the gradient of what it gave.
            let (forward, backward) = match again {
                true => (0.0, block.backward.max(block.forward + h)),
                false => (block.forward, block.backward),
            };
            let forward = self.memory(Moment::Loss, self.trained(), kept, beside(forward));
            let backward = self.memory(Moment::Backward, done, kept, beside(backward));
            most = larger(larger(most, forward), backward);
            below = kept - notes;
        }
        most
    }

    /// What the loss takes beside what is kept: the last hidden states, those that predict,
    /// their gradient, and the logits of a chunk.
    fn loss(&self, pass: &Pass<'_>) -> f64 {
        self.supervised(pass).max(self.divergence(pass))
    }

    fn supervised(&self, pass: &Pass<'_>) -> f64 {
        let (h, words) = (pass.rows(pass.hidden), self.run.architecture.vocab_size as f64);
        let chunk = LOSS_ROWS.min(pass.rows) * words;
        if !self.is_full() {
            return (3.0 * h + chunk * pass.width).max(4.0 * h);
        }
        // Through libtorch's graph: first the logits, their probabilities and the gradient of
        // these in f32, then the gradient of the projection, in the dtype of the rows and in
        // f32; from the second chunk on beside the sum of those before.
        let table = words * pass.hidden;
        let narrow = if pass.width < F32 { pass.width } else { 0.0 };
        let sum = if pass.rows > LOSS_ROWS { table * F32 } else { 0.0 };
        let probabilities = chunk * (3.0 * F32 + narrow);
        let gradient = chunk * pass.width + table * (F32 + narrow);
        (3.0 * h + sum + table * narrow + probabilities.max(gradient)).max(4.0 * h)
    }

    /// One block at a time, without a graph.
    fn validation(&self) -> Option<Memory> {
        if self.run.held_out == 0 {
            return None;
        }
        let rows = self.limit().max(self.window()).min(self.run.held_out as f64);
        Some(self.memory(Moment::Validation, 0.0, 0.0, self.without_graph(rows)))
    }

    /// What an objective asks of the base, which is the model with its adapter switched off: a
    /// pass of its own before that of the step, and no weights.
    fn reference(&self) -> Option<Memory> {
        let asked = self.run.recipe.objective.has_reference();
        let workspace = || self.without_graph(self.rows());
        asked.then(|| self.memory(Moment::Reference, self.trained(), 0.0, workspace()))
    }

    /// Going through all blocks, and the likelihoods of what they predict.
    fn without_graph(&self, rows: f64) -> f64 {
        let pass = self.pass(rows);
        let block = self.widest_block(&pass).max(self.taught(&pass));
        let words = LOSS_ROWS.min(pass.rows) * self.run.architecture.vocab_size as f64 * pass.width;
        let loss = pass.rows(3.0 * pass.hidden) + words * if self.is_full() { 3.0 } else { 1.0 };
        let loss = loss.max(self.divergence(&pass));
        block.max(loss) + pass.rows * PER_TOKEN
    }

    /// What one block takes without a graph.
    fn widest_block(&self, pass: &Pass<'_>) -> f64 {
        pass.rows(widest(self.run.architecture))
    }

    /// Rows as long as they are on average; keys or values of one layer are there twice, while
    /// they are laid into the cache.
    fn answers(&self, suite: &Asked) -> Memory {
        let prompt = suite.tokens as f64 / (suite.rows as f64).max(1.0);
        let whole = (prompt + suite.max_new_tokens as f64).max(1.0);
        let together = (SUITE_TOKENS as f64 / whole).floor().max(1.0);
        let together = together.min(SUITE_ROWS as f64).min(suite.rows as f64);
        let (prompts, cached) = (self.pass(together * prompt), self.pass(together * whole));
        let layers = self.run.architecture.layers.iter();
        let kept = layers.map(|layer| cached.rows(2.0 * layer.widths().keys as f64));
        let (all, largest) =
            kept.fold((0.0, 0.0_f64), |(all, most), kept| (all + kept, most.max(kept)));
        let beside = self.widest_block(&prompts) + largest / 2.0 + prompts.rows * PER_TOKEN;
        self.memory(Moment::Answers, 0.0, all, beside)
    }
}

/// Numbers that the widest block has for each token at a time, without a graph.
fn widest(architecture: &Architecture) -> f64 {
    let hidden = architecture.hidden_size as f64;
    let wide = architecture.layers.iter().map(|layer| {
        let widths = layer.widths();
        let fed = 4.0 * hidden + 3.0 * widths.intermediate as f64;
        let attended = 2.0 * hidden + 3.0 * (widths.queries + widths.keys) as f64;
        fed.max(attended)
    });
    wide.fold(0.0, f64::max)
}

/// Bytes of a tensor. In f64: a hostile shape gives a large number, and no overflow.
fn bytes_of(shape: &[usize], width: f64) -> f64 {
    shape.iter().fold(width, |bytes, size| bytes * *size as f64)
}

#[cfg(test)]
mod tests;
