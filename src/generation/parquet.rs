//! Requests out of Parquet: a column `messages` or `prompt`, and `record_id` or `id`.
//!
//! Unlike `dataset::source`, which reads what is trained on, this asks for no consent
//! columns and for no id.

use std::path::Path;

use arrow::array::{Array as _, AsArray as _, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use fs_err as fs;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use super::GenerationError;
use super::input::{Prompt, Request};
use crate::dataset::contain::contain;
use crate::dataset::conversation::Message;

/// Rows decoded at a time.
const BATCH_ROWS: usize = 1024;

/// What is read, the first of each kind that is there.
const PROMPTS: [&str; 2] = ["messages", "prompt"];
const IDS: [&str; 2] = ["record_id", "id"];

/// The requests of a file, in its order.
pub(super) fn read(path: &Path) -> Result<Vec<Request>, GenerationError> {
    let wrong = |reason: String| GenerationError::NotParquet { path: path.to_owned(), reason };
    let damaged = || wrong("its contents are damaged".to_owned());
    let file = fs::File::open(path)
        .map_err(|source| GenerationError::Read { path: path.to_owned(), source })?;
    let file = file.into_parts().0;
    // The embedded Arrow schema is ignored: types are Parquet's own, whoever wrote it.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = contain(|| ParquetRecordBatchReaderBuilder::try_new_with_options(file, options))
        .ok_or_else(damaged)?
        .map_err(|error| wrong(error.to_string()))?;
    let names: Vec<String> =
        builder.schema().fields().iter().map(|field| field.name().clone()).collect();
    let wanted = |name: &str| PROMPTS.contains(&name) || IDS.contains(&name);
    let roots = names.iter().enumerate().filter(|(_, name)| wanted(name)).map(|(root, _)| root);
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
    let mut reader = contain(|| builder.build())
        .ok_or_else(damaged)?
        .map_err(|error| wrong(error.to_string()))?;
    let mut requests = Vec::new();
    while let Some(batch) = contain(|| reader.next()).ok_or_else(damaged)? {
        let batch = batch.map_err(|error| wrong(error.to_string()))?;
        take(path, &batch, &mut requests)?;
    }
    Ok(requests)
}

fn take(
    path: &Path,
    batch: &RecordBatch,
    requests: &mut Vec<Request>,
) -> Result<(), GenerationError> {
    let first = requests.len() as u64;
    let id = IDS.iter().find_map(|name| strings(batch, name));
    for row in 0..batch.num_rows() {
        let number = first + row as u64;
        let null = |column| GenerationError::Null { path: path.to_owned(), row: number, column };
        let prompt = if let Some(prompts) = strings(batch, "prompt") {
            Prompt::Text(value(prompts, row).ok_or_else(|| null("prompt"))?)
        } else {
            let missing = || GenerationError::NoColumn { path: path.to_owned() };
            let column = batch.column_by_name("messages").ok_or_else(missing)?;
            if !is_chat(column.data_type()) {
                return Err(missing());
            }
            Prompt::Messages(messages(column.as_ref(), row).ok_or_else(|| null("messages"))?)
        };
        let id = id.and_then(|ids| value(ids, row)).map(Value::String);
        requests.push(Request { id, number: number + 1, prompt });
    }
    Ok(())
}

fn strings<'b>(batch: &'b RecordBatch, name: &str) -> Option<&'b StringArray> {
    batch.column_by_name(name)?.as_string_opt::<i32>()
}

fn value(strings: &StringArray, row: usize) -> Option<String> {
    strings.is_valid(row).then(|| strings.value(row).to_owned())
}

fn is_chat(found: &DataType) -> bool {
    let DataType::List(item) = found else { return false };
    let DataType::Struct(fields) = item.data_type() else { return false };
    let is_text = |name| fields.find(name).is_some_and(|(_, f)| *f.data_type() == DataType::Utf8);
    is_text("role") && is_text("content")
}

/// The conversation of a row; `None` where something is null.
fn messages(column: &dyn arrow::array::Array, row: usize) -> Option<Vec<Message>> {
    let lists = column.as_list_opt::<i32>().filter(|lists| lists.is_valid(row))?;
    let turns = lists.value(row);
    let turns = turns.as_struct_opt()?;
    let column = |name| turns.column_by_name(name)?.as_string_opt::<i32>();
    let (roles, contents) = (column("role")?, column("content")?);
    (0..turns.len())
        .map(|turn| Some(Message { role: value(roles, turn)?, content: value(contents, turn)? }))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use parquet::arrow::ArrowWriter;

    use super::*;
    use crate::dataset::fixture;

    fn write(path: &Path, columns: &[(&str, ArrayRef)]) {
        let batch = RecordBatch::try_from_iter(columns.to_vec()).unwrap();
        let file = fs::File::create(path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn conversations_and_prompts_come_with_their_ids() {
        let folder = tempfile::tempdir().unwrap();
        let chats = folder.path().join("chats.parquet");
        fixture::write_rows(&chats, &[fixture::row(0, "a", "b"), fixture::row(1, "c", "d")], 1);
        let requests = read(&chats).unwrap();
        assert_eq!((requests.len(), requests[1].number), (2, 2));
        assert_eq!(requests[1].id, Some(Value::from("row-0001")));
        let Prompt::Messages(messages) = &requests[1].prompt else { panic!() };
        assert_eq!(messages[0].content, "c");

        let prompts = folder.path().join("prompts.parquet");
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
        write(&prompts, &[("prompt", texts)]);
        let requests = read(&prompts).unwrap();
        let expected = Request { id: None, number: 2, prompt: Prompt::Text("y".to_owned()) };
        assert_eq!(requests[1], expected);
    }

    #[test]
    fn other_columns_and_nulls_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.parquet");
        write(&path, &[("prompt", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]);
        assert!(matches!(read(&path), Err(GenerationError::NoColumn { .. })));
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
        write(&path, &[("prompt", texts)]);
        let refused = read(&path).unwrap_err();
        assert!(matches!(refused, GenerationError::Null { row: 1, column: "prompt", .. }));
    }
}
