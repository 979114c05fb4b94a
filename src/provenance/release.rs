//! Finishing a release: model card, legal files and manifest over a payload.
//!
//! The engine writes the payload (weights and their configuration) into a folder in
//! progress; [`finish`] reads the run folder, writes the rest and lets the folder appear.
//! Only what the program read or computed itself is stated. Text of rows stays in the run
//! folder: of an evaluation, only its numbers and its digest go into the release.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::MANIFEST;
use super::card::{self, Card};
use super::folder::{self, Entry, Kind, WalkError};
use super::origin::Origin;
use super::statement::{
    Digests, Evaluation, PREDICATE_TYPE, Predicate, Resource, STATEMENT_TYPE, Statement, Training,
    sha256,
};
use crate::files::{FolderInProgress, sha256_of_file, write_atomically};
use crate::hub;
use crate::job::ExportKind;
use crate::recipe::Recipe;
use crate::recipe::lock::Lock;
use crate::run::RunFolder;

mod error;
mod predicate;

pub use error::ReleaseError;
use predicate::{build_definition, byproducts, rows_by_split, run_details};

/// What the release is told that its files do not say.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The finished run, whose metrics, consent report and evaluations are read.
    pub run: &'a RunFolder,
    /// Its resolved recipe.
    pub recipe: &'a Recipe,
    /// Its lock.
    pub lock: &'a Lock,
    /// Shape of the payload.
    pub kind: ExportKind,
    /// How training went.
    pub training: Training,
    /// When training ended.
    pub finished: Timestamp,
    /// Where it was computed, in PyTorch's words: `cpu`, `cuda:0`.
    pub device: &'a str,
    /// Version of libtorch.
    pub libtorch: &'a str,
    /// Whether the same inputs give the same bytes again on this device.
    pub deterministic: bool,
}

/// Whether a release may be written to `target`; ask before the payload is computed.
pub fn check_target(target: &Path, force: bool) -> Result<(), ReleaseError> {
    match target.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(_) if !force => Err(ReleaseError::Exists { path: target.to_owned() }),
        Ok(found) if found.is_dir() && target.join(MANIFEST).is_file() => Ok(()),
        Ok(_) => Err(ReleaseError::NotARelease { path: target.to_owned() }),
    }
}

/// Writes model card, legal files and manifest beside the payload, and lets the release
/// appear at the folder's target; with `force`, an older release there gives way.
pub fn finish(
    folder: FolderInProgress,
    facts: &Facts,
    force: bool,
) -> Result<PathBuf, ReleaseError> {
    let latest = source_date_epoch(std::env::var_os("SOURCE_DATE_EPOCH"))?;
    let target = folder.target().to_owned();
    check_target(&target, force)?;
    write_documents(folder.path(), &target, facts, latest)?;
    folder
        .finish(force)
        .map_err(|source| ReleaseError::Unwritable { path: target.clone(), source })?;
    Ok(target)
}

/// The folder of the base, wherever the cache of the hub lies today.
fn base_folder(recipe: &Recipe) -> Result<PathBuf, ReleaseError> {
    let path = &recipe.base.model;
    let unreadable =
        |error| ReleaseError::Unreadable { path: path.clone(), source: io::Error::other(error) };
    hub::local(path).map_err(unreadable)
}

