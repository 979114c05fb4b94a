//! Rows of several strands in one order.
//!
//! Owns which strand the next row comes from, and when a pass over them ends. Without
//! weights there is one strand. Does not own the order within a strand (`strand`).
//!
//! Reference: `interleave_datasets` of the `datasets` library, whose words for the end of a
//! pass these are.

use std::vec::IntoIter;

use serde::{Deserialize, Serialize};

use super::super::consent::{Counts, Reason};
use super::super::error::DatasetError;
use super::super::rows::Fate;
use super::order;
use super::strand::Chunk;
use crate::recipe::StoppingStrategy;

/// Where a strand stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// How often it has come to its end in this pass.
    pub turn: u32,
    /// Block of row groups.
    pub block: u64,
    /// Rows of that block, in its shuffled order, that are used up.
    pub row: u64,
}

/// Where a mixture stands within a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Rows drawn.
    pub draws: u64,
    /// Every strand.
    pub strands: Vec<Cursor>,
}

/// Rows of a strand from a place on.
pub(in crate::dataset) type Feed<I> =
    Box<dyn Iterator<Item = Result<Chunk<I>, DatasetError>> + Send>;

/// Opens a strand in a pass.
pub(in crate::dataset) type Opener<I> =
    Box<dyn Fn(usize, u32, Cursor) -> Result<Feed<I>, DatasetError> + Send>;

/// How strands are mixed.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::dataset) struct Mixing {
    /// The weight of every strand; one strand needs none.
    pub(in crate::dataset) weights: Vec<f64>,
    /// When a pass ends.
    pub(in crate::dataset) stopping: StoppingStrategy,
    /// Of the draws.
    pub(in crate::dataset) seed: u64,
}

/// What was met on the way and is not in the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::dataset) struct Tally {
    /// Verdicts of the gate.
    pub(in crate::dataset) counts: Counts,
    /// Rows that are longer than a window and were left out.
    pub(in crate::dataset) dropped: u64,
}

/// The rows of one pass over several strands.
pub(in crate::dataset) struct Mixture<I> {
    mixing: Mixing,
    open: Opener<I>,
    epoch: u32,
    draws: u64,
    strands: Vec<Strand<I>>,
    over: bool,
}

struct Strand<I> {
    cursor: Cursor,
    feed: Option<Feed<I>>,
    fates: IntoIter<Result<Fate<I>, DatasetError>>,
    /// Whether this turn has had a row that is used; a strand without one has no end.
    used: bool,
    /// The gate's verdicts in this turn.
    counts: Counts,
}

impl<I> Mixture<I> {
    /// One pass, from `place` on; an empty place is its beginning.
    pub(in crate::dataset) fn new(
        mixing: Mixing,
        open: Opener<I>,
        epoch: u32,
        place: &Place,
    ) -> Self {
        let strand = |index: usize| {
            let cursor = place.strands.get(index).copied().unwrap_or_default();
            let begun = cursor.turn > 0 || cursor.block > 0 || cursor.row > 0;
            let (fates, counts) = (Vec::new().into_iter(), Counts::default());
            Strand { cursor, feed: None, fates, used: begun, counts }
        };
        let strands = (0..mixing.weights.len()).map(strand).collect();
        Self { mixing, open, epoch, draws: place.draws, strands, over: false }
    }

    /// Begins the next pass.
    pub(in crate::dataset) fn next_pass(self) -> Self {
        Self::new(self.mixing, self.open, self.epoch + 1, &Place::default())
    }

    /// The pass.
    pub(in crate::dataset) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Where it stands: every row before has been handed out or counted.
    pub(in crate::dataset) fn place(&self) -> Place {
        let strands = self.strands.iter().map(|strand| strand.cursor).collect();
        Place { draws: self.draws, strands }
    }

    /// The pieces of the next row that is used; `None` at the end of the pass.
    pub(in crate::dataset) fn next(
        &mut self,
        tally: &mut Tally,
    ) -> Result<Option<Vec<I>>, DatasetError> {
        while !self.over {
            let drawn = self.drawn();
            let Some(strand) = self.strands.get_mut(drawn) else { break };
            if strand.feed.is_none() {
                strand.feed = Some((self.open)(drawn, self.epoch, strand.cursor)?);
            }
            if let Some(pieces) = strand.next(tally)? {
                self.draws += 1;
                return Ok(Some(pieces));
            }
            self.end_of_strand(drawn)?;
        }
        Ok(None)
    }

    fn end_of_strand(&mut self, ended: usize) -> Result<(), DatasetError> {
        let alone = self.strands.len() == 1;
        if let Some(strand) = self.strands.get_mut(ended) {
            let counts = std::mem::take(&mut strand.counts);
            if !strand.used && !alone {
                return Err(if counts.seen > counts.used && counts.used == 0 {
                    DatasetError::EmptySource { source_index: ended, counts }
                } else {
                    DatasetError::SpentSource { source_index: ended }
                });
            }
            strand.cursor = Cursor { turn: strand.cursor.turn + 1, block: 0, row: 0 };
            (strand.feed, strand.used) = (None, false);
        }
        let every = self.strands.iter().all(|strand| strand.cursor.turn > 0);
        self.over = every || self.mixing.stopping == StoppingStrategy::FirstExhausted;
        Ok(())
    }

    /// The strand of the next row.
    fn drawn(&self) -> usize {
        if self.mixing.weights.len() < 2 {
            return 0;
        }
        let sum: f64 = self.mixing.weights.iter().sum();
        // 53 bits: what a double holds exactly.
        let bits = order::draw(self.mixing.seed, self.epoch, self.draws).next() >> 11;
        let mut at = bits as f64 / (1_u64 << 53) as f64 * sum;
        for (index, weight) in self.mixing.weights.iter().enumerate() {
            if at < *weight {
                return index;
            }
            at -= weight;
        }
        self.mixing.weights.len() - 1
    }
}

impl<I> Strand<I> {
    fn next(&mut self, tally: &mut Tally) -> Result<Option<Vec<I>>, DatasetError> {
        loop {
            while let Some(fate) = self.fates.next() {
                self.cursor.row += 1;
                match fate? {
                    Fate::Excluded(reason) => self.count(Err(reason), tally),
                    Fate::Dropped => {
                        self.count(Ok(()), tally);
                        tally.dropped += 1;
                    }
                    Fate::HeldOut => {}
                    Fate::Used { pieces, .. } => {
                        self.count(Ok(()), tally);
                        self.used = true;
                        return Ok(Some(pieces));
                    }
                }
            }
            let Some(chunk) = self.feed.as_mut().and_then(Iterator::next).transpose()? else {
                return Ok(None);
            };
            (self.cursor.block, self.cursor.row) = (chunk.block, chunk.row);
            self.fates = chunk.fates.into_iter();
        }
    }

    fn count(&mut self, verdict: Result<(), Reason>, tally: &mut Tally) {
        tally.counts.count(verdict);
        self.counts.count(verdict);
    }
}
