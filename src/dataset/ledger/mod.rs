//! The ledger of withdrawals: what ended after rows were written.
//!
//! Rows lie in Parquet, which is never changed; that a consent has ended since is written to
//! `withdrawals.jsonl`, a file that only grows. Each line bears the SHA-256 of the line
//! before it, so that a change anywhere but at the end shows.
//!
//! Owns the ledger's format ([`event`]), reading it strictly ([`Withdrawals::open`]), asking
//! it about a row ([`Withdrawals::find`]), noticing that it has grown
//! ([`Withdrawals::refresh`]) and writing to it ([`append`]). Does not own the gate, which
//! asks, nor what a run does about an answer.
//!
//! References: the event's words are consent statuses of W3C DPV 2.3; times are RFC 3339.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::consent::Ask;
use event::Line;
use read::End;

mod append;
mod error;
mod event;
mod read;
#[cfg(test)]
mod tests;

pub use append::{Appended, NewEvent, append};
pub use error::{Fault, LedgerError};
pub use event::{ANY, Digest, Kind, Scope};
pub use read::MAX_LINE_BYTES;

/// Most events that are read, all ledgers together.
const MAX_EVENTS: u32 = 100_000_000;

/// The end of a chain of postings.
const NONE: u32 = u32::MAX;

/// Half a SHA-256: 128 bits, in which no two ids meet by chance or by design.
type Key = [u8; 16];

/// Every event of some ledgers, by record and by subject. About 90 bytes an event.
#[derive(Debug, Default)]
pub struct Withdrawals {
    files: Vec<LedgerFile>,
    events: Vec<Event>,
    /// Few scopes serve many events.
    scopes: Vec<Scope>,
    /// The newest posting of a record or a subject.
    newest: HashMap<Key, u32>,
    postings: Vec<Posting>,
}

/// One event, and the one before it on the same record or subject.
#[derive(Clone, Copy, Debug)]
struct Posting {
    event: u32,
    before: u32,
}

/// What is kept of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it begins to hold.
    pub effective_at: Timestamp,
    /// Its line in the ledger, from 1.
    pub seq: u32,
    /// What happened.
    pub kind: Kind,
    file: u32,
    scope: u32,
    of_subject: bool,
}

#[derive(Debug)]
struct LedgerFile {
    path: PathBuf,
    stamp: Stamp,
    end: End,
    /// The last event that counts.
    last: u64,
}

/// What changes when a file does: its place on disk, its size, and the time of its change,
/// which nobody can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp([i128; 5]);

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        let place = [metadata.dev(), metadata.ino(), metadata.size()].map(i128::from);
        let [device, inode, size] = place;
        Self([device, inode, size, metadata.ctime().into(), metadata.ctime_nsec().into()])
    }
}

/// How far a ledger had grown: what a run writes down, so that a ledger cut short later is
/// noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The ledger, as it was named.
    pub path: PathBuf,
    /// Number of its events.
    pub seq: u64,
    /// SHA-256 of its last line, without the line feed; zeros where it has none.
    pub sha256: Digest,
}

impl Withdrawals {
    /// Reads ledgers from their first lines to their last. Any fault in any of them is an
    /// error: half a ledger would let rows through.
    pub fn open(paths: &[PathBuf]) -> Result<Self, LedgerError> {
        let mut withdrawals = Self::default();
        let mut scopes = HashMap::new();
        for (number, path) in paths.iter().enumerate() {
            let file = read::open(path)?;
            // Before the first byte: a change while reading is seen by the next look.
            let metadata = file.metadata();
            let metadata =
                metadata.map_err(|source| LedgerError::Read { path: path.clone(), source })?;
            let end = read::read(file, path, |line| withdrawals.add(line, number, &mut scopes))?;
            let stamp = Stamp::of(&metadata);
            let last = u64::MAX;
            withdrawals.files.push(LedgerFile { path: path.clone(), stamp, end, last });
        }
        Ok(withdrawals)
    }

    fn add(
        &mut self,
        line: Line,
        file: usize,
        scopes: &mut HashMap<Scope, u32>,
    ) -> Result<(), LedgerError> {
        let too_many = LedgerError::TooMany { limit: MAX_EVENTS };
        let event = self.events.len() as u32;
        if event >= MAX_EVENTS {
            return Err(too_many);
        }
        let scope = *scopes.entry(line.scope).or_insert_with_key(|scope| {
            self.scopes.push(scope.clone());
            self.scopes.len() as u32 - 1
        });
        self.events.push(Event {
            effective_at: line.effective_at,
            // No larger than the number of events.
            seq: line.seq as u32,
            kind: line.event,
            file: file as u32,
            scope,
            of_subject: line.subject_ref.is_some(),
        });
        let keys = [
            line.record_id.map(|id| record_key(&id)),
            line.subject_ref.map(|Digest(subject)| subject_key(&subject)),
        ];
        for key in keys.into_iter().flatten() {
            let posting = self.postings.len() as u32;
            let before = self.newest.insert(key, posting).unwrap_or(NONE);
            self.postings.push(Posting { event, before });
        }
        Ok(())
    }

