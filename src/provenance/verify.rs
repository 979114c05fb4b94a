//! `heirloom verify`: a release against its own manifest.
//!
//! Trusts nothing in the folder: only files that were found by listing it are opened, never
//! a path that the manifest names; links are not followed; the manifest is bounded, must be
//! free of duplicate keys and must bear its seal. Every problem is collected.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use fs_err as fs;
use serde::Deserialize;

use super::MANIFEST;
use super::counts::Rows;
use super::folder::{self, Entry, Kind, WalkError};
use super::statement::{self, Evaluation, Predicate, RecordTree, Resource};
use super::tree;
use crate::files::sha256_of_file;
use crate::job::ExportKind;
use crate::json;

mod problem;

pub use problem::{Problem, VerifyError};

/// Largest manifest that is read: some ten thousand input files.
pub const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// A release that is what its manifest says.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// Files that were digested, without the manifest.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Shape of the release.
    pub export: ExportKind,
    /// What it was adapted from.
    pub base: String,
    /// The base's licence, as the hub writes it.
    pub licence: String,
    /// Version of Heirloom that made it.
    pub heirloom: String,
    /// Rows used and left out, by split.
    pub rows: BTreeMap<String, Rows>,
    /// What was measured.
    pub evaluations: Vec<Evaluation>,
    /// The commitment to the records that were used.
    pub record_tree: Option<RecordTree>,
}

/// Checks a release against its manifest.
pub fn verify(folder: &Path) -> Result<Verified, VerifyError> {
    let mut problems = Vec::new();
    let verified = check(folder, &mut problems);
    match verified {
        Some(verified) if problems.is_empty() => Ok(verified),
        _ => Err(VerifyError { folder: folder.to_owned(), problems }),
    }
}

/// What a manifest alone, the file at `path`, states of the records.
pub fn record_tree(path: &Path) -> Result<Option<RecordTree>, VerifyError> {
    let mut problems = Vec::new();
    let name = MANIFEST.to_owned();
    let entry = match path.metadata() {
        Ok(found) if found.is_file() => Kind::File(found.len()),
        _ => Kind::Special,
    };
    let entry = Entry { name, path: path.to_owned(), kind: entry };
    let text = read_manifest(&[entry]).map_err(|problem| problems.push(problem)).ok();
    let manifest = text.and_then(|text| parse(&text, &mut problems));
    match manifest.and_then(|manifest| manifest.predicate) {
        Some(predicate) if problems.is_empty() => Ok(record_trees(&predicate).next().cloned()),
        _ => Err(VerifyError { folder: path.to_owned(), problems }),
    }
}

/// `None` leaves at least one problem behind; so may `Some`.
fn check(folder: &Path, problems: &mut Vec<Problem>) -> Option<Verified> {
    let entries = match folder::walk(folder) {
        Ok(entries) => entries,
        Err(error) => {
            problems.push(match error {
                WalkError::Io(path, source) => Problem::Unreadable { path, source },
                WalkError::TooLarge => Problem::TooManyFiles,
            });
            return None;
        }
    };
    let text = read_manifest(&entries).map_err(|problem| problems.push(problem)).ok()?;
    let manifest = parse(&text, problems)?;
    let expected = check_subjects(manifest.subject, problems);
    let (files, bytes) = check_files(&entries, expected, problems);
    manifest.predicate.map(|predicate| summary(predicate, files, bytes))
}

/// The text of the manifest, opened only if it is a regular file of sensible size.
fn read_manifest(entries: &[Entry]) -> Result<String, Problem> {
    let entry = entries.iter().find(|entry| entry.name == MANIFEST).ok_or(Problem::NoManifest)?;
    match entry.kind {
        Kind::File(bytes) if bytes > MAX_MANIFEST_BYTES => {
            return Err(Problem::ManifestTooLarge { bytes });
        }
        Kind::File(_) => {}
        Kind::Symlink => return Err(Problem::Symlink { name: entry.name.clone() }),
        Kind::Special => return Err(Problem::Special { name: entry.name.clone() }),
    }
    let unreadable = |source| Problem::Unreadable { path: entry.path.clone(), source };
    let mut bytes = Vec::new();
    // Bounded once more: the file may have grown since it was listed.
    let file = fs::File::open(&entry.path).map_err(unreadable)?;
    file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        Problem::NotJson {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            column: 1 + before.len() - line_start,
            what: "it is not UTF-8".to_owned(),
        }
    })
}

/// What the manifest says, as far as it can be read.
struct Manifest {
    subject: Vec<Resource>,
    /// Absent where a problem is already noted.
    predicate: Option<Predicate>,
}

/// The types decide what the rest means, so they are read before it.
#[derive(Deserialize)]
struct Types {
    #[serde(rename = "_type")]
    statement_type: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    subject: Vec<Resource>,
}

#[derive(Deserialize)]
struct Predicated {
    predicate: Predicate,
}

