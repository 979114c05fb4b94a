//! Reading rows out of Parquet.
//!
//! Owns finding the files, checking their columns, and reading one row group at a time with
//! only the columns that are needed. Does not judge or tokenise rows. The embedded Arrow
//! schema is ignored: types are Parquet's own, so that files of every writer look alike.
//! Reference: the Parquet format's logical types, as the `parquet` crate maps them.

use std::path::{Path, PathBuf};

use arrow::array::RecordBatchReader;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Fields, TimeUnit};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use fs_err as fs;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::file::reader::ChunkReader;
use thiserror::Error;

use super::consent::{self, Defaults};
use super::contain::contain;
use super::group::RowGroup;
use crate::diagnose::Diagnose;

/// Rows decoded at a time; a row group's own count is not trusted with an allocation.
const BATCH_ROWS: usize = 4096;

/// What can be wrong with a source of rows.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Nothing has that name.
    #[error("no file matches `{pattern}`")]
    NoMatch {
        /// The path or glob.
        pattern: String,
    },
    /// The glob is malformed.
    #[error("`{pattern}` is not a valid pattern at its character {position}: {reason}")]
    Pattern {
        /// The glob.
        pattern: String,
        /// Where, from 0.
        position: usize,
        /// What the matcher says.
        reason: &'static str,
    },
    /// A file or folder cannot be read.
    #[error("the rows cannot be read")]
    Read(#[from] std::io::Error),
    /// Not Parquet, cut short, or damaged.
    #[error("`{path}` is not readable as Parquet: {reason}")]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// A column that every file of rows has is absent.
    #[error("`{path}` has no column `{column}`")]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
        /// The columns that it has.
        found: Vec<String>,
    },
    /// A column is of another type.
    #[error("column `{column}` of `{path}` is {found}, not {expected}")]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
        /// The type that it must have.
        expected: &'static str,
        /// The type that it has.
        found: String,
    },
    /// A value that must be there is null.
    #[error("column `{column}` of `{path}` is null in row {row} (counted from 0)")]
    Null {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
        /// Row of the file, from 0.
        row: u64,
    },
}

impl Diagnose for SourceError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoMatch { .. } => {
                "paths are relative to the current directory; check where you are and the spelling"
                    .to_owned()
            }
            Self::Pattern { .. } => "write `[[]` for a bracket that is meant literally".to_owned(),
            Self::Read(error) => return error.hint(),
            Self::NotParquet { .. } => {
                "copy or download the file again; it may have been cut short".to_owned()
            }
            Self::MissingColumn { column, found, .. } => {
                let found = found.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
                format!("rename the column that holds `{column}`; it has {}", found.join(", "))
            }
            Self::WrongType { expected, .. } => format!("write the column again as {expected}"),
            Self::Null { .. } => "fill in the value, or remove the row".to_owned(),
        })
    }
}

/// The files that a path or glob of a recipe names, sorted.
pub fn resolve(pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
    // A file whose name has brackets is that file, not a glob.
    if Path::new(pattern).is_file() {
        return Ok(vec![PathBuf::from(pattern)]);
    }
    let matches = glob::glob(pattern).map_err(|error| SourceError::Pattern {
        pattern: pattern.to_owned(),
        position: error.pos,
        reason: error.msg,
    })?;
    let mut files = Vec::new();
    for path in matches {
        let path = path.map_err(|error| SourceError::Read(error.into()))?;
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(SourceError::NoMatch { pattern: pattern.to_owned() });
    }
    Ok(files)
}

/// A Parquet file of rows whose footer has been read and checked.
#[derive(Clone, Debug)]
pub struct SourceFile {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
    projection: ProjectionMask,
    defaults: Defaults,
    complete: bool,
    group_rows: Vec<u64>,
}

