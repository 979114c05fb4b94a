//! Rows with their consent, as Parquet whose bytes depend on nothing but the rows.
//!
//! Owns the schema (the row columns and the footer key `consent.v1` of consent-bearing data)
//! and the settings of the writer. Does not own which rows there are.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, FixedSizeBinaryBuilder, ListBuilder, RecordBatch, StringBuilder,
    StructBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use crate::Turn;

/// The footer key of consent-bearing data.
const FOOTER_KEY: &str = "consent.v1";
/// Written as the file's author: the parquet crate's own words would change with its version.
const CREATED_BY: &str = "heirloom generate 1";
/// Smaller than the default of 3 by a tenth for these short texts.
const ZSTD_LEVEL: i32 = 9;
/// Width of a keyed digest.
const DIGEST: i32 = 32;

/// What a row says. All rows of a file are of one kind.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// `messages`.
    Chat(Vec<Turn>),
    /// `prompt`, `chosen` and `rejected`.
    Pair { prompt: String, chosen: String, rejected: String },
    /// `prompt`, `completion` and `label`.
    Labelled { prompt: String, completion: String, label: bool },
}

/// A row: what is said, and what its subject agreed to. `None` is null in the file.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) record_id: String,
    pub(crate) said: Said,
    pub(crate) subject_ref: Option<[u8; DIGEST as usize]>,
    pub(crate) basis: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) purposes: Option<Vec<&'static str>>,
    pub(crate) processing: Option<Vec<&'static str>>,
    /// Microseconds since 1970, UTC; so are the next two.
    pub(crate) given_at: Option<i64>,
    pub(crate) expires_at: Option<i64>,
    pub(crate) withdrawn_at: Option<i64>,
    pub(crate) consent_record_id: Option<String>,
    pub(crate) source_id: &'static str,
    pub(crate) license: &'static str,
}

/// Writes `rows` to `path`, `group` rows to a row group, with `footer` as the data set's
/// statement about itself.
pub(crate) fn write(
    path: &Path,
    rows: &[Row],
    group: usize,
    footer: &serde_json::Value,
) -> Result<(), Box<dyn Error>> {
    let properties = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_max_row_group_row_count(Some(group))
        .set_key_value_metadata(Some(vec![KeyValue::new(
            FOOTER_KEY.to_owned(),
            serde_json::to_string(footer)?,
        )]))
        .build();
    let schema = Arc::new(schema(rows));
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, Arc::clone(&schema), Some(properties))?;
    for rows in rows.chunks(group) {
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns(rows)?)?)?;
    }
    writer.close()?;
    heirloom::files::write_atomically_with(path, |file| file.write_all(&bytes))?;
    Ok(())
}

fn message_fields() -> Fields {
    Fields::from(vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::Utf8, false),
    ])
}

fn message_item() -> Field {
    Field::new("item", DataType::Struct(message_fields()), false)
}

fn text_item() -> Field {
    Field::new("item", DataType::Utf8, false)
}

/// The columns, in the order of the file.
fn schema(rows: &[Row]) -> Schema {
    let text = |name: &str, null| Field::new(name, DataType::Utf8, null);
    let texts = |name: &str| Field::new(name, DataType::List(Arc::new(text_item())), true);
    let instant = |name: &str| {
        Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true)
    };
    let said = match rows.first().map(|row| &row.said) {
        Some(Said::Pair { .. }) => {
            vec![text("prompt", false), text("chosen", false), text("rejected", false)]
        }
        Some(Said::Labelled { .. }) => vec![
            text("prompt", false),
            text("completion", false),
            Field::new("label", DataType::Boolean, false),
        ],
        _ => vec![Field::new("messages", DataType::List(Arc::new(message_item())), false)],
    };
    let consent = vec![
        Field::new("subject_ref", DataType::FixedSizeBinary(DIGEST), true),
        text("consent_basis", true),
        text("consent_status", true),
        texts("consent_purposes"),
        texts("consent_processing"),
        instant("consent_given_at"),
        instant("consent_expires_at"),
        instant("consent_withdrawn_at"),
        text("consent_record_id", true),
        text("source_id", false),
        text("license", false),
        text("model_generated", true),
    ];
    Schema::new([vec![text("record_id", false)], said, consent].concat())
}

