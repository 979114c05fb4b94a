//! The lock: every input of a run, pinned by digest, and what the plan found in them.
//!
//! `recipe.lock` is JSON. A run may only be resumed, evaluated or exported while its inputs
//! still are what the lock says.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::dataset::consent::{Ask, Counts};
use crate::dataset::ledger::Head;
use crate::dataset::source::{self, SourceError};
use crate::diagnose::Diagnose;
use crate::files::sha256_of_file;
use crate::hub::{self, HubError};
use crate::provenance::statement::Licence;

/// Largest lock that is read, in bytes: some hundred thousand files of rows.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// Contents of `recipe.lock`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version of Heirloom that wrote it.
    pub heirloom: String,
    /// When the plan was made: the start of the run, in UTC.
    pub created: Timestamp,
    /// SHA-256 of the recipe file as the user wrote it.
    pub recipe_sha256: String,
    /// The base on the hub, where it lies there. In `base`, its files are named by its address
    /// at the commit, so that the lock holds wherever a cache lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<Pin>,
    /// Files of the base folder that are read, sorted by path.
    pub base: Vec<LockedFile>,
    /// The model that teaches, where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<LockedTeacher>,
    /// Files of rows, in the order in which they are read.
    pub data: Vec<LockedData>,
    /// What was asked of every row.
    pub ask: Ask,
    /// How far the ledgers of withdrawals had grown.
    #[serde(default)]
    pub ledgers: Vec<Head>,
    /// What training takes.
    pub training: Size,
}

/// A revision on the hub and the commit that it was when the run began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The base that the recipe names: `hf://org/name@revision`.
    pub model: String,
    /// The commit.
    pub commit: String,
}

/// A model whose distributions are learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedTeacher {
    /// What it is called.
    pub name: String,
    /// Package URL with the revision if it lies in the hub's cache, else the name.
    pub uri: String,
    /// Its licence, as its own files state it.
    pub licence: Licence,
    /// Its files, below what the recipe calls it, sorted by path.
    pub files: Vec<LockedFile>,
    /// What it said, where that is read instead of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<LockedFile>,
}

impl LockedTeacher {
    /// The files that are read.
    fn read(&self) -> impl Iterator<Item = &LockedFile> {
        let live = self.files.iter().filter(|_| self.logits.is_none());
        live.chain(&self.logits)
    }
}

/// One input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedFile {
    /// As named by the recipe, or found by its glob.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Of the file; of an object on a server, whose version `remote` pins, that of its Parquet
    /// footer. Lower-case hex.
    pub sha256: String,
    /// The version of an object on a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<source::Pin>,
}

/// Which part of the recipe reads a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// `data.train`.
    Train,
    /// `data.validation`.
    Validation,
    /// `data.test`, by the name of the suite.
    Test(String),
}

/// One file of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedData {
    /// Who reads it.
    pub split: Split,
    /// Which entry of the split's list in the recipe it belongs to.
    pub source: usize,
    /// The file.
    pub file: LockedFile,
    /// The gate's verdict on its rows.
    pub rows: Counts,
    /// SHA-256 over the `record_id`s of the used rows, each followed by a line feed, in file
    /// order: a resumed run must still be allowed the same rows.
    pub used_sha256: String,
    /// Tokens of its rows, with those of each piece and without what is cut off.
    pub tokens: u64,
    /// Of these, tokens that carry loss.
    pub trained_tokens: u64,
}

/// The extent of the training rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Tokens in one pass.
    pub tokens: u64,
    /// Of these, tokens that carry loss.
    pub trained_tokens: u64,
    /// Windows that these fill.
    pub windows: u64,
    /// Rows left out of a pass because they are longer than a window.
    pub dropped_overlong: u64,
    /// Rows of a pass that are truncated or split because they are longer than a window.
    pub cut_overlong: u64,
    /// Training rows that are held out as validation rows.
    pub held_out: u64,
    /// Optimiser steps of each whole pass; passes that `train.max_steps` never begins are not
    /// counted.
    pub steps_by_epoch: Vec<u64>,
    /// Optimiser steps of the run: the sum, or `train.max_steps` if that is less.
    pub steps: u64,
    /// Whether these numbers are an estimate from a sample of the rows.
    #[serde(default)]
    pub estimated: bool,
}

