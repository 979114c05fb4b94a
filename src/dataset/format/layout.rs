//! Where the fields of a format lie in a file of Parquet.
//!
//! Rows of nothing but roles and texts, which most are, are read straight from the columns;
//! others by way of JSON, to the same result.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::{DataType, Fields};
use arrow::record_batch::RecordBatch;

use super::super::conversation::{Conversation, Json};
use super::super::sample::Sample;
use super::super::source::SourceError;
use super::message::{ROLES, turn};
use super::{Field, FormatError, Kind, LayoutError, columns, fields, read};
use crate::recipe::Format;

/// Where the fields of a format lie in a file.
#[derive(Clone, Debug)]
pub struct Layout {
    format: Format,
    /// Fields that the file has, and its names for them.
    columns: Vec<(&'static str, String)>,
}

impl Layout {
    /// Checks that a file has the columns of a format, under the names of `columns` (field to
    /// column), and that they can hold it.
    pub fn new(
        path: &Path,
        format: Format,
        columns: &BTreeMap<String, String>,
        found: &Fields,
    ) -> Result<Self, SourceError> {
        check_names(format, columns)?;
        let mut there = Vec::new();
        for Field { name, kind, required } in fields(format) {
            let mapped = columns.get(*name);
            let column = mapped.map_or(*name, String::as_str);
            let Some((_, field)) = found.find(column) else {
                // A column that is named is meant, even if rows could do without it.
                if *required || mapped.is_some() {
                    let found = found.iter().map(|field| field.name().clone()).collect();
                    let (path, column) = (path.to_owned(), column.to_owned());
                    return Err(
                        LayoutError::MissingColumn { path, field: name, column, found }.into()
                    );
                }
                continue;
            };
            // A column of nothing but nulls has no type of its own.
            if *field.data_type() != DataType::Null && !fits(*kind, field.data_type()) {
                let (path, found) = (path.to_owned(), field.data_type().to_string());
                let (column, expected) = (column.to_owned(), expected(*kind));
                return Err(LayoutError::WrongType { path, column, expected, found }.into());
            }
            there.push((*name, column.to_owned()));
        }
        Ok(Self { format, columns: there })
    }

    /// The columns that rows are read from.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(_, column)| column.as_str())
    }

    /// What a row holds for the model. `row` is below the batch's number of rows; columns that
    /// are not in the batch are absent.
    pub fn sample(&self, rows: &RecordBatch, row: usize) -> Result<Sample, FormatError> {
        if self.format == Format::Chat
            && let Some(conversation) = self.plain(rows, row)
        {
            return Ok(Sample::Conversation(conversation));
        }
        let mut take = |field: &'static str| match self.column(rows, field) {
            Some(column) => columns::value(column, row),
            None => Ok(None),
        };
        read(self.format, &mut take).map_err(|error| self.named(error))
    }

    pub(super) fn column<'a>(&self, rows: &'a RecordBatch, field: &str) -> Option<&'a dyn Array> {
        let (_, name) = self.columns.iter().find(|(name, _)| *name == field)?;
        rows.column_by_name(name).map(AsRef::as_ref)
    }

    /// The error by the file's own name for the column.
    fn named(&self, mut error: FormatError) -> FormatError {
        if let Some((_, column)) = self.columns.iter().find(|(field, _)| *field == error.column) {
            error.column.clone_from(column);
        }
        error
    }

    /// A chat of roles and texts only; `None` where there is more to it, or something wrong.
    pub(super) fn plain(&self, rows: &RecordBatch, row: usize) -> Option<Conversation> {
        let nothing = |field| self.column(rows, field).is_none_or(|column| column.is_null(row));
        if !nothing("tools") || !nothing("documents") {
            return None;
        }
        let lists = self.column(rows, "messages")?.as_list_opt::<i32>()?;
        if lists.is_null(row) {
            return None;
        }
        let turns = lists.values().as_struct_opt()?;
        let (mut roles, mut contents): (Option<&StringArray>, Option<&StringArray>) = (None, None);
        for (name, column) in turns.column_names().into_iter().zip(turns.columns()) {
            match name {
                "role" => roles = column.as_string_opt(),
                "content" => contents = column.as_string_opt(),
                _ if column.null_count() == column.len() => {}
                _ => return None,
            }
        }
        let (roles, contents) = (roles?, contents?);
        let offsets = lists.value_offsets();
        let (start, end) = (*offsets.get(row)?, *offsets.get(row + 1)?);
        let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
        let message = |index: usize| -> Option<Json> {
            let there = turns.is_valid(index) && roles.is_valid(index) && contents.is_valid(index);
            let role = Some(roles.value(index)).filter(|role| there && ROLES.contains(role))?;
            Some(turn(role, contents.value(index).to_owned()))
        };
        let messages: Option<Vec<Json>> = (start..end).map(message).collect();
        let messages = messages.filter(|messages| !messages.is_empty())?;
        Some(Conversation { messages, ..Conversation::default() })
    }
}

/// Refuses a mapping of what is no field of the format.
pub fn check_names(format: Format, columns: &BTreeMap<String, String>) -> Result<(), LayoutError> {
    let known = || fields(format).iter().map(|field| field.name);
    match columns.keys().find(|name| known().all(|known| known != *name)) {
        Some(field) => {
            Err(LayoutError::UnknownField { field: field.clone(), known: known().collect() })
        }
        None => Ok(()),
    }
}

fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "STRING",
        Kind::Messages => "LIST<STRUCT<role STRING, content STRING>>",
        Kind::Turns => "LIST<STRUCT<from STRING, value STRING>>",
        Kind::TextOrMessages => "STRING or LIST<STRUCT<role STRING, content STRING>>",
        Kind::Objects => "STRING (of JSON) or LIST<STRUCT>",
        Kind::Pairs => "LIST<LIST<STRING>>",
        Kind::Label => "BOOLEAN",
    }
}

fn fits(kind: Kind, found: &DataType) -> bool {
    match kind {
        Kind::Text => is_text(found),
        Kind::Messages => is_list_of(found, &[&["role"], &["content"]]),
        Kind::Turns => is_list_of(found, &[&["from", "role"], &["value", "content"]]),
        Kind::TextOrMessages => fits(Kind::Text, found) || fits(Kind::Messages, found),
        Kind::Objects => is_text(found) || is_list_of(found, &[]),
        Kind::Pairs => item(found).and_then(item).is_some_and(is_text),
        Kind::Label => *found == DataType::Boolean || found.is_integer(),
    }
}

fn is_text(found: &DataType) -> bool {
    matches!(found, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn item(found: &DataType) -> Option<&DataType> {
    match found {
        DataType::List(item) | DataType::LargeList(item) => Some(item.data_type()),
        _ => None,
    }
}

/// A list of structs that have one key of each of `keys`: the first of them a text, the
/// second a text or a list of parts.
fn is_list_of(found: &DataType, keys: &[&[&str]]) -> bool {
    let Some(DataType::Struct(fields)) = item(found) else { return false };
    keys.iter().enumerate().all(|(index, names)| {
        let field = names.iter().find_map(|name| fields.find(name));
        field.is_some_and(|(_, field)| {
            let found = field.data_type();
            is_text(found) || (index > 0 && is_list_of(found, &[]))
        })
    })
}