/// Writes everything but the payload into `folder`, which will be `target`.
pub(super) fn write_documents(
    folder: &Path,
    target: &Path,
    facts: &Facts,
    latest: Timestamp,
) -> Result<(), ReleaseError> {
    check_payload(folder, facts.kind)?;
    let origin = Origin::read(&base_folder(facts.recipe)?)?;
    let byproducts = byproducts(facts)?;
    let evaluations: Vec<Evaluation> = byproducts
        .iter()
        .filter_map(|resource| resource.annotations.as_ref()?.evaluation.clone())
        .collect();
    let write = |name: &str, bytes: &[u8]| {
        write_atomically(&folder.join(name), bytes)
            .map_err(|source| ReleaseError::Unwritable { path: target.to_owned(), source })
    };
    for (name, bytes) in &origin.legal_files {
        write(name, bytes)?;
    }
    let card = Card {
        recipe: facts.recipe,
        kind: facts.kind,
        origin: &origin,
        teacher: facts.lock.teacher.as_ref(),
        ask: &facts.lock.ask,
        rows: &rows_by_split(&facts.lock.data),
        training: &facts.training,
        evaluations: &evaluations,
    };
    let card = card::render(&card).map_err(|error| render(&error))?;
    write("README.md", card.as_bytes())?;
    let statement = Statement {
        statement_type: STATEMENT_TYPE.to_owned(),
        subject: subjects(folder)?,
        predicate_type: PREDICATE_TYPE.to_owned(),
        predicate: Predicate {
            build_definition: build_definition(facts, &origin)?,
            run_details: run_details(facts, byproducts, latest),
        },
    };
    write(MANIFEST, &statement.to_bytes().map_err(|error| render(&error))?)
}

fn render(error: &dyn std::error::Error) -> ReleaseError {
    ReleaseError::Render { what: error.to_string() }
}

/// The latest instant that a release may state: `SOURCE_DATE_EPOCH`, so that a build can be
/// repeated byte for byte (reproducible-builds.org); else there is none.
pub(super) fn source_date_epoch(
    value: Option<std::ffi::OsString>,
) -> Result<Timestamp, ReleaseError> {
    let Some(value) = value else { return Ok(Timestamp::MAX) };
    let value = value.to_string_lossy().into_owned();
    let instant = value.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    instant.ok_or(ReleaseError::SourceDateEpoch { value })
}

/// Whether the engine wrote what Transformers and PEFT need.
fn check_payload(folder: &Path, kind: ExportKind) -> Result<(), ReleaseError> {
    let names: Vec<String> = list(folder)?.into_iter().map(|entry| entry.name).collect();
    let has = |name: &str| names.iter().any(|found| found == name);
    let missing = |name: &str| Err(ReleaseError::Payload { what: format!("`{name}` is missing") });
    match kind {
        ExportKind::Adapter if !has("adapter_config.json") => missing("adapter_config.json"),
        ExportKind::Adapter if !has("adapter_model.safetensors") => {
            missing("adapter_model.safetensors")
        }
        ExportKind::Merged if !has("config.json") => missing("config.json"),
        ExportKind::Merged if !names.iter().any(|name| name.ends_with(".safetensors")) => {
            missing("model.safetensors")
        }
        _ => Ok(()),
    }
}

/// Every file of the release so far but the manifest, sorted by name.
fn list(folder: &Path) -> Result<Vec<Entry>, ReleaseError> {
    let unfit = |what: String| ReleaseError::Payload { what };
    let mut entries = folder::walk(folder).map_err(|error| match error {
        WalkError::Io(path, source) => ReleaseError::Unreadable { path, source },
        WalkError::TooLarge => unfit("it has too many files".to_owned()),
    })?;
    entries.retain(|entry| entry.name != MANIFEST);
    for Entry { name, kind, .. } in &entries {
        if let Some(fault) = folder::fault_of_name(name) {
            return Err(unfit(format!("the name `{name}` is not permitted: {fault}")));
        }
        if !matches!(kind, Kind::File(_)) {
            return Err(unfit(format!("`{name}` is not a regular file")));
        }
    }
    Ok(entries)
}

/// The same files by digest.
fn subjects(folder: &Path) -> Result<Vec<Resource>, ReleaseError> {
    let subject = |entry: Entry| {
        let digest = digest_of(&entry.path)?;
        Ok(Resource { name: entry.name, digest, ..Resource::default() })
    };
    list(folder)?.into_iter().map(subject).collect()
}

fn digest_of(path: &Path) -> Result<Digests, ReleaseError> {
    sha256_of_file(path)
        .map(sha256)
        .map_err(|source| ReleaseError::Unreadable { path: path.to_owned(), source })
}
