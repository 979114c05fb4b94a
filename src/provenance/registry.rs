//! The registry: which runs and releases were made here, by digest.
//!
//! Folders are moved, renamed and copied; a digest stays. The registry remembers what was
//! made of what, so that `heirloom lineage affected` can follow a record from the run that
//! used it to the models made on top. It is a list that is appended to, in
//! `$HEIRLOOM_HOME/registry.jsonl`, or else in `heirloom/registry.jsonl` in the data folder
//! of the XDG Base Directory Specification.
//!
//! Owns the file and its entries, and reading an entry off a run folder or a release. Does
//! not own the question that it serves ([`super::affected`]).
//!
//! - A run is known by the SHA-256 of its `recipe.lock`, which names the instant at which it
//!   began and never changes.
//! - A release is known by the SHA-256 of what `sha256sum` prints for its files but the
//!   manifest, sorted by name.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::MANIFEST;
use super::statement::{BASE, Statement};
use super::verify::MAX_MANIFEST_BYTES;
use crate::diagnose::Diagnose;
use crate::files::{read_bounded, sha256_of_bytes, sha256_of_file};
use crate::job::ExportKind;
use crate::recipe::lock::MAX_BYTES as MAX_LOCK_BYTES;
use crate::run::RunFolder;

/// Longest line that is read, in bytes: a base in ten thousand files.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Names another folder for the registry.
pub const HOME_VARIABLE: &str = "HEIRLOOM_HOME";

/// Name of the file.
const FILE: &str = "registry.jsonl";

/// What ends the name of a file of weights.
const WEIGHTS: &str = ".safetensors";

/// One line of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// A run began, or went on.
    Run(RunEntry),
    /// A run is trained.
    Trained(TrainedEntry),
    /// A release was written.
    Release(ReleaseEntry),
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunEntry {
    /// SHA-256 of its `recipe.lock`.
    pub run: String,
    /// Where it lay.
    pub path: PathBuf,
    /// When it began.
    pub created: Timestamp,
    /// SHA-256 of the weights of its base, sorted; none where they were drawn at random.
    pub base: Vec<String>,
}

/// What a run is trained into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedEntry {
    /// The run.
    pub run: String,
    /// Adapter, or whole model.
    pub kind: ExportKind,
    /// SHA-256 of the weights, sorted.
    pub weights: Vec<String>,
}

/// A release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseEntry {
    /// SHA-256 over its files.
    pub release: String,
    /// Where it lay.
    pub path: PathBuf,
    /// Adapter, or whole model.
    pub kind: ExportKind,
    /// The run that it was exported from; absent where its manifest does not say.
    pub run: Option<String>,
    /// SHA-256 of the weights of the run's base, sorted.
    pub base: Vec<String>,
    /// SHA-256 of its weights, sorted.
    pub weights: Vec<String>,
}

/// The registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Nothing says where it lies.
    #[error("there is no place for the registry: neither `{HOME_VARIABLE}` nor `HOME` is set")]
    NoHome,
    /// It cannot be read.
    #[error("the registry `{}` cannot be read", path.display())]
    Read {
        /// The registry.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("the registry `{}` cannot be written", path.display())]
    Write {
        /// The registry.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line is none.
    #[error("line {line} of the registry `{}` is no entry: {what}", path.display())]
    Line {
        /// The registry.
        path: PathBuf,
        /// Which, from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// A run folder or a release is not what it should be.
    #[error("`{}` cannot be entered into the registry: {what}", path.display())]
    Folder {
        /// The file that is wrong.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Diagnose for RegistryError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoHome => format!("set `{HOME_VARIABLE}` to a folder for it"),
            Self::Read { source, .. } | Self::Write { source, .. } => return source.hint(),
            Self::Line { path, .. } => format!(
                "move `{}` away and name the folders of runs and releases with `--search`, or \
                 use the version of Heirloom that wrote it",
                path.display()
            ),
            Self::Folder { .. } => "check that it is whole".to_owned(),
        })
    }
}

