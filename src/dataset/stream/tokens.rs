//! The rows of a strand as tokens.
//!
//! Owns reading rows of row groups and making documents of them on all cores. Does not own
//! the order (`strand`) nor what becomes of a row (`rows`).

use std::sync::Arc;

use rayon::iter::{
    IndexedParallelIterator as _, IntoParallelIterator as _, IntoParallelRefMutIterator as _,
    ParallelIterator as _,
};

use super::super::batch::{Batch, Batches, Read, RowFile};
use super::super::chat::{ChatEncoder, Document};
use super::super::consent::Reason;
use super::super::error::DatasetError;
use super::super::rows::{Fate, training_row};
use super::super::spec::Spec;
use super::steps::Piece;
use super::strand::{Group, Rows};

/// Whose document it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The row's id.
    pub id: String,
    /// Whom it is about.
    pub subject: Option<[u8; 32]>,
}

/// A document, and whose it is.
#[derive(Clone, Debug)]
pub(in crate::dataset) struct Owned {
    pub(in crate::dataset) document: Document,
    pub(in crate::dataset) record: Record,
    /// The document with another's answer, where the step it is in asks for that.
    pub(in crate::dataset) mismatched: Option<Document>,
}

impl Piece for Owned {
    fn tokens(&self) -> usize {
        self.document.tokens.len()
    }
}

/// The files of a strand, tokenised as they are read.
pub(in crate::dataset) struct Tokens {
    pub(in crate::dataset) spec: Arc<Spec>,
    pub(in crate::dataset) encoder: Arc<ChatEncoder>,
    pub(in crate::dataset) files: Vec<RowFile>,
}

/// A row group.
pub(in crate::dataset) enum Open {
    /// Its statistics say that no row of it may be used.
    Pruned(Reason),
    /// It is read.
    Reading(Box<Batches>),
    /// There is none.
    Unknown,
}

/// Some rows of a row group.
pub(in crate::dataset) enum Slice {
    /// None of them may be used.
    Pruned(Reason),
    /// They are read; the decoder may divide them.
    Read(Vec<Batch>),
}

impl Rows for Tokens {
    type Item = Owned;
    type Open = Open;
    type Round = Vec<Slice>;

    fn open(&self, group: Group, skip: u64, slice: u64) -> Open {
        let Some(file) = self.files.get(group.file) else { return Open::Unknown };
        if let Some(reason) = file.pruned(group.number) {
            return Open::Pruned(reason);
        }
        let slice = usize::try_from(slice).unwrap_or(usize::MAX);
        Open::Reading(Box::new(file.batches(group.number, skip, slice, Read::Content)))
    }

    fn read(&self, open: &mut [Open], taken: &[usize]) -> Result<Vec<Slice>, DatasetError> {
        let members = open.par_iter_mut().zip(taken.to_vec());
        let read: Vec<_> = members.map(|(open, rows)| read(open, rows)).collect();
        read.into_iter().collect()
    }

    fn fates(
        &self,
        round: &Vec<Slice>,
        rows: &[(usize, usize)],
    ) -> Vec<Result<Fate<Owned>, DatasetError>> {
        let fate = |(member, row): (usize, usize)| {
            let batches = match round.get(member).ok_or(DatasetError::Worker)? {
                Slice::Pruned(reason) => return Ok(Fate::Excluded(*reason)),
                Slice::Read(batches) => batches,
            };
            let (batch, row) = locate(batches, row).ok_or(DatasetError::Worker)?;
            let record = || Record {
                id: batch.record_id(row).to_owned(),
                subject: batch.subject(row).copied(),
            };
            let fate = training_row(&self.spec, &self.encoder, batch, row)?;
            Ok(fate.map(|document| Owned { document, record: record(), mismatched: None }))
        };
        rows.to_vec().into_par_iter().map(fate).collect()
    }
}

/// The next rows of a row group.
fn read(open: &mut Open, rows: usize) -> Result<Slice, DatasetError> {
    let batches = match open {
        Open::Pruned(reason) => return Ok(Slice::Pruned(*reason)),
        Open::Unknown => return Err(DatasetError::Worker),
        Open::Reading(batches) => batches,
    };
    let (mut read, mut found) = (Vec::new(), 0);
    while found < rows {
        // That the footer promised more is an error of the file's, before its end.
        let Some(batch) = batches.next().transpose()? else { break };
        found += batch.len();
        read.push(batch);
    }
    Ok(Slice::Read(read))
}

/// The batch that has the row, and the row's place in it.
fn locate(batches: &[Batch], mut row: usize) -> Option<(&Batch, usize)> {
    for batch in batches {
        if row < batch.len() {
            return Some((batch, row));
        }
        row -= batch.len();
    }
    None
}
