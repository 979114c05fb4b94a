//! What a teacher says, to Parquet.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeBinaryBuilder, Float32Array, Int32Array, ListArray, RecordBatch, StringArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::{FOOTER_KEY, Header, Key, LogitsError, Said};

/// Rows after which a row group ends; a document is never divided.
const GROUP_ROWS: usize = 16_384;

/// Rows of a page: what has to be decoded to reach one document.
const PAGE_ROWS: usize = 256;

/// Written as the file's author: the parquet crate's own words would change with its version.
const CREATED_BY: &str = "heirloom logits 1";

const ZSTD_LEVEL: i32 = 3;

/// Width of a [`Key`].
const DIGEST: i32 = 32;

/// Writes what a teacher says, document by document.
pub struct Writer<W: Write + Send> {
    schema: SchemaRef,
    parquet: ArrowWriter<W>,
    top_k: usize,
    rows: Vec<(String, Key, i32)>,
    said: Said,
}

impl<W: Write + Send> Writer<W> {
    /// Begins a file.
    pub fn new(to: W, header: &Header) -> Result<Self, LogitsError> {
        let text = serde_json::to_string(header)
            .map_err(|error| LogitsError::Columns { reason: error.to_string() })?;
        let level = ZstdLevel::try_new(ZSTD_LEVEL).map_err(failed)?;
        let properties = WriterProperties::builder()
            .set_created_by(CREATED_BY.to_owned())
            .set_compression(Compression::ZSTD(level))
            // Groups end where `push` says so.
            .set_max_row_group_row_count(None)
            .set_data_page_row_count_limit(PAGE_ROWS)
            .set_write_batch_size(PAGE_ROWS)
            .set_key_value_metadata(Some(vec![KeyValue::new(FOOTER_KEY.to_owned(), text)]))
            .build();
        let schema = schema();
        let parquet =
            ArrowWriter::try_new(to, Arc::clone(&schema), Some(properties)).map_err(failed)?;
        let top_k = header.top_k;
        Ok(Self { schema, parquet, top_k, rows: Vec::new(), said: Said::default() })
    }

    /// Adds what is said to a document of a row.
    pub fn push(&mut self, record_id: &str, key: Key, said: &Said) -> Result<(), LogitsError> {
        let rows = said.positions.iter();
        self.rows.extend(rows.map(|position| (record_id.to_owned(), key, *position)));
        self.said.extend(said);
        if self.rows.len() >= GROUP_ROWS { self.end_group() } else { Ok(()) }
    }

    fn end_group(&mut self) -> Result<(), LogitsError> {
        let (rows, said) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.said));
        if rows.is_empty() {
            return Ok(());
        }
        let misfit =
            |error: arrow::error::ArrowError| LogitsError::Columns { reason: error.to_string() };
        let mut keys = FixedSizeBinaryBuilder::with_capacity(rows.len(), DIGEST);
        for (_, key, _) in &rows {
            keys.append_value(key).map_err(misfit)?;
        }
        let list = |kind, values: ArrayRef| {
            let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(self.top_k, rows.len()));
            ListArray::try_new(Arc::new(element(kind)), offsets, values, None)
        };
        let ids = Arc::new(Int32Array::from(said.ids));
        let logprobs = Arc::new(Float32Array::from(said.logprobs));
        let names = rows.iter().map(|(record_id, _, _)| record_id.as_str());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(names)),
            Arc::new(keys.finish()),
            Arc::new(Int32Array::from(said.positions)),
            Arc::new(list(DataType::Int32, ids).map_err(misfit)?),
            Arc::new(list(DataType::Float32, logprobs).map_err(misfit)?),
            Arc::new(Float32Array::from(said.rest)),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(misfit)?;
        self.parquet.write(&batch).and_then(|()| self.parquet.flush()).map_err(failed)
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<(), LogitsError> {
        self.end_group()?;
        self.parquet.close().map(|_| ()).map_err(failed)
    }
}

fn schema() -> SchemaRef {
    let list = |kind| DataType::List(Arc::new(element(kind)));
    let fields = [
        ("record_id", DataType::Utf8),
        ("document", DataType::FixedSizeBinary(DIGEST)),
        ("position", DataType::Int32),
        ("ids", list(DataType::Int32)),
        ("logprobs", list(DataType::Float32)),
        ("rest", DataType::Float32),
    ];
    let fields = fields.into_iter().map(|(name, kind)| Field::new(name, kind, false));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// As the Parquet format names what a list holds.
fn element(kind: DataType) -> Field {
    Field::new("element", kind, false)
}

fn failed(error: ParquetError) -> LogitsError {
    match error {
        ParquetError::External(error) => match error.downcast::<std::io::Error>() {
            Ok(error) => LogitsError::Write(*error),
            Err(error) => LogitsError::Columns { reason: error.to_string() },
        },
        error => LogitsError::Columns { reason: error.to_string() },
    }
}
