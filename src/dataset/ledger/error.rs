//! Why a ledger cannot be used, or not be written.

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;

use super::event::Digest;
use super::read::MAX_LINE_BYTES;
use crate::diagnose::Diagnose;

/// A ledger that cannot be used. Any of these stops everything that depends on it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be read.
    #[error("the ledger `{}` cannot be read", path.display())]
    Read {
        /// The ledger.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line is not what it must be.
    #[error("line {line} of the ledger `{}` {fault}", path.display())]
    Line {
        /// The ledger.
        path: PathBuf,
        /// Which, from 1.
        line: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// More events than are read.
    #[error("the ledgers have more than {limit} events")]
    TooMany {
        /// The limit.
        limit: u32,
    },
    /// Lines that were there are gone, or are others.
    #[error(
        "the ledger `{}` no longer goes on from its line {seq}: that line is {}",
        path.display(),
        match found { Some(_) => "another one", None => "gone" }
    )]
    NotAnExtension {
        /// The ledger.
        path: PathBuf,
        /// The last line that was there.
        seq: u64,
        /// Its digest then.
        locked: Digest,
        /// Its digest now, if it is there.
        found: Option<Digest>,
    },
    /// A ledger that was read before is read no longer, or the other way round.
    #[error("the ledgers are other ones than before: `{}` is on one side only", path.display())]
    OtherLedgers {
        /// The ledger.
        path: PathBuf,
    },
    /// It cannot be written; it is as it was.
    #[error("the ledger `{}` cannot be written", path.display())]
    Write {
        /// The ledger.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An event that no line can hold.
    #[error("the event cannot be written to the ledger `{}`: it {fault}", path.display())]
    Event {
        /// The ledger.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Longer than any event.
    #[error("has more than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// The file ends within it.
    #[error("is cut short: it has no line feed")]
    CutShort,
    /// Not text.
    #[error("is not UTF-8 at its byte {column}")]
    NotUtf8 {
        /// Byte of the line, from 1.
        column: usize,
    },
    /// Not a JSON object.
    #[error("is not JSON at column {column}: {what}")]
    NotJson {
        /// Where, from 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// A key occurs twice: readers disagree on which counts.
    #[error("has the key `{key}` twice, again at column {column}")]
    DuplicateKey {
        /// Where, from 1.
        column: usize,
        /// The key.
        key: String,
    },
    /// A key that no event has.
    #[error("has the key `{key}`, which is unknown")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key that every event has.
    #[error("has no key `{key}`")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// A value that means nothing.
    #[error("is no event: {what}")]
    Value {
        /// What is wrong.
        what: String,
    },
    /// A line is missing, or stands twice.
    #[error("has `seq` {found}, not {expected}")]
    Sequence {
        /// Its number.
        expected: u64,
        /// The number that it bears.
        found: u64,
    },
    /// The line before it was changed.
    #[error("does not follow from the line before it, which was changed after it was written")]
    BrokenChain {
        /// The digest of the line before.
        expected: Digest,
        /// The digest that it bears.
        found: Digest,
    },
    /// Written down before the line before it.
    #[error("was recorded at {found}, before the line before it ({before})")]
    Order {
        /// The line before.
        before: Timestamp,
        /// This line.
        found: Timestamp,
    },
}

impl Diagnose for LedgerError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "check the path; where nobody has withdrawn yet, an empty file is a ledger that \
                 has no event (`touch withdrawals.jsonl`)"
                    .to_owned()
            }
            Self::Read { source, .. } | Self::Write { source, .. } => return source.hint(),
            Self::Line { .. } | Self::NotAnExtension { .. } => {
                "a ledger is only ever appended to: put back a copy that holds, and look for who \
                 or what changed this one"
                    .to_owned()
            }
            Self::TooMany { .. } => "name fewer ledgers".to_owned(),
            Self::OtherLedgers { .. } => {
                "name the same ledgers by the same paths, or start a new run".to_owned()
            }
            Self::Event { .. } => "correct what was asked for, and try again".to_owned(),
        })
    }

    fn details(&self) -> Vec<String> {
        let (expected, found) = match self {
            Self::Line { fault: Fault::BrokenChain { expected, found }, .. } => {
                (expected, Some(found))
            }
            Self::NotAnExtension { locked, found, .. } => (locked, found.as_ref()),
            _ => return Vec::new(),
        };
        let mut details = vec![format!("expected sha256 {expected}")];
        details.extend(found.map(|found| format!("found    sha256 {found}")));
        details
    }
}
