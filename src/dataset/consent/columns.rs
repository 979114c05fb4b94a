//! The consent columns of many rows, and the gate over all of them at once.
//!
//! Owns the types that the columns must have and the vectorised gate, which gives every row
//! the verdict of [`judge`](super::judge): the same facts, found once for each distinct value
//! instead of once for each row, and decided by the same lines.

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryArray};
use arrow::record_batch::RecordBatch;
use thiserror::Error;

use super::judge::{Basis, Facts, Standing, decide, rule};
use super::purposes::{includes, includes_processing};
use super::texts::{Instants, Limit, Lists, Texts};
use super::{Ask, COLUMNS, ConsentRow, Dataset, InLedger, Reason, SOURCE, SUBJECT, SUBJECT_WIDTH};
use crate::diagnose::Diagnose;

/// The column that names a row.
const RECORD_ID: &str = "record_id";

/// What can be wrong with the columns of a file, for all its rows.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ColumnError {
    /// Rows without a name cannot be withdrawn.
    #[error("there is no column `{RECORD_ID}`")]
    NoRecordId,
    /// A row without a name cannot be withdrawn.
    #[error("`{RECORD_ID}` is null or empty in row {row} (counted from 0)")]
    NullRecordId {
        /// The row, from 0.
        row: usize,
    },
    /// Two columns of one name cannot both be meant.
    #[error("there are several columns `{column}`")]
    Twice {
        /// Their name.
        column: &'static str,
    },
    /// The values are of another type.
    #[error("the column `{column}` is {found}, not {expected}")]
    WrongType {
        /// The column.
        column: &'static str,
        /// The type that it must have.
        expected: &'static str,
        /// The type that it has.
        found: String,
    },
}

impl Diagnose for ColumnError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoRecordId => {
                format!("give every row a `{RECORD_ID}` that never changes, such as a UUID")
            }
            Self::NullRecordId { .. } => "name the row, or remove it".to_owned(),
            Self::Twice { .. } => "rename or remove all but one".to_owned(),
            Self::WrongType { expected, .. } if *expected == INSTANT => {
                "write the column again as an instant in UTC: without a zone nobody can tell which \
                 instant is meant"
                    .to_owned()
            }
            Self::WrongType { expected, .. } => format!("write the column again as {expected}"),
        })
    }
}

const TEXT: &str = "STRING";
const LIST: &str = "LIST<STRING>";
const INSTANT: &str = "TIMESTAMP(MICROS, UTC)";
const DIGEST: &str = "FIXED_LEN_BYTE_ARRAY(32)";

/// What the rows of a batch record about their consent.
#[derive(Clone, Debug)]
pub struct ConsentColumns {
    record_id: Texts,
    complete: bool,
    basis: Option<Texts>,
    status: Option<Texts>,
    purposes: Option<Lists>,
    processing: Option<Lists>,
    given_at: Option<Instants>,
    expires_at: Option<Instants>,
    withdrawn_at: Option<Instants>,
    consent_record_id: Option<Texts>,
    source_id: Option<Texts>,
    subject: Option<FixedSizeBinaryArray>,
}

impl ConsentColumns {
    /// Takes the consent columns out of a batch, whatever else it has. A column that is absent
    /// leaves all rows without consent; one of another type is an error.
    pub fn new(rows: &RecordBatch) -> Result<Self, ColumnError> {
        let record_id = column(rows, RECORD_ID, TEXT, Texts::new)?;
        let record_id = record_id.ok_or(ColumnError::NoRecordId)?;
        if let Some(row) =
            (0..record_id.len()).find(|row| record_id.get(*row).is_none_or(str::is_empty))
        {
            return Err(ColumnError::NullRecordId { row });
        }
        let texts = |name| column(rows, name, TEXT, Texts::new);
        let lists = |name| column(rows, name, LIST, Lists::new);
        let instants = |name| column(rows, name, INSTANT, Instants::new);
        Ok(Self {
            record_id,
            complete: COLUMNS.iter().all(|name| rows.schema().index_of(name).is_ok()),
            basis: texts("consent_basis")?,
            status: texts("consent_status")?,
            purposes: lists("consent_purposes")?,
            processing: lists("consent_processing")?,
            given_at: instants("consent_given_at")?,
            expires_at: instants("consent_expires_at")?,
            withdrawn_at: instants("consent_withdrawn_at")?,
            consent_record_id: texts("consent_record_id")?,
            source_id: texts(SOURCE)?,
            // A digest that cannot be compared would hide its row from the ledger.
            subject: column(rows, SUBJECT, DIGEST, digests)?,
        })
    }

    /// Rows of the batch.
    pub fn len(&self) -> usize {
        self.record_id.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row's id; empty for a row beyond the last.
    pub fn record_id(&self, row: usize) -> &str {
        self.record_id.get(row).unwrap_or_default()
    }

    /// The keyed digest of whom the row is about.
    pub fn subject(&self, row: usize) -> Option<&[u8; SUBJECT_WIDTH]> {
        let subjects = self.subject.as_ref()?;
        let named = row < subjects.len() && subjects.is_valid(row);
        named.then(|| subjects.value(row))?.try_into().ok()
    }

    /// What the row records about its consent.
    pub fn row(&self, row: usize) -> ConsentRow<'_> {
        ConsentRow {
            complete: self.complete,
            basis: self.basis.as_ref().and_then(|column| column.get(row)),
            status: self.status.as_ref().and_then(|column| column.get(row)),
            purposes: self.purposes.as_ref().and_then(|column| column.get(row)),
            processing: self.processing.as_ref().and_then(|column| column.get(row)),
            given_at: self.given_at.as_ref().and_then(|column| column.get(row)),
            expires_at: self.expires_at.as_ref().and_then(|column| column.get(row)),
            withdrawn_at: self.withdrawn_at.as_ref().and_then(|column| column.get(row)),
            record_id: self.consent_record_id.as_ref().and_then(|column| column.get(row)),
            source_id: self.source_id.as_ref().and_then(|column| column.get(row)),
            has_subject: self.subject(row).is_some(),
        }
    }

