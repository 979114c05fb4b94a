//! Windows and optimiser steps, of documents or of their lengths alone.
//!
//! Owns pools: rows are gathered until they fill a number of windows, packed into windows,
//! and taken a step at a time. A pool is packed whole and from its own rows only, so the
//! place of its first row and the number of its windows that are used up say exactly where
//! the stream stands. Does not own where rows come from (`mixture`) nor packing (`pack`).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::super::error::{DatasetError, split_name};
use super::super::spec::Spec;
use super::mixture::{Mixing, Mixture, Opener, Place, Tally};
use super::{order, pack};
use crate::recipe::lock::Split;
use crate::recipe::{Packing, StoppingStrategy};

/// Tokens of a pool, for short and for long windows alike: as many windows as make these,
/// within the bounds below (small in tests, whose few rows shall make several pools) and never
/// fewer than a step takes.
const POOL_TOKENS: usize = 1 << 19;
const POOL_WINDOWS: (usize, usize) = if cfg!(test) { (2, 4) } else { (16, 128) };

/// Where a stream stands: everything before it has been used. Travels with every step, so
/// that resuming is exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Passes completed.
    pub epoch: u32,
    /// Pools of the pass before this one.
    pub pool: u64,
    /// Windows of this pool that are used up.
    pub windows: u64,
    /// Where the pool's rows begin.
    pub rows: Place,
}

/// Something with a length in tokens.
pub(in crate::dataset) trait Piece {
    /// Its tokens.
    fn tokens(&self) -> usize;
}

impl Piece for u32 {
    fn tokens(&self) -> usize {
        *self as usize
    }
}

/// How steps are made.
#[derive(Clone, Debug)]
pub(in crate::dataset) struct Shape {
    sequence_length: usize,
    packing: Packing,
    windows_per_step: usize,
    epochs: u32,
    /// Seed of the order of windows, where there is one.
    shuffle: Option<u64>,
    mixing: Mixing,
}

impl Shape {
    /// What a recipe says.
    pub(in crate::dataset) fn of(spec: &Spec) -> Self {
        let weights = spec.strands().iter().map(|strand| strand.weight).collect();
        Self {
            sequence_length: spec.sequence_length,
            packing: spec.packing,
            windows_per_step: spec.windows_per_step,
            epochs: spec.epochs,
            shuffle: spec.shuffle_seed,
            mixing: Mixing { weights, stopping: spec.stopping, seed: spec.seed },
        }
    }

    /// A single pass.
    pub(in crate::dataset) fn once(self) -> Self {
        Self { epochs: 1, ..self }
    }

    /// Seed of the order of rows, where there is one.
    pub(in crate::dataset) fn shuffle(&self) -> Option<u64> {
        self.shuffle
    }

    fn pool_windows(&self) -> usize {
        let windows = POOL_TOKENS / self.sequence_length.max(1);
        windows.clamp(POOL_WINDOWS.0, POOL_WINDOWS.1).max(self.windows_per_step)
    }
}

/// The windows of a step.
#[derive(Debug)]
pub(in crate::dataset) struct Windows<I> {
    /// What each holds.
    pub(in crate::dataset) windows: Vec<Vec<I>>,
    /// The pass that they belong to.
    pub(in crate::dataset) epoch: u32,
    /// Whether nothing of the pass follows.
    pub(in crate::dataset) ends_epoch: bool,
    /// Where the stream stands after them.
    pub(in crate::dataset) position: Position,
}

/// What a pass has taken in.
pub(in crate::dataset) struct Gathered {
    /// Rows drawn.
    pub(in crate::dataset) rows: u64,
    /// Windows that these have filled and that no step has taken yet.
    pub(in crate::dataset) waiting: u64,
}

/// The steps of a run from a position on.
pub(in crate::dataset) struct Steps<I> {
    shape: Shape,
    mixture: Option<Mixture<I>>,
    /// Where the pool that is packed began.
    pool: Position,
    /// The number of the pool after it.
    next_pool: u64,
    queue: VecDeque<Vec<I>>,
    /// Whether the mixture has come to the end of its pass.
    drained: bool,
    tally: Tally,
    /// Whether this pass has had a window.
    yielded: bool,
}

impl<I: Piece> Steps<I> {
    /// From `from` on.
    pub(in crate::dataset) fn new(
        shape: Shape,
        open: Opener<I>,
        from: &Position,
    ) -> Result<Self, DatasetError> {
        let mixture = Mixture::new(shape.mixing.clone(), open, from.epoch, &from.rows);
        let mixture = (from.epoch < shape.epochs).then_some(mixture);
        let mut steps = Self {
            shape,
            mixture,
            pool: from.clone(),
            next_pool: from.pool,
            queue: VecDeque::new(),
            drained: false,
            tally: Tally::default(),
            // Earlier, if this is not the beginning of a pass.
            yielded: from.pool > 0 || from.windows > 0,
        };
        if steps.mixture.is_some() && from.windows > 0 {
            steps.fill()?;
            let used = usize::try_from(from.windows).unwrap_or(usize::MAX).min(steps.queue.len());
            steps.queue.drain(..used);
            steps.pool.windows = used as u64;
        }
        Ok(steps)
    }

