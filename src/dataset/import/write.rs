//! Rows with their consent to Parquet whose bytes depend on nothing but the rows.
//!
//! Owns the schema of consent-bearing data, the settings of the writer, and row groups that
//! are bounded in rows and bytes, so that readers can rely on it.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, FixedSizeBinaryBuilder, Float64Builder, ListBuilder, RecordBatch,
    StringBuilder, StructBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use jiff::Timestamp;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use serde_json::Value;

use super::consent::RowConsent;
use super::content::{Cell, CellKind, Content, OPTIONAL_COLUMNS, OPTIONAL_KEYS, Shape};
use super::error::ImportError;
use crate::dataset::conversation::Json;

/// Most rows of a row group.
pub const GROUP_ROWS: usize = 8192;

/// Bytes of content after which a row group ends; more by at most one row.
pub const GROUP_BYTES: usize = 16 << 20;

/// Rows of a page: what has to be decoded to reach one of them.
const PAGE_ROWS: usize = 1024;

/// Written as the file's author: the parquet crate's own words would change with its version.
const CREATED_BY: &str = "heirloom data import 1";

const ZSTD_LEVEL: i32 = 3;

/// Width of a keyed digest.
const DIGEST: i32 = 32;

/// Which columns there are.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) shape: Shape,
    /// Optional columns and keys of messages that some row needs.
    pub(super) optional: BTreeSet<&'static str>,
}

impl Layout {
    fn message_fields(&self) -> Fields {
        let keys = OPTIONAL_KEYS.into_iter().filter(|key| self.optional.contains(key));
        let keys = ["role", "content"].into_iter().chain(keys);
        keys.map(|key| {
            let kind = if key == "weight" { DataType::Float64 } else { DataType::Utf8 };
            Field::new(key, kind, true)
        })
        .collect()
    }

    fn content_fields(&self) -> Vec<Field> {
        let fields = self.shape.columns().iter().map(|(name, kind)| {
            let kind = match kind {
                CellKind::Text => DataType::Utf8,
                CellKind::Label => DataType::Boolean,
                CellKind::Messages => list_of(DataType::Struct(self.message_fields())),
            };
            Field::new(*name, kind, true)
        });
        let optional = OPTIONAL_COLUMNS.into_iter().filter(|name| self.optional.contains(name));
        fields.chain(optional.map(|name| Field::new(name, DataType::Utf8, true))).collect()
    }

    /// The columns of the file whose values are seldom the same.
    fn texts(&self) -> Vec<ColumnPath> {
        let mut paths = vec![ColumnPath::from("record_id")];
        for (name, kind) in self.shape.columns() {
            match kind {
                CellKind::Text => paths.push(ColumnPath::from(*name)),
                CellKind::Messages => paths.extend(["content", "reasoning_content"].map(|key| {
                    let parts = [*name, "list", "element", key].map(str::to_owned);
                    ColumnPath::from(parts.to_vec())
                })),
                CellKind::Label => {}
            }
        }
        paths
    }

    fn schema(&self) -> SchemaRef {
        let text = |name: &str, null| Field::new(name, DataType::Utf8, null);
        let texts = |name: &str| Field::new(name, list_of(DataType::Utf8), false);
        let digest = |name: &str| Field::new(name, DataType::FixedSizeBinary(DIGEST), true);
        let instant = |name: &str| {
            Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true)
        };
        let mut fields = vec![text("record_id", false)];
        fields.extend(self.content_fields());
        fields.extend([
            digest("subject_ref"),
            text("consent_basis", false),
            text("consent_status", false),
            texts("consent_purposes"),
            texts("consent_processing"),
            instant("consent_given_at"),
            instant("consent_expires_at"),
            instant("consent_withdrawn_at"),
            text("consent_record_id", true),
            digest("consent_record_digest"),
            text("consent_notice_id", true),
            text("special_category", true),
            text("source_id", false),
            text("license", false),
            text("model_generated", true),
            digest("record_salt"),
        ]);
        Arc::new(Schema::new(fields))
    }
}

/// As the Parquet format names what a list holds.
fn list_of(kind: DataType) -> DataType {
    DataType::List(Arc::new(element(kind)))
}

fn element(kind: DataType) -> Field {
    Field::new("element", kind, true)
}

/// A row that is written.
pub(super) struct Row {
    pub(super) record_id: String,
    pub(super) content: Content,
    pub(super) consent: RowConsent,
}

/// Writes rows, group by group.
pub(super) struct Writer<W: Write + Send> {
    layout: Layout,
    schema: SchemaRef,
    parquet: ArrowWriter<W>,
    rows: Vec<Row>,
    bytes: usize,
}

impl<W: Write + Send> Writer<W> {
    /// Begins a file with the footer `consent`.
    pub(super) fn new(to: W, layout: Layout, consent: String) -> Result<Self, ImportError> {
        let key = crate::dataset::consent::FOOTER_KEY.to_owned();
        let level = ZstdLevel::try_new(ZSTD_LEVEL).map_err(failed)?;
        let mut properties = WriterProperties::builder();
        for column in layout.texts() {
            // Texts do not repeat; a dictionary of them would be thrown away again.
            properties = properties.set_column_dictionary_enabled(column, false);
        }
        let properties = properties
            .set_created_by(CREATED_BY.to_owned())
            .set_compression(Compression::ZSTD(level))
            // Groups end where the writer below says so.
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .set_data_page_row_count_limit(PAGE_ROWS)
            .set_key_value_metadata(Some(vec![KeyValue::new(key, consent)]))
            .build();
        let schema = layout.schema();
        let parquet =
            ArrowWriter::try_new(to, Arc::clone(&schema), Some(properties)).map_err(failed)?;
        Ok(Self { layout, schema, parquet, rows: Vec::new(), bytes: 0 })
    }

