//! The stream of optimiser steps.
//!
//! Owns the batches and the exact position in them. Threads of their own read the rows of
//! each source in their shuffled order, judge and tokenise them on all cores and hand them
//! over in order; the rows are mixed, packed into windows and taken a step at a time. What
//! comes out depends on the recipe and the files alone, never on the number of threads.
//!
//! `order` has the permutations, `strand` the walk through row groups, `tokens` what becomes
//! of their rows, `mixture` which source comes next, `steps` and `pack` windows and steps;
//! `lengths` lets the survey count steps with the same code; `mismatch` has what KTO asks of a
//! step beside its rows.

mod lengths;
mod mismatch;
mod mixture;
mod order;
mod pack;
mod steps;
mod strand;
mod tokens;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

pub use self::mismatch::mismatched;
pub use self::mixture::{Cursor, Place};
pub use self::steps::Position;
pub use self::tokens::Record;
pub(super) use self::{
    lengths::{Extent, Lengths, Recorded, Recorder},
    steps::{Shape, Steps, expected_rows},
    strand::{Groups, Rows, Walk},
    tokens::Tokens,
};

use self::mixture::{Feed, Opener};
use self::order::{EpochOrder, strand_seed};
use self::steps::Windows;
use self::strand::Chunk;
use self::tokens::Owned;
use super::batch::RowFile;
pub use super::chat::Verdict;
use super::chat::{ChatEncoder, Document};
use super::error::DatasetError;
pub use super::spec::{Spec, SplitFile};

/// Chunks of a source that wait, tokenised, for the stream: reading ahead is bounded.
const CHUNKS_AHEAD: usize = 8;

/// Tokens for one forward pass, several conversations one after the other.
///
/// There is no padding: document `d` is `tokens[sum(lengths[..d])..][..lengths[d]]`.
/// Attention and positions never cross a document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// Token ids of all documents, shape `[n]`.
    pub tokens: Vec<u32>,
    /// How much predicting `tokens[i]` from the token before it counts in the loss, shape
    /// `[n]`; 0: it carries none, as at the start of every document.
    pub weights: Vec<f32>,
    /// Length of each document; sums to `n`.
    pub lengths: Vec<u32>,
    /// What is thought of each document; none where they are to be learned. The better and the
    /// worse answer of a preference follow each other.
    pub verdicts: Vec<Verdict>,
    /// For documents that are judged one by one, each once more with another's answer
    /// ([`mismatched`]).
    pub mismatched: Vec<Self>,
}

impl MicroBatch {
    /// Adds what a row holds.
    pub fn push(&mut self, document: &Document) {
        for (part, verdict) in document.parts() {
            self.lengths.push(part.len() as u32);
            self.verdicts.extend(verdict);
        }
        self.tokens.extend(&document.tokens);
        self.weights.extend(&document.weights);
    }

    /// Adds a row with another's answer, in forward passes of at most so many tokens.
    pub fn push_mismatched(&mut self, document: &Document, most: usize) {
        let length = document.tokens.len();
        match self.mismatched.last_mut() {
            Some(last) if last.tokens.len() + length <= most => last.push(document),
            _ => {
                let mut batch = Self::default();
                batch.push(document);
                self.mismatched.push(batch);
            }
        }
    }

    /// Tokens that carry loss.
    pub fn trained_tokens(&self) -> u64 {
        self.weights.iter().filter(|weight| **weight > 0.0).count() as u64
    }

    /// What the loss is divided by: the sum of the weights.
    pub fn weight(&self) -> f64 {
        self.weights.iter().map(|weight| f64::from(*weight)).sum()
    }
}

/// Everything for one optimiser step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Forward passes whose gradients are added up.
    pub micro_batches: Vec<MicroBatch>,
    /// Pass over the data that this step belongs to, from 0.
    pub epoch: u32,
    /// Whether this is the last step of its pass.
    pub ends_epoch: bool,
    /// Where the stream stands after this step.
    pub position: Position,
}

