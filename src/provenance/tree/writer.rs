//! Making the tree while the rows pass by once.

use std::path::{Path, PathBuf};

use super::index::IndexWriter;
use super::merkle::{Growing, leaf_hash};
use super::sort::{self, Sorter};
use super::{Algorithm, Commitment, Hash, IndexRow, Key, TreeError, leaf};
use crate::run::RunFolder;

/// Salts drawn from the system at a time.
const SALTS: usize = 128;

/// A row that was seen, in the words of the index.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its id.
    pub record_id: &'a str,
    /// Whom it is about, by a keyed digest.
    pub subject: Option<Hash>,
    /// Its own `record_salt`, where the data carries one; else it gets a random one.
    pub salt: Option<Hash>,
    /// [`super::record_digest`] of its content; a used row has one.
    pub digest: Option<Hash>,
    /// Why it is not used; `None` if it is.
    pub left_out: Option<&'a str>,
}

/// Takes every row of a run, in any order, and writes what the run keeps of them.
#[derive(Debug)]
pub struct TreeWriter {
    folder: PathBuf,
    key: Key,
    salts: Salts,
    sorter: Sorter,
    entry: Vec<u8>,
}

impl TreeWriter {
    /// Begins a tree whose files will lie in `folder`, which exists.
    pub fn new(folder: &Path, key: Key) -> Result<Self, TreeError> {
        Ok(Self {
            folder: folder.to_owned(),
            key,
            salts: Salts::default(),
            sorter: Sorter::new(folder)?,
            entry: Vec::new(),
        })
    }

    /// Adds a row, used or not.
    pub fn add(&mut self, row: &Row<'_>) -> Result<(), TreeError> {
        if row.left_out.is_none() && row.digest.is_none() {
            return Err(TreeError::NoDigest { record_id: row.record_id.to_owned() });
        }
        let salt = match row.salt {
            Some(salt) => salt,
            None => self.salts.next()?,
        };
        let mut key = [0; 64];
        let (token, digest) = key.split_at_mut(32);
        token.copy_from_slice(&self.key.token(row.record_id));
        digest.copy_from_slice(&row.digest.unwrap_or_default());
        encode(row, &salt, &mut self.entry);
        Ok(self.sorter.add(&key, &self.entry)?)
    }

    /// Writes `record_key`, `record_index.parquet` and `record_tree.json`.
    pub fn finish(self) -> Result<Commitment, TreeError> {
        let run = RunFolder::new(&self.folder);
        let mut tree = Growing::default();
        let mut last: Option<Last> = None;
        let sorter = self.sorter;
        IndexWriter::write(&run.record_index(), |index| {
            sorter.drain(|key, entry| {
                let mut row = decode(key, entry)?;
                // A record that comes again with the same content is the same leaf: it takes
                // the first one's salt, and is counted once.
                let same = |last: &Last| last.token == row.token && last.digest == row.digest;
                let again = last.filter(|last| row.digest.is_some() && same(last));
                row.salt = again.map_or(row.salt, |last| last.salt);
                let mut counted = again.is_some_and(|last| last.counted);
                if let (true, false, Some(digest)) = (row.used, counted, &row.digest) {
                    tree.push(leaf_hash(&leaf(&row.token, &row.salt, digest)));
                    counted = true;
                }
                let IndexRow { token, digest, salt, .. } = row;
                last = Some(Last { token, digest, salt, counted });
                index.add(row)
            })
        })?;
        self.key.write(&run.record_key())?;
        let commitment = Commitment {
            algorithm: Algorithm::Rfc6962Sha256,
            size: tree.size(),
            root: tree.root(),
            key_id: self.key.id(),
        };
        commitment.write(&run.record_tree())?;
        Ok(commitment)
    }
}

/// What the next row may be the same as.
#[derive(Clone, Copy)]
struct Last {
    token: Hash,
    digest: Option<Hash>,
    salt: Hash,
    counted: bool,
}

/// Random salts, drawn in blocks: a call of the system for each would take longer than all
/// the hashing.
#[derive(Debug, Default)]
struct Salts {
    block: Vec<Hash>,
}

impl Salts {
    fn next(&mut self) -> Result<Hash, TreeError> {
        if let Some(salt) = self.block.pop() {
            return Ok(salt);
        }
        let mut block = [[0; 32]; SALTS];
        getrandom::fill(block.as_flattened_mut()).map_err(|_| TreeError::Random)?;
        let [first, rest @ ..] = block;
        self.block.extend_from_slice(&rest);
        Ok(first)
    }
}

const USED: u8 = 1;
const DIGESTED: u8 = 2;
const SUBJECT: u8 = 4;

/// A row as it waits to be sorted, without what the key has.
fn encode(row: &Row<'_>, salt: &Hash, into: &mut Vec<u8>) {
    let flag = |is: bool, flag: u8| if is { flag } else { 0 };
    let reason = row.left_out.unwrap_or_default();
    into.clear();
    into.push(
        flag(row.left_out.is_none(), USED)
            | flag(row.digest.is_some(), DIGESTED)
            | flag(row.subject.is_some(), SUBJECT),
    );
    into.extend_from_slice(salt);
    into.extend_from_slice(&row.subject.unwrap_or_default());
    into.extend_from_slice(&(reason.len() as u64).to_le_bytes());
    into.extend_from_slice(reason.as_bytes());
    into.extend_from_slice(row.record_id.as_bytes());
}

fn decode(key: &sort::Key, entry: &[u8]) -> Result<IndexRow, TreeError> {
    let parts = || {
        let (&flags, rest) = entry.split_first()?;
        let (salt, rest) = rest.split_first_chunk::<32>()?;
        let (subject, rest) = rest.split_first_chunk::<32>()?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (reason, id) = rest.split_at_checked(u64::from_le_bytes(*length) as usize)?;
        let (token, rest) = key.split_first_chunk::<32>()?;
        let digest = rest.first_chunk::<32>()?;
        let text = |bytes: &[u8]| Some(std::str::from_utf8(bytes).ok()?.to_owned());
        let used = flags & USED != 0;
        Some(IndexRow {
            record_id: text(id)?,
            subject_ref: (flags & SUBJECT != 0).then_some(*subject),
            token: *token,
            salt: *salt,
            digest: (flags & DIGESTED != 0).then_some(*digest),
            used,
            reason: if used { None } else { Some(text(reason)?) },
        })
    };
    // The file is ours and in a folder of its own: only a failing disk changes it.
    parts()
        .ok_or_else(|| std::io::Error::other("a temporary file of the record tree changed").into())
}