/// The registry at some place; it need not be there yet.
#[derive(Clone, Debug)]
pub struct Registry {
    path: PathBuf,
}

impl Registry {
    /// The registry in `folder`.
    pub fn at(folder: &Path) -> Self {
        Self { path: folder.join(FILE) }
    }

    /// The registry of this user.
    pub fn of_user() -> Result<Self, RegistryError> {
        Self::by(|name| std::env::var_os(name)).ok_or(RegistryError::NoHome)
    }

    fn by(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // The specification has a relative path ignored.
        let data = || folder("XDG_DATA_HOME").filter(|path| path.is_absolute());
        let share = || Some(folder("HOME")?.join(".local/share"));
        let home =
            folder(HOME_VARIABLE).or_else(|| Some(data().or_else(share)?.join("heirloom")))?;
        Some(Self::at(&home))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends an entry, under an advisory lock, and takes away what a crash left of a line.
    pub fn enter(&self, entry: &Entry) -> Result<(), RegistryError> {
        self.append(entry)
            .map_err(|source| RegistryError::Write { path: self.path.clone(), source })
    }

    fn append(&self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if line.len() as u64 > MAX_LINE_BYTES {
            return Err(io::Error::other("the entry is longer than one that is read"));
        }
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&self.path)?;
        file.lock()?;
        let end = end_of_lines(&mut file)?;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        let written = file.write_all(&line).and_then(|()| file.sync_all());
        if written.is_err() {
            // A full disk: what is there of the line goes; if not even that, readers leave
            // half a line out.
            let _ = file.set_len(end);
        }
        written
    }

    /// Every entry, oldest first; none where there is no registry. Half a line at the end is
    /// what a crash leaves, and is left out.
    pub fn read(&self) -> Result<Vec<Entry>, RegistryError> {
        let unreadable = |source| RegistryError::Read { path: self.path.clone(), source };
        let file = match fs::File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file.map_err(unreadable)?,
        };
        let (mut reader, mut bytes, mut entries) = (BufReader::new(file), Vec::new(), Vec::new());
        for line in 1.. {
            bytes.clear();
            let mut limited = (&mut reader).take(MAX_LINE_BYTES + 1);
            limited.read_until(b'\n', &mut bytes).map_err(unreadable)?;
            let wrong = |what| RegistryError::Line { path: self.path.clone(), line, what };
            if bytes.len() as u64 > MAX_LINE_BYTES {
                return Err(wrong(format!("it has more than {MAX_LINE_BYTES} bytes")));
            }
            if bytes.pop() != Some(b'\n') {
                break;
            }
            let entry = serde_json::from_slice(&bytes);
            entries.push(entry.map_err(|error| wrong(error.to_string()))?);
        }
        Ok(entries)
    }
}

/// Bytes up to the end of the last whole line.
fn end_of_lines(file: &mut fs::File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(MAX_LINE_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(MAX_LINE_BYTES).read_to_end(&mut tail)?;
    match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => Ok(start + at as u64 + 1),
        None if start == 0 => Ok(0),
        // No entry is that long, so this is no registry.
        None => Err(io::Error::other("it is not a file of entries")),
    }
}

/// What is read of a lock, and nothing else: a run of another version is a run, too.
#[derive(Deserialize)]
struct LockFacts {
    created: Timestamp,
    base: Vec<BaseFile>,
}

#[derive(Deserialize)]
struct BaseFile {
    path: String,
    sha256: String,
}

impl RunEntry {
    /// Reads a run folder.
    pub fn of(run: &RunFolder) -> Result<Self, RegistryError> {
        let path = run.lock();
        let wrong = |what: String| RegistryError::Folder { path: path.clone(), what };
        let bytes =
            read_bounded(&path, MAX_LOCK_BYTES).map_err(|error| wrong(error.to_string()))?;
        let lock: LockFacts =
            serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let weights = lock.base.iter().filter(|file| is_weights(&file.path));
        Ok(Self {
            run: sha256_of_bytes(&bytes),
            path: absolute(run.path()),
            created: lock.created,
            base: sorted(weights.map(|file| file.sha256.clone())),
        })
    }
}

