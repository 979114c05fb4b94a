//! One strand of rows: the row groups of its files, gone through once.
//!
//! Owns the walk: blocks of row groups that are open together, rounds of slices of them, the
//! rows of a round in their shuffled order; and going straight to any place of it. Memory is
//! that of one round, whatever the files hold. Does not own the permutations (`order`) nor
//! what becomes of a row: tokens for the stream (`tokens`), lengths for the survey (`lengths`).

use std::sync::Arc;

use super::super::batch::RowFile;
use super::super::error::DatasetError;
use super::super::rows::Fate;
use super::order::{BLOCK_GROUPS, EpochOrder};
use crate::allocator;

/// Decompressed bytes that a round of a block should hold.
const ROUND_BYTES: u64 = 32 << 20;

/// Fewest and most rows that are taken of a row group at a time; few in tests, whose small
/// files shall have several rounds.
const SLICE_ROWS: (u64, u64) = if cfg!(test) { (2, 5) } else { (64, 8192) };

/// Rows whose fates are made together.
const CHUNK_ROWS: usize = 128;

/// The row groups of a strand's files, one after the other.
#[derive(Debug)]
pub(in crate::dataset) struct Groups {
    groups: Vec<Group>,
}

/// One row group.
#[derive(Clone, Copy, Debug)]
pub(in crate::dataset) struct Group {
    /// Which of the strand's files it is in.
    pub(in crate::dataset) file: usize,
    /// Which row group of the file it is.
    pub(in crate::dataset) number: usize,
    /// Its rows.
    pub(in crate::dataset) rows: u64,
    /// Rows of it that a round takes.
    slice: u64,
}

impl Groups {
    /// The row groups of some files.
    pub(in crate::dataset) fn of(files: &[RowFile]) -> Self {
        let mut groups = Vec::new();
        for (index, file) in files.iter().enumerate() {
            for (number, rows) in file.source().group_rows().iter().copied().enumerate() {
                let bytes = file.group_bytes(number);
                let of_row = bytes.checked_div(rows).unwrap_or_default().max(1);
                let slice = ROUND_BYTES / BLOCK_GROUPS as u64 / of_row;
                let slice = slice.clamp(SLICE_ROWS.0, SLICE_ROWS.1);
                groups.push(Group { file: index, number, rows, slice });
            }
        }
        Self { groups }
    }

    /// How many there are.
    pub(in crate::dataset) fn len(&self) -> usize {
        self.groups.len()
    }

    fn get(&self, group: usize) -> Option<Group> {
        self.groups.get(group).copied()
    }
}

/// What makes something of the rows of row groups.
pub(in crate::dataset) trait Rows: Send + Sync {
    /// What becomes of a row, for each of its pieces.
    type Item: Send;
    /// A row group that is read from some row on.
    type Open: Send;
    /// Rows of several row groups, read and not yet looked at.
    type Round: Send;

    /// Opens a row group without its first `skip` rows, to be read so many rows at a time.
    fn open(&self, group: Group, skip: u64, slice: u64) -> Self::Open;

    /// Reads so many rows of each of the open row groups.
    fn read(&self, open: &mut [Self::Open], taken: &[usize]) -> Result<Self::Round, DatasetError>;

    /// What becomes of some rows, each (place of its row group, row of what was read of it).
    fn fates(
        &self,
        round: &Self::Round,
        rows: &[(usize, usize)],
    ) -> Vec<Result<Fate<Self::Item>, DatasetError>>;
}

/// What became of rows that follow each other.
#[derive(Debug)]
pub(in crate::dataset) struct Chunk<I> {
    /// The block of row groups that they are in.
    pub(in crate::dataset) block: u64,
    /// Rows of the block before them, in its shuffled order.
    pub(in crate::dataset) row: u64,
    /// What became of each.
    pub(in crate::dataset) fates: Vec<Result<Fate<I>, DatasetError>>,
}

/// A walk through the rows of a strand, from some place on. After an error, nothing more
/// comes.
pub(in crate::dataset) struct Walk<R: Rows> {
    rows: Arc<R>,
    groups: Arc<Groups>,
    order: EpochOrder,
    /// The block that is open, or the next.
    block: u64,
    open: Option<OpenBlock<R>>,
    /// Rows of the next block that are passed over.
    skip: u64,
    over: bool,
}

