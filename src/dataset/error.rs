//! What can go wrong between files of rows and batches of tokens.

use std::path::PathBuf;

use thiserror::Error;

use super::chat::ChatError;
use super::consent::Counts;
use super::format::FormatError;
use super::ledger::LedgerError;
use super::source::SourceError;
use crate::diagnose::{Blame, Diagnose};
use crate::recipe::lock::Split;

/// Any error of the dataset room that concerns rows. Says where, never what.
#[derive(Debug, Error)]
pub enum DatasetError {
    /// A source of rows.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A conversation.
    #[error("row {row} (counted from 0, record `{record_id}`) of `{path}` cannot be tokenised")]
    Row {
        /// The file.
        path: PathBuf,
        /// Row of the file, from 0.
        row: u64,
        /// Its id.
        record_id: String,
        /// What is wrong with it.
        source: ChatError,
    },
    /// The columns of a row do not hold what its format says.
    #[error("row {row} (counted from 0, record `{record_id}`) of `{path}` cannot be read")]
    Format {
        /// The file.
        path: PathBuf,
        /// Row of the file, from 0.
        row: u64,
        /// Its id.
        record_id: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A row of a suite has no answer to compare with.
    #[error("row {row} (counted from 0, record `{record_id}`) of `{path}` has no answer")]
    NoAnswer {
        /// The file.
        path: PathBuf,
        /// Row of the file, from 0.
        row: u64,
        /// Its id.
        record_id: String,
    },
    /// A ledger of withdrawals.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A conversation is longer than a window.
    #[error(
        "row {row} (counted from 0, record `{record_id}`) of `{path}` has {tokens} tokens, more than `data.sequence_length: {sequence_length}`"
    )]
    Overlong {
        /// The file.
        path: PathBuf,
        /// Row of the file, from 0.
        row: u64,
        /// Its id.
        record_id: String,
        /// Its length.
        tokens: usize,
        /// The length of a window.
        sequence_length: usize,
    },
    /// A held-out conversation, and the answer to it, is longer than the base was made for.
    #[error(
        "row {row} (counted from 0, record `{record_id}`) of `{path}` has {tokens} tokens{}, more than the {positions} positions of the base",
        answered(*.answer)
    )]
    BeyondPositions {
        /// The file.
        path: PathBuf,
        /// Row of the file, from 0.
        row: u64,
        /// Its id.
        record_id: String,
        /// Its length.
        tokens: usize,
        /// Length of the answer that is generated; 0 for none.
        answer: usize,
        /// The base's `max_position_embeddings`.
        positions: usize,
    },
    /// The gate let nothing through.
    #[error("no row of {split} is left after the consent gate: {}", verdict(.counts))]
    NoRowLeft {
        /// Which part of the recipe, in words.
        split: String,
        /// The gate's verdicts.
        counts: Counts,
    },
    /// The gate let nothing of one source through, and a mixture cannot do without.
    #[error("no row of source {source_index} (counted from 0) of `data.train` can be used: {}", verdict(.counts))]
    EmptySource {
        /// Which entry of the list.
        source_index: usize,
        /// The gate's verdicts on its rows.
        counts: Counts,
    },
    /// What the gate let through of one source is not trained on for other reasons.
    #[error(
        "every row of source {source_index} (counted from 0) of `data.train` that may be used is longer than a window or held out"
    )]
    SpentSource {
        /// Which entry of the list.
        source_index: usize,
    },
    /// The share that is held out is no row.
    #[error("`data.validation_split` holds out none of {rows} rows")]
    NothingHeldOut {
        /// Rows that may be used.
        rows: u64,
    },
    /// Every conversation is longer than a window.
    #[error("all {dropped} rows are longer than `data.sequence_length: {sequence_length}`")]
    AllOverlong {
        /// How many there are.
        dropped: u64,
        /// The length of a window.
        sequence_length: usize,
    },
    /// The temporary file of lengths cannot be written or read.
    #[error("the lengths of the rows cannot be kept in a temporary file")]
    Lengths(#[source] std::io::Error),
    /// The thread that reads ahead could not be started.
    #[error("no thread could be started to read the rows")]
    Thread(#[from] std::io::Error),
    /// The thread that reads ahead ended without saying why.
    #[error("reading the rows ended unexpectedly")]
    Worker,
}

impl Diagnose for DatasetError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Source(error) => return error.hint(),
                Self::Row { source, .. } => return source.hint(),
                Self::Format { source, .. } => return source.hint(),
                Self::NoAnswer { .. } => {
                    "a suite compares answers: give rows of conversations that end with the \
                     assistant's"
                }
                Self::Ledger(error) => return error.hint(),
                Self::Overlong { .. } => {
                    "raise `data.sequence_length`, or choose with `data.overlong` what becomes \
                     of such rows: `drop`, `truncate` or `split`"
                }
                Self::BeyondPositions { answer: 0, .. } => "shorten or remove the row",
                Self::BeyondPositions { .. } => {
                    "lower the suite's `max_new_tokens`, or shorten or remove the row"
                }
                Self::NoRowLeft { .. } => {
                    "`heirloom data consent FILE --recipe RECIPE` counts one file, and with \
                     `--explain ID` says which rule decides about a row"
                }
                Self::EmptySource { .. } => {
                    "leave the source out, or see with `heirloom data consent` why its rows \
                     are refused"
                }
                Self::SpentSource { .. } => {
                    "raise `data.sequence_length`, choose another `data.overlong`, lower \
                     `data.validation_split`, or leave the source out"
                }
                Self::NothingHeldOut { .. } => "raise `data.validation_split`",
                Self::AllOverlong { .. } => "raise `data.sequence_length`",
                Self::Lengths(_) => {
                    "free some space, 12 bytes a row, or name another folder for temporary files \
                     in `TMPDIR`"
                }
                Self::Thread(_) => "close other programs, then run the same command again",
                Self::Worker => return None,
            }
            .to_owned(),
        )
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Worker => Blame::Defect,
            _ => Blame::User,
        }
    }
}

/// ` and an answer of up to 128`, or nothing.
fn answered(answer: usize) -> String {
    if answer == 0 { String::new() } else { format!(" and an answer of up to {answer}") }
}

/// `12 rows: 4 expired, 8 missing`.
fn verdict(counts: &Counts) -> String {
    let excluded = counts.excluded.iter().map(|(reason, rows)| format!("{rows} {reason}"));
    let excluded = excluded.collect::<Vec<_>>().join(", ");
    let rows = if counts.seen == 1 { "row" } else { "rows" };
    format!("{} {rows} seen, {}", counts.seen, if excluded.is_empty() { "none" } else { &excluded })
}

/// The key of the recipe that names a split.
pub(super) fn split_name(split: &Split) -> String {
    match split {
        Split::Train => "`data.train`".to_owned(),
        Split::Validation => "`data.validation`".to_owned(),
        Split::Test(suite) => format!("`data.test`, suite `{suite}`"),
    }
}
