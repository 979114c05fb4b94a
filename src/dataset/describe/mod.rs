//! What lies beside the files of a data set: `croissant.json`, for whoever looks for data, and
//! `consent.json`, which says of all rows what their footers say.
//!
//! Owns writing both ([`write`]), reading them back as documents that someone else may have
//! written ([`read`]), and which of footer and sidecar counts for a file ([`of_file`]). Does
//! not own what the words of `consent.json` mean to the gate (`consent`).
//!
//! References: Croissant 1.1 and its RAI 1.0 vocabulary; ODRL 2.2 for the offer; the terms
//! of W3C DPV 2.3 that the consent columns stand for.

mod croissant;
mod error;
mod offer;
mod read;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use error::DescribeError;
pub use read::{Described, FileEntry, check_footer, read};

use crate::files::{sha256_of_file, write_atomically};

/// The description of a data set, beside its files.
pub const CROISSANT: &str = "croissant.json";

/// What is said of the consent of all rows, beside their files.
pub const CONSENT: &str = "consent.json";

/// Largest sidecar that is read; one of a few files has some kilobytes.
pub const MAX_SIDECAR_BYTES: u64 = 16 << 20;

/// Most files that one description covers: each takes a few kilobytes of it.
pub const MAX_FILES: usize = 2000;

/// What the files do not say themselves about a data set.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// A short name.
    pub name: String,
    /// A sentence or two.
    pub description: String,
    /// An SPDX expression or the address of a licence; without it, the one that `consent`
    /// names as default.
    pub license: Option<String>,
    /// Where the data set is published.
    pub url: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// A day, `2026-06-01`; without it, that of the snapshot.
    pub date_published: Option<String>,
    /// Who made it; without it, the controller that `consent` names.
    pub creator: Option<String>,
    /// How to cite it, BibTeX.
    pub cite_as: Option<String>,
    /// How the rows came together (RAI `dataCollection`).
    pub collection: Option<String>,
    /// What it is for (RAI `dataUseCases`).
    pub use_cases: Vec<String>,
    /// What it is not fit for (RAI `dataLimitations`).
    pub limitations: Vec<String>,
    /// Known biases (RAI `dataBiases`).
    pub biases: Vec<String>,
    /// Personal information in it (RAI `personalSensitiveInformation`).
    pub personal_information: Vec<String>,
    /// The value of the footer key `consent.v1`, and the content of `consent.json`.
    pub consent: Map<String, Value>,
}

/// Writes both sidecars into `folder`, which holds the Parquet `files`; they are digested, and
/// their columns and consent are read.
///
/// Other files of the same data set that are described there stay so while they are what the
/// description says. Of another data set, nothing is replaced: see [`check_place`].
pub fn write(folder: &Path, files: &[PathBuf], about: &About) -> Result<(), DescribeError> {
    let mut all = files.to_vec();
    all.extend(check_place(folder, files, &about.consent)?);
    all.sort();
    all.dedup();
    if all.len() > MAX_FILES {
        return Err(DescribeError::TooManyFiles { folder: folder.to_owned(), files: all.len() });
    }
    let croissant = croissant::document(folder, &all, about)?;
    let consent = Value::Object(about.consent.clone());
    // First what is said of the consent: with it alone, nothing is permitted that was not.
    write_atomically(&folder.join(CONSENT), &pretty(&consent)?)?;
    Ok(write_atomically(&folder.join(CROISSANT), &pretty(&croissant)?)?)
}

fn pretty(value: &Value) -> Result<Vec<u8>, DescribeError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(std::io::Error::other)?;
    text.push(b'\n');
    Ok(text)
}

/// Refuses a folder whose other files are described as another data set's; ask before the
/// `files` are written. Returns the other files that are described there and unchanged.
pub fn check_place(
    folder: &Path,
    files: &[PathBuf],
    consent: &Map<String, Value>,
) -> Result<Vec<PathBuf>, DescribeError> {
    let Some(before) = read(folder)? else { return Ok(Vec::new()) };
    let mut others = Vec::new();
    for (name, entry) in before.files.iter().flatten() {
        let path = folder.join(name);
        let is_new = files.iter().any(|file| file.file_name() == path.file_name());
        if !is_new && path.is_file() && sha256_of_file(&path)? == entry.sha256 {
            others.push(path);
        }
    }
    // Without a list of files, the sidecar is about whatever lies there.
    let matters = before.files.is_none() || !others.is_empty();
    let there = before.consent.filter(|_| matters);
    match there.and_then(|there| first_difference(&there, consent)) {
        Some(key) => Err(DescribeError::Occupied { sidecar: folder.join(CONSENT), key }),
        None => Ok(others),
    }
}

