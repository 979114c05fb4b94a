//! Rows as the model will see them, for people who want to look.
//!
//! Owns walking the rows of a split some at a time, and finding single ones. What becomes of a
//! row is decided by `rows`, the very step that training takes; a row that the gate refuses
//! has no text here. Does not own what is counted over all rows ([`super::stats`]) nor how a
//! row is printed.

mod cut;
mod pieces;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::path::Path;

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::batch::{Batch, Read, RowFile};
use super::chat::{ChatEncoder, Document, LossMask};
use super::consent::Reason;
use super::error::DatasetError;
use super::rows::measured_row;
use super::sample::Sample;
use super::spec::{Spec, SplitFile};
use crate::recipe::lock::Split;

pub use cut::Cut;
pub use pieces::{Part, Pieces};
pub use turns::{Turn, turns};

/// Rows that are worked on together: what is held at once is bounded, whatever a row group
/// has.
const CHUNK_ROWS: usize = 1024;

/// Rows that are read together by somebody who may have seen enough after the first.
const FEW_ROWS: usize = 64;

/// What a recipe sees of its rows.
#[derive(Debug)]
pub struct Look {
    spec: Spec,
    encoder: ChatEncoder,
    pieces: Pieces,
}

/// What became of a row.
#[derive(Debug)]
pub enum Seen {
    /// The gate refuses it.
    Refused(Reason),
    /// It may be used and is on the other side of `data.validation_split`.
    Elsewhere,
    /// It may be used and cannot be tokenised; a run stops at it.
    Broken(DatasetError),
    /// It is used: what it holds, and the same in tokens.
    Used(Box<Sample>, Document),
}

/// A row, not looked at yet.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    look: &'a Look,
    split: &'a Split,
    batch: &'a Batch,
    row: usize,
    /// The place of its file among those of the split.
    pub file: usize,
    /// The row's number in its split, over all files, from 0.
    pub number: u64,
}

impl Look {
    /// A look at the rows of `spec`.
    pub fn new(spec: Spec, encoder: ChatEncoder) -> Self {
        let pieces = Pieces::new(encoder.tokenizer());
        Self { spec, encoder, pieces }
    }

    /// What tokens stand for.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// What the recipe asks for.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The splits, in the order in which they are read.
    pub fn splits(&self) -> Vec<Split> {
        let mut splits = Vec::new();
        for file in &self.spec.files {
            if !splits.contains(&file.split) {
                splits.push(file.split.clone());
            }
        }
        if self.spec.validation_split > 0.0 && !splits.contains(&Split::Validation) {
            splits.push(Split::Validation);
        }
        splits
    }

    /// The files of a split, in the order in which they are read; those of `train` where its
    /// rows are held out of them.
    pub fn files(&self, split: &Split) -> Vec<&SplitFile> {
        let held_out = *split == Split::Validation && self.spec.validation_split > 0.0;
        self.spec.files_of(if held_out { &Split::Train } else { split }).collect()
    }

    /// Rows of a split's files, by their footers.
    pub fn rows(&self, split: &Split) -> Result<u64, DatasetError> {
        let mut rows = 0;
        for file in self.files(split) {
            let file = RowFile::open(file, &self.spec.gate)?;
            rows += file.source().group_rows().iter().sum::<u64>();
        }
        Ok(rows)
    }

