//! Writing an event down.
//!
//! A ledger is replaced by its own copy with one line more, under an advisory lock on the
//! file: whoever reads at the same time, and whatever happens in between, there is the old
//! ledger or the new one, never half a line.

use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use fs_err as fs;
use jiff::Timestamp;

use super::error::{Fault, LedgerError};
use super::event::{Digest, Kind, Line, Scope};
use super::read::{self, End, MAX_LINE_BYTES};
use crate::files::place_of_file;

/// What is to be written down.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// The record whose consent ended.
    pub record_id: Option<String>,
    /// The subject whose consent ended, for every record of theirs.
    pub subject_ref: Option<Digest>,
    /// What happened.
    pub event: Kind,
    /// For what.
    pub scope: Scope,
    /// From when on it holds.
    pub effective_at: Timestamp,
    /// SHA-256 of what proves it.
    pub evidence_sha256: Option<Digest>,
}

/// What was written down.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The line.
    pub line: Line,
    /// Whether the ledger begins with it.
    pub created: bool,
}

/// Appends an event to the ledger at `path`, which must hold from its first line to its
/// last; begins the ledger where there is none.
pub fn append(path: &Path, event: NewEvent, now: Timestamp) -> Result<Appended, LedgerError> {
    let unwritable = |source| LedgerError::Write { path: path.to_owned(), source };
    let created = !path.exists();
    let place = place_of_file(path).map_err(unwritable)?;
    let mut locked = lock(&place).map_err(unwritable)?;
    let end = read::read(&mut locked, path, |_| Ok(()))?;
    let line = line(event, &end, now);
    let written = encode(&line)
        .map_err(|fault| LedgerError::Event { path: path.to_owned(), fault })
        .and_then(|bytes| replace(&place, &mut locked, &bytes).map_err(unwritable));
    if written.is_err() && end.seq == 0 && created {
        // Held still: nobody else has begun it in the meantime.
        let _ = fs::remove_file(&place);
    }
    written.map(|()| Appended { line, created: created && end.seq == 0 })
}

/// The line that follows from `end`.
fn line(event: NewEvent, end: &End, now: Timestamp) -> Line {
    let NewEvent { record_id, subject_ref, event, scope, effective_at, evidence_sha256 } = event;
    Line {
        seq: end.seq + 1,
        event_id: uuid::Uuid::new_v4().urn().to_string(),
        record_id,
        subject_ref,
        event,
        scope,
        effective_at,
        // A clock that was set back does not turn the order of the events round.
        recorded_at: now.max(end.recorded_at),
        evidence_sha256,
        prev_sha256: end.sha256,
    }
}

/// The bytes of a line with its line feed, if a reader will take them.
fn encode(line: &Line) -> Result<Vec<u8>, Fault> {
    let mut bytes =
        serde_json::to_vec(line).map_err(|error| Fault::Value { what: error.to_string() })?;
    if bytes.len() > MAX_LINE_BYTES {
        return Err(Fault::TooLong);
    }
    Line::parse(&bytes)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Opens and locks the file that lies at `place` once the lock is held: a ledger is replaced
/// at every event, so the one that was waited for may be an old one.
fn lock(place: &Path) -> io::Result<fs::File> {
    loop {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(place)?;
        file.lock()?;
        let held = file.metadata()?;
        match fs::metadata(place) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => return Ok(file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

/// Puts a copy of `old` with `line` at its end in its place.
fn replace(place: &Path, old: &mut fs::File, line: &[u8]) -> io::Result<()> {
    let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.map_or_else(|| PathBuf::from("."), Path::to_owned);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".heirloom-").suffix(".partial");
    let mut temporary = builder.tempfile_in(&folder)?;
    // A ledger may be kept from others' eyes, and stays so.
    temporary.as_file().set_permissions(old.metadata()?.permissions())?;
    old.seek(SeekFrom::Start(0))?;
    io::copy(old.file_mut(), temporary.as_file_mut())?;
    temporary.as_file_mut().write_all(line)?;
    temporary.as_file().sync_all()?;
    temporary.persist(place).map_err(|error| error.error)?;
    fs::File::open(&folder)?.sync_all()
}
