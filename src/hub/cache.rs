//! The cache on disk, as `huggingface_hub` lays it, so that Python tools and Heirloom share
//! every file.
//!
//! ```text
//! models--ORG--NAME/blobs/DIGEST                 content, by digest
//! models--ORG--NAME/blobs/DIGEST.incomplete      content so far
//! models--ORG--NAME/snapshots/COMMIT/FILE        a relative link to a blob
//! models--ORG--NAME/refs/REVISION                the commit that a branch or tag was
//! models--ORG--NAME/.no_exist/COMMIT/FILE        the model has no such file
//! models--ORG--NAME/trees/COMMIT.json            a listing, where Python tools left one
//! .locks/models--ORG--NAME/DIGEST.lock           one program at a time writes a blob
//! ```

use std::collections::BTreeMap;
use std::fs::TryLockError;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use super::address::{Address, is_commit};
use super::error::HubError;
use super::listing::{Digest, INDEX, Listing, RemoteFile, SIDE_FILES, SINGLE, shards};
use crate::files::write_atomically;

/// Largest listing or index that is read from the cache, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// The version of `trees/COMMIT.json` that is read.
const TREE_FORMAT: u64 = 1;

/// What the cache holds of one model.
#[derive(Clone, Debug)]
pub(super) struct Repo {
    folder: PathBuf,
    locks: PathBuf,
}

#[derive(Deserialize)]
struct Tree {
    format_version: u64,
    files: BTreeMap<String, TreeFile>,
}

#[derive(Deserialize)]
struct TreeFile {
    size: u64,
    blob_id: String,
    lfs_sha256: Option<String>,
    lfs_size: Option<u64>,
}

/// Held while a blob is written; other programs wait, also those in Python.
pub(super) struct Lock {
    _file: fs::File,
}

impl Repo {
    pub(super) fn new(cache: &Path, address: &Address) -> Self {
        let name = format!("models--{}", address.repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a revision was when it was last asked for.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers the commit of a revision. Only once its snapshot is there: a ref to nothing
    /// counts as damage.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_parent(&path)?;
        write_atomically(&path, commit.as_bytes()).map_err(|source| HubError::Io { path, source })
    }

    /// The first file that a commit needs and that is not here, as far as can be known
    /// without its listing: a file of which nothing is known counts only with `certain`.
    pub(super) fn missing(&self, commit: &str, weights: bool, certain: bool) -> Option<String> {
        let snapshot = self.snapshot(commit);
        let there = |name: &str| snapshot.join(name).is_file();
        let settled = |name: &str| {
            there(name) || self.folder.join(".no_exist").join(commit).join(name).exists()
        };
        if !there("config.json") {
            return Some("config.json".to_owned());
        }
        if certain && let Some(name) = SIDE_FILES.iter().chain([&INDEX]).find(|name| !settled(name))
        {
            return Some((*name).to_owned());
        }
        if !weights {
            return None;
        }
        let Some(index) = self.index(commit) else {
            return (!there(SINGLE)).then(|| SINGLE.to_owned());
        };
        match shards(&index) {
            Ok(shards) => shards.into_iter().find(|name| !there(name)),
            Err(_) => Some(INDEX.to_owned()),
        }
    }

    /// The text of the index of a commit's weights.
    pub(super) fn index(&self, commit: &str) -> Option<String> {
        read_limited(&self.snapshot(commit).join(INDEX))
    }

    /// The listing of a commit that Python tools left, if it is sound.
    pub(super) fn listing(&self, address: &Address, commit: &str) -> Option<Listing> {
        let path = self.folder.join("trees").join(format!("{commit}.json"));
        let tree: Tree = serde_json::from_str(&read_limited(&path)?).ok()?;
        if tree.format_version != TREE_FORMAT {
            return None;
        }
        let mut listing = Listing::default();
        for (name, file) in tree.files {
            let (size, digest) = match file.lfs_sha256 {
                Some(oid) => (file.lfs_size.unwrap_or(file.size), Digest::Sha256(oid)),
                None => (file.size, Digest::Git(file.blob_id)),
            };
            let added = listing.add(address, RemoteFile { name, size, digest }).ok()?;
            if !added {
                return None;
            }
        }
        Some(listing)
    }

    /// Notes which files a commit does not have, so that nobody need ask again. What cannot
    /// be noted is asked again.
    pub(super) fn note_absent(&self, commit: &str, listing: &Listing) {
        for name in SIDE_FILES.iter().chain([&INDEX]).filter(|name| !listing.has(name)) {
            let path = self.folder.join(".no_exist").join(commit).join(name);
            if !path.exists() && make_parent(&path).is_ok() {
                let _ = fs::write(&path, b"");
            }
        }
    }

    /// Where a blob lies.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.hex())
    }

    /// Where a blob grows.
    pub(super) fn incomplete(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", digest.hex()))
    }

    /// Bytes of a file that are still to be downloaded.
    pub(super) fn lacking(&self, file: &RemoteFile) -> u64 {
        if self.holds(file) {
            return 0;
        }
        let so_far = fs::metadata(self.incomplete(&file.digest)).map_or(0, |data| data.len());
        file.size.saturating_sub(so_far)
    }

    /// Whether the whole blob is here. A blob of another size was damaged by someone.
    pub(super) fn holds(&self, file: &RemoteFile) -> bool {
        fs::metadata(self.blob(&file.digest)).is_ok_and(|data| data.len() == file.size)
    }

    /// Takes the lock of a blob; calls `wait` where another program has it.
    pub(super) fn lock(&self, digest: &Digest, wait: impl FnOnce()) -> Result<Lock, HubError> {
        let path = self.locks.join(format!("{}.lock", digest.hex()));
        make_parent(&path)?;
        make_parent(&self.blob(digest))?;
        let fail = |source| HubError::Io { path: path.clone(), source };
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(fail)?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                wait();
                file.file().lock().map_err(fail)?;
            }
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        Ok(Lock { _file: file })
    }

    /// Whether a commit's file is here, whole.
    pub(super) fn is_linked(&self, commit: &str, file: &RemoteFile) -> bool {
        let data = fs::metadata(self.snapshot(commit).join(&file.name));
        data.is_ok_and(|data| data.is_file() && data.len() == file.size)
    }

    /// Makes a commit's file a relative link to its blob, whose lock is held.
    pub(super) fn link(&self, commit: &str, file: &RemoteFile) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(&file.name);
        make_parent(&path)?;
        // From `snapshots/COMMIT`, and from as deep in it as the name goes.
        let up = "../".repeat(2 + file.name.matches('/').count());
        let target = format!("{up}blobs/{}", file.digest.hex());
        let made = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => symlink(target, &path),
        };
        made.map_err(|source| HubError::Io { path, source })
    }

    /// Refuses to begin what the disk cannot hold.
    pub(super) fn check_space(&self, needed: u64) -> Result<(), HubError> {
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs)
            .map_err(|source| HubError::Io { path: blobs.clone(), source })?;
        let Ok(disk) = rustix::fs::statvfs(&blobs) else {
            // Some file systems do not say; then the disk itself will.
            return Ok(());
        };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if needed <= free {
            return Ok(());
        }
        Err(HubError::Space { needed, free, folder: blobs })
    }
}

fn make_parent(path: &Path) -> Result<(), HubError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|source| HubError::Io { path: parent.to_owned(), source })
}

fn read_limited(path: &Path) -> Option<String> {
    let size = fs::metadata(path).ok()?.len();
    (size <= MAX_BYTES).then(|| fs::read_to_string(path).ok()).flatten()
}
