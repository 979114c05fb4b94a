//! Reads rows from files, stores and servers, for `scripts/interop` and for measurements:
//!
//! ```text
//! rows NAME [--from ROW] [--count ROWS] [--consent]
//! ```
//!
//! prints one JSON object: the files that `NAME` stands for, how many rows were read from
//! `ROW` of the first file on, a SHA-256 over their ids and texts, and how long it took; or
//! the error and its hint.

use std::error::Error;
use std::time::Instant;

use arrow::array::{Array, ArrayRef, AsArray};
use heirloom::dataset::source::{Columns, SourceError, SourceFile, pin, resolve};
use heirloom::diagnose::Diagnose;
use heirloom::files::hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Rows decoded at a time, as a reader that goes on to tokenise them would.
const SLICE_ROWS: usize = 4096;

struct Arguments {
    name: String,
    from: u64,
    count: u64,
    consent: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let answer = read(&arguments)
        .unwrap_or_else(|error| json!({"error": error.to_string(), "hint": error.hint()}));
    use std::io::Write;
    writeln!(std::io::stdout(), "{answer}")?;
    Ok(())
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut given = std::env::args().skip(1);
    let name = given.next().ok_or("give a path, a pattern or an address")?;
    let mut arguments = Arguments { name, from: 0, count: u64::MAX, consent: false };
    while let Some(option) = given.next() {
        let mut number = || {
            given
                .next()
                .ok_or("a number is lacking")?
                .parse::<u64>()
                .map_err(Box::<dyn Error>::from)
        };
        match option.as_str() {
            "--from" => arguments.from = number()?,
            "--count" => arguments.count = number()?,
            "--consent" => arguments.consent = true,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(arguments)
}

fn read(arguments: &Arguments) -> Result<Value, SourceError> {
    let columns = if arguments.consent { Columns::Consent } else { Columns::And(&["messages"]) };
    let began = Instant::now();
    let names = resolve(&arguments.name)?;
    let (mut hasher, mut rows, mut bytes, mut first) = (Sha256::new(), 0, 0, None);
    let mut left = arguments.count;
    for (number, name) in names.iter().enumerate() {
        let file = SourceFile::open(name)?;
        for (group, group_rows) in file.group_rows().iter().enumerate() {
            let from = if number == 0 { arguments.from } else { 0 };
            let skip = from.saturating_sub(file.first_row(group));
            if skip >= *group_rows || left == 0 {
                continue;
            }
            bytes += file.group_bytes(group, columns).0;
            for slice in file.slices(group, skip, SLICE_ROWS, columns) {
                let slice = slice?;
                let slice = slice.slice(0, slice.num_rows().min(left as usize));
                first.get_or_insert_with(|| began.elapsed().as_secs_f64());
                slice.columns().iter().for_each(|column| digest(column, &mut hasher));
                rows += slice.num_rows() as u64;
                left -= slice.num_rows() as u64;
                if left == 0 {
                    break;
                }
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let pin = names.first().map(|name| pin(name)).transpose()?.flatten();
    Ok(json!({
        "names": names, "rows": rows, "sha256": hex(&hasher.finalize()), "bytes": bytes,
        "first_row_seconds": first, "seconds": seconds, "pin": pin,
    }))
}

/// Every text of a column, with its length, whatever slices it came in.
fn digest(column: &ArrayRef, hasher: &mut Sha256) {
    if let Some(texts) = column.as_string_opt::<i32>() {
        for text in texts {
            let text = text.unwrap_or_default();
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
    } else if let Some(lists) = column.as_list_opt::<i32>() {
        for list in (0..lists.len()).map(|row| lists.value(row)) {
            hasher.update((list.len() as u64).to_le_bytes());
            match list.as_struct_opt() {
                Some(fields) => fields.columns().iter().for_each(|field| digest(field, hasher)),
                None => digest(&list, hasher),
            }
        }
    }
}
