//! The stream of optimiser steps.
//!
//! Owns the batches and the exact position in them. A thread of its own reads blocks of row
//! groups in their shuffled order, judges and tokenises their rows in parallel and hands
//! them over in order; the stream packs them into windows and steps. What comes out depends
//! on the recipe and the files alone, never on the number of threads. Does not own the
//! order nor the packing rule (`order`) nor the verdict on a row (`rows`).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::{Deserialize, Serialize};

use super::chat::{ChatEncoder, Document};
use super::consent::Counts;
use super::error::{DatasetError, split_name};
use super::order::{EpochOrder, Fit, NextFit, micro_batches};
use super::rows::{Fate, training_row};
use super::source::SourceFile;
pub use super::spec::{Spec, SplitFile};
use crate::recipe::Packing;
use crate::recipe::lock::Split;

/// Rows that are tokenised together.
const CHUNK_ROWS: usize = 128;

/// Chunks that wait, tokenised, for the stream: reading ahead is bounded.
const CHUNKS_AHEAD: usize = 4;

/// Where a stream stands: everything before it has been used. Travels with every step, so
/// that resuming is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Passes completed.
    pub epoch: u32,
    /// Shuffle block within the pass.
    pub block: u64,
    /// Rows of that block (in its shuffled order) that are used up.
    pub row: u64,
}

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
}

impl MicroBatch {
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

/// What the reading thread says.
enum Read {
    /// Rows of a block in their shuffled order, from `row` on.
    Rows { block: u64, row: u64, fates: Vec<Result<Fate, DatasetError>> },
    /// A pass is over.
    EndOfEpoch,
    /// A block cannot be read.
    Failed(DatasetError),
    /// All passes are over.
    End,
}

/// The steps of a run from a position on. After an error, nothing more comes.
#[derive(Debug)]
pub struct Stream {
    receiver: Option<Receiver<Read>>,
    fates: std::vec::IntoIter<Result<Fate, DatasetError>>,
    /// Where the next of `fates` stands.
    next: Position,
    packing: NextFit,
    windows: Vec<Vec<Document>>,
    micro_batch_tokens: usize,
    sequence_length: usize,
    /// Verdicts of this pass, for the error when none lets a row through.
    counts: Counts,
    dropped: u64,
    yielded: bool,
}

impl Stream {
    /// Starts reading at `from`: the beginning ([`Position::default`]), or the position of
    /// a step after which to go on.
    pub fn open(
        spec: Spec,
        encoder: Arc<ChatEncoder>,
        from: Position,
    ) -> Result<Self, DatasetError> {
        Self::open_on(spec, encoder, from, |work| work())
    }

    /// [`Stream::open`], with the work done inside `pool`.
    fn open_on(
        spec: Spec,
        encoder: Arc<ChatEncoder>,
        from: Position,
        pool: impl FnOnce(&mut (dyn FnMut() + Send)) + Send + 'static,
    ) -> Result<Self, DatasetError> {
        let files = spec.files_of(&Split::Train);
        let files: Result<Vec<_>, _> = files.iter().map(|path| SourceFile::open(path)).collect();
        let files = files?;
        let packing = NextFit::new(
            spec.sequence_length,
            spec.packing != Packing::None,
            spec.windows_per_step,
        );
        let (micro_batch_tokens, sequence_length) = (spec.micro_batch_tokens, spec.sequence_length);
        let (sender, receiver) = sync_channel(CHUNKS_AHEAD);
        let reader = Reader { spec, encoder, files, sender };
        thread::Builder::new()
            .name("rows".to_owned())
            // An error in sending only means that nobody listens any more.
            .spawn(move || pool(&mut || drop(reader.read(from))))?;
        Ok(Self {
            receiver: Some(receiver),
            fates: Vec::new().into_iter(),
            next: from,
            packing,
            windows: Vec::new(),
            micro_batch_tokens,
            sequence_length,
            counts: Counts::default(),
            dropped: 0,
            yielded: from.block > 0 || from.row > 0,
        })
    }

    /// Takes rows until a step is complete.
    fn advance(&mut self) -> Result<Option<Step>, DatasetError> {
        loop {
            while let Some(fate) = self.fates.next() {
                let position = self.next;
                self.next.row += 1;
                match fate? {
                    Fate::Excluded(reason) => self.counts.count(Err(reason)),
                    Fate::Dropped => self.dropped += 1,
                    Fate::Used(document) => {
                        if let Some(step) = self.place(document, position) {
                            return Ok(Some(step));
                        }
                    }
                }
            }
            let Some(receiver) = &self.receiver else { return Ok(None) };
            match receiver.recv().map_err(|_| DatasetError::Worker)? {
                Read::Rows { block, row, fates } => {
                    (self.next.block, self.next.row) = (block, row);
                    self.fates = fates.into_iter();
                }
                Read::EndOfEpoch => {
                    self.next = Position { epoch: self.next.epoch + 1, block: 0, row: 0 };
                    if self.packing.end_epoch() {
                        return Ok(Some(self.step(self.next, true)));
                    }
                    self.refuse_empty_epoch()?;
                }
                Read::Failed(error) => return Err(error),
                Read::End => self.receiver = None,
            }
        }
    }

