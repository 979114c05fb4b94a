//! Which columns of a file are decoded, and of which types the gate's must be.

use std::path::Path;

use arrow::datatypes::{DataType, Fields, TimeUnit};
use parquet::arrow::ProjectionMask;
use parquet::schema::types::SchemaDescriptor;

use super::super::consent;
use super::error::SourceError;

/// The column by which a row is named, whatever its format.
pub const RECORD_ID: &str = "record_id";

/// Columns without which there are no rows.
pub(super) const REQUIRED: [&str; 1] = [RECORD_ID];

/// Which columns are decoded.
#[derive(Clone, Copy, Debug)]
pub enum Columns<'a> {
    /// The row's id and what the gate needs.
    Consent,
    /// These too. A name that the file does not have is left out.
    And(&'a [&'a str]),
}

impl Columns<'_> {
    fn wants(self, name: &str) -> bool {
        let content = match self {
            Self::Consent => false,
            Self::And(names) => names.contains(&name),
        };
        content || name == RECORD_ID || is_judged(name)
    }

    /// The same, as the decoder knows it.
    pub(super) fn mask(self, schema: &SchemaDescriptor) -> ProjectionMask {
        let fields = schema.root_schema().get_fields().iter().enumerate();
        let wanted = fields.filter(|(_, field)| self.wants(field.name()));
        ProjectionMask::roots(schema, wanted.map(|(index, _)| index))
    }
}

/// Whether the gate looks at a column.
pub(super) fn is_judged(name: &str) -> bool {
    name == consent::SOURCE || consent::COLUMNS.contains(&name)
}

/// Refuses a file whose rows could not be judged.
pub(super) fn check(path: &Path, fields: &Fields) -> Result<(), SourceError> {
    for column in REQUIRED.into_iter().chain(consent::COLUMNS).chain([consent::SOURCE]) {
        let Some((_, field)) = fields.find(column) else {
            if REQUIRED.contains(&column) {
                let found = fields.iter().map(|field| field.name().clone()).collect();
                return Err(SourceError::MissingColumn { path: path.to_owned(), column, found });
            }
            continue;
        };
        let found = field.data_type();
        let (fits, expected) = match column {
            "messages" => (is_chat(found), "LIST<STRUCT<role STRING, content STRING>>"),
            "consent_purposes" | "consent_processing" => (
                matches!(found, DataType::List(item) if *item.data_type() == DataType::Utf8),
                "LIST<STRING>",
            ),
            // A digest that cannot be compared would hide its row from the ledger.
            consent::SUBJECT => {
                (matches!(found, DataType::FixedSizeBinary(32)), "FIXED_LEN_BYTE_ARRAY(32)")
            }
            _ if column.ends_with("_at") => (
                matches!(found, DataType::Timestamp(unit, Some(_)) if *unit != TimeUnit::Second),
                "TIMESTAMP(MICROS, UTC)",
            ),
            _ => (*found == DataType::Utf8, "STRING"),
        };
        if !fits {
            let (path, found) = (path.to_owned(), found.to_string());
            return Err(SourceError::WrongType { path, column, expected, found });
        }
    }
    Ok(())
}

fn is_chat(found: &DataType) -> bool {
    let DataType::List(item) = found else { return false };
    let DataType::Struct(fields) = item.data_type() else { return false };
    let is_text = |name| fields.find(name).is_some_and(|(_, f)| *f.data_type() == DataType::Utf8);
    is_text("role") && is_text("content")
}
