//! The rows of a strand as tokens.
//!
//! Owns reading slices of row groups and making documents of their rows on all cores. Does
//! not own the order (`strand`) nor what becomes of a row (`rows`).

use std::path::Path;
use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use rayon::iter::{
    IndexedParallelIterator as _, IntoParallelIterator as _, IntoParallelRefMutIterator as _,
    ParallelIterator as _,
};

use super::super::chat::{ChatEncoder, Document};
use super::super::error::DatasetError;
use super::super::group::RowGroup;
use super::super::rows::{Fate, training_row};
use super::super::source::{Columns, Slices, SourceError, SourceFile};
use super::super::spec::Spec;
use super::steps::Piece;
use super::strand::{Group, Rows};

/// Columns that hold what is learned.
pub(in crate::dataset) const CONTENT: [&str; 1] = ["messages"];

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
    pub(in crate::dataset) files: Vec<SourceFile>,
}

/// A row group that is read.
pub(in crate::dataset) struct Open {
    file: usize,
    /// Row of the file that comes next.
    row: u64,
    slices: Slices,
}

impl Rows for Tokens {
    type Item = Owned;
    type Open = Result<Open, DatasetError>;
    type Round = Vec<Option<(usize, RowGroup)>>;

    fn open(&self, group: Group, skip: u64, slice: u64) -> Self::Open {
        let file = self.files.get(group.file).ok_or(DatasetError::Worker)?;
        let slice = usize::try_from(slice).unwrap_or(usize::MAX);
        let slices = file.slices(group.number, skip, slice, Columns::And(&CONTENT));
        Ok(Open { file: group.file, row: file.first_row(group.number) + skip, slices })
    }

    fn read(&self, open: &mut [Self::Open], taken: &[usize]) -> Result<Self::Round, DatasetError> {
        let members = open.par_iter_mut().zip(taken.to_vec());
        let read: Vec<_> = members.map(|(open, rows)| self.read_one(open, rows)).collect();
        read.into_iter().collect()
    }

    fn fates(
        &self,
        round: &Self::Round,
        rows: &[(usize, usize)],
    ) -> Vec<Result<Fate<Owned>, DatasetError>> {
        let fate = |(member, row): (usize, usize)| {
            let member = round.get(member).and_then(Option::as_ref);
            let (file, group) = member.ok_or(DatasetError::Worker)?;
            let file = self.files.get(*file).ok_or(DatasetError::Worker)?;
            let fate = training_row(&self.spec, &self.encoder, file.defaults(), group, row)?;
            let owner = || Record { id: group.record_id(row).to_owned(), subject: None };
            Ok(match fate {
                Fate::Used { pieces, cut } => {
                    let owned = |document| Owned { document, record: owner() };
                    Fate::Used { pieces: pieces.into_iter().map(owned).collect(), cut }
                }
                Fate::Excluded(reason) => Fate::Excluded(reason),
                Fate::Dropped => Fate::Dropped,
                Fate::HeldOut => Fate::HeldOut,
            })
        };
        rows.to_vec().into_par_iter().map(fate).collect()
    }
}

impl Tokens {
    fn read_one(
        &self,
        open: &mut Result<Open, DatasetError>,
        rows: usize,
    ) -> Result<Option<(usize, RowGroup)>, DatasetError> {
        if rows == 0 {
            return Ok(None);
        }
        let open = match open {
            Ok(open) => open,
            Err(error) => return Err(std::mem::replace(error, DatasetError::Worker)),
        };
        let file = self.files.get(open.file).ok_or(DatasetError::Worker)?;
        let batch = next_rows(&mut open.slices, file.path(), rows)?;
        let group = RowGroup::new(file.path().to_owned(), open.row, file.is_complete(), &batch)?;
        open.row += rows as u64;
        Ok(Some((open.file, group)))
    }
}

/// The next rows of a row group: one slice, unless the decoder divides it.
fn next_rows(slices: &mut Slices, path: &Path, rows: usize) -> Result<RecordBatch, SourceError> {
    let wrong = |reason| SourceError::NotParquet { path: path.to_owned(), reason };
    let mut batches: Vec<RecordBatch> = Vec::new();
    let mut found = 0;
    while found < rows {
        let Some(batch) = slices.next().transpose()? else { break };
        found += batch.num_rows();
        batches.push(batch);
    }
    match batches.as_slice() {
        [one] => Ok(one.clone()),
        // The footer promised more: `Slices` says so before it ends.
        [] => Err(wrong("its row groups have fewer rows than its footer says".to_owned())),
        [first, ..] => {
            concat_batches(&first.schema(), &batches).map_err(|error| wrong(error.to_string()))
        }
    }
}
