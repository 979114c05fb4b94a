//! The rows of one row group, still in columns.
//!
//! Owns taking single rows out of Arrow columns whose types `source` has checked.

use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StringArray};
use arrow::datatypes::{
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
};
use arrow::record_batch::RecordBatch;
use jiff::Timestamp;

use super::chat::Message;
use super::consent::{self, ConsentRow};
use super::source::SourceError;

/// The rows of one row group. Texts stay in the columns until a row is asked for.
#[derive(Debug)]
pub struct RowGroup {
    path: PathBuf,
    first_row: u64,
    complete: bool,
    record_id: StringArray,
    messages: Option<ListArray>,
    basis: Option<StringArray>,
    status: Option<StringArray>,
    consent_record_id: Option<StringArray>,
    purposes: Option<ListArray>,
    processing: Option<ListArray>,
    given_at: Vec<Option<Timestamp>>,
    expires_at: Vec<Option<Timestamp>>,
    withdrawn_at: Vec<Option<Timestamp>>,
    has_subject: Vec<bool>,
}

impl RowGroup {
    pub(super) fn new(
        path: PathBuf,
        first_row: u64,
        complete: bool,
        rows: &RecordBatch,
    ) -> Result<Self, SourceError> {
        let strings = |name| rows.column_by_name(name)?.as_string_opt::<i32>().cloned();
        let lists = |name| rows.column_by_name(name)?.as_list_opt::<i32>().cloned();
        let instants = |name| rows.column_by_name(name).map(instants).unwrap_or_default();
        let missing =
            |column| SourceError::MissingColumn { path: path.clone(), column, found: Vec::new() };
        let record_id = strings("record_id").ok_or_else(|| missing("record_id"))?;
        if let Some(row) = (0..record_id.len()).find(|row| record_id.is_null(*row)) {
            let row = first_row + row as u64;
            return Err(SourceError::Null { path, column: "record_id", row });
        }
        Ok(Self {
            messages: lists("messages"),
            record_id,
            basis: strings("consent_basis"),
            status: strings("consent_status"),
            consent_record_id: strings("consent_record_id"),
            purposes: lists("consent_purposes"),
            processing: lists("consent_processing"),
            given_at: instants("consent_given_at"),
            expires_at: instants("consent_expires_at"),
            withdrawn_at: instants("consent_withdrawn_at"),
            has_subject: rows.column_by_name(consent::SUBJECT).map(not_null).unwrap_or_default(),
            path,
            first_row,
            complete,
        })
    }

    /// Rows in the group.
    pub fn len(&self) -> usize {
        self.record_id.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The row's place in its file, from 0.
    pub fn row_in_file(&self, row: usize) -> u64 {
        self.first_row + row as u64
    }

    /// The row's id. `row` is below [`RowGroup::len`], as in the other accessors.
    pub fn record_id(&self, row: usize) -> &str {
        self.record_id.value(row)
    }

    /// What the row records about its consent.
    pub fn consent(&self, row: usize) -> ConsentRow<'_> {
        ConsentRow {
            complete: self.complete,
            basis: text(&self.basis, row),
            status: text(&self.status, row),
            purposes: texts(&self.purposes, row),
            processing: texts(&self.processing, row),
            given_at: self.given_at.get(row).copied().flatten(),
            expires_at: self.expires_at.get(row).copied().flatten(),
            withdrawn_at: self.withdrawn_at.get(row).copied().flatten(),
            record_id: text(&self.consent_record_id, row),
            has_subject: self.has_subject.get(row).copied().unwrap_or(false),
        }
    }

    /// The row's conversation.
    pub fn messages(&self, row: usize) -> Result<Vec<Message>, SourceError> {
        let null = |column| SourceError::Null {
            path: self.path.clone(),
            column,
            row: self.row_in_file(row),
        };
        let messages = self.messages.as_ref().filter(|messages| messages.is_valid(row));
        let turns = messages.ok_or_else(|| null("messages"))?.value(row);
        let turns = turns.as_struct_opt().ok_or_else(|| null("messages"))?;
        let column = |name| turns.column_by_name(name)?.as_string_opt::<i32>();
        let roles = column("role").ok_or_else(|| null("messages.role"))?;
        let contents = column("content").ok_or_else(|| null("messages.content"))?;
        roles
            .iter()
            .zip(contents)
            .map(|(role, content)| {
                Ok(Message {
                    role: role.ok_or_else(|| null("messages.role"))?.to_owned(),
                    content: content.ok_or_else(|| null("messages.content"))?.to_owned(),
                })
            })
            .collect()
    }
}

fn text(column: &Option<StringArray>, row: usize) -> Option<&str> {
    column.as_ref().filter(|column| column.is_valid(row)).map(|column| column.value(row))
}

/// The strings of a list; a null among them allows nothing and is left out.
fn texts(column: &Option<ListArray>, row: usize) -> Option<Vec<&str>> {
    let column = column.as_ref().filter(|column| column.is_valid(row))?;
    let (start, end) = (column.value_offsets().get(row)?, column.value_offsets().get(row + 1)?);
    let values = column.values().as_string_opt::<i32>()?;
    let indices = usize::try_from(*start).ok()?..usize::try_from(*end).ok()?;
    Some(indices.filter(|index| values.is_valid(*index)).map(|i| values.value(i)).collect())
}

/// Which values are there, whatever their type.
fn not_null(column: &ArrayRef) -> Vec<bool> {
    match column.logical_nulls() {
        Some(nulls) => nulls.iter().collect(),
        None => vec![true; column.len()],
    }
}

/// Instants beyond the calendar are the calendar's ends, so that comparisons still hold.
fn instants(column: &ArrayRef) -> Vec<Option<Timestamp>> {
    let clamp = |value: i64, instant: Result<Timestamp, jiff::Error>| {
        instant.unwrap_or(if value < 0 { Timestamp::MIN } else { Timestamp::MAX })
    };
    let micros = |v: Option<i64>| v.map(|v| clamp(v, Timestamp::from_microsecond(v)));
    let millis = |v: Option<i64>| v.map(|v| clamp(v, Timestamp::from_millisecond(v)));
    let nanos = |v: Option<i64>| v.map(|v| clamp(v, Timestamp::from_nanosecond(v.into())));
    if let Some(values) = column.as_primitive_opt::<TimestampMicrosecondType>() {
        values.iter().map(micros).collect()
    } else if let Some(values) = column.as_primitive_opt::<TimestampMillisecondType>() {
        values.iter().map(millis).collect()
    } else if let Some(values) = column.as_primitive_opt::<TimestampNanosecondType>() {
        values.iter().map(nanos).collect()
    } else {
        Vec::new()
    }
}
