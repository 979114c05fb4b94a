//! What is kept of a footer while its file is open.
//!
//! Owns where the columns of every row group lie, and those statistics that the gate looks at.
//! A footer as the `parquet` crate holds it takes 9 kB for each row group, which is a gigabyte
//! for a terabyte of rows: here it is a sixth of that, and the crate's own form is made again
//! for one row group at a time. Reference: `RowGroup` and `ColumnChunk` of the Parquet format.

use std::sync::Arc;

use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::basic::CompressionCodec;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use parquet::schema::types::{ColumnDescPtr, SchemaDescPtr};

use super::columns;
use super::options;

/// The columns of a file's row groups.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    /// Of the file as a whole, without row groups.
    pub(super) file: ArrowReaderMetadata,
    schema: SchemaDescPtr,
    rows: Vec<i64>,
    /// Of one row group after the other, as many as the schema has leaves.
    chunks: Vec<Chunk>,
}

/// A column of a row group.
#[derive(Clone, Debug)]
struct Chunk {
    codec: CompressionCodec,
    values: i64,
    compressed: i64,
    uncompressed: i64,
    data: i64,
    dictionary: Option<i64>,
    /// Offset and length.
    offset_index: Option<(i64, i32)>,
    /// Shared with the row group before, where it is the same: it mostly is.
    statistics: Option<Arc<Statistics>>,
}

impl Footer {
    /// Keeps what is needed of a footer.
    pub(super) fn of(metadata: &ParquetMetaData) -> Result<Self, ParquetError> {
        let about = metadata.file_metadata().clone();
        let schema = about.schema_descr_ptr();
        let file = Arc::new(ParquetMetaData::new(about, Vec::new()));
        let file = ArrowReaderMetadata::try_new(file, options())?;
        let leaves = schema.num_columns();
        let mut rows = Vec::with_capacity(metadata.num_row_groups());
        let mut chunks: Vec<Chunk> = Vec::with_capacity(metadata.num_row_groups() * leaves);
        for group in metadata.row_groups() {
            if group.num_columns() != leaves {
                return Err(ParquetError::General("a row group lacks columns".to_owned()));
            }
            rows.push(group.num_rows());
            for column in group.columns() {
                let before = chunks.len().checked_sub(leaves).and_then(|place| chunks.get(place));
                let chunk = Chunk::of(column, before.and_then(|chunk| chunk.statistics.as_ref()));
                chunks.push(chunk);
            }
        }
        Ok(Self { file, schema, rows, chunks })
    }

    /// Rows of each row group.
    pub(super) fn rows(&self) -> &[i64] {
        &self.rows
    }

    /// A footer of one row group alone, as the decoder wants it.
    pub(super) fn alone(&self, group: usize) -> Option<ParquetMetaData> {
        let about = self.file.metadata().file_metadata().clone();
        Some(ParquetMetaData::new(about, vec![self.row_group(group)?]))
    }

    /// A row group.
    pub(super) fn row_group(&self, group: usize) -> Option<RowGroupMetaData> {
        let leaves = self.schema.num_columns();
        let from = group.checked_mul(leaves)?;
        let chunks = self.chunks.get(from..from.checked_add(leaves)?)?.iter();
        let columns = chunks.zip(self.schema.columns());
        let columns = columns.map(|(chunk, leaf)| chunk.metadata(Arc::clone(leaf)));
        let builder = RowGroupMetaData::builder(Arc::clone(&self.schema));
        let builder = builder.set_num_rows(*self.rows.get(group)?);
        builder.set_column_metadata(columns.collect::<Result<_, _>>().ok()?).build().ok()
    }
}

impl Chunk {
    fn of(column: &ColumnChunkMetaData, before: Option<&Arc<Statistics>>) -> Self {
        let looked_at = column.column_path().parts().first();
        let looked_at = looked_at.is_some_and(|root| columns::is_judged(root));
        let statistics = column.statistics().filter(|_| looked_at);
        let statistics = statistics.map(|statistics| match before {
            Some(before) if **before == *statistics => Arc::clone(before),
            _ => Arc::new(statistics.clone()),
        });
        Self {
            codec: column.compression_codec(),
            values: column.num_values(),
            compressed: column.compressed_size(),
            uncompressed: column.uncompressed_size(),
            data: column.data_page_offset(),
            dictionary: column.dictionary_page_offset(),
            offset_index: column.offset_index_offset().zip(column.offset_index_length()),
            statistics,
        }
    }

    fn metadata(&self, leaf: ColumnDescPtr) -> Result<ColumnChunkMetaData, ParquetError> {
        let builder = ColumnChunkMetaData::builder(leaf)
            .set_compression_codec(self.codec)
            .set_num_values(self.values)
            .set_total_compressed_size(self.compressed)
            .set_total_uncompressed_size(self.uncompressed)
            .set_data_page_offset(self.data)
            .set_dictionary_page_offset(self.dictionary)
            .set_offset_index_offset(self.offset_index.map(|(offset, _)| offset))
            .set_offset_index_length(self.offset_index.map(|(_, length)| length));
        match &self.statistics {
            Some(statistics) => builder.set_statistics(Statistics::clone(statistics)).build(),
            None => builder.build(),
        }
    }
}
