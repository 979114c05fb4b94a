//! Rows that are read together, and the gate's verdict on each.
//!
//! Owns opening a file as rows of a format, and reading them some at a time with their
//! verdicts. Does not own reading Parquet (`source`), the rules (`consent`) nor what a row of a
//! format holds (`format`). The text of a row that may not be used is never assembled.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _};
use arrow::record_batch::RecordBatch;

use super::consent::{ConsentColumns, Reason};
use super::error::DatasetError;
use super::format::Layout;
use super::gate::Gate;
use super::sample::Sample;
use super::source::{Columns, Slices, SourceError, SourceFile};
use super::spec::SplitFile;

/// The column of a row's salt, in private copies only.
const SALT: &str = "record_salt";

/// A file of rows of a format.
#[derive(Clone, Debug)]
pub struct RowFile {
    /// Shared by all that read it: it grows with the row groups.
    source: Arc<SourceFile>,
    layout: Arc<Layout>,
    gate: Arc<Gate>,
}

/// How much of every row is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// What it records of its consent.
    Consent,
    /// What it holds, too.
    Content,
}

impl RowFile {
    /// Opens a file; an error if it does not have the columns of its format, or if what is
    /// said of its data set stops it.
    pub fn open(file: &SplitFile, gate: &Arc<Gate>) -> Result<Self, SourceError> {
        let source = SourceFile::open(&file.path)?;
        gate.check(&file.path, source.defaults())?;
        let layout = Layout::new(&file.path, file.format, &file.columns, source.fields())?;
        Ok(Self { source: Arc::new(source), layout: Arc::new(layout), gate: Arc::clone(gate) })
    }

    /// The file.
    pub fn source(&self) -> &SourceFile {
        &self.source
    }

    /// Why every row of a row group is left out, where that is known without reading it.
    pub fn pruned(&self, group: usize) -> Option<Reason> {
        self.gate.pruned(&self.source, group)
    }

    /// Decompressed bytes of a row group, by the footer.
    pub fn group_bytes(&self, group: usize) -> u64 {
        let content: Vec<&str> = self.layout.columns().collect();
        self.source.group_bytes(group, Columns::And(&content)).1
    }

    /// The rows of a row group without its first `skip`, so many at a time.
    pub fn batches(&self, group: usize, skip: u64, rows: usize, read: Read) -> Batches {
        let content: Vec<&str> = self.layout.columns().chain([SALT]).collect();
        let columns = match read {
            Read::Consent => Columns::Consent,
            Read::Content => Columns::And(&content),
        };
        let slices = self.source.slices(group, skip, rows, columns);
        Batches { file: self.clone(), slices, row: self.source.first_row(group) + skip }
    }

    /// The rows of a whole file, so many at a time.
    pub fn all(
        &self,
        rows: usize,
        read: Read,
    ) -> impl Iterator<Item = Result<Batch, SourceError>> + '_ {
        let groups = 0..self.source.group_rows().len();
        groups.flat_map(move |group| self.batches(group, 0, rows, read))
    }
}

/// The rows of a row group, some at a time.
#[derive(Debug)]
pub struct Batches {
    file: RowFile,
    slices: Slices,
    /// Row of the file that comes next.
    row: u64,
}

impl Iterator for Batches {
    type Item = Result<Batch, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.slices.next()?;
        let batch = rows.and_then(|rows| Batch::new(&self.file, self.row, rows));
        self.row += batch.as_ref().map_or(0, |batch| batch.len() as u64);
        Some(batch)
    }
}

/// Some rows that follow each other in a file.
#[derive(Debug)]
pub struct Batch {
    path: PathBuf,
    first_row: u64,
    consent: ConsentColumns,
    verdicts: Vec<Result<(), Reason>>,
    rows: RecordBatch,
    layout: Arc<Layout>,
}

impl Batch {
    fn new(file: &RowFile, first_row: u64, rows: RecordBatch) -> Result<Self, SourceError> {
        let path = file.source.path().to_owned();
        let consent = ConsentColumns::new(&rows)
            .map_err(|source| SourceError::Consent { path: path.clone(), source })?;
        let verdicts = file.gate.verdicts(&consent, file.source.defaults());
        Ok(Self { path, first_row, consent, verdicts, rows, layout: Arc::clone(&file.layout) })
    }

    /// Rows in it.
    pub fn len(&self) -> usize {
        self.verdicts.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.verdicts.is_empty()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The row's place in its file, from 0.
    pub fn row_in_file(&self, row: usize) -> u64 {
        self.first_row + row as u64
    }

    /// The row's id. `row` is below [`Batch::len`], as in the other accessors.
    pub fn record_id(&self, row: usize) -> &str {
        self.consent.record_id(row)
    }

    /// Whom the row is about.
    pub fn subject(&self, row: usize) -> Option<&[u8; 32]> {
        self.consent.subject(row)
    }

    /// The salt that a private copy keeps of the row.
    pub fn salt(&self, row: usize) -> Option<[u8; 32]> {
        let salts = self.rows.column_by_name(SALT)?.as_fixed_size_binary_opt()?;
        let there = row < salts.len() && salts.is_valid(row);
        there.then(|| salts.value(row))?.try_into().ok()
    }

    /// What the row records about its consent.
    pub fn consent(&self) -> &ConsentColumns {
        &self.consent
    }

    /// Whether the row may be used.
    pub fn verdict(&self, row: usize) -> Result<(), Reason> {
        self.verdicts.get(row).copied().unwrap_or(Err(Reason::Missing))
    }

    /// What the row holds for the model.
    pub fn sample(&self, row: usize) -> Result<Sample, DatasetError> {
        self.layout.sample(&self.rows, row).map_err(|source| DatasetError::Format {
            path: self.path.clone(),
            row: self.row_in_file(row),
            record_id: self.record_id(row).to_owned(),
            source,
        })
    }
}
