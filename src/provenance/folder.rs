//! What lies in a release folder, and which names may lie there.
//!
//! Shared by writing and verifying, so that what the one writes the other accepts.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

/// Most files and folders in a release; a hostile one could hold millions.
pub(super) const MAX_ENTRIES: usize = 100_000;

/// Deepest nesting of folders in a release.
pub(super) const MAX_DEPTH: usize = 8;

/// One thing in a release that is not a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative to the release, parts joined by `/`. A name that is not UTF-8 is given
    /// with replacement characters, which no permitted name has.
    pub(super) name: String,
    /// Where it lies.
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) kind: Kind,
}

/// What an [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file of so many bytes.
    File(u64),
    /// A symbolic link: never followed.
    Symlink,
    /// A pipe, socket or device: never opened, because opening may block or act.
    Special,
}

/// Why a folder could not be listed.
#[derive(Debug)]
pub(super) enum WalkError {
    /// The operating system refused.
    Io(PathBuf, io::Error),
    /// More than [`MAX_ENTRIES`] or [`MAX_DEPTH`].
    TooLarge,
}

/// Everything below `folder` that is not a folder, sorted by name.
pub(super) fn walk(folder: &Path) -> Result<Vec<Entry>, WalkError> {
    let mut entries = Vec::new();
    let mut seen = 0;
    let mut open = vec![(folder.to_owned(), String::new(), 0)];
    while let Some((path, prefix, depth)) = open.pop() {
        let refused = |error| WalkError::Io(path.clone(), error);
        for item in fs::read_dir(&path).map_err(refused)? {
            let item = item.map_err(refused)?;
            let name = format!("{prefix}{}", item.file_name().to_string_lossy());
            let metadata = item
                .path()
                .symlink_metadata()
                .map_err(|error| WalkError::Io(item.path(), error))?;
            seen += 1;
            if seen > MAX_ENTRIES || depth >= MAX_DEPTH {
                return Err(WalkError::TooLarge);
            }
            let kind = if metadata.is_dir() {
                open.push((item.path(), format!("{name}/"), depth + 1));
                continue;
            } else if metadata.is_symlink() {
                Kind::Symlink
            } else if metadata.is_file() {
                Kind::File(metadata.len())
            } else {
                Kind::Special
            };
            entries.push(Entry { name, path: item.path(), kind });
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// What is wrong with a name in a release; `None` if nothing is.
///
/// Only a plain relative path of ASCII letters, digits and `._+@=-` is permitted: it means
/// the same file on every system, whatever its separators, drives, letter case of Unicode
/// or normalisation.
pub(super) fn fault_of_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.starts_with('/') {
        return Some("it is absolute");
    }
    for part in name.split('/') {
        match part {
            "" => return Some("a part of it is empty"),
            "." | ".." => return Some("it climbs out of the release"),
            _ => {}
        }
    }
    let permitted = |c: char| c.is_ascii_alphanumeric() || "/._+@=-".contains(c);
    (!name.chars().all(permitted)).then_some("it has a character that not every system reads alike")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_release_or_differ_between_systems_are_refused() {
        for name in ["a", "model.safetensors", "croissant/a-b_c+d@e=f.json", ".gitattributes"] {
            assert_eq!(fault_of_name(name), None, "{name}");
        }
        for name in [
            "",
            "/etc/passwd",
            "../a",
            "a/../../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "a\\b",
            "C:a",
            "a\0b",
            "a\nb",
            "A\u{301}",
            "na\u{ef}ve",
            "a b",
            "a:b",
            "~",
            "\u{202e}a",
        ] {
            assert!(fault_of_name(name).is_some(), "{name:?}");
        }
    }
}
