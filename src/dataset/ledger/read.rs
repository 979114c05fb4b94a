//! Reading a ledger from its first line to its last, holding each to the line before it.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use fs_err as fs;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::error::{Fault, LedgerError};
use super::event::{Digest, Line};
use crate::files::FileError;

/// Longest line that is read, in bytes without its line feed: thousands of terms.
pub const MAX_LINE_BYTES: usize = 1 << 18;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// Where a ledger ends: what the next line has to follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Number of lines.
    pub(super) seq: u64,
    /// SHA-256 of the last, without its line feed; zeros where there is none.
    pub(super) sha256: Digest,
    /// When the last was recorded.
    pub(super) recorded_at: Timestamp,
}

impl Default for End {
    fn default() -> Self {
        Self { seq: 0, sha256: Digest::default(), recorded_at: Timestamp::MIN }
    }
}

/// The ledger at `path`, to be read; a pipe would be waited on for ever.
pub(super) fn open(path: &Path) -> Result<fs::File, LedgerError> {
    let unreadable = |source| LedgerError::Read { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(unreadable(FileError::NotAFile { path: path.to_owned() }.into()));
    }
    fs::File::open(path).map_err(unreadable)
}

/// Reads every line of `file`, which lies at `path`, and hands it to `take`.
pub(super) fn read(
    file: impl Read,
    path: &Path,
    mut take: impl FnMut(Line) -> Result<(), LedgerError>,
) -> Result<End, LedgerError> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let (mut end, mut bytes) = (End::default(), Vec::new());
    loop {
        let number = end.seq + 1;
        let read = next(&mut reader, &mut bytes)
            .map_err(|source| LedgerError::Read { path: path.to_owned(), source })?;
        let wrong = |fault| LedgerError::Line { path: path.to_owned(), line: number, fault };
        let Some(sha256) = read.map_err(wrong)? else { return Ok(end) };
        let line = Line::parse(&bytes).map_err(wrong)?;
        follows(&line, &end).map_err(wrong)?;
        end = End { seq: number, sha256, recorded_at: line.recorded_at };
        take(line)?;
    }
}

/// The digest of line `seq`, if it is there. Nothing else is looked at.
pub(super) fn digest_of(path: &Path, seq: u64) -> Result<Option<Digest>, LedgerError> {
    let unreadable = |source| LedgerError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, open(path)?);
    for _ in 1..seq {
        reader.skip_until(b'\n').map_err(unreadable)?;
    }
    Ok(next(&mut reader, &mut Vec::new()).map_err(unreadable)?.ok().flatten())
}

/// Reads the next line into `bytes` and digests it; `None` at the end of the file.
fn next(
    reader: &mut impl BufRead,
    bytes: &mut Vec<u8>,
) -> io::Result<Result<Option<Digest>, Fault>> {
    bytes.clear();
    let limit = MAX_LINE_BYTES as u64 + 1;
    let read = reader.take(limit).read_until(b'\n', bytes)?;
    Ok(match bytes.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(Digest(Sha256::digest(&*bytes).into()))),
        Some(_) if read as u64 == limit => Err(Fault::TooLong),
        Some(_) => Err(Fault::CutShort),
    })
}

/// Whether `line` may stand where a ledger ends.
fn follows(line: &Line, end: &End) -> Result<(), Fault> {
    let (expected, found) = (end.seq + 1, line.seq);
    if found != expected {
        return Err(Fault::Sequence { expected, found });
    }
    let (expected, found) = (end.sha256, line.prev_sha256);
    if found != expected {
        return Err(Fault::BrokenChain { expected, found });
    }
    let (before, found) = (end.recorded_at, line.recorded_at);
    if found < before {
        return Err(Fault::Order { before, found });
    }
    Ok(())
}
