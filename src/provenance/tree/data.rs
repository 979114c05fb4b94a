//! The digests of the rows of a file, for whoever wants to compare them with a proof.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{Array as _, AsArray as _};

use super::{Hash, TreeError, record_digest};
use crate::dataset::format::Layout;
use crate::dataset::source::{Columns, RECORD_ID, SourceError, SourceFile};
use crate::recipe::Format;

/// Rows decoded at a time.
const SLICE_ROWS: usize = 4096;

/// The formats that a file's columns may tell, those that ask for more columns first.
const FORMATS: [Format; 7] = [
    Format::Chat,
    Format::Sharegpt,
    Format::Alpaca,
    Format::Preference,
    Format::Kto,
    Format::PromptCompletion,
    Format::Text,
];

/// Hands out the id and the digest of every row of a Parquet file; without a format, that is
/// taken which the columns tell. With `wanted`, only rows of this id are read any further.
pub fn each_digest(
    path: &Path,
    format: Option<Format>,
    wanted: Option<&str>,
    mut visit: impl FnMut(&str, Hash) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    let source = SourceFile::open(path)?;
    let layout = layout(path, format, &source)?;
    let names: Vec<&str> = layout.columns().collect();
    for group in 0..source.group_rows().len() {
        let mut row_in_file = source.first_row(group);
        for rows in source.slices(group, 0, SLICE_ROWS, Columns::And(&names)) {
            let rows = rows?;
            let ids = rows.column_by_name(RECORD_ID).and_then(|ids| ids.as_string_opt::<i32>());
            for row in 0..rows.num_rows() {
                let id = ids.filter(|ids| ids.is_valid(row)).map(|ids| ids.value(row));
                if let Some(id) = id.filter(|id| wanted.is_none_or(|wanted| wanted == *id)) {
                    let sample = layout.sample(&rows, row).map_err(|source| TreeError::Row {
                        path: path.to_owned(),
                        row: row_in_file,
                        source,
                    })?;
                    visit(id, record_digest(&sample)?)?;
                }
                row_in_file += 1;
            }
        }
    }
    Ok(())
}

fn layout(path: &Path, format: Option<Format>, source: &SourceFile) -> Result<Layout, SourceError> {
    let of = |format| Layout::new(path, format, &BTreeMap::new(), source.fields());
    match format {
        Some(format) => of(format),
        // What is said of a file of no format is what a chat lacks.
        None => FORMATS
            .into_iter()
            .find_map(|format| of(format).ok())
            .map_or_else(|| of(Format::Chat), Ok),
    }
}
