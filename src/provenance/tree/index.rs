//! `record_index.parquet`: every row that a run saw, sorted by token. It stays with the run.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, FixedSizeBinaryArray, FixedSizeBinaryBuilder,
    RecordBatch, StringBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use fs_err as fs;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::arrow_writer::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use parquet::file::statistics::Statistics;

use super::{Hash, Leaf, TreeError, leaf};
use crate::dataset::contain::contain;
use crate::files::write_privately_with;

/// Rows of a row group: what one look-up reads.
const GROUP_ROWS: usize = 32 << 10;
/// Rows of a page.
const PAGE_ROWS: usize = 1024;
/// Rows decoded at a time.
const BATCH_ROWS: usize = 8192;
/// Bytes of a digest.
const WIDTH: i32 = 32;

/// A row of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexRow {
    /// Its id.
    pub record_id: String,
    /// Whom it is about.
    pub subject_ref: Option<Hash>,
    /// [`super::Key::token`] of its id.
    pub token: Hash,
    /// What hides its content.
    pub salt: Hash,
    /// [`super::record_digest`] of its content; absent where a row that is not used was not
    /// read any further.
    pub digest: Option<Hash>,
    /// Whether it was used.
    pub used: bool,
    /// Why not.
    pub reason: Option<String>,
}

fn schema() -> SchemaRef {
    let digest = |name, null| Field::new(name, DataType::FixedSizeBinary(WIDTH), null);
    Arc::new(Schema::new(vec![
        Field::new("record_id", DataType::Utf8, false),
        digest("subject_ref", true),
        digest("token", false),
        digest("salt", false),
        digest("digest", true),
        Field::new("used", DataType::Boolean, false),
        Field::new("reason", DataType::Utf8, true),
    ]))
}

/// Writes an index, row after row.
pub(super) struct IndexWriter<'a> {
    writer: ArrowWriter<&'a mut (dyn Write + Send)>,
    columns: Columns,
    rows: usize,
}

#[derive(Debug)]
struct Columns {
    record_id: StringBuilder,
    subject_ref: FixedSizeBinaryBuilder,
    token: FixedSizeBinaryBuilder,
    salt: FixedSizeBinaryBuilder,
    digest: FixedSizeBinaryBuilder,
    used: BooleanBuilder,
    reason: StringBuilder,
}

impl IndexWriter<'_> {
    /// Writes the file at `path`, complete or not at all, with the rows that `fill` adds.
    pub(super) fn write(
        path: &Path,
        fill: impl FnOnce(&mut IndexWriter<'_>) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let mut failed = None;
        let written = write_privately_with(path, |file| {
            let mut writer = IndexWriter {
                writer: ArrowWriter::try_new(file, schema(), Some(properties()))?,
                columns: Columns::new(),
                rows: 0,
            };
            fill(&mut writer).map_err(|error| {
                failed = Some(error);
                io::Error::other("the rows could not be gathered")
            })?;
            writer.flush()?;
            writer.writer.close()?;
            Ok(())
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(written?),
        }
    }

    pub(super) fn add(&mut self, row: IndexRow) -> Result<(), TreeError> {
        self.columns.add(&row).map_err(io::Error::other)?;
        self.rows += 1;
        if self.rows == GROUP_ROWS { Ok(self.flush()?) } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.rows = 0;
        let batch =
            RecordBatch::try_new(schema(), self.columns.take()).map_err(io::Error::other)?;
        Ok(self.writer.write(&batch)?)
    }
}

/// Digests and salts cannot be made any smaller, so nothing is tried.
fn properties() -> WriterProperties {
    WriterProperties::builder()
        .set_created_by(format!("heirloom {}", crate::VERSION))
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_column_dictionary_enabled("reason".into(), true)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        .build()
}

impl Columns {
    fn new() -> Self {
        let digests = || FixedSizeBinaryBuilder::with_capacity(GROUP_ROWS, WIDTH);
        Self {
            record_id: StringBuilder::new(),
            subject_ref: digests(),
            token: digests(),
            salt: digests(),
            digest: digests(),
            used: BooleanBuilder::new(),
            reason: StringBuilder::new(),
        }
    }

    fn add(&mut self, row: &IndexRow) -> Result<(), arrow::error::ArrowError> {
        let or_null = |column: &mut FixedSizeBinaryBuilder, value: &Option<Hash>| match value {
            Some(value) => column.append_value(value),
            None => {
                column.append_null();
                Ok(())
            }
        };
        self.record_id.append_value(&row.record_id);
        or_null(&mut self.subject_ref, &row.subject_ref)?;
        self.token.append_value(row.token)?;
        self.salt.append_value(row.salt)?;
        or_null(&mut self.digest, &row.digest)?;
        self.used.append_value(row.used);
        self.reason.append_option(row.reason.as_deref());
        Ok(())
    }

    fn take(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.record_id.finish()),
            Arc::new(self.subject_ref.finish()),
            Arc::new(self.token.finish()),
            Arc::new(self.salt.finish()),
            Arc::new(self.digest.finish()),
            Arc::new(self.used.finish()),
            Arc::new(self.reason.finish()),
        ]
    }
}