/// What counts for the Parquet file `path`, given the value of its footer key `consent.v1`:
/// the text of the footer or of the sidecar, or `None` where there is neither and so nothing
/// is known of its rows.
///
/// A footer must agree with the sidecar. Where it was dropped, the sidecar stands in for it,
/// if the file is still the one that `croissant.json` describes. Sidecars that describe other
/// files only are none of this file's.
pub fn of_file(path: &Path, footer: Option<&str>) -> Result<Option<String>, DescribeError> {
    let footer_text = || footer.map(str::to_owned);
    let Some(described) = read(folder_of(path))? else { return Ok(footer_text()) };
    let entry = described.entry(path);
    if described.files.is_some() && entry.is_none() {
        return Ok(footer_text());
    }
    if let Some(entry) = entry {
        check_size(path, &described, entry)?;
    }
    let Some(footer) = footer else {
        // A sidecar that is not pinned to the file could be any data set's.
        let Some(entry) = entry else { return Ok(None) };
        compare(path, &described, entry, &sha256_of_file(path)?)?;
        return Ok(described.consent.map(|consent| Value::Object(consent).to_string()));
    };
    // A footer that cannot be read agrees with nothing.
    let inside: Map<String, Value> = serde_json::from_str(footer).unwrap_or_default();
    let disagree = |sidecar: &str, key: String| DescribeError::Disagree {
        path: path.to_owned(),
        sidecar: described.folder.join(sidecar),
        key,
    };
    if let Some(consent) = &described.consent
        && let Some(key) = first_difference(consent, &inside)
    {
        return Err(disagree(CONSENT, key));
    }
    for (key, said) in
        [("dataset_id", &described.identifier), ("controller", &described.controller)]
    {
        if let (Some(one), Some(other)) = (said, inside.get(key))
            && other.as_str() != Some(one)
        {
            return Err(disagree(CROISSANT, key.to_owned()));
        }
    }
    Ok(footer_text())
}

/// Holds the digest of the Parquet file `path`, which someone computed anyway, to the
/// `croissant.json` beside it, if there is one that describes the file.
pub fn check_digest(path: &Path, sha256: &str) -> Result<(), DescribeError> {
    let Some(described) = read(folder_of(path))? else { return Ok(()) };
    match described.entry(path) {
        Some(entry) => compare(path, &described, entry, sha256),
        None => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn compare(
    path: &Path,
    described: &Described,
    entry: &FileEntry,
    found: &str,
) -> Result<(), DescribeError> {
    if entry.sha256 == found {
        return Ok(());
    }
    Err(DescribeError::OtherFile {
        path: path.to_owned(),
        sidecar: described.folder.join(CROISSANT),
        what: format!("the SHA-256 `{found}`, not `{}`", entry.sha256),
    })
}

/// A look at the size costs nothing and finds most files that were written again.
fn check_size(path: &Path, described: &Described, entry: &FileEntry) -> Result<(), DescribeError> {
    let found = fs_err::metadata(path)?.len();
    match entry.bytes {
        Some(bytes) if bytes != found => Err(DescribeError::OtherFile {
            path: path.to_owned(),
            sidecar: described.folder.join(CROISSANT),
            what: format!("{found} bytes, not {bytes}"),
        }),
        _ => Ok(()),
    }
}

/// The first key, in alphabetical order, of which two objects do not say the same; inside
/// objects, with the keys that lead to it.
fn first_difference(one: &Map<String, Value>, other: &Map<String, Value>) -> Option<String> {
    let mut keys: Vec<&String> = one.keys().chain(other.keys()).collect();
    keys.sort();
    let key = keys.into_iter().find(|key| one.get(*key) != other.get(*key))?;
    match (one.get(key), other.get(key)) {
        (Some(Value::Object(one)), Some(Value::Object(other))) => {
            let inner = first_difference(one, other);
            Some(inner.map_or_else(|| key.clone(), |inner| format!("{key}.{inner}")))
        }
        _ => Some(key.clone()),
    }
}
