//! What can be wrong with a row of a format, and with a file of such rows.

use std::path::PathBuf;

use thiserror::Error;

use crate::diagnose::Diagnose;
use crate::recipe::problem::{listed, offer};

/// What is wrong with a row, and where in it; never what it says.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("column `{column}`{} {wrong}", in_turn(*.turn))]
pub struct FormatError {
    /// The column.
    pub column: String,
    /// The message of a list, from 0.
    pub turn: Option<usize>,
    /// What is wrong.
    pub wrong: Wrong,
}

fn in_turn(turn: Option<usize>) -> String {
    turn.map(|turn| format!(", message {turn} (counted from 0),")).unwrap_or_default()
}

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Wrong {
    /// No value.
    #[error("has no value")]
    Absent,
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Not a text.
    #[error("is {0} where a text belongs")]
    NotText(&'static str),
    /// Not a list.
    #[error("is {0} where a list belongs")]
    NotList(&'static str),
    /// Not an object.
    #[error("is {0} where an object belongs")]
    NotObject(&'static str),
    /// Not pairs of texts.
    #[error("is not a list of pairs of texts")]
    NotPairs,
    /// Not yes or no.
    #[error("is not `true` or `false`")]
    NotLabel,
    /// Text that is not the JSON it should be.
    #[error("is text that is not JSON")]
    NotJson,
    /// A type of column that holds none of it.
    #[error("has a type that cannot be read")]
    Unreadable,
    /// Not a number or infinite.
    #[error("has a number that is not finite")]
    NotFinite,
    /// No role.
    #[error("has no role")]
    NoRole,
    /// A role nobody knows.
    #[error("has a role that nobody knows")]
    UnknownRole,
    /// Neither text nor a tool call.
    #[error("has no content")]
    NoContent,
    /// A part that is no text.
    #[error("has content that is not text")]
    Part,
    /// A weight that cannot be one.
    #[error("has a weight that is not a number of 0 or more")]
    Weight,
    /// A text beside a list.
    #[error("is a text where the prompt is a list, or the other way round")]
    Mixed,
}

impl Wrong {
    /// The same, of a column.
    pub fn of(self, column: &str) -> FormatError {
        FormatError { column: column.to_owned(), turn: None, wrong: self }
    }

    /// One word for it, for counting.
    pub fn code(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Empty => "empty",
            Self::NotText(_) => "not-text",
            Self::NotList(_) => "not-a-list",
            Self::NotObject(_) => "not-an-object",
            Self::NotPairs => "not-pairs",
            Self::NotLabel => "not-a-label",
            Self::NotJson => "not-json",
            Self::Unreadable => "unreadable-type",
            Self::NotFinite => "not-finite",
            Self::NoRole => "no-role",
            Self::UnknownRole => "unknown-role",
            Self::NoContent => "no-content",
            Self::Part => "content-not-text",
            Self::Weight => "bad-weight",
            Self::Mixed => "mixed",
        }
    }
}

impl Diagnose for FormatError {
    fn hint(&self) -> Option<String> {
        Some(match self.wrong {
            Wrong::NoRole | Wrong::UnknownRole => {
                let roles = super::message::ROLES.into_iter();
                format!("the roles of a message are {}", listed(roles))
            }
            Wrong::Part => "only parts of the form `{type: text, text: …}` are read".to_owned(),
            Wrong::Weight => "write a number of 0 or more, or leave `weight` out".to_owned(),
            _ => "mend the row or leave it out; `heirloom data import` sets such rows aside"
                .to_owned(),
        })
    }
}

/// A file whose columns are not those of the format.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// The mapping names a field that the format does not have.
    #[error("`{field}` is no field of the format")]
    UnknownField {
        /// The field.
        field: String,
        /// Those that it has.
        known: Vec<&'static str>,
    },
    /// A column without which there are no rows of this format.
    #[error("`{path}` has no column `{column}`")]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// What the format calls it.
        field: &'static str,
        /// What the file should call it.
        column: String,
        /// The columns that it has.
        found: Vec<String>,
    },
    /// A column of another type.
    #[error("column `{column}` of `{path}` is {found}, not {expected}")]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The type that it must have.
        expected: &'static str,
        /// The type that it has.
        found: String,
    },
}

impl Diagnose for LayoutError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownField { field, known } => offer(field, known.iter().copied()),
            Self::MissingColumn { field, found, .. } => format!(
                "say with `columns: {{{field}: NAME}}` which it is; it has {}",
                listed(found.iter().map(String::as_str))
            ),
            Self::WrongType { expected, .. } => format!("write the column again as {expected}"),
        })
    }
}
