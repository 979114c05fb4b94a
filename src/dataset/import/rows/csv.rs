//! CSV with a header, as RFC 4180 has it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use fs_err as fs;
use serde_json::Value;

use super::super::error::ImportError;
use super::super::reject::{Reason, Reject};
use super::{MAX_ROW_BYTES, Visit};
use crate::dataset::conversation::Json;

/// Reads a CSV file. Every value is a text; an empty one is none.
pub(super) fn read(path: &Path, visit: &mut Visit<'_>) -> Result<(), ImportError> {
    let file = fs::File::open(path).map_err(ImportError::read(path))?;
    let left = Rc::new(Cell::new(MAX_ROW_BYTES));
    let mut reader = ReaderBuilder::new().from_reader(Limited { file, left: Rc::clone(&left) });
    let names = names(path, &mut reader)?;
    let crlf = reader.position().line() == 1;
    let mut record = ByteRecord::new();
    loop {
        left.set(MAX_ROW_BYTES);
        let row = match reader.read_byte_record(&mut record) {
            Ok(true) => row(&names, &record),
            Ok(false) => return Ok(()),
            Err(error) => match error.kind() {
                ErrorKind::UnequalLengths { .. } => Err(Reason::FieldCount.into()),
                _ => return Err(broken(path, reader.position().line(), error)),
            },
        };
        let line = first_line(&record, reader.position().line(), crlf);
        if visit(line, row, reader.position().byte())?.is_break() {
            return Ok(());
        }
    }
}

/// The names in the header.
pub(super) fn columns(path: &Path) -> Result<BTreeSet<String>, ImportError> {
    let file = fs::File::open(path).map_err(ImportError::read(path))?;
    let left = Rc::new(Cell::new(MAX_ROW_BYTES));
    let mut reader = ReaderBuilder::new().from_reader(Limited { file, left });
    Ok(names(path, &mut reader)?.into_iter().collect())
}

fn names<R: Read>(path: &Path, reader: &mut csv::Reader<R>) -> Result<Vec<String>, ImportError> {
    let header = reader.byte_headers().map_err(|error| broken(path, 1, error))?;
    let names: Result<Vec<String>, _> =
        header.iter().map(|name| String::from_utf8(name.to_vec())).collect();
    let refuse = |reason: &str| {
        let reason = reason.to_owned();
        ImportError::Broken { path: path.to_owned(), line: 1, reason }
    };
    let names = names.map_err(|_| refuse("a name of the header is not UTF-8"))?;
    let twice =
        |index: usize| names.iter().skip(index + 1).any(|name| names.get(index) == Some(name));
    if (0..names.len()).any(twice) {
        return Err(refuse("a name of the header stands there twice"));
    }
    Ok(names)
}

/// The line where a row begins. The reader knows where it was before the row, which is before
/// the line feed of CRLF and before empty lines, and where it is behind it.
fn first_line(record: &ByteRecord, behind: u64, crlf: bool) -> u64 {
    let before = record.position().map_or(0, csv::Position::line) + u64::from(crlf);
    let within = record.iter().flatten().filter(|byte| **byte == b'\n').count() as u64;
    before.max(behind.saturating_sub(within + u64::from(!crlf)))
}

fn row(names: &[String], record: &ByteRecord) -> Result<Json, Reject> {
    let mut row = Json::with_capacity(names.len());
    for (name, value) in names.iter().zip(record) {
        let value = std::str::from_utf8(value).map_err(|_| Reason::NotUtf8.of(name))?;
        let value = if value.is_empty() { Value::Null } else { Value::from(value) };
        row.insert(name.clone(), value);
    }
    Ok(row)
}

fn broken(path: &Path, line: u64, error: csv::Error) -> ImportError {
    match error.into_kind() {
        ErrorKind::Io(source) if source.kind() != io::ErrorKind::FileTooLarge => {
            ImportError::Read { path: path.to_owned(), source }
        }
        ErrorKind::Io(_) => ImportError::Broken {
            path: path.to_owned(),
            line,
            reason: format!(
                "a row has more than {MAX_ROW_BYTES} bytes; perhaps a quote is left open"
            ),
        },
        _ => {
            let reason = "this is not CSV".to_owned();
            ImportError::Broken { path: path.to_owned(), line, reason }
        }
    }
}

/// A file of which no more is read than a row may have: the reader of CSV has no limit of its
/// own, and a quote that is left open makes one row of all that follows.
struct Limited<R> {
    file: R,
    left: Rc<Cell<usize>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        let left = self.left.get().checked_sub(read);
        self.left.set(left.ok_or(io::ErrorKind::FileTooLarge)?);
        Ok(read)
    }
}