    /// Every row of a split in order: `map` on all cores, then `fold` one after the other.
    pub fn walk<T: Send>(
        &self,
        split: &Split,
        map: impl Fn(Place<'_>) -> Result<T, DatasetError> + Sync,
        mut fold: impl FnMut(T),
    ) -> Result<(), DatasetError> {
        let whole = How { rows: CHUNK_ROWS, read: Read::Content, wanted: &|_| true };
        self.batches(split, &whole, |batch, file, first| {
            let place = |row| self.place(split, batch, file, first, row);
            let rows = (0..batch.len()).into_par_iter();
            let mapped: Vec<Result<T, _>> = rows.map(|row| map(place(row))).collect();
            for value in mapped {
                fold(value?);
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Rows of a split in order, one after the other, until `see` breaks.
    pub fn each(
        &self,
        split: &Split,
        mut see: impl FnMut(Place<'_>) -> Result<ControlFlow<()>, DatasetError>,
    ) -> Result<(), DatasetError> {
        let few = How { rows: FEW_ROWS, read: Read::Content, wanted: &|_| true };
        self.batches(split, &few, |batch, file, first| {
            for row in 0..batch.len() {
                if see(self.place(split, batch, file, first, row))?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Some rows of a split, by their numbers; row groups without any are not read.
    pub fn some(
        &self,
        split: &Split,
        numbers: &BTreeSet<u64>,
        mut see: impl FnMut(Place<'_>) -> Result<(), DatasetError>,
    ) -> Result<(), DatasetError> {
        let wanted = |range: Range<u64>| numbers.range(range).next().is_some();
        let how = How { rows: FEW_ROWS, read: Read::Content, wanted: &wanted };
        self.batches(split, &how, |batch, file, first| {
            for row in 0..batch.len() {
                let place = self.place(split, batch, file, first, row);
                if numbers.contains(&place.number) {
                    see(place)?;
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// The numbers of the first row with each of these ids. No text is read for it.
    pub fn find(
        &self,
        split: &Split,
        ids: &BTreeSet<&str>,
    ) -> Result<BTreeMap<String, u64>, DatasetError> {
        let mut found = BTreeMap::new();
        let how = How { rows: CHUNK_ROWS, read: Read::Consent, wanted: &|_| true };
        self.batches(split, &how, |batch, file, first| {
            for row in 0..batch.len() {
                let place = self.place(split, batch, file, first, row);
                let id = place.record_id();
                if ids.contains(id) && !found.contains_key(id) {
                    found.insert(id.to_owned(), place.number);
                }
            }
            let all = found.len() == ids.len();
            Ok(if all { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(found)
    }

    /// The rows of a split, with the place of their file and the number of the first of them.
    fn batches(
        &self,
        split: &Split,
        how: &How<'_>,
        mut see: impl FnMut(&Batch, usize, u64) -> Result<ControlFlow<()>, DatasetError>,
    ) -> Result<(), DatasetError> {
        let mut first = 0;
        for (index, file) in self.files(split).into_iter().enumerate() {
            let file = RowFile::open(file, &self.spec.gate)?;
            for (group, rows) in file.source().group_rows().iter().enumerate() {
                let mut number = first;
                first += rows;
                if !(how.wanted)(number..first) {
                    continue;
                }
                for batch in file.batches(group, 0, how.rows, how.read) {
                    let batch = batch?;
                    if see(&batch, index, number)?.is_break() {
                        return Ok(());
                    }
                    number += batch.len() as u64;
                }
            }
        }
        Ok(())
    }

    fn place<'a>(
        &'a self,
        split: &'a Split,
        batch: &'a Batch,
        file: usize,
        first: u64,
        row: usize,
    ) -> Place<'a> {
        Place { look: self, split, batch, row, file, number: first + row as u64 }
    }
}

/// How rows are read.
struct How<'a> {
    /// So many at a time.
    rows: usize,
    read: Read,
    /// Whether a row group is read, by the numbers of its rows.
    wanted: &'a dyn Fn(Range<u64>) -> bool,
}

impl Place<'_> {
    /// The row's id.
    pub fn record_id(&self) -> &str {
        self.batch.record_id(self.row)
    }

    /// The file that it stands in.
    pub fn path(&self) -> &Path {
        self.batch.path()
    }

    /// The row's place in its file, from 0.
    pub fn row_in_file(&self) -> u64 {
        self.batch.row_in_file(self.row)
    }

    /// What becomes of it for its length; `None` where it fits, or is not cut into windows.
    pub fn cut(&self, document: &Document) -> Option<Cut> {
        let Spec { overlong, sequence_length, .. } = self.look.spec;
        (*self.split == Split::Train).then(|| Cut::of(document, overlong, sequence_length))?
    }

    /// Judges and tokenises it, as a run does.
    pub fn see(&self) -> Result<Seen, DatasetError> {
        let Look { spec, encoder, .. } = self.look;
        let mask = match self.split {
            Split::Train | Split::Validation => spec.mask,
            Split::Test(_) => LossMask::default(),
        };
        match measured_row(mask, encoder, self.batch, self.row) {
            Ok(Err(reason)) => Ok(Seen::Refused(reason)),
            Ok(Ok((sample, _))) if self.is_elsewhere(&sample) => Ok(Seen::Elsewhere),
            Ok(Ok((sample, document))) => Ok(Seen::Used(Box::new(sample), document)),
            // Other rows can be looked at all the same.
            Err(error @ (DatasetError::Row { .. } | DatasetError::Format { .. })) => {
                Ok(Seen::Broken(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a row of `data.train` belongs to the other one of `train` and `validation`.
    fn is_elsewhere(&self, sample: &Sample) -> bool {
        let spec = &self.look.spec;
        match self.split {
            _ if spec.validation_split == 0.0 => false,
            Split::Train => spec.holds_out(sample),
            Split::Validation => !spec.holds_out(sample),
            Split::Test(_) => false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