/// Which part of every step a process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which process this is, from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
}

impl Default for Share {
    /// All of it.
    fn default() -> Self {
        Self { rank: 0, world_size: 1 }
    }
}

/// Says of whose row nothing may be used any more.
pub type Refused = Arc<dyn Fn(&Record) -> bool + Send + Sync>;

/// The steps of a run from a position on. After an error, nothing more comes.
pub struct Stream {
    steps: Steps<Owned>,
    refused: Option<Refused>,
    share: Share,
    sequence_length: usize,
    micro_batch_tokens: usize,
    over: bool,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { share, micro_batch_tokens, over, .. } = self;
        f.debug_struct("Stream")
            .field("share", share)
            .field("micro_batch_tokens", micro_batch_tokens)
            .field("over", over)
            .finish_non_exhaustive()
    }
}

/// Runs the work of a reading thread, so that a test can choose the threads below it.
type Pool = Arc<dyn Fn(&mut (dyn FnMut() + Send)) + Send + Sync>;

impl Stream {
    /// Starts reading at `from`: the beginning ([`Position::default`]), or the position of
    /// a step after which to go on.
    pub fn open(
        spec: Spec,
        encoder: Arc<ChatEncoder>,
        from: Position,
    ) -> Result<Self, DatasetError> {
        Self::open_on(spec, encoder, from, Share::default(), Arc::new(|work| work()))
    }

    /// As [`Stream::open`], for one of several processes. Together they take the very steps
    /// that one would take alone, window by window in turn.
    pub fn open_share(
        spec: Spec,
        encoder: Arc<ChatEncoder>,
        from: Position,
        share: Share,
    ) -> Result<Self, DatasetError> {
        Self::open_on(spec, encoder, from, share, Arc::new(|work| work()))
    }

    fn open_on(
        spec: Spec,
        encoder: Arc<ChatEncoder>,
        from: Position,
        share: Share,
        pool: Pool,
    ) -> Result<Self, DatasetError> {
        let Spec { sequence_length, micro_batch_tokens, .. } = spec;
        let shape = Shape::of(&spec);
        let strands = strands(&Arc::new(spec), &encoder)?;
        let open = opener(&shape, strands, move |walk| ahead(walk, &pool));
        let steps = Steps::new(shape, open, &from)?;
        Ok(Self { steps, refused: None, share, sequence_length, micro_batch_tokens, over: false })
    }

    /// Asks of every document, as its step is made, whether it may still be used. Leaving one
    /// out moves no other: what was packed stays packed, so that every position keeps its
    /// meaning.
    pub fn without(mut self, refused: Refused) -> Self {
        self.refused = Some(refused);
        self
    }

    /// Makes a step of the windows that are full.
    fn step(&self, step: Windows<Owned>) -> Step {
        let Windows { mut windows, epoch, ends_epoch, position } = step;
        if let Some(refused) = &self.refused {
            for window in &mut windows {
                window.retain(|owned| !refused(&owned.record));
            }
        }
        // Of the whole step, whatever process takes which part of it.
        let documents = windows.iter().flatten().map(|owned| &owned.document);
        let mut mismatched = mismatched(documents, self.sequence_length).into_iter();
        for owned in windows.iter_mut().flatten() {
            owned.mismatched = mismatched.next();
        }
        let Share { rank, world_size } = self.share;
        let mine = windows.into_iter().enumerate();
        let mine = mine.filter(|(index, _)| index % world_size.max(1) == rank);
        let mine = mine.map(|(_, window)| window).filter(|window| !window.is_empty());
        let windows: Vec<Vec<Owned>> = mine.collect();
        let tokens = |window: &Vec<Owned>| window.iter().map(|d| d.document.tokens.len()).sum();
        let lengths: Vec<usize> = windows.iter().map(tokens).collect();
        let mut windows = windows.into_iter();
        let batches = pack::micro_batches(&lengths, self.micro_batch_tokens).into_iter();
        let most = self.micro_batch_tokens;
        let batches = batches.map(|range| micro_batch(windows.by_ref().take(range.len()), most));
        Step { micro_batches: batches.collect(), epoch, ends_epoch, position }
    }
}

