//! Rows that are not imported: why, and the file that says so.
//!
//! A line of that file names the place of a row and never repeats what it says.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::super::format::{FormatError, Wrong};

/// Why a row is not imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Longer than a row may be.
    TooLong,
    /// Not JSON: cut short, or garbled.
    NotJson,
    /// JSON in which an object has a key twice.
    DuplicateKey,
    /// JSON nested deeper than any row.
    TooDeep,
    /// Not UTF-8.
    NotUtf8,
    /// JSON, but no object.
    NotAnObject,
    /// CSV with more or fewer fields than the header.
    FieldCount,
    /// Not what the format has in this column.
    Content(Wrong),
    /// The chosen and the rejected answer are the same, or one begins the other.
    NoDifference,
    /// Texts where the first rows had messages, or the other way round.
    OtherShape,
    /// The column that names records has nothing for it.
    NoRecordId,
    /// An earlier row has this id.
    DuplicateRecordId,
    /// Nothing is said of its consent, and there is no default.
    NoConsent,
    /// A part of what has to be known of its consent is not said.
    Incomplete,
    /// A consent value that nobody defined, or that cannot be read.
    UndefinedValue,
    /// It rests on consent and names no record of it.
    NoConsentRecord,
    /// It names a consent record that is not among those given.
    UnknownConsentRecord,
    /// The record's events or durations cannot be understood.
    UnclearConsentRecord,
    /// It rests on consent, and its column of subjects does not say whose.
    NoSubject,
    /// Two that speak of its consent contradict each other.
    Contradiction,
    /// It names a source that is not declared.
    UnknownSource,
    /// It is said to be about nobody, and its source does not say why.
    NoJustification,
    /// It is said to be about nobody, and names whom it is about.
    SubjectOfNobody,
}

impl Reason {
    /// Its word in the file and in the counts.
    pub fn code(self) -> &'static str {
        match self {
            Self::TooLong => "too-long",
            Self::NotJson => "not-json",
            Self::DuplicateKey => "duplicate-key",
            Self::TooDeep => "too-deep",
            Self::NotUtf8 => "not-utf8",
            Self::NotAnObject => "row-not-an-object",
            Self::FieldCount => "field-count",
            Self::Content(wrong) => wrong.code(),
            Self::NoDifference => "no-difference",
            Self::OtherShape => "other-shape",
            Self::NoRecordId => "no-record-id",
            Self::DuplicateRecordId => "duplicate-record-id",
            Self::NoConsent => "no-consent",
            Self::Incomplete => "incomplete-consent",
            Self::UndefinedValue => "undefined-value",
            Self::NoConsentRecord => "no-consent-record",
            Self::UnknownConsentRecord => "unknown-consent-record",
            Self::UnclearConsentRecord => "unclear-consent-record",
            Self::NoSubject => "no-subject",
            Self::Contradiction => "contradiction",
            Self::UnknownSource => "unknown-source",
            Self::NoJustification => "no-justification",
            Self::SubjectOfNobody => "subject-of-nobody",
        }
    }
}

/// Why a row is not imported, and which of its columns is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: Reason,
    /// The column, or the key of the declaration.
    pub column: Option<String>,
    /// The message of a list, from 0.
    pub message: Option<usize>,
}

impl Reason {
    /// The same, of a column.
    pub(super) fn of(self, column: &str) -> Reject {
        Reject { reason: self, column: Some(column.to_owned()), message: None }
    }
}

impl From<Reason> for Reject {
    fn from(reason: Reason) -> Self {
        Self { reason, column: None, message: None }
    }
}

impl From<FormatError> for Reject {
    fn from(error: FormatError) -> Self {
        let FormatError { column, turn, wrong } = error;
        Self { reason: Reason::Content(wrong), column: Some(column), message: turn }
    }
}

/// The file of rows that are not imported, and their number by reason.
pub(super) struct Rejects<'a> {
    file: &'a mut dyn Write,
    /// By reason, sorted.
    pub(super) counts: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Line<'a> {
    source: &'a str,
    line: u64,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<usize>,
}

impl<'a> Rejects<'a> {
    pub(super) fn new(file: &'a mut dyn Write) -> Self {
        Self { file, counts: BTreeMap::new() }
    }

    pub(super) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Sets a row aside. `line` is that of the source; in Parquet, the row, from 1.
    pub(super) fn add(&mut self, source: &Path, line: u64, reject: &Reject) -> io::Result<()> {
        let reason = reject.reason.code();
        *self.counts.entry(reason).or_default() += 1;
        let source = source.to_string_lossy();
        let column = reject.column.as_deref();
        let line = Line { source: &source, line, reason, column, message: reject.message };
        serde_json::to_writer(&mut *self.file, &line)?;
        self.file.write_all(b"\n")
    }
}
