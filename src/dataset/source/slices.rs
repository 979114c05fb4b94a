//! The rows of one row group, a slice at a time.
//!
//! Owns decoding page by page, so that a row group of any size needs the memory of one page
//! per column and of the slice, and skipping to a row by the offset index where the file has
//! one. Without an index, the pages before the row are passed over by their headers, or
//! decoded where a header does not count rows (lists in pages of version 1).
//! Reference: the page index of the Parquet format.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatchReader;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
    RowSelectionPolicy,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::page_index::{PageIndex, PageIndexBuilder};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::index_reader::decode_offset_index;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::reader::ChunkReader;

use super::super::contain::contain;
use super::remote::Stash;
use super::{DAMAGED, SourceError, options, read};

/// Largest offset index of a column chunk that is read, in bytes: a million pages.
const MAX_INDEX_BYTES: usize = 32 << 20;

/// The rows of one row group from one on, in slices. After an error, nothing more comes.
pub struct Slices {
    state: State,
    path: PathBuf,
    group: usize,
    /// Rows by the footer.
    expected: u64,
    /// Rows passed over or handed out.
    found: u64,
    stash: Stash,
}

enum State {
    Failed(SourceError),
    Reading(ParquetRecordBatchReader),
    Over,
}

impl fmt::Debug for Slices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, group, expected, found, .. } = self;
        write!(f, "Slices({} group {group}: row {found} of {expected})", path.display())
    }
}

/// What is read of a row group.
pub(super) struct Want {
    pub(super) group: usize,
    pub(super) rows: u64,
    pub(super) skip: u64,
    pub(super) rows_per_slice: usize,
    pub(super) mask: ProjectionMask,
}

impl Slices {
    pub(super) fn new<R: ChunkReader + 'static>(
        path: PathBuf,
        input: Result<R, SourceError>,
        alone: Option<ParquetMetaData>,
        want: Want,
        stash: Stash,
    ) -> Self {
        let (group, expected) = (want.group, want.rows);
        let found = want.skip.min(expected);
        let state = input.and_then(|input| {
            let decoder = contain(|| decoder(input, alone, want));
            read(&path, &stash, decoder)
        });
        let state = state.map_or_else(State::Failed, State::Reading);
        Self { state, path, group, expected, found, stash }
    }

    /// The columns of every slice; `None` after an error.
    pub fn schema(&self) -> Option<SchemaRef> {
        match &self.state {
            State::Reading(reader) => Some(reader.schema()),
            _ => None,
        }
    }

    fn advance(&mut self) -> Result<Option<RecordBatch>, SourceError> {
        let reader = match &mut self.state {
            State::Reading(reader) => reader,
            state => match std::mem::replace(state, State::Over) {
                State::Failed(error) => return Err(error),
                _ => return Ok(None),
            },
        };
        let slice = contain(|| reader.next().transpose());
        let slice = read(&self.path, &self.stash, slice)?;
        let rows = slice.as_ref().map_or(0, |slice| slice.num_rows() as u64);
        self.found = self.found.saturating_add(rows);
        let complete = self.found == self.expected;
        if self.found > self.expected || (slice.is_none() && !complete) {
            let (path, group) = (self.path.clone(), self.group);
            let (expected, found) = (self.expected, self.found);
            return Err(SourceError::RowCount { path, group, expected, found });
        }
        Ok(slice)
    }
}

impl Iterator for Slices {
    type Item = Result<RecordBatch, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let slice = self.advance().transpose();
        if !matches!(slice, Some(Ok(_))) {
            self.state = State::Over;
        }
        slice
    }
}

fn decoder<R: ChunkReader + 'static>(
    input: R,
    alone: Option<ParquetMetaData>,
    want: Want,
) -> Result<ParquetRecordBatchReader, ParquetError> {
    let mut alone = alone.ok_or_else(|| ParquetError::General(DAMAGED.to_owned()))?;
    // Of this row group only: the offset indices of all of them grow with the file.
    if want.skip > 0
        && let Some(index) = offset_index(&input, alone.row_group(0), &want.mask)
    {
        alone = alone.into_builder().set_page_index(Some(Arc::new(index))).build();
    }
    let alone = ArrowReaderMetadata::try_new(Arc::new(alone), options())?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(input, alone)
        .with_projection(want.mask)
        .with_batch_size(want.rows_per_slice.max(1));
    if want.skip == 0 {
        return builder.build();
    }
    let skip = usize::try_from(want.skip).unwrap_or(usize::MAX);
    builder.with_row_selection_policy(RowSelectionPolicy::Selectors).with_offset(skip).build()
}

/// Where the pages of a row group lie. An index that is absent or makes no sense is done
/// without: it saves time and decides nothing.
fn offset_index<R: ChunkReader>(
    input: &R,
    group: &RowGroupMetaData,
    mask: &ProjectionMask,
) -> Option<PageIndex> {
    let mut index = PageIndexBuilder::new(1, group.num_columns());
    for (leaf, column) in group.columns().iter().enumerate() {
        if !mask.leaf_included(leaf) {
            continue;
        }
        let offset = u64::try_from(column.offset_index_offset()?).ok()?;
        let length = usize::try_from(column.offset_index_length()?).ok()?;
        if length > MAX_INDEX_BYTES {
            return None;
        }
        let bytes = input.get_bytes(offset, length).ok()?;
        let pages = contain(|| decode_offset_index(&bytes))?.ok()?;
        if !makes_sense(&pages, column, group.num_rows()) {
            return None;
        }
        index.put_offset_index(pages, 0, leaf);
    }
    Some(index.build())
}

/// Whether pages follow each other inside the column chunk and begin at rising rows.
fn makes_sense(pages: &OffsetIndexMetaData, column: &ColumnChunkMetaData, rows: i64) -> bool {
    let (start, length) = column.byte_range();
    let end = start.saturating_add(length);
    let (mut place, mut next_row) = (start, 0);
    for (number, page) in pages.page_locations().iter().enumerate() {
        let (Ok(offset), Ok(size)) =
            (u64::try_from(page.offset), u64::try_from(page.compressed_page_size))
        else {
            return false;
        };
        let row = page.first_row_index;
        let row_fits = if number == 0 { row == 0 } else { row >= next_row };
        if offset < place || !row_fits || row >= rows.max(1) {
            return false;
        }
        (place, next_row) = (offset.saturating_add(size), row + 1);
    }
    place <= end && !pages.page_locations().is_empty()
}

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;