fn parse(text: &str, problems: &mut Vec<Problem>) -> Option<Manifest> {
    if let Err(fault) = json::check(text) {
        problems.push(fault.into());
        return None;
    }
    let before = problems.len();
    if let Some(types) = read::<Types>(text, problems) {
        if types.statement_type != statement::STATEMENT_TYPE {
            problems.push(Problem::StatementType { found: types.statement_type });
        }
        if types.predicate_type != statement::PREDICATE_TYPE {
            problems.push(Problem::PredicateType { found: types.predicate_type });
        }
    }
    let predicate = if problems.len() == before {
        read::<Predicated>(text, problems).map(|read| read.predicate)
    } else {
        None
    };
    if let Some(predicate) = &predicate {
        let build_type = &predicate.build_definition.build_type;
        if build_type != statement::BUILD_TYPE {
            problems.push(Problem::BuildType { found: build_type.clone() });
        }
        let mut trees = record_trees(predicate);
        if trees.next().is_some_and(|tree| !tree::is_key_id(&tree.key_id)) {
            problems.push(Problem::KeyId);
        }
        if trees.next().is_some() {
            problems.push(Problem::TwoRecordTrees);
        }
        if !statement::seal_holds(text, &predicate.run_details.metadata.invocation_id) {
            problems.push(Problem::Seal);
        }
    }
    let Subject { subject } = read(text, problems)?;
    Some(Manifest { subject, predicate })
}

/// What the manifest states of the records.
fn record_trees(predicate: &Predicate) -> impl Iterator<Item = &RecordTree> {
    let byproducts = predicate.run_details.byproducts.iter();
    byproducts.filter_map(|resource| resource.annotations.as_ref()?.record_tree.as_ref())
}

/// Reads a part of the manifest, which is known to be JSON.
fn read<'de, T: Deserialize<'de>>(text: &'de str, problems: &mut Vec<Problem>) -> Option<T> {
    serde_json::from_str(text)
        .map_err(|error| {
            let (line, column) = (error.line(), error.column());
            problems.push(Problem::Shape { line, column, what: json::message(&error) });
        })
        .ok()
}

/// The files that the manifest vouches for, with their digests. A name whose digest is of
/// no use stays in, without it, so that the file is not also called extra.
fn check_subjects(
    subject: Vec<Resource>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Option<String>> {
    let mut expected = BTreeMap::new();
    let mut lower_case: BTreeMap<String, String> =
        [(MANIFEST.to_owned(), MANIFEST.to_owned())].into();
    if subject.is_empty() {
        problems.push(Problem::NoSubject);
    }
    for Resource { name, mut digest, .. } in subject {
        if let Some(fault) = folder::fault_of_name(&name) {
            problems.push(Problem::UnsafeName { name, fault });
            continue;
        }
        let digest_is = digest.remove("sha256");
        for algorithm in digest.into_keys() {
            problems.push(Problem::Algorithm { name: name.clone(), algorithm });
        }
        let usable = digest_is.filter(|digest| statement::is_sha256(digest));
        if usable.is_none() {
            problems.push(Problem::BadDigest { name: name.clone() });
        }
        match lower_case.insert(name.to_ascii_lowercase(), name.clone()) {
            Some(first) if first != name => {
                problems.push(Problem::CaseCollision { first, second: name.clone() });
            }
            Some(_) if name == MANIFEST => problems.push(Problem::NamesItself),
            Some(_) => problems.push(Problem::DuplicateSubject { name: name.clone() }),
            None => {}
        }
        expected.insert(name, usable);
    }
    expected
}

/// Compares what is there with what should be; returns files and bytes that match.
fn check_files(
    entries: &[Entry],
    mut expected: BTreeMap<String, Option<String>>,
    problems: &mut Vec<Problem>,
) -> (usize, u64) {
    let (mut files, mut total) = (0, 0);
    for entry in entries.iter().filter(|entry| entry.name != MANIFEST) {
        let name = entry.name.clone();
        match (expected.remove(&name), entry.kind) {
            (_, Kind::Symlink) => problems.push(Problem::Symlink { name }),
            (_, Kind::Special) => problems.push(Problem::Special { name }),
            (None, Kind::File(_)) => problems.push(Problem::Extra { name }),
            (Some(None), Kind::File(_)) => {}
            (Some(Some(expected)), Kind::File(bytes)) => match sha256_of_file(&entry.path) {
                Ok(actual) if actual == expected => {
                    files += 1;
                    total += bytes;
                }
                Ok(actual) => problems.push(Problem::Changed { name, expected, actual }),
                Err(source) => {
                    problems.push(Problem::Unreadable { path: entry.path.clone(), source });
                }
            },
        }
    }
    expected.remove(MANIFEST);
    problems.extend(expected.into_keys().map(|name| Problem::Missing { name }));
    (files, total)
}

fn summary(predicate: Predicate, files: usize, bytes: u64) -> Verified {
    let record_tree = record_trees(&predicate).next().cloned();
    let Predicate { build_definition, run_details } = predicate;
    let dependencies = build_definition.resolved_dependencies;
    let base = dependencies.iter().find(|resource| resource.name == statement::BASE);
    let licence = base.and_then(|base| base.annotations.as_ref()?.licence.as_ref());
    let mut rows = BTreeMap::<String, Rows>::new();
    for annotations in dependencies.iter().filter_map(|resource| resource.annotations.as_ref()) {
        if let (Some(split), Some(consent)) = (&annotations.split, &annotations.consent) {
            rows.entry(split.clone()).or_default().add(&consent.rows());
        }
    }
    let unknown = || "unknown".to_owned();
    let evaluations = run_details.byproducts.into_iter();
    Verified {
        files,
        bytes,
        export: build_definition.external_parameters.export,
        base: base.and_then(|base| base.uri.clone()).unwrap_or_else(unknown),
        licence: licence.map_or_else(unknown, |licence| licence.hub.clone()),
        heirloom: run_details.builder.version.get("heirloom").cloned().unwrap_or_else(unknown),
        rows,
        evaluations: evaluations.filter_map(|resource| resource.annotations?.evaluation).collect(),
        record_tree,
    }
}