    /// Puts a document into its window; the step that this completes, if any.
    fn place(&mut self, document: Document, position: Position) -> Option<Step> {
        let fit = self.packing.place(document.tokens.len());
        let step = (fit == Fit::NewStep).then(|| self.step(position, false));
        match (fit, self.windows.last_mut()) {
            (Fit::Here, Some(window)) => window.push(document),
            _ => self.windows.push(vec![document]),
        }
        step
    }

    /// Makes a step of the windows that are full.
    fn step(&mut self, position: Position, ends_epoch: bool) -> Step {
        let windows = std::mem::take(&mut self.windows);
        let tokens = |window: &Vec<Document>| window.iter().map(|d| d.tokens.len()).sum();
        let lengths: Vec<usize> = windows.iter().map(tokens).collect();
        let mut windows = windows.into_iter();
        let batches = micro_batches(&lengths, self.micro_batch_tokens).into_iter();
        let batches = batches.map(|range| micro_batch(windows.by_ref().take(range.len())));
        self.yielded = true;
        let epoch = position.epoch - u32::from(ends_epoch);
        Step { micro_batches: batches.collect(), epoch, ends_epoch, position }
    }

    /// A pass without a step is a run without data.
    fn refuse_empty_epoch(&mut self) -> Result<(), DatasetError> {
        if self.yielded {
            return Ok(());
        }
        if self.dropped > 0 {
            let (dropped, sequence_length) = (self.dropped, self.sequence_length);
            return Err(DatasetError::AllOverlong { dropped, sequence_length });
        }
        let counts = std::mem::take(&mut self.counts);
        Err(DatasetError::NoRowLeft { split: split_name(&Split::Train), counts })
    }
}

impl Iterator for Stream {
    type Item = Result<Step, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.advance().transpose();
        if matches!(step, Some(Err(_))) {
            self.receiver = None;
            self.fates = Vec::new().into_iter();
        }
        step
    }
}

fn micro_batch(windows: impl Iterator<Item = Vec<Document>>) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for document in windows.flatten() {
        batch.lengths.push(document.tokens.len() as u32);
        batch.tokens.extend(document.tokens);
        batch.weights.extend(document.weights);
    }
    batch
}

/// The reading thread's belongings.
struct Reader {
    spec: Spec,
    encoder: Arc<ChatEncoder>,
    files: Vec<SourceFile>,
    sender: SyncSender<Read>,
}

/// Nobody listens any more.
struct Hung;

impl Reader {
    fn read(&self, from: Position) -> Result<(), Hung> {
        let groups: Vec<(&SourceFile, usize)> = self
            .files
            .iter()
            .flat_map(|file| (0..file.group_rows().len()).map(move |group| (file, group)))
            .collect();
        for epoch in from.epoch..self.spec.epochs {
            let order = EpochOrder::new(groups.len(), self.spec.shuffle_seed, epoch);
            let (first_block, mut skip) =
                if epoch == from.epoch { (from.block, from.row) } else { (0, 0) };
            for block in first_block..order.blocks() {
                let members = order.groups(block).iter().filter_map(|group| groups.get(*group));
                self.read_block(&order, block, members.copied().collect(), skip)?;
                skip = 0;
            }
            self.say(Read::EndOfEpoch)?;
        }
        self.say(Read::End)
    }

    fn read_block(
        &self,
        order: &EpochOrder,
        block: u64,
        members: Vec<(&SourceFile, usize)>,
        skip: u64,
    ) -> Result<(), Hung> {
        let read = members.iter().map(|(file, group)| file.read_group(*group));
        let groups = match read.collect::<Result<Vec<_>, _>>() {
            Ok(groups) => groups,
            Err(error) => {
                self.say(Read::Failed(error.into()))?;
                return Err(Hung);
            }
        };
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        let rows = order.rows(block, &lengths);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(rows.len());
        let fate = |(member, row): (usize, usize)| {
            let (Some(group), Some((file, _))) = (groups.get(member), members.get(member)) else {
                return Err(DatasetError::Worker);
            };
            training_row(&self.spec, &self.encoder, file.defaults(), group, row)
        };
        let mut row = skip as u64;
        for chunk in rows.get(skip..).unwrap_or_default().chunks(CHUNK_ROWS) {
            let fates = chunk.to_vec().into_par_iter().map(fate).collect();
            self.say(Read::Rows { block, row, fates })?;
            row += chunk.len() as u64;
        }
        Ok(())
    }

    fn say(&self, read: Read) -> Result<(), Hung> {
        self.sender.send(read).map_err(|_| Hung)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