struct OpenBlock<R: Rows> {
    members: Vec<Group>,
    open: Vec<R::Open>,
    round: u64,
    /// Rows of the block before this round.
    before: u64,
    read: Option<R::Round>,
    rows: Vec<(usize, usize)>,
    /// Rows of this round that are done.
    done: usize,
}

impl<R: Rows> Walk<R> {
    /// Walks in `order` from a row of a block on.
    pub(in crate::dataset) fn new(
        rows: Arc<R>,
        groups: Arc<Groups>,
        order: EpochOrder,
        block: u64,
        row: u64,
    ) -> Self {
        Self { rows, groups, order, block, open: None, skip: row, over: false }
    }

    fn advance(&mut self) -> Result<Option<Chunk<R::Item>>, DatasetError> {
        loop {
            if self.open.is_none() {
                if self.block >= self.order.blocks() {
                    return Ok(None);
                }
                self.open = Some(self.open_block());
                self.skip = 0;
            }
            let Some(open) = &mut self.open else { continue };
            if let Some(chunk) = open.chunk(&*self.rows, self.block) {
                return Ok(Some(chunk));
            }
            if !open.next_round(&*self.rows, &self.order, self.block)? {
                self.open = None;
                // Before the next block's readers take the places of this one's: theirs would
                // be touched from the start.
                allocator::trim();
                self.block += 1;
            }
        }
    }

    fn open_block(&self) -> OpenBlock<R> {
        let members = self.order.groups(self.block).iter();
        let members: Vec<Group> = members.filter_map(|group| self.groups.get(*group)).collect();
        // Rounds that are passed over whole are never read.
        let (mut round, mut before) = (0, 0);
        loop {
            let rows = taken(&members, round).iter().map(|rows| *rows as u64).sum::<u64>();
            if rows == 0 || before + rows > self.skip {
                break;
            }
            (round, before) = (round + 1, before + rows);
        }
        let open = members.iter().map(|group| {
            let skip = group.slice.saturating_mul(round).min(group.rows);
            self.rows.open(*group, skip, group.slice)
        });
        let done = usize::try_from(self.skip - before).unwrap_or(usize::MAX);
        let open = open.collect();
        OpenBlock { members, open, round, before, read: None, rows: Vec::new(), done }
    }
}

/// Rows of each row group in a round.
fn taken(members: &[Group], round: u64) -> Vec<usize> {
    let rows = |group: &Group| {
        let before = group.slice.saturating_mul(round).min(group.rows);
        usize::try_from(group.slice.min(group.rows - before)).unwrap_or(usize::MAX)
    };
    members.iter().map(rows).collect()
}

impl<R: Rows> OpenBlock<R> {
    /// The next rows of the round that is read.
    fn chunk(&mut self, rows: &R, block: u64) -> Option<Chunk<R::Item>> {
        let round = self.read.as_ref()?;
        let rest = self.rows.get(self.done..).filter(|rest| !rest.is_empty())?;
        let now = rest.get(..CHUNK_ROWS).unwrap_or(rest);
        let chunk =
            Chunk { block, row: self.before + self.done as u64, fates: rows.fates(round, now) };
        self.done += now.len();
        Some(chunk)
    }

    /// Reads the next round; false when the block has none.
    fn next_round(
        &mut self,
        rows: &R,
        order: &EpochOrder,
        block: u64,
    ) -> Result<bool, DatasetError> {
        if self.read.take().is_some() {
            allocator::trim();
            self.before += self.rows.len() as u64;
            (self.round, self.done) = (self.round + 1, 0);
        }
        let taken = taken(&self.members, self.round);
        if taken.iter().all(|rows| *rows == 0) {
            return Ok(false);
        }
        self.rows = order.rows(block, self.round, &taken);
        self.read = Some(rows.read(&mut self.open, &taken)?);
        Ok(true)
    }
}

impl<R: Rows> Iterator for Walk<R> {
    type Item = Result<Chunk<R::Item>, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let chunk = self.advance().transpose();
        self.over = !matches!(chunk, Some(Ok(_)));
        chunk
    }
}