    /// What of this pass is not in the stream.
    pub(in crate::dataset) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What the pass has taken in so far.
    pub(in crate::dataset) fn gathered(&self) -> Gathered {
        let rows = self.mixture.as_ref().map_or(0, |mixture| mixture.place().draws);
        Gathered { rows, waiting: self.queue.len() as u64 }
    }

    /// The next step; `None` after the last pass.
    pub(in crate::dataset) fn next(&mut self) -> Result<Option<Windows<I>>, DatasetError> {
        while let Some(epoch) = self.mixture.as_ref().map(Mixture::epoch) {
            let mut windows = Vec::new();
            while windows.len() < self.shape.windows_per_step {
                if self.queue.is_empty() && !self.drained {
                    self.fill()?;
                }
                let Some(window) = self.queue.pop_front() else { break };
                self.pool.windows += 1;
                windows.push(window);
            }
            // Whether something follows is only known once it is there.
            if self.queue.is_empty() && !self.drained {
                self.fill()?;
            }
            let ends_epoch = self.queue.is_empty();
            if ends_epoch {
                self.end_epoch()?;
            }
            if !windows.is_empty() {
                let position = self.pool.clone();
                return Ok(Some(Windows { windows, epoch, ends_epoch, position }));
            }
        }
        Ok(None)
    }

    /// Gathers and packs the next pool.
    fn fill(&mut self) -> Result<(), DatasetError> {
        let Some(mixture) = &mut self.mixture else { return Ok(()) };
        let (epoch, pool, rows) = (mixture.epoch(), self.next_pool, mixture.place());
        self.pool = Position { epoch, pool, windows: 0, rows };
        self.next_pool += 1;
        let most = self.shape.pool_windows();
        let (mut pieces, mut tokens) = (Vec::new(), 0_usize);
        let full = |pieces: &Vec<I>, tokens: usize| match self.shape.packing {
            Packing::None => pieces.len() >= most,
            _ => tokens >= most.saturating_mul(self.shape.sequence_length),
        };
        while !full(&pieces, tokens) {
            let Some(row) = mixture.next(&mut self.tally)? else {
                self.drained = true;
                break;
            };
            tokens += row.iter().map(Piece::tokens).sum::<usize>();
            pieces.extend(row);
        }
        self.yielded |= !pieces.is_empty();
        self.queue = self.packed(pieces).into();
        Ok(())
    }

    fn packed(&self, pieces: Vec<I>) -> Vec<Vec<I>> {
        let lengths: Vec<usize> = pieces.iter().map(Piece::tokens).collect();
        let windows = pack::pack(self.shape.packing, self.shape.sequence_length, &lengths);
        let mut pieces: Vec<Option<I>> = pieces.into_iter().map(Some).collect();
        let mut take = |piece: usize| pieces.get_mut(piece).and_then(Option::take);
        let windows = windows.into_iter();
        let mut windows: Vec<Vec<I>> =
            windows.map(|window| window.into_iter().filter_map(&mut take).collect()).collect();
        // Packing takes documents out of their shuffled order, and puts the leavings last.
        if let Some(seed) = self.shape.shuffle.filter(|_| self.shape.packing != Packing::None) {
            order::shuffle_windows(seed, self.pool.epoch, self.pool.pool, &mut windows);
        }
        windows
    }

    fn end_epoch(&mut self) -> Result<(), DatasetError> {
        let Some(mixture) = self.mixture.take() else { return Ok(()) };
        if !self.yielded {
            return Err(self.nothing());
        }
        let next = mixture.epoch() + 1;
        self.pool = Position { epoch: next, ..Position::default() };
        self.next_pool = 0;
        (self.drained, self.yielded, self.tally) = (false, false, Tally::default());
        self.mixture = (next < self.shape.epochs).then(|| mixture.next_pass());
        Ok(())
    }

    /// A pass without a step is a run without data.
    fn nothing(&self) -> DatasetError {
        let Tally { counts, dropped } = self.tally.clone();
        if dropped > 0 {
            let sequence_length = self.shape.sequence_length;
            return DatasetError::AllOverlong { dropped, sequence_length };
        }
        DatasetError::NoRowLeft { split: split_name(&Split::Train), counts }
    }
}

/// Rows of a pass over strands of so many used rows each, as far as weights alone tell.
pub(in crate::dataset) fn expected_rows(
    used: &[u64],
    weights: &[f64],
    stopping: StoppingStrategy,
) -> f64 {
    let sum: f64 = weights.iter().sum();
    if used.len() < 2 || sum <= 0.0 {
        return used.iter().sum::<u64>() as f64;
    }
    let rows = used.iter().zip(weights).map(|(used, weight)| *used as f64 * sum / weight);
    match stopping {
        StoppingStrategy::FirstExhausted => rows.fold(f64::INFINITY, f64::min),
        StoppingStrategy::AllExhausted => rows.fold(0.0, f64::max),
    }
}
