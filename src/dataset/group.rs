//! The rows of one row group, still in columns.
//!
//! Owns taking single rows out of Arrow columns whose types `source` has checked.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, ListArray, StringArray};
use arrow::record_batch::RecordBatch;

use super::chat::Message;
use super::consent::{ConsentColumns, ConsentRow};
use super::source::SourceError;

/// The rows of one row group. Texts stay in the columns until a row is asked for.
#[derive(Debug)]
pub struct RowGroup {
    path: PathBuf,
    first_row: u64,
    record_id: StringArray,
    messages: ListArray,
    consent: ConsentColumns,
}

impl RowGroup {
    pub(super) fn new(
        path: PathBuf,
        first_row: u64,
        rows: &RecordBatch,
    ) -> Result<Self, SourceError> {
        let strings = |name| rows.column_by_name(name)?.as_string_opt::<i32>().cloned();
        let lists = |name| rows.column_by_name(name)?.as_list_opt::<i32>().cloned();
        let missing =
            |column| SourceError::MissingColumn { path: path.clone(), column, found: Vec::new() };
        let record_id = strings("record_id").ok_or_else(|| missing("record_id"))?;
        if let Some(row) = (0..record_id.len()).find(|row| record_id.is_null(*row)) {
            let row = first_row + row as u64;
            return Err(SourceError::Null { path, column: "record_id", row });
        }
        let consent = ConsentColumns::new(rows)
            .map_err(|source| SourceError::Consent { path: path.clone(), source })?;
        Ok(Self {
            messages: lists("messages").ok_or_else(|| missing("messages"))?,
            record_id,
            consent,
            path,
            first_row,
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
        self.consent.row(row)
    }

    /// The row's conversation.
    pub fn messages(&self, row: usize) -> Result<Vec<Message>, SourceError> {
        let null = |column| SourceError::Null {
            path: self.path.clone(),
            column,
            row: self.row_in_file(row),
        };
        if self.messages.is_null(row) {
            return Err(null("messages"));
        }
        let turns = self.messages.value(row);
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
