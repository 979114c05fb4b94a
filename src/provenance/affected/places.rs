//! What is known of runs and releases, and where they lie: as the registry remembers it, and
//! as a search finds it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Serialize;

use super::AffectedError;
use crate::provenance::MANIFEST;
use crate::provenance::registry::{Entry, RegistryError, ReleaseEntry, RunEntry, TrainedEntry};
use crate::run::RunFolder;

/// Most folders that a search looks into.
const MAX_FOLDERS: usize = 1_000_000;

/// Where something lies, or lay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The folder.
    pub path: PathBuf,
    /// Whether it is there, and is what it was.
    pub there: bool,
}

/// Everything that is known, by digest.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) runs: BTreeMap<String, RunEntry>,
    pub(super) trained: BTreeMap<String, TrainedEntry>,
    pub(super) releases: BTreeMap<String, ReleaseEntry>,
    /// Where a run or a release was seen.
    paths: BTreeMap<String, BTreeSet<PathBuf>>,
}

impl Known {
    pub(super) fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Run(run) => {
                self.seen(&run.run, &run.path);
                self.runs.insert(run.run.clone(), run);
            }
            Entry::Trained(trained) => {
                self.trained.insert(trained.run.clone(), trained);
            }
            Entry::Release(release) => {
                self.seen(&release.release, &release.path);
                self.releases.insert(release.release.clone(), release);
            }
        }
    }

    fn seen(&mut self, id: &str, path: &Path) {
        self.paths.entry(id.to_owned()).or_default().insert(path.to_owned());
    }

    /// Adds every run and release below `folder`. What cannot be listed or read is told: it
    /// may have been one of them.
    pub(super) fn search(&mut self, folder: &Path) -> Result<Vec<String>, AffectedError> {
        let mut unread = Vec::new();
        let mut open = vec![folder.to_owned()];
        let mut folders = 0;
        while let Some(folder) = open.pop() {
            folders += 1;
            if folders > MAX_FOLDERS {
                return Err(AffectedError::TooManyFolders { limit: MAX_FOLDERS });
            }
            if let Some(entry) = entry_of(&folder) {
                match entry {
                    Ok(entry) => self.add(entry),
                    Err(error) => unread.push(error.to_string()),
                }
                continue;
            }
            let inside = fs::read_dir(&folder).and_then(|entries| {
                entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()
            });
            match inside {
                // Links are not followed: they could lead round in a circle.
                Ok(paths) => open.extend(paths.into_iter().filter(|path| {
                    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
                })),
                Err(error) => unread.push(error.to_string()),
            }
        }
        unread.sort();
        Ok(unread)
    }

    /// Adds what a run was trained into where nobody entered it and it is still there.
    pub(super) fn complete(&mut self) {
        let unknown = self.runs.keys().filter(|run| !self.trained.contains_key(*run));
        let trained: Vec<TrainedEntry> = unknown
            .filter_map(|id| TrainedEntry::of(&RunFolder::new(self.folder(id)?), id).ok()?)
            .collect();
        for trained in trained {
            self.add(Entry::Trained(trained));
        }
    }

    /// Where a run or a release lies. Places where it is no more count only where it is
    /// nowhere else: it was moved.
    pub(super) fn places(&self, id: &str) -> Vec<Place> {
        let paths = self.paths.get(id).into_iter().flatten();
        let place = |path: &PathBuf| Place { path: path.clone(), there: is(path, id) };
        let mut places: Vec<Place> = paths.map(place).collect();
        if places.iter().any(|place| place.there) {
            places.retain(|place| place.there);
        }
        places
    }

    /// One folder where a run or a release still lies.
    pub(super) fn folder(&self, id: &str) -> Option<PathBuf> {
        self.places(id).into_iter().find(|place| place.there).map(|place| place.path)
    }
}

/// Whether the folder at `path` is the run or the release `id`.
fn is(path: &Path, id: &str) -> bool {
    match entry_of(path) {
        Some(Ok(Entry::Run(run))) => run.run == id,
        Some(Ok(Entry::Release(release))) => release.release == id,
        _ => false,
    }
}

/// What a folder is, if it is a run or a release.
fn entry_of(folder: &Path) -> Option<Result<Entry, RegistryError>> {
    let run = RunFolder::new(folder);
    if run.lock().is_file() {
        return Some(RunEntry::of(&run).map(Entry::Run));
    }
    let release = folder.join(MANIFEST).is_file();
    release.then(|| ReleaseEntry::of(folder).map(Entry::Release))
}
