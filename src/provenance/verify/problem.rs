//! Every way in which a release is not what it says.

use std::io;
use std::path::PathBuf;

use super::MAX_MANIFEST_BYTES;
use crate::diagnose::Diagnose;
use crate::json::Fault;
use crate::provenance::MANIFEST;
use crate::provenance::folder::{MAX_DEPTH, MAX_ENTRIES};
use crate::provenance::statement;

/// One way in which a release is not what it says.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The folder or a file in it cannot be read.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More than any release has.
    #[error("the folder has more than {MAX_ENTRIES} entries or {MAX_DEPTH} levels")]
    TooManyFiles,
    /// There is no manifest.
    #[error("there is no `{MANIFEST}`")]
    NoManifest,
    /// The manifest is too large to be one.
    #[error("`{MANIFEST}` has {bytes} bytes, more than {MAX_MANIFEST_BYTES}")]
    ManifestTooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The manifest is not JSON.
    #[error("`{MANIFEST}` is not JSON at line {line}, column {column}: {what}")]
    NotJson {
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// A key occurs twice in one object: readers disagree on which counts.
    #[error("`{MANIFEST}` has the key `{key}` twice, again at line {line}, column {column}")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
    /// The manifest is JSON, but not of the shape of a manifest.
    #[error("`{MANIFEST}` is not as a manifest is at line {line}, column {column}: {what}")]
    Shape {
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// Not an in-toto statement.
    #[error("`_type` is `{found}`, not `{}`", statement::STATEMENT_TYPE)]
    StatementType {
        /// What it says.
        found: String,
    },
    /// Not SLSA provenance.
    #[error("`predicateType` is `{found}`, not `{}`", statement::PREDICATE_TYPE)]
    PredicateType {
        /// What it says.
        found: String,
    },
    /// Not a release of this program.
    #[error("`buildType` is `{found}`, not `{}`", statement::BUILD_TYPE)]
    BuildType {
        /// What it says.
        found: String,
    },
    /// The manifest itself was changed.
    #[error("`{MANIFEST}` does not match its seal, the `invocationId`")]
    Seal,
    /// A name of a key that is not one.
    #[error("the `keyId` of the record tree is not 16 lower-case hexadecimal digits")]
    KeyId,
    /// Nobody can tell which one counts.
    #[error("`{MANIFEST}` states more than one record tree")]
    TwoRecordTrees,
    /// The manifest names no file.
    #[error("`{MANIFEST}` names no file")]
    NoSubject,
    /// A name that leaves the release, or that systems read differently.
    #[error("the manifest names a file {name:?}, which is not permitted: {fault}")]
    UnsafeName {
        /// The name.
        name: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The manifest vouches for itself.
    #[error("the manifest names itself among the files that it vouches for")]
    NamesItself,
    /// A file is named twice.
    #[error("the manifest names `{name}` twice")]
    DuplicateSubject {
        /// The file.
        name: String,
    },
    /// Two names are one file where letter case does not count.
    #[error("the manifest names both `{first}` and `{second}`, one file on some systems")]
    CaseCollision {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// A digest that is not one.
    #[error("the digest of `{name}` is not 64 lower-case hexadecimal digits")]
    BadDigest {
        /// The file.
        name: String,
    },
    /// A digest by another algorithm: it would be left unchecked.
    #[error("the manifest gives a `{algorithm}` digest of `{name}`, where only `sha256` is used")]
    Algorithm {
        /// The file.
        name: String,
        /// The algorithm.
        algorithm: String,
    },
    /// A file is gone.
    #[error("`{name}` is missing")]
    Missing {
        /// The file.
        name: String,
    },
    /// A file that nobody vouches for.
    #[error("`{name}` is not in the manifest")]
    Extra {
        /// The file.
        name: String,
    },
    /// A file has other bytes.
    #[error("`{name}` was changed: its SHA-256 is `{actual}`, not `{expected}`")]
    Changed {
        /// The file.
        name: String,
        /// By the manifest.
        expected: String,
        /// Of the bytes that are there.
        actual: String,
    },
    /// A symbolic link, whose target can change.
    #[error("`{name}` is a symbolic link")]
    Symlink {
        /// The link.
        name: String,
    },
    /// A pipe, socket or device.
    #[error("`{name}` is not a regular file")]
    Special {
        /// The thing.
        name: String,
    },
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Syntax { line, column, what } => Self::NotJson { line, column, what },
            Fault::DuplicateKey { line, column, key } => Self::DuplicateKey { key, line, column },
        }
    }
}

impl Diagnose for Problem {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unreadable { source, .. } => return source.hint(),
            Self::NoManifest | Self::TooManyFiles => "give the folder that `heirloom export` wrote",
            Self::Missing { .. } | Self::Changed { .. } => {
                "fetch the release again from where it was published"
            }
            Self::Extra { .. } => "remove it, or move it out of the release",
            Self::Symlink { .. } | Self::Special { .. } => {
                "copy the release with its files in place of links"
            }
            Self::BuildType { .. } | Self::PredicateType { .. } | Self::StatementType { .. } => {
                "use the program that made the release, in the version that its manifest names"
            }
            _ => "do not trust this manifest: fetch it again from where it was published",
        };
        Some(hint.to_owned())
    }
}

/// A release that is not what it says, with every problem.
#[derive(Debug, thiserror::Error)]
#[error("`{}` does not hold: {}", folder.display(), counted(problems.len()))]
pub struct VerifyError {
    /// The release.
    pub folder: PathBuf,
    /// At least one.
    pub problems: Vec<Problem>,
}

fn counted(problems: usize) -> String {
    if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") }
}

impl Diagnose for VerifyError {
    fn hint(&self) -> Option<String> {
        self.problems.first().and_then(Diagnose::hint)
    }
}
