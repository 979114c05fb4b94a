//! Parquet as it is found on the hub.

use std::collections::BTreeSet;
use std::path::Path;

use arrow::array::RecordBatch;
use fs_err as fs;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use serde_json::Value;

use super::super::error::ImportError;
use super::super::reject::{Reason, Reject};
use super::Visit;
use crate::dataset::contain::contain;
use crate::dataset::conversation::Json;
use crate::dataset::format;

/// Rows decoded at a time.
const BATCH_ROWS: usize = 256;

/// What is said of a file at which the decoder gave up.
const DAMAGED: &str = "its contents are damaged";

pub(super) fn read(
    path: &Path,
    wanted: Option<&BTreeSet<String>>,
    visit: &mut Visit<'_>,
) -> Result<(), ImportError> {
    let file = fs::File::open(path).map_err(ImportError::read(path))?;
    let size = file.metadata().map_err(ImportError::read(path))?.len();
    let wrong = |reason: String| ImportError::NotParquet { path: path.to_owned(), reason };
    let damaged = || wrong(DAMAGED.to_owned());
    let metadata = metadata(path, &file)?;
    let file = file.into_parts().0;
    let total = u64::try_from(metadata.metadata().file_metadata().num_rows()).unwrap_or_default();
    let schema = metadata.parquet_schema();
    let fields = schema.root_schema().get_fields().iter().enumerate();
    let wants = |name: &str| wanted.is_none_or(|wanted| wanted.contains(name));
    let roots = fields.filter(|(_, field)| wants(field.name())).map(|(index, _)| index);
    let projection = ProjectionMask::roots(schema, roots);
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
    let builder = builder.with_projection(projection).with_batch_size(BATCH_ROWS);
    let mut reader = contain(|| builder.build())
        .ok_or_else(damaged)?
        .map_err(|error| wrong(error.to_string()))?;
    let mut row = 0;
    while let Some(batch) = contain(|| reader.next()).ok_or_else(damaged)? {
        let batch = batch.map_err(|error| wrong(error.to_string()))?;
        for index in 0..batch.num_rows() {
            row += 1;
            // By rows: how many bytes of the file are behind is not known.
            let behind = u128::from(size) * u128::from(row) / u128::from(total.max(1));
            let behind = u64::try_from(behind).unwrap_or(size);
            let found = object(&batch, index, wanted.is_none());
            if visit(row, found, behind)?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The columns of the schema, and the paths that lead into them.
pub(super) fn columns(path: &Path) -> Result<BTreeSet<String>, ImportError> {
    let file = fs::File::open(path).map_err(ImportError::read(path))?;
    let metadata = metadata(path, &file)?;
    let schema = metadata.parquet_schema();
    let mut columns = BTreeSet::new();
    for field in schema.root_schema().get_fields() {
        // Of two, a row as an object would keep the last.
        if !columns.insert(field.name().to_owned()) {
            let reason = format!("the column `{}` stands there twice", field.name());
            return Err(ImportError::NotParquet { path: path.to_owned(), reason });
        }
    }
    for column in schema.columns() {
        let parts = column.path().parts();
        columns.extend((1..=parts.len()).filter_map(|end| Some(parts.get(..end)?.join("."))));
    }
    Ok(columns)
}

fn metadata(path: &Path, file: &fs::File) -> Result<ArrowReaderMetadata, ImportError> {
    let wrong = |reason: String| ImportError::NotParquet { path: path.to_owned(), reason };
    // As everywhere: the types are Parquet's own.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    contain(|| ArrowReaderMetadata::load(file.file(), options))
        .ok_or_else(|| wrong(DAMAGED.to_owned()))?
        .map_err(|error| wrong(error.to_string()))
}

fn object(batch: &RecordBatch, row: usize, lenient: bool) -> Result<Json, Reject> {
    let mut object = Json::with_capacity(batch.num_columns());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let value = match format::value(column.as_ref(), row) {
            Ok(value) => value.unwrap_or(Value::Null),
            Err(_) if lenient => Value::Null,
            Err(wrong) => return Err(Reason::Content(wrong).of(field.name())),
        };
        object.insert(field.name().clone(), value);
    }
    Ok(object)
}