impl SourceFile {
    /// Reads and checks the footer.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let file = fs::File::open(path)?.into_parts().0;
        let wrong = |reason: String| SourceError::NotParquet { path: path.to_owned(), reason };
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = contain(|| ArrowReaderMetadata::load(&file, options))
            .ok_or_else(|| wrong(DAMAGED.to_owned()))?
            .map_err(|error| wrong(error.to_string()))?;
        let fields = metadata.schema().fields();
        check_columns(path, fields)?;
        let wanted = fields.iter().enumerate().filter(|(_, field)| {
            let name = field.name().as_str();
            REQUIRED.contains(&name) || consent::COLUMNS.contains(&name) || name == consent::SUBJECT
        });
        let roots: Vec<usize> = wanted.map(|(index, _)| index).collect();
        let projection = ProjectionMask::roots(metadata.parquet_schema(), roots);
        let groups = metadata.metadata().row_groups();
        let group_rows: Result<Vec<u64>, _> =
            groups.iter().map(|group| u64::try_from(group.num_rows())).collect();
        let group_rows = group_rows.map_err(|_| wrong("negative row count".to_owned()))?;
        let complete = consent::COLUMNS.iter().all(|name| fields.find(name).is_some());
        let defaults = Defaults::parse(footer(&metadata));
        let path = path.to_owned();
        Ok(Self { path, metadata, projection, defaults, complete, group_rows })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its footer says of all rows.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Rows of each row group.
    pub fn group_rows(&self) -> &[u64] {
        &self.group_rows
    }

    /// Reads one row group into memory.
    pub fn read_group(&self, group: usize) -> Result<RowGroup, SourceError> {
        let file = fs::File::open(&self.path)?.into_parts().0;
        let wrong = |reason: String| SourceError::NotParquet { path: self.path.clone(), reason };
        let rows = contain(|| self.decode(file, group))
            .ok_or_else(|| wrong(DAMAGED.to_owned()))?
            .map_err(|error| wrong(error.to_string()))?;
        if Some(&(rows.num_rows() as u64)) != self.group_rows.get(group) {
            return Err(wrong("a row group has fewer rows than the footer says".to_owned()));
        }
        let first_row = self.group_rows.iter().take(group).sum();
        RowGroup::new(self.path.clone(), first_row, self.complete, &rows)
    }

    fn decode<R: ChunkReader + 'static>(
        &self,
        file: R,
        group: usize,
    ) -> Result<RecordBatch, ArrowError> {
        let builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
        let reader = builder
            .with_row_groups(vec![group])
            .with_projection(self.projection.clone())
            .with_batch_size(BATCH_ROWS)
            .build()?;
        let schema = reader.schema();
        let batches: Result<Vec<RecordBatch>, _> = reader.collect();
        concat_batches(&schema, &batches?)
    }
}

/// What is said of a file at which the decoder gave up.
const DAMAGED: &str = "its contents are damaged";

/// Columns without which there are no rows.
const REQUIRED: [&str; 2] = ["record_id", "messages"];

fn footer(metadata: &ArrowReaderMetadata) -> Option<&str> {
    let pairs = metadata.metadata().file_metadata().key_value_metadata()?;
    let mut values = pairs.iter().filter(|pair| pair.key == consent::FOOTER_KEY);
    // Two footers cannot both be meant: no footer at all is the safe reading.
    values.next().filter(|_| values.next().is_none())?.value.as_deref()
}

fn check_columns(path: &Path, fields: &Fields) -> Result<(), SourceError> {
    for column in REQUIRED.into_iter().chain(consent::COLUMNS) {
        let Some((_, field)) = fields.find(column) else {
            if REQUIRED.contains(&column) {
                let found = fields.iter().map(|field| field.name().clone()).collect();
                return Err(SourceError::MissingColumn { path: path.to_owned(), column, found });
            }
            continue;
        };
        let found = field.data_type();
        let (fits, expected) = match column {
            "messages" => (is_chat(found), "LIST<STRUCT<role STRING, content STRING>>"),
            "consent_purposes" | "consent_processing" => (
                matches!(found, DataType::List(item) if *item.data_type() == DataType::Utf8),
                "LIST<STRING>",
            ),
            _ if column.ends_with("_at") => (
                matches!(found, DataType::Timestamp(unit, Some(_)) if *unit != TimeUnit::Second),
                "TIMESTAMP(MICROS, UTC)",
            ),
            _ => (*found == DataType::Utf8, "STRING"),
        };
        if !fits {
            let (path, found) = (path.to_owned(), found.to_string());
            return Err(SourceError::WrongType { path, column, expected, found });
        }
    }
    Ok(())
}

fn is_chat(found: &DataType) -> bool {
    let DataType::List(item) = found else { return false };
    let DataType::Struct(fields) = item.data_type() else { return false };
    let is_text = |name| fields.find(name).is_some_and(|(_, f)| *f.data_type() == DataType::Utf8);
    is_text("role") && is_text("content")
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