/// An index whose footer has been read and checked.
#[derive(Clone, Debug)]
pub struct Index {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
}

impl Index {
    /// Reads and checks the footer.
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        let file = fs::File::open(path)?.into_parts().0;
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = contained(path, || ArrowReaderMetadata::load(&file, options))?;
        let index = Self { path: path.to_owned(), metadata };
        for expected in schema().fields() {
            let found = index.metadata.schema().field_with_name(expected.name()).ok();
            if found.map(Field::data_type) != Some(expected.data_type()) {
                let what = format!("its column `{}` is absent or of another type", expected.name());
                return Err(index.damaged(what));
            }
        }
        Ok(index)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn damaged(&self, what: String) -> TreeError {
        TreeError::Index { path: self.path.clone(), what }
    }

    /// Every row with this token: the same record may have come several times.
    pub fn find(&self, token: &Hash) -> Result<Vec<IndexRow>, TreeError> {
        let groups = self.groups_with(token);
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        self.each_batch(Some(groups), &schema_names(), |batch| {
            for row in 0..batch.tokens.len() {
                if batch.tokens.value(row) == token {
                    found.push(batch.row(row).ok_or("a value is null")?);
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Hands out every row, by token.
    pub fn each(
        &self,
        mut visit: impl FnMut(IndexRow) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let mut failed = None;
        let read = self.each_batch(None, &schema_names(), |batch| {
            for row in 0..batch.tokens.len() {
                if let Err(error) = visit(batch.row(row).ok_or("a value is null")?) {
                    failed = Some(error);
                    return Err("a row was refused");
                }
            }
            Ok(())
        });
        failed.map_or(read, Err)
    }

    /// Hands out every leaf of the tree, in order.
    pub(super) fn each_leaf(&self, mut visit: impl FnMut(Leaf)) -> Result<(), TreeError> {
        let mut last: Option<(Hash, Option<Hash>)> = None;
        self.each_batch(None, &["token", "salt", "digest", "used"], |batch| {
            for row in 0..batch.tokens.len() {
                let token = value(&batch.tokens, row).ok_or("a token is null")?;
                if last.is_some_and(|(before, _)| before > token) {
                    return Err("it is not sorted by token");
                }
                if !batch.used.as_ref().is_some_and(|used| used.value(row)) {
                    last = last.filter(|(before, _)| *before == token).or(Some((token, None)));
                    continue;
                }
                let digests = batch.digests.as_ref().and_then(|column| value(column, row));
                let salts = batch.salts.as_ref().and_then(|column| value(column, row));
                let (Some(digest), Some(salt)) = (digests, salts) else {
                    return Err("a used record has no digest or salt");
                };
                if last != Some((token, Some(digest))) {
                    visit(leaf(&token, &salt, &digest));
                }
                last = Some((token, Some(digest)));
            }
            Ok(())
        })
    }

    /// The row groups that may hold a token, by their statistics.
    fn groups_with(&self, token: &Hash) -> Vec<usize> {
        let groups = self.metadata.metadata().row_groups().iter().enumerate();
        let column = self.metadata.schema().index_of("token").unwrap_or(usize::MAX);
        let may = |statistics: Option<&Statistics>| match statistics {
            Some(Statistics::FixedLenByteArray(found)) => {
                let (least, most) = (found.min_bytes_opt(), found.max_bytes_opt());
                least.is_none_or(|least| least <= token.as_slice())
                    && most.is_none_or(|most| token.as_slice() <= most)
            }
            _ => true,
        };
        let of = |group: &parquet::file::metadata::RowGroupMetaData| {
            may(group.columns().get(column).and_then(|column| column.statistics()))
        };
        groups.filter(|(_, group)| of(group)).map(|(at, _)| at).collect()
    }

    fn each_batch(
        &self,
        groups: Option<Vec<usize>>,
        columns: &[&str],
        mut visit: impl FnMut(Batch) -> Result<(), &'static str>,
    ) -> Result<(), TreeError> {
        let file = fs::File::open(&self.path)?.into_parts().0;
        let mut reader: ParquetRecordBatchReader = contained(&self.path, || {
            let mut builder =
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
            if let Some(groups) = groups {
                builder = builder.with_row_groups(groups);
            }
            let roots = builder.schema().fields().iter().enumerate();
            let roots = roots.filter(|(_, field)| columns.contains(&field.name().as_str()));
            let roots: Vec<usize> = roots.map(|(at, _)| at).collect();
            let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
            builder.with_projection(mask).with_batch_size(BATCH_ROWS).build()
        })?;
        while let Some(batch) = contained(&self.path, || reader.next().transpose())? {
            let batch = Batch::new(&batch).ok_or("a column is absent");
            batch.and_then(&mut visit).map_err(|what| self.damaged(what.to_owned()))?;
        }
        Ok(())
    }
}

fn schema_names() -> [&'static str; 7] {
    ["record_id", "subject_ref", "token", "salt", "digest", "used", "reason"]
}

/// Some rows of an index in columns, of which those that were asked for are there.
struct Batch {
    tokens: FixedSizeBinaryArray,
    salts: Option<FixedSizeBinaryArray>,
    digests: Option<FixedSizeBinaryArray>,
    used: Option<arrow::array::BooleanArray>,
    rows: RecordBatch,
}

impl Batch {
    fn new(rows: &RecordBatch) -> Option<Self> {
        let digests =
            |name| rows.column_by_name(name).and_then(|column| column.as_fixed_size_binary_opt());
        Some(Self {
            tokens: digests("token")?.clone(),
            salts: digests("salt").cloned(),
            digests: digests("digest").cloned(),
            used: rows.column_by_name("used").and_then(|column| column.as_boolean_opt()).cloned(),
            rows: rows.clone(),
        })
    }

    /// `None` where a value is null that must not be.
    fn row(&self, row: usize) -> Option<IndexRow> {
        let text = |name| {
            let column = self.rows.column_by_name(name)?.as_string_opt::<i32>()?;
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let subjects = self.rows.column_by_name("subject_ref")?.as_fixed_size_binary_opt()?;
        Some(IndexRow {
            record_id: text("record_id")?,
            subject_ref: value(subjects, row),
            token: value(&self.tokens, row)?,
            salt: value(self.salts.as_ref()?, row)?,
            digest: value(self.digests.as_ref()?, row),
            used: self.used.as_ref()?.value(row),
            reason: text("reason"),
        })
    }
}

fn value(column: &FixedSizeBinaryArray, row: usize) -> Option<Hash> {
    column.is_valid(row).then(|| column.value(row).try_into().ok()).flatten()
}

/// What the decoder makes of a file that may be damaged.
fn contained<T, E: std::fmt::Display>(
    path: &Path,
    decode: impl FnOnce() -> Result<T, E>,
) -> Result<T, TreeError> {
    let damaged = |what| TreeError::Index { path: path.to_owned(), what };
    contain(decode)
        .ok_or_else(|| damaged("its contents are damaged".to_owned()))?
        .map_err(|error| damaged(error.to_string()))
}