    /// An event that forbids the row what is asked: on its record or its subject, in effect
    /// by the planned end, and for one of the purposes and one of the processings.
    ///
    /// By the planned end and not only at the start: an event that binds during the run
    /// leaves the row out from the beginning, as a date of withdrawal in the row does.
    pub fn find(&self, record_id: &str, subject: Option<&[u8; 32]>, ask: &Ask) -> Option<&Event> {
        self.on(record_id, subject).find(|event| self.binds(event, ask))
    }

    /// Whether any event forbids a subject's rows what is asked.
    pub fn by_subjects(&self, ask: &Ask) -> bool {
        let mut events = self.events.iter();
        events.any(|event| event.of_subject && self.counts(event) && self.binds(event, ask))
    }

    fn binds(&self, event: &Event, ask: &Ask) -> bool {
        let scope = self.scope(event);
        event.effective_at <= ask.until && scope.is_none_or(|scope| scope.meets(ask))
    }

    /// Whether it had been written when the ledgers were as they are asked.
    fn counts(&self, event: &Event) -> bool {
        let file = self.files.get(event.file as usize);
        file.is_none_or(|file| u64::from(event.seq) <= file.last)
    }

    /// Every event on a record or its subject, newest first.
    pub fn on(&self, record_id: &str, subject: Option<&[u8; 32]>) -> impl Iterator<Item = &Event> {
        let newest = |key: Key| self.newest.get(&key).copied().unwrap_or(NONE);
        let mut chains = [NONE; 2];
        if !self.events.is_empty() {
            chains = [
                newest(record_key(record_id)),
                subject.map_or(NONE, |subject| newest(subject_key(subject))),
            ];
        }
        chains.into_iter().flat_map(move |mut next| {
            std::iter::from_fn(move || {
                let posting = self.postings.get(next as usize)?;
                next = posting.before;
                self.events.get(posting.event as usize)
            })
            .filter(|event| self.counts(event))
        })
    }

    /// The same, but that events after these heads are not found.
    pub fn as_of(mut self, heads: &[Head]) -> Self {
        for file in &mut self.files {
            let head = heads.iter().find(|head| head.path == file.path);
            file.last = head.map_or(0, |head| head.seq);
        }
        self
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The ledger that an event stands in.
    pub fn ledger(&self, event: &Event) -> &Path {
        self.files.get(event.file as usize).map_or(Path::new(""), |file| &file.path)
    }

    /// For what an event holds.
    pub fn scope(&self, event: &Event) -> Option<&Scope> {
        self.scopes.get(event.scope as usize)
    }

    /// How far every ledger has grown, in the order in which they were named.
    pub fn heads(&self) -> Vec<Head> {
        let head = |file: &LedgerFile| Head {
            path: file.path.clone(),
            seq: file.end.seq,
            sha256: file.end.sha256,
        };
        self.files.iter().map(head).collect()
    }

    /// Checks that these are the ledgers of `before`, grown or not.
    pub fn extends(&self, before: &[Head]) -> Result<(), LedgerError> {
        let other = |path: &Path| Err(LedgerError::OtherLedgers { path: path.to_owned() });
        let now = self.heads();
        if let Some(new) = now.iter().find(|now| !before.iter().any(|head| head.path == now.path)) {
            return other(&new.path);
        }
        for head in before {
            let Some(now) = now.iter().find(|now| now.path == head.path) else {
                return other(&head.path);
            };
            let found = match head.seq {
                0 => Some(Digest::default()),
                seq if seq == now.seq => Some(now.sha256),
                seq if seq < now.seq => read::digest_of(&head.path, seq)?,
                _ => None,
            };
            if found != Some(head.sha256) {
                let (path, seq, locked) = (head.path.clone(), head.seq, head.sha256);
                return Err(LedgerError::NotAnExtension { path, seq, locked, found });
            }
        }
        Ok(())
    }

    /// Looks again: whether a ledger has grown. Costs one look at each file's metadata while
    /// none has changed; a ledger that has is read anew, and must go on from what it was.
    pub fn refresh(&mut self) -> Result<bool, LedgerError> {
        let mut changed = false;
        for LedgerFile { path, stamp, .. } in &self.files {
            let metadata = fs::metadata(path)
                .map_err(|source| LedgerError::Read { path: path.clone(), source })?;
            changed |= Stamp::of(&metadata) != *stamp;
        }
        if changed {
            let paths: Vec<PathBuf> = self.files.iter().map(|file| file.path.clone()).collect();
            let now = Self::open(&paths)?;
            now.extends(&self.heads())?;
            changed = now.heads() != self.heads();
            *self = now;
        }
        Ok(changed)
    }

    /// The events that came after `heads`, in the order of the ledgers.
    pub fn since(&self, heads: &[Head]) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(|event| {
            let before = heads.iter().find(|head| head.path == self.ledger(event));
            before.is_none_or(|head| u64::from(event.seq) > head.seq)
        })
    }
}

fn record_key(record_id: &str) -> Key {
    key(b"record\0", record_id.as_bytes())
}

fn subject_key(subject: &[u8; 32]) -> Key {
    key(b"subject\0", subject)
}

fn key(kind: &[u8], id: &[u8]) -> Key {
    let digest = Sha256::new().chain_update(kind).chain_update(id).finalize();
    let (mut key, half) = (Key::default(), size_of::<Key>());
    key.copy_from_slice(&digest[..half]);
    key
}
