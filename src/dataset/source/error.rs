//! What can be wrong with a source of rows.

use std::path::PathBuf;

use thiserror::Error;

use super::super::consent::{ColumnError, ConsentError};
use super::remote::Failure;
use crate::dataset::describe::DescribeError;
use crate::dataset::format::LayoutError;
use crate::diagnose::Diagnose;

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
    /// A folder, a pipe or a device.
    #[error("`{path}` is {what}, not a file")]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A file or folder cannot be read.
    #[error("the rows cannot be read")]
    Read(#[from] std::io::Error),
    /// An object in a store or on a server cannot be read.
    #[error("cannot read `{name}`: {failure}")]
    Remote {
        /// The address.
        name: String,
        /// Why not.
        failure: Failure,
    },
    /// Not Parquet, cut short, or damaged.
    #[error("`{path}` is not readable as Parquet: {reason}")]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// A row group does not hold the rows that the footer promises.
    #[error("row group {group} of `{path}` has {found} rows, but its footer says {expected}")]
    RowCount {
        /// The file.
        path: PathBuf,
        /// The group, from 0.
        group: usize,
        /// Rows by the footer.
        expected: u64,
        /// Rows that were read; reading ends at the first that is too many.
        found: u64,
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
    /// The consent columns are not what they must be.
    #[error("the consent columns of `{path}` cannot be judged")]
    Consent {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: ColumnError,
    },
    /// What lies beside the file contradicts it, or cannot be read.
    #[error(transparent)]
    Describe(#[from] DescribeError),
    /// What is said of the whole data set stops its files.
    #[error(transparent)]
    Dataset(#[from] ConsentError),
    /// The columns are not those of the format.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Diagnose for SourceError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoMatch { .. } => {
                "paths are relative to the current directory; check where you are and the spelling"
                    .to_owned()
            }
            Self::Pattern { .. } => "write `[[]` for a bracket that is meant literally".to_owned(),
            Self::NotAFile { path, .. } => {
                format!("name files, or all of a folder as `{}/*.parquet`", path.display())
            }
            Self::Read(error) => return error.hint(),
            Self::Remote { failure, .. } => return failure.hint(),
            Self::NotParquet { .. } | Self::RowCount { .. } => {
                "copy or download the file again; it may have been cut short".to_owned()
            }
            Self::MissingColumn { column, found, .. } => {
                let found = found.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
                format!("rename the column that holds `{column}`; it has {}", found.join(", "))
            }
            Self::WrongType { expected, .. } => format!("write the column again as {expected}"),
            Self::Consent { source, .. } => return source.hint(),
            Self::Describe(error) => return error.hint(),
            Self::Dataset(error) => return error.hint(),
            Self::Layout(error) => return error.hint(),
        })
    }
}
