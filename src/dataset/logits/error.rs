//! What is wrong with a file of what a teacher said.

use std::io;
use std::path::PathBuf;

use crate::diagnose::{Blame, Diagnose};

/// What is wrong with a file of what a teacher said.
#[derive(Debug, thiserror::Error)]
pub enum LogitsError {
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not Parquet, cut short, or damaged.
    #[error("`{}` is not readable as Parquet: {reason}", path.display())]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// Its footer does not say what it is.
    #[error("`{}` does not hold what a teacher said", path.display())]
    NoHeader {
        /// The file.
        path: PathBuf,
    },
    /// Its footer is of another version, or not as it must be.
    #[error("the footer `{}` of `{}` is not of this version", super::FOOTER_KEY, path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// A row contradicts the footer or another row.
    #[error("row {row} of `{}` {what}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Which, from 0.
        row: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There is nothing of a document in it.
    #[error("`{}` has nothing for a row of the data", path.display())]
    NoDocument {
        /// The file.
        path: PathBuf,
    },
    /// What is there of a document is not about its trained tokens.
    #[error("`{}` has something else for a row of the data than its trained tokens", path.display())]
    OtherPositions {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write what the teacher said")]
    Write(#[source] io::Error),
    /// Its columns do not fit each other: a defect of ours.
    #[error("the columns of what the teacher said do not fit: {reason}")]
    Columns {
        /// What the encoder says.
        reason: String,
    },
}

impl Diagnose for LogitsError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. } | Self::Write(source) => return source.hint(),
            Self::NotParquet { .. } | Self::Row { .. } | Self::OtherPositions { .. } => {
                "make it again with `heirloom logits RECIPE -o FILE`; it may have been cut short"
                    .to_owned()
            }
            Self::NoHeader { .. } | Self::Header { .. } => {
                "name a file that this version of `heirloom logits` wrote".to_owned()
            }
            Self::NoDocument { .. } => {
                "make it again with `heirloom logits RECIPE -o FILE`: it was made when fewer rows \
                 could be used, or of other rows"
                    .to_owned()
            }
            Self::Columns { .. } => return None,
        })
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Columns { .. } => Blame::Defect,
            _ => Blame::User,
        }
    }
}
