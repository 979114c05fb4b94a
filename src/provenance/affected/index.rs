//! Looking records up in the private index of a run, `record_index.parquet`.
//!
//! Reads the two or three columns that a question needs, some thousand rows at a time.
//! Does not own the index's other columns nor the tree over them.

use std::path::Path;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use fs_err as fs;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::reader::ChunkReader;

use super::Question;
use crate::dataset::consent::Ask;
use crate::dataset::contain::contain;
use crate::dataset::ledger::Digest;

/// Name of the index in a run folder.
pub(super) const FILE: &str = "record_index.parquet";

/// Rows decoded at a time.
const BATCH_ROWS: usize = 16 << 10;

const RECORD: &str = "record_id";
const SUBJECT: &str = "subject_ref";
const USED: &str = "used";

/// Rows of the index that a question is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// That the run used.
    pub(super) used: u64,
    /// That the gate left out.
    pub(super) left_out: u64,
}

/// Counts the rows that `question` is about; `ask` is what the run asked of its rows.
pub(super) fn look_up(path: &Path, question: &Question<'_>, ask: &Ask) -> Result<Found, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?.into_parts().0;
    let damaged = || format!("`{}` is damaged", path.display());
    contain(|| count(file, question, ask)).ok_or_else(damaged)?
}

fn count(
    file: impl ChunkReader + 'static,
    question: &Question<'_>,
    ask: &Ask,
) -> Result<Found, String> {
    let told = |error: &dyn std::error::Error| format!("the index is not readable: {error}");
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
        .map_err(|error| told(&error))?;
    let wanted: &[&str] = match question {
        Question::Record(_) => &[RECORD, USED],
        Question::Subject(_) => &[SUBJECT, USED],
        Question::Ledger(_) => &[RECORD, SUBJECT, USED],
    };
    let columns = ProjectionMask::columns(builder.parquet_schema(), wanted.iter().copied());
    let reader = builder.with_projection(columns).with_batch_size(BATCH_ROWS).build();
    let mut found = Found::default();
    for batch in reader.map_err(|error| told(&error))? {
        add(&batch.map_err(|error| told(&error))?, question, ask, &mut found)
            .ok_or("the index has not the columns of an index")?;
    }
    Ok(found)
}

/// `None` where a column is missing or of another type.
fn add(batch: &RecordBatch, question: &Question<'_>, ask: &Ask, found: &mut Found) -> Option<()> {
    let used = batch.column_by_name(USED)?.as_boolean_opt()?;
    let records = || batch.column_by_name(RECORD)?.as_string_opt::<i32>();
    let subjects = || batch.column_by_name(SUBJECT)?.as_fixed_size_binary_opt();
    let is_about: Box<dyn Fn(usize) -> bool> = match *question {
        Question::Record(id) => {
            let records = records()?;
            Box::new(move |row| records.value(row) == id)
        }
        Question::Subject(Digest(subject)) => {
            let subjects = subjects()?;
            Box::new(move |row| subjects.is_valid(row) && subjects.value(row) == subject)
        }
        Question::Ledger(withdrawals) => {
            let (records, subjects) = (records()?, subjects()?);
            Box::new(move |row| {
                let subject = subjects.is_valid(row).then(|| subjects.value(row));
                let subject = subject.and_then(|bytes| bytes.try_into().ok());
                withdrawals.find(records.value(row), subject, ask).is_some()
            })
        }
    };
    for row in (0..batch.num_rows()).filter(|row| is_about(*row)) {
        // Null would be a value that nobody defined; in doubt it was used.
        match used.is_valid(row) && !used.value(row) {
            true => found.left_out += 1,
            false => found.used += 1,
        }
    }
    Some(())
}