impl TrainedEntry {
    /// Digests what a run was trained into; `None` where it is not trained yet.
    pub fn of(run: &RunFolder, id: &str) -> Result<Option<Self>, RegistryError> {
        for (folder, kind) in
            [(run.adapter(), ExportKind::Adapter), (run.model(), ExportKind::Merged)]
        {
            let wrong = |error: io::Error| RegistryError::Folder {
                path: folder.clone(),
                what: error.to_string(),
            };
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(wrong)?,
            };
            let mut weights = Vec::new();
            for entry in entries {
                let path = entry.map_err(wrong)?.path();
                if is_weights(&path.to_string_lossy()) {
                    weights.push(sha256_of_file(&path).map_err(wrong)?);
                }
            }
            let weights = sorted(weights.into_iter());
            return Ok(Some(Self { run: id.to_owned(), kind, weights }));
        }
        Ok(None)
    }
}

impl ReleaseEntry {
    /// Reads the manifest of a release. Nothing is verified: that is `heirloom verify`.
    pub fn of(folder: &Path) -> Result<Self, RegistryError> {
        let path = folder.join(MANIFEST);
        let wrong = |what: String| RegistryError::Folder { path: path.clone(), what };
        let bytes =
            read_bounded(&path, MAX_MANIFEST_BYTES).map_err(|error| wrong(error.to_string()))?;
        let statement: Statement =
            serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let digest = |resource: &super::statement::Resource| {
            Some((resource.name.clone(), resource.digest.get("sha256")?.clone()))
        };
        let mut files: Vec<_> = statement.subject.iter().filter_map(digest).collect();
        files.sort();
        let listing: String =
            files.iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect();
        let weights = |files: Vec<(String, String)>| {
            sorted(files.into_iter().filter(|(name, _)| is_weights(name)).map(|(_, digest)| digest))
        };
        let definition = statement.predicate.build_definition;
        let base = definition.resolved_dependencies.iter();
        let base = base.filter(|resource| resource.name.starts_with(&format!("{BASE}/")));
        let run = statement.predicate.run_details.byproducts;
        let run = run.iter().find(|resource| resource.name == "recipe.lock");
        Ok(Self {
            release: sha256_of_bytes(listing.as_bytes()),
            path: absolute(folder),
            kind: definition.external_parameters.export,
            run: run.and_then(|resource| resource.digest.get("sha256").cloned()),
            base: weights(base.filter_map(digest).collect()),
            weights: weights(files),
        })
    }
}

/// Enters a run that begins or goes on.
pub fn enter_run(run: &RunFolder) -> Result<(), RegistryError> {
    Registry::of_user()?.enter(&Entry::Run(RunEntry::of(run)?))
}

/// Enters what a run was trained into.
pub fn enter_trained(run: &RunFolder) -> Result<(), RegistryError> {
    let id = RunEntry::of(run)?.run;
    match TrainedEntry::of(run, &id)? {
        Some(trained) => Registry::of_user()?.enter(&Entry::Trained(trained)),
        None => Ok(()),
    }
}

/// Enters a release.
pub fn enter_release(folder: &Path) -> Result<(), RegistryError> {
    Registry::of_user()?.enter(&Entry::Release(ReleaseEntry::of(folder)?))
}

fn is_weights(name: &str) -> bool {
    name.ends_with(WEIGHTS)
}

fn sorted(digests: impl Iterator<Item = String>) -> Vec<String> {
    let mut digests: Vec<String> = digests.collect();
    digests.sort();
    digests.dedup();
    digests
}

/// A path that means the same from wherever it is read.
fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests;