    /// The facts of every row, but for the ledger; `None` where an ask has more terms than a
    /// word has bits.
    fn facts(&self, ask: &Ask, dataset: &Dataset) -> Option<Vec<Facts>> {
        let rows = self.len();
        let every_purpose = every(&ask.purpose)?;
        let every_processing = every(&ask.processing)?;
        let purposes = lists(&self.purposes, |term| bits(&ask.purpose, term, includes));
        let processing =
            lists(&self.processing, |term| bits(&ask.processing, term, includes_processing));
        let basis = texts(&self.basis, rows, Basis::of);
        let status = texts(&self.status, rows, Standing::of);
        let sources = texts(&self.source_id, rows, |source| dataset.justifies(source));
        let (at, until) = (Limit::new(ask.at), Limit::new(ask.until));
        let by = |column: &Option<Instants>, row, limit: &Limit| {
            column.as_ref().and_then(|column| column.is_by(row, limit))
        };
        let facts = |row: usize| Facts {
            in_ledger: InLedger::Nothing,
            complete: self.complete,
            basis: at_row(&basis, row),
            status: at_row(&status, row),
            purposes: at_row(&purposes, row).map(|bits| bits == every_purpose),
            processing: at_row(&processing, row).map(|bits| bits == every_processing),
            has_record: self
                .consent_record_id
                .as_ref()
                .and_then(|column| column.get(row))
                .is_some_and(|id| !id.is_empty()),
            has_subject: self.subject(row).is_some(),
            justified: at_row(&sources, row).unwrap_or(false),
            given_later: by(&self.given_at, row, &at) == Some(false),
            ends: by(&self.expires_at, row, &until),
            withdrawn: by(&self.withdrawn_at, row, &until) == Some(true),
        };
        Some((0..rows).map(facts).collect())
    }
}

/// The verdict of [`judge`](super::judge) on every row. `ledger` says what the ledgers have of
/// a record, or of whom it is about.
pub fn judge_rows(
    columns: &ConsentColumns,
    ask: &Ask,
    dataset: &Dataset,
    ledger: impl Fn(&str, Option<&[u8; SUBJECT_WIDTH]>) -> InLedger,
) -> Vec<Result<(), Reason>> {
    let in_ledger = |row| ledger(columns.record_id(row), columns.subject(row));
    let Some(facts) = columns.facts(ask, dataset) else {
        let judge = |row| rule(&columns.row(row), ask, dataset, in_ledger(row));
        return (0..columns.len()).map(|row| judge(row).map_err(|rule| rule.reason())).collect();
    };
    let verdict = |(row, facts): (usize, &Facts)| {
        let facts = Facts { in_ledger: in_ledger(row), ..*facts };
        decide(&facts, ask, dataset).map_err(|rule| rule.reason())
    };
    facts.iter().enumerate().map(verdict).collect()
}

/// A column by its name, made by `make` of the right type.
fn column<C>(
    rows: &RecordBatch,
    name: &'static str,
    expected: &'static str,
    make: impl Fn(&ArrayRef) -> Option<C>,
) -> Result<Option<C>, ColumnError> {
    let schema = rows.schema();
    let mut named = schema.fields().iter().zip(rows.columns()).filter(|(f, _)| f.name() == name);
    let Some((field, values)) = named.next() else { return Ok(None) };
    if named.next().is_some() {
        return Err(ColumnError::Twice { column: name });
    }
    let wrong =
        || ColumnError::WrongType { column: name, expected, found: field.data_type().to_string() };
    make(values).map(Some).ok_or_else(wrong)
}

fn digests(column: &ArrayRef) -> Option<FixedSizeBinaryArray> {
    let digests = column.as_fixed_size_binary_opt()?;
    (usize::try_from(digests.value_length()) == Ok(SUBJECT_WIDTH)).then(|| digests.clone())
}

/// A bit for each term that is asked.
fn every(asked: &[String]) -> Option<u64> {
    match asked.len() {
        64 => Some(u64::MAX),
        terms => 1_u64.checked_shl(u32::try_from(terms).ok()?).map(|bit| bit - 1),
    }
}

/// The bits of the asked terms that `allowed` allows.
fn bits(asked: &[String], allowed: &str, includes: impl Fn(&str, &str) -> bool) -> u64 {
    let bit = |(index, wanted): (usize, &String)| u64::from(includes(allowed, wanted)) << index;
    asked.iter().enumerate().map(bit).fold(0, |all, bit| all | bit)
}

fn texts<A: Copy>(
    column: &Option<Texts>,
    rows: usize,
    question: impl Fn(&str) -> A,
) -> Vec<Option<A>> {
    column.as_ref().map(|column| column.ask(0, rows, question)).unwrap_or_default()
}

fn lists(column: &Option<Lists>, bits: impl Fn(&str) -> u64) -> Vec<Option<u64>> {
    column.as_ref().map(|column| column.bits(bits)).unwrap_or_default()
}

fn at_row<A: Copy>(answers: &[Option<A>], row: usize) -> Option<A> {
    answers.get(row).copied().flatten()
}

#[cfg(test)]
#[path = "columns_tests.rs"]
mod tests;