    /// Adds a row whose content has about so many bytes.
    pub(super) fn add(&mut self, row: Row, bytes: usize) -> Result<(), ImportError> {
        self.rows.push(row);
        self.bytes += bytes;
        if self.rows.len() < GROUP_ROWS && self.bytes < GROUP_BYTES {
            return Ok(());
        }
        self.end_group()
    }

    fn end_group(&mut self) -> Result<(), ImportError> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let columns = columns(&self.layout, &rows)?;
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| ImportError::Columns { reason: error.to_string() })?;
        self.parquet.write(&batch).and_then(|()| self.parquet.flush()).map_err(failed)
    }

    /// Ends the file.
    pub(super) fn finish(mut self) -> Result<(), ImportError> {
        self.end_group()?;
        self.parquet.close().map(|_| ()).map_err(failed)
    }
}

fn failed(error: ParquetError) -> ImportError {
    match error {
        ParquetError::External(error) => match error.downcast::<std::io::Error>() {
            Ok(error) => ImportError::Write(*error),
            Err(error) => ImportError::Columns { reason: error.to_string() },
        },
        error => ImportError::Columns { reason: error.to_string() },
    }
}

fn columns(layout: &Layout, rows: &[Row]) -> Result<Vec<ArrayRef>, ImportError> {
    let consents = || rows.iter().map(|row| &row.consent);
    let mut columns = vec![texts(rows.iter().map(|row| Some(row.record_id.as_str())))];
    for field in layout.content_fields() {
        let cells = rows.iter().map(|row| row.content.cell(field.name()));
        columns.push(match field.data_type() {
            DataType::Boolean => labels(cells),
            DataType::List(_) => messages(layout.message_fields(), cells),
            _ => texts(cells.map(|cell| match cell {
                Some(Cell::Text(text)) => Some(text.as_str()),
                _ => None,
            })),
        });
    }
    columns.extend([
        digests(consents().map(|c| c.subject_ref.as_ref()))?,
        texts(consents().map(|c| Some(c.basis))),
        texts(consents().map(|c| Some(c.status))),
        lists(consents().map(|c| &c.purposes)),
        lists(consents().map(|c| &c.processing)),
        instants(consents().map(|c| c.given_at)),
        instants(consents().map(|c| c.expires_at)),
        instants(consents().map(|c| c.withdrawn_at)),
        texts(consents().map(|c| c.consent_record_id.as_deref())),
        digests(consents().map(|c| c.digest.as_ref()))?,
        texts(consents().map(|c| c.notice.as_deref())),
        texts(consents().map(|c| c.special_category)),
        texts(consents().map(|c| Some(c.source.as_str()))),
        texts(consents().map(|c| Some(c.license.as_str()))),
        texts(consents().map(|c| c.model_generated.as_deref())),
        // Salts belong to the private index of a run; a file that is shared has none.
        digests(rows.iter().map(|_| None))?,
    ]);
    Ok(columns)
}

fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    let mut column = StringBuilder::new();
    values.for_each(|value| column.append_option(value));
    Arc::new(column.finish())
}

fn labels<'a>(cells: impl Iterator<Item = Option<&'a Cell>>) -> ArrayRef {
    let mut column = BooleanBuilder::new();
    for cell in cells {
        column.append_option(match cell {
            Some(Cell::Label(label)) => Some(*label),
            _ => None,
        });
    }
    Arc::new(column.finish())
}

fn digests<'a>(
    values: impl Iterator<Item = Option<&'a [u8; DIGEST as usize]>>,
) -> Result<ArrayRef, ImportError> {
    let mut column = FixedSizeBinaryBuilder::new(DIGEST);
    for value in values {
        match value {
            Some(digest) => column
                .append_value(digest)
                .map_err(|error| ImportError::Columns { reason: error.to_string() })?,
            None => column.append_null(),
        }
    }
    Ok(Arc::new(column.finish()))
}

fn instants(values: impl Iterator<Item = Option<Timestamp>>) -> ArrayRef {
    let mut column = TimestampMicrosecondBuilder::new().with_timezone("UTC");
    values.for_each(|value| column.append_option(value.map(Timestamp::as_microsecond)));
    Arc::new(column.finish())
}

fn lists<'a>(values: impl Iterator<Item = &'a Vec<String>>) -> ArrayRef {
    let mut column = ListBuilder::new(StringBuilder::new()).with_field(element(DataType::Utf8));
    for words in values {
        for word in words {
            column.values().append_value(word);
        }
        column.append(true);
    }
    Arc::new(column.finish())
}

fn messages<'a>(fields: Fields, cells: impl Iterator<Item = Option<&'a Cell>>) -> ArrayRef {
    let turn = StructBuilder::from_fields(fields.clone(), 0);
    let mut column = ListBuilder::new(turn).with_field(element(DataType::Struct(fields.clone())));
    for cell in cells {
        let Some(Cell::Messages(messages)) = cell else {
            column.append(false);
            continue;
        };
        for message in messages {
            append(column.values(), &fields, message);
        }
        column.append(true);
    }
    Arc::new(column.finish())
}

fn append(turn: &mut StructBuilder, fields: &Fields, message: &Json) {
    for (index, field) in fields.iter().enumerate() {
        let value = message.get(field.name());
        if let Some(texts) = turn.field_builder::<StringBuilder>(index) {
            texts.append_option(value.and_then(Value::as_str));
        } else if let Some(numbers) = turn.field_builder::<Float64Builder>(index) {
            numbers.append_option(value.and_then(Value::as_f64));
        }
    }
    turn.append(true);
}
