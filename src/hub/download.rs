//! One file from the hub into the cache: resumed where it stopped, never in its place before
//! its digest is right.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use fs_err as fs;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::address::Address;
use super::cache::Repo;
use super::client::{Client, MAX_ATTEMPTS, header, shown};
use super::error::HubError;
use super::listing::{Digest, RemoteFile};
use crate::files::hex;
use crate::track::transfers::{Transfer, Transfers};

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// Downloads `file` into the cache and links it into the snapshot of `pinned`.
pub(super) fn file(
    client: &Client,
    repo: &Repo,
    pinned: &Address,
    file: &RemoteFile,
    transfers: &Transfers,
) -> Result<(), HubError> {
    if repo.is_linked(&pinned.revision, file) {
        return Ok(());
    }
    let wait = || transfers.note(&format!("another program downloads {}; waiting", file.name));
    let _lock = repo.lock(&file.digest, wait)?;
    // The other program may just have finished it.
    if !repo.holds(file) {
        Job { client, repo, pinned, file }.run(transfers)?;
    }
    if repo.is_linked(&pinned.revision, file) {
        return Ok(());
    }
    repo.link(&pinned.revision, file)
}

struct Job<'a> {
    client: &'a Client,
    repo: &'a Repo,
    pinned: &'a Address,
    file: &'a RemoteFile,
}

/// The bytes so far, and their digest so far.
struct Partial {
    path: PathBuf,
    file: fs::File,
    length: u64,
    hasher: Hasher,
}

#[derive(Clone)]
enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Job<'_> {
    /// Attempts that bring bytes are no failures: only what gets nowhere is given up. Wrong
    /// bytes may be what an earlier, broken download left, so that they get one second chance.
    fn run(&self, transfers: &Transfers) -> Result<(), HubError> {
        let mut partial = Partial::open(self)?;
        let transfer = transfers.begin(&self.file.name, self.file.size, partial.length);
        let (mut attempt, mut resumed, mut again) = (1, partial.length > 0, false);
        loop {
            let before = partial.length;
            let error = match self.fill(&mut partial, &transfer) {
                Ok(()) => match self.finish(&mut partial) {
                    Ok(()) => break,
                    Err(error @ HubError::Digest { .. }) if resumed && !again => {
                        again = true;
                        transfer.restart();
                        transfers.note(&format!("{}; downloading it anew", error));
                        continue;
                    }
                    Err(error) => {
                        // Nothing wrong stays behind for others to go on with.
                        let _ = fs::remove_file(&partial.path);
                        return Err(error);
                    }
                },
                Err(error) => error,
            };
            attempt = if partial.length > before { 1 } else { attempt + 1 };
            if !error.is_transient() || attempt > MAX_ATTEMPTS {
                return Err(error);
            }
            resumed |= partial.length > 0;
            self.client.pause(attempt, &error);
        }
        transfer.finish();
        Ok(())
    }

    /// Asks for what is lacking, and appends what comes.
    fn fill(&self, partial: &mut Partial, transfer: &Transfer) -> Result<(), HubError> {
        let size = self.file.size;
        if partial.length >= size {
            return Ok(());
        }
        let Address { repo, revision: commit } = self.pinned;
        let name = escaped(&self.file.name);
        let url = self.client.url(&format!("/{repo}/resolve/{commit}/{name}"));
        let response = self.client.get(&url, partial.length)?;
        match response.status().as_u16() {
            206 if range_start(header(&response, "content-range")) == Some(partial.length) => {}
            // The server gives everything again, or another part than was asked for.
            200 | 206 | 416 if partial.length > 0 => {
                partial.restart(self)?;
                transfer.restart();
                if response.status() != 200 {
                    return Err(HubError::Short { url: shown(&url), at: 0, size });
                }
            }
            200 => {}
            _ => return Err(self.client.refusal(self.pinned, &self.file.name, &url, &response)),
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; CHUNK];
        while partial.length < size {
            let room = usize::try_from(size - partial.length).unwrap_or(CHUNK).min(CHUNK);
            let read = body.read(&mut buffer[..room]).map_err(|error| HubError::Unreachable {
                url: shown(&url),
                source: ureq::Error::from(error),
            })?;
            if read == 0 {
                return Err(HubError::Short { url: shown(&url), at: partial.length, size });
            }
            partial.append(&buffer[..read])?;
            transfer.advance(read as u64);
        }
        Ok(())
    }

    /// Puts the blob in its place if it is what was promised; else starts it anew.
    fn finish(&self, partial: &mut Partial) -> Result<(), HubError> {
        let found = partial.hasher.clone().finish();
        if found != self.file.digest.hex() {
            partial.restart(self)?;
            let (repo, file) = (self.pinned.repo.clone(), self.file.name.clone());
            let expected = self.file.digest.hex().to_owned();
            return Err(HubError::Digest { repo, file, expected, found });
        }
        let blob = self.repo.blob(&self.file.digest);
        let placed = partial.file.sync_all().and_then(|()| fs::rename(&partial.path, &blob));
        placed.map_err(|source| HubError::Io { path: blob, source })
    }
}

impl Partial {
    /// What an earlier download left, digested again, or nothing yet.
    fn open(job: &Job) -> Result<Self, HubError> {
        let path = job.repo.incomplete(&job.file.digest);
        let fail = |source| HubError::Io { path: path.clone(), source };
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(fail)?;
        let mut partial =
            Self { path: path.clone(), file, length: 0, hasher: Hasher::of(job.file) };
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = partial.file.read(&mut buffer).map_err(fail)?;
            partial.length += read as u64;
            if partial.length > job.file.size {
                partial.restart(job)?;
                return Ok(partial);
            }
            if read == 0 {
                return Ok(partial);
            }
            partial.hasher.update(&buffer[..read]);
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        let fail = |source| HubError::Io { path: self.path.clone(), source };
        self.file.write_all(bytes).map_err(fail)?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self, job: &Job) -> Result<(), HubError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|source| HubError::Io { path: self.path.clone(), source })?;
        self.length = 0;
        self.hasher = Hasher::of(job.file);
        Ok(())
    }
}

impl Hasher {
    fn of(file: &RemoteFile) -> Self {
        match file.digest {
            Digest::Sha256(_) => Self::Sha256(Sha256::new()),
            Digest::Git(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {}\0", file.size));
                Self::Git(hasher)
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Git(hasher) => hex(&hasher.finalize()),
        }
    }
}

/// `bytes 10-99/100` begins at 10.
fn range_start(range: Option<&str>) -> Option<u64> {
    range?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// All but slashes and what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A file name as a path of a web address.
fn escaped(name: &str) -> String {
    utf8_percent_encode(name, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_has_the_object_id_of_git() {
        let digest = Digest::Git("ce013625030ba8dba906f756967f9e9ca394464a".to_owned());
        let file = RemoteFile { name: "hello".to_owned(), size: 6, digest };
        let mut hasher = Hasher::of(&file);
        hasher.update(b"hello\n");
        assert_eq!(hasher.finish(), file.digest.hex());
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("a b/ü?.json"), "a%20b/%C3%BC%3F.json");
    }

    #[test]
    fn a_range_says_where_it_begins() {
        assert_eq!(range_start(Some("bytes 10-99/100")), Some(10));
        assert_eq!(range_start(Some("bytes */100")), None);
        assert_eq!(range_start(None), None);
    }
}
