//! What can go wrong with a record tree and its files.

use std::io;
use std::path::PathBuf;

use crate::dataset::format::FormatError;
use crate::dataset::source::SourceError;
use crate::diagnose::{Blame, Diagnose};

/// What can go wrong with a record tree and its files.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file cannot be read or written.
    #[error("the record tree cannot be read or written")]
    Io(#[from] io::Error),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// A row's content cannot be written as JSON.
    #[error("the content of a row has no canonical form: {what}")]
    Content {
        /// What kind of failure; no text of the row.
        what: String,
    },
    /// A file of rows cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A row is none of its format.
    #[error("row {row} (counted from 0) of `{}` cannot be read", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Row of the file, from 0.
        row: u64,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A row is said to be used, and nobody digested it.
    #[error("the used record `{record_id}` was given to the record tree without a digest")]
    NoDigest {
        /// The row.
        record_id: String,
    },
    /// A `record_tree.json` that is not one.
    #[error("`{}` is no commitment to a record tree at line {line}, column {column}: {what}", path.display())]
    Commitment {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// A `record_key` that is not one.
    #[error("`{}` is not a key of 64 lower-case hexadecimal digits", path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// The key is not the one that the tree was made with.
    #[error("`{}` is the key `{found}`, and the record tree was made with `{expected}`", path.display())]
    OtherKey {
        /// The key's file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What the commitment says.
        expected: String,
    },
    /// An index that cannot be read or is not one.
    #[error("the index of records `{}` is damaged: {what}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The index does not give the root that was committed to.
    #[error("the index of records `{}` gives {found}, not the {expected} that the run committed to", path.display())]
    OtherTree {
        /// The index.
        path: PathBuf,
        /// `SIZE leaves with the root ROOT`.
        found: String,
        /// The same of the commitment.
        expected: String,
    },
}

impl Diagnose for TreeError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io(error) => return error.hint(),
            Self::Source(error) => return error.hint(),
            Self::Row { source, .. } => return source.hint(),
            Self::Random => "run it where the system's random generator can be used".to_owned(),
            Self::Content { .. } => {
                "remove numbers that JSON does not have (NaN, infinity)".to_owned()
            }
            Self::NoDigest { .. } => return None,
            Self::Commitment { .. } | Self::Index { .. } | Self::OtherTree { .. } => {
                "restore the run folder from a copy; without its index nothing can be proven"
                    .to_owned()
            }
            Self::Key { .. } | Self::OtherKey { .. } => {
                "name the `record_key` of the very run that the proof is about".to_owned()
            }
        })
    }

    fn blame(&self) -> Blame {
        match self {
            Self::NoDigest { .. } => Blame::Defect,
            _ => Blame::User,
        }
    }
}