fn columns(rows: &[Row]) -> Result<Vec<ArrayRef>, Box<dyn Error>> {
    let mut subjects = FixedSizeBinaryBuilder::with_capacity(rows.len(), DIGEST);
    for row in rows {
        match &row.subject_ref {
            Some(digest) => subjects.append_value(digest)?,
            None => subjects.append_null(),
        }
    }
    let said = match rows.first().map(|row| &row.said) {
        Some(Said::Pair { .. }) => vec![
            texts(rows, |row| row.said.prompt()),
            texts(rows, |row| row.said.pair().map(|(chosen, _)| chosen)),
            texts(rows, |row| row.said.pair().map(|(_, rejected)| rejected)),
        ],
        Some(Said::Labelled { .. }) => vec![
            texts(rows, |row| row.said.prompt()),
            texts(rows, |row| row.said.labelled().map(|(completion, _)| completion)),
            labels(rows),
        ],
        _ => vec![messages(rows)],
    };
    let consent: Vec<ArrayRef> = vec![
        Arc::new(subjects.finish()),
        texts(rows, |row| row.basis.as_deref()),
        texts(rows, |row| row.status.as_deref()),
        lists(rows, |row| row.purposes.as_deref()),
        lists(rows, |row| row.processing.as_deref()),
        instants(rows, |row| row.given_at),
        instants(rows, |row| row.expires_at),
        instants(rows, |row| row.withdrawn_at),
        texts(rows, |row| row.consent_record_id.as_deref()),
        texts(rows, |row| Some(row.source_id)),
        texts(rows, |row| Some(row.license)),
        // A rule wrote every row, no model did.
        texts(rows, |_| None),
    ];
    Ok([vec![texts(rows, |row| Some(&row.record_id))], said, consent].concat())
}

impl Said {
    /// The turns of a chat.
    pub(crate) fn turns(self) -> Vec<Turn> {
        if let Self::Chat(turns) = self { turns } else { Vec::new() }
    }

    fn prompt(&self) -> Option<&str> {
        match self {
            Self::Chat(_) => None,
            Self::Pair { prompt, .. } | Self::Labelled { prompt, .. } => Some(prompt),
        }
    }

    fn pair(&self) -> Option<(&str, &str)> {
        let Self::Pair { chosen, rejected, .. } = self else { return None };
        Some((chosen, rejected))
    }

    fn labelled(&self) -> Option<(&str, bool)> {
        let Self::Labelled { completion, label, .. } = self else { return None };
        Some((completion, *label))
    }
}

fn labels(rows: &[Row]) -> ArrayRef {
    let labels = rows.iter().map(|row| row.said.labelled().map(|(_, label)| label));
    Arc::new(labels.collect::<BooleanArray>())
}

fn texts<'a>(rows: &'a [Row], value: impl Fn(&'a Row) -> Option<&'a str>) -> ArrayRef {
    let mut column = StringBuilder::new();
    for row in rows {
        column.append_option(value(row));
    }
    Arc::new(column.finish())
}

fn instants(rows: &[Row], value: impl Fn(&Row) -> Option<i64>) -> ArrayRef {
    let values: Vec<Option<i64>> = rows.iter().map(value).collect();
    Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
}

fn lists<'a>(rows: &'a [Row], value: impl Fn(&'a Row) -> Option<&'a [&'static str]>) -> ArrayRef {
    let mut column = ListBuilder::new(StringBuilder::new()).with_field(text_item());
    for row in rows {
        if let Some(items) = value(row) {
            for item in items {
                column.values().append_value(item);
            }
            column.append(true);
        } else {
            column.append(false);
        }
    }
    Arc::new(column.finish())
}

fn messages(rows: &[Row]) -> ArrayRef {
    let turn = StructBuilder::from_fields(message_fields(), 0);
    let mut column = ListBuilder::new(turn).with_field(message_item());
    for row in rows {
        let Said::Chat(turns) = &row.said else { continue };
        for turn in turns {
            let fields = column.values();
            if let Some(role) = fields.field_builder::<StringBuilder>(0) {
                role.append_value(turn.role);
            }
            if let Some(content) = fields.field_builder::<StringBuilder>(1) {
                content.append_value(&turn.content);
            }
            fields.append(true);
        }
        column.append(true);
    }
    Arc::new(column.finish())
}