impl Iterator for Stream {
    type Item = Result<Step, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let step = self.steps.next().transpose();
        self.over = !matches!(step, Some(Ok(_)));
        step.map(|step| step.map(|step| self.step(step)))
    }
}

fn micro_batch(windows: impl Iterator<Item = Vec<Owned>>, most: usize) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for Owned { document, mismatched, .. } in windows.flatten() {
        batch.push(&document);
        if let Some(mismatched) = mismatched {
            batch.push_mismatched(&mismatched, most);
        }
    }
    batch
}

/// What makes something of a strand's rows, and where they are.
type StrandOf<R> = (Arc<R>, Arc<Groups>);

/// The strands of a recipe's training rows, with their files open.
pub(super) fn strands(
    spec: &Arc<Spec>,
    encoder: &Arc<ChatEncoder>,
) -> Result<Vec<StrandOf<Tokens>>, DatasetError> {
    let open = |strand: super::spec::Strand| {
        let files = strand.files.iter().filter_map(|file| spec.files.get(*file));
        let files: Result<Vec<_>, _> = files.map(|file| RowFile::open(file, &spec.gate)).collect();
        let files = files?;
        let groups = Arc::new(Groups::of(&files));
        let (spec, encoder) = (Arc::clone(spec), Arc::clone(encoder));
        Ok((Arc::new(Tokens { spec, encoder, files }), groups))
    };
    spec.strands().into_iter().map(open).collect()
}

/// Opens the strands in the order of a recipe, each walk being made a feed by `feed`.
pub(super) fn opener<R: Rows + 'static>(
    shape: &Shape,
    strands: Vec<StrandOf<R>>,
    feed: impl Fn(Walk<R>) -> Result<Feed<R::Item>, DatasetError> + Send + 'static,
) -> Opener<R::Item> {
    let shuffle = shape.shuffle();
    Box::new(move |strand, epoch, cursor: Cursor| {
        let (rows, groups) = strands.get(strand).ok_or(DatasetError::Worker)?;
        let seed = shuffle.map(|seed| strand_seed(seed, strand, cursor.turn));
        let order = EpochOrder::new(groups.len(), seed, epoch);
        let (rows, groups) = (Arc::clone(rows), Arc::clone(groups));
        feed(Walk::new(rows, groups, order, cursor.block, cursor.row))
    })
}

/// What a reading thread hands over.
struct Ahead<I> {
    receiver: Receiver<Result<Chunk<I>, DatasetError>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl<I> Iterator for Ahead<I> {
    type Item = Result<Chunk<I>, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(chunk) = self.receiver.recv() {
            return Some(chunk);
        }
        // The thread is gone: at its end, or because it broke.
        let broke = self.thread.take().is_some_and(|thread| thread.join().is_err());
        broke.then_some(Err(DatasetError::Worker))
    }
}

/// Walks on a thread of its own, a bounded number of chunks ahead.
fn ahead<R: Rows + 'static>(walk: Walk<R>, pool: &Pool) -> Result<Feed<R::Item>, DatasetError> {
    let (sender, receiver) = sync_channel(CHUNKS_AHEAD);
    let pool = Arc::clone(pool);
    let mut walk = Some(walk);
    let work = move || {
        pool(&mut || {
            for chunk in walk.take().into_iter().flatten() {
                // An error in sending only means that nobody listens any more.
                if sender.send(chunk).is_err() {
                    return;
                }
            }
        });
    };
    let thread = thread::Builder::new().name("rows".to_owned()).spawn(work)?;
    Ok(Box::new(Ahead { receiver, thread: Some(thread) }))
}

#[cfg(test)]
mod gate_tests;
#[cfg(test)]
mod judged_tests;
#[cfg(test)]
mod tests;
