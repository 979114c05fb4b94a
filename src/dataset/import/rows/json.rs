//! JSON lines, and arrays of JSON.

use std::io::{BufRead, BufReader};
use std::path::Path;

use fs_err as fs;
use serde_json::Value;
use serde_json::error::Category;

use super::super::error::ImportError;
use super::super::reject::{Reason, Reject};
use super::{MAX_ROW_BYTES, Visit};
use crate::dataset::conversation::Json;
use crate::json::{self, Fault};

/// How much is read at a time.
const BUFFER_BYTES: usize = 1 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a file of one object a line, or of one array of objects: much of what is called
/// `.json` is JSON lines, so what the file begins with decides.
pub(super) fn read(path: &Path, visit: &mut Visit<'_>) -> Result<(), ImportError> {
    let failed = ImportError::read(path);
    let file = fs::File::open(path).map_err(&failed)?;
    let mut pieces = Pieces {
        reader: BufReader::with_capacity(BUFFER_BYTES, file),
        line: 1,
        behind: 0,
        closed: false,
    };
    let begin = pieces.reader.fill_buf().map_err(&failed)?;
    if is_utf16(begin) {
        return Err(ImportError::Encoding { path: path.to_owned() });
    }
    if begin.starts_with(BYTE_ORDER_MARK) {
        pieces.skip(BYTE_ORDER_MARK.len());
    }
    let array = pieces.first_letter().map_err(&failed)? == Some(b'[');
    let mut piece = Vec::new();
    if array {
        pieces.skip(1);
    }
    loop {
        let next = if array { pieces.element(&mut piece) } else { pieces.line(&mut piece) };
        let Some((line, whole)) = next.map_err(&failed)? else { return Ok(()) };
        if whole && piece.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row = if whole { object(&piece) } else { Err(Reason::TooLong.into()) };
        if visit(line, row, pieces.behind)?.is_break() {
            return Ok(());
        }
    }
}

/// Whether a text begins with the byte order mark of UTF-16, or with one of its letters.
fn is_utf16(begin: &[u8]) -> bool {
    match begin {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [first, second, ..] => (*first == 0) != (*second == 0),
        _ => false,
    }
}

fn object(piece: &[u8]) -> Result<Json, Reject> {
    // Said apart from other faults: it is another thing to mend.
    let text = std::str::from_utf8(piece).map_err(|_| Reason::NotUtf8)?;
    match serde_json::from_str(text) {
        // Of two equal keys the last would win: a withdrawal could hide behind a yes.
        Ok(Value::Object(object)) => match json::check(text) {
            Err(Fault::DuplicateKey { .. }) => Err(Reason::DuplicateKey.into()),
            _ => Ok(object),
        },
        Ok(_) => Err(Reason::NotAnObject.into()),
        Err(error) if is_too_deep(&error) => Err(Reason::TooDeep.into()),
        Err(_) => Err(Reason::NotJson.into()),
    }
}

/// serde_json has no kind of its own for it.
fn is_too_deep(error: &serde_json::Error) -> bool {
    error.classify() == Category::Syntax && error.to_string().starts_with("recursion limit")
}

/// A file in pieces: lines, or elements of an array.
struct Pieces<R> {
    reader: R,
    /// The line of the next byte, from 1.
    line: u64,
    /// Bytes that are read.
    behind: u64,
    /// Whether the array has ended.
    closed: bool,
}

/// Put behind a piece that must not be taken for JSON.
const NO_JSON: u8 = 0;

impl<R: BufRead> Pieces<R> {
    fn skip(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.behind += bytes as u64;
    }

    /// The first letter that is no space, which stays unread.
    fn first_letter(&mut self) -> std::io::Result<Option<u8>> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let Some(&first) = buffer.first() else { return Ok(None) };
            if !first.is_ascii_whitespace() {
                return Ok(Some(first));
            }
            self.line += u64::from(first == b'\n');
            self.skip(1);
        }
    }

    /// Reads up to the first byte for which `ends` holds, and takes that byte too. The piece
    /// is whole unless it is longer than a row may be: then the rest of it is skipped.
    /// `None` at the end of the file.
    fn until(
        &mut self,
        piece: &mut Vec<u8>,
        mut ends: impl FnMut(u8) -> bool,
    ) -> std::io::Result<Option<(bool, bool)>> {
        piece.clear();
        let (mut whole, mut any) = (true, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(any.then_some((whole, false)));
            }
            any = true;
            let end = buffer.iter().position(|byte| ends(*byte));
            let (taken, rest) = buffer.split_at(end.unwrap_or(buffer.len()));
            if whole && piece.len() + taken.len() <= MAX_ROW_BYTES {
                piece.extend_from_slice(taken);
            } else {
                (whole, *piece) = (false, Vec::new());
            }
            self.line += taken.iter().filter(|byte| **byte == b'\n').count() as u64;
            let ended = rest.first().copied();
            self.line += u64::from(ended == Some(b'\n'));
            let bytes = taken.len() + usize::from(ended.is_some());
            self.skip(bytes);
            if ended.is_some() {
                return Ok(Some((whole, true)));
            }
        }
    }

    /// The next line, where it begins, and whether it is whole.
    fn line(&mut self, piece: &mut Vec<u8>) -> std::io::Result<Option<(u64, bool)>> {
        let line = self.line;
        Ok(self.until(piece, |byte| byte == b'\n')?.map(|(whole, _)| (line, whole)))
    }

    /// The next element of an array, where it begins, and whether it is whole. An array that
    /// is cut short, or that something follows, ends with a piece that is no JSON.
    fn element(&mut self, piece: &mut Vec<u8>) -> std::io::Result<Option<(u64, bool)>> {
        let (next, line) = (self.first_letter()?, self.line);
        if self.closed {
            if next.is_some() {
                self.until(piece, |_| false)?;
                piece.push(NO_JSON);
            }
            return Ok(next.map(|_| (line, true)));
        }
        let (mut depth, mut quoted, mut escaped) = (0_u64, false, false);
        let mut closed = false;
        let read = self.until(piece, |byte| {
            if quoted {
                (quoted, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
                return false;
            }
            match byte {
                b'"' => quoted = true,
                b'{' | b'[' => depth += 1,
                b']' if depth == 0 => closed = true,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => return byte == b',' && depth == 0,
            }
            closed
        })?;
        // `None` is the end of the file right behind a comma.
        let (whole, ended) = read.unwrap_or((true, false));
        self.closed = closed || !ended;
        if whole && !ended {
            piece.push(NO_JSON);
        }
        Ok(Some((line, whole)))
    }
}