/// A lock that cannot be used, or inputs that are no longer what it says.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The lock, or a locked file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An object on a server cannot be looked at.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file is not a lock.
    #[error("`{}` is not a lock of this version", path.display())]
    NotALock {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// Inputs are no longer what they were.
    #[error("{} changed since the run began", counted(.changes))]
    Changed {
        /// At least one.
        changes: Vec<Change>,
    },
}

fn counted(changes: &[Change]) -> String {
    match changes {
        [change] => format!("`{}` has", change.path.display()),
        _ => format!("{} inputs have", changes.len()),
    }
}

/// An input that is no longer what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// The digest in the lock.
    pub expected: String,
    /// The digest now; `None` when the file is gone.
    pub found: Option<String>,
}

impl Diagnose for LockError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. } => return source.hint(),
            Self::Source(error) => return error.hint(),
            Self::NotALock { .. } => {
                "use the version of Heirloom that wrote it, or start a new run".to_owned()
            }
            Self::Changed { .. } => {
                "put the inputs back as they were, or start a new run with another `--run`"
                    .to_owned()
            }
        })
    }

    fn details(&self) -> Vec<String> {
        let Self::Changed { changes } = self else { return Vec::new() };
        let line = |change: &Change| {
            let found = change.found.as_deref().unwrap_or("no file");
            let path = change.path.display();
            format!("{path}\n  expected sha256 {}\n  found    {found}", change.expected)
        };
        changes.iter().map(line).collect()
    }
}

impl Lock {
    /// Reads the lock at `path`.
    pub fn read(path: &Path) -> Result<Self, LockError> {
        let unreadable = |source| LockError::Read { path: path.to_owned(), source };
        let bytes = fs_err::metadata(path).map_err(unreadable)?.len();
        if bytes > MAX_BYTES {
            return Err(unreadable(io::Error::other(format!(
                "it has {bytes} bytes, more than the {MAX_BYTES} that are read"
            ))));
        }
        let text = fs_err::read_to_string(path).map_err(unreadable)?;
        serde_json::from_str(&text)
            .map_err(|source| LockError::NotALock { path: path.to_owned(), source })
    }

    /// The files of a split, in the order in which they are read.
    pub fn files(&self, split: &Split) -> Vec<PathBuf> {
        let data = self.data.iter().filter(|data| data.split == *split);
        data.map(|data| data.file.path.clone()).collect()
    }

    /// Checks that every input is still what it was.
    pub fn verify(&self) -> Result<(), LockError> {
        let data = self.data.iter().map(|data| &data.file);
        let teacher = self.teacher.iter().flat_map(LockedTeacher::read);
        verify(self.base.iter().chain(teacher).chain(data))
    }

    /// Checks the base only.
    pub fn verify_base(&self) -> Result<(), LockError> {
        verify(&self.base)
    }

    /// Checks the files of one split only.
    pub fn verify_split(&self, split: &Split) -> Result<(), LockError> {
        let data = self.data.iter().filter(|data| data.split == *split);
        verify(data.map(|data| &data.file))
    }
}

/// An address without files in the cache is a file that is gone.
fn absent(error: HubError) -> io::Error {
    match error {
        HubError::NotCached { .. } => io::ErrorKind::NotFound.into(),
        other => io::Error::other(other),
    }
}

fn verify<'a>(files: impl IntoIterator<Item = &'a LockedFile>) -> Result<(), LockError> {
    let mut changes = Vec::new();
    for file in files {
        if let Some(pinned) = &file.remote {
            let now = source::pin(&file.path)?;
            if now.as_ref() != Some(pinned) {
                let (path, expected) = (file.path.clone(), file.sha256.clone());
                let found = now.map(|now| now.footer_sha256);
                changes.push(Change { path, expected, found });
            }
            continue;
        }
        let place = hub::local_file(&file.path);
        let found = match place.map_err(absent).and_then(|place| sha256_of_file(&place)) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(LockError::Read { path: file.path.clone(), source }),
        };
        if found.as_ref() != Some(&file.sha256) {
            let (path, expected) = (file.path.clone(), file.sha256.clone());
            changes.push(Change { path, expected, found });
        }
    }
    changes.dedup();
    if changes.is_empty() { Ok(()) } else { Err(LockError::Changed { changes }) }
}
