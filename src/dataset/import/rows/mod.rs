//! Files to rows as JSON objects, one at a time.
//!
//! Owns JSON lines, JSON arrays, CSV and Parquet, and what of them is a bad row or a bad
//! file. Whatever the file holds, no more than one row (and of Parquet, a batch of them) is
//! in memory.

mod csv;
mod json;
mod parquet;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use super::error::ImportError;
use super::reject::Reject;
use crate::dataset::conversation::Json;

/// Longest row, in bytes of the source. No training row comes near it; a file without line
/// feeds does.
pub(super) const MAX_ROW_BYTES: usize = 64 << 20;

/// Sees a row, or what is wrong with it, at a line (in Parquet, a row) from 1; and how many
/// bytes of the file are behind it. May end the reading.
pub(super) type Visit<'a> =
    dyn FnMut(u64, Result<Json, Reject>, u64) -> Result<ControlFlow<()>, ImportError> + 'a;

/// Reads the rows of a file. Of Parquet, only the columns in `wanted` are decoded, if it is
/// given; where it is not, columns that cannot be read are null.
pub(super) fn read(
    path: &Path,
    wanted: Option<&BTreeSet<String>>,
    visit: &mut Visit<'_>,
) -> Result<(), ImportError> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    match extension.map(str::to_ascii_lowercase).as_deref() {
        Some("jsonl" | "ndjson" | "json") => json::read(path, visit),
        Some("csv") => csv::read(path, visit),
        Some("parquet") => parquet::read(path, wanted, visit),
        _ => Err(ImportError::Kind { path: path.to_owned() }),
    }
}

/// The columns of a file that has a header or a schema, with the paths that lead into them;
/// `None` where each row has keys of its own.
pub(super) fn columns(path: &Path) -> Result<Option<BTreeSet<String>>, ImportError> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    match extension.map(str::to_ascii_lowercase).as_deref() {
        Some("csv") => csv::columns(path).map(Some),
        Some("parquet") => parquet::columns(path).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
