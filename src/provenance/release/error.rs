//! Why a release cannot be made.

use std::io;
use std::path::PathBuf;

use crate::diagnose::{Blame, Diagnose};
use crate::provenance::MANIFEST;

/// Why a release was not made; nothing of it remains.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Something already lies there.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// The release folder asked for.
        path: PathBuf,
    },
    /// `--force` would have removed something that is no release.
    #[error("`{}` is not a release, so it is not replaced", path.display())]
    NotARelease {
        /// The release folder asked for.
        path: PathBuf,
    },
    /// A file that the release tells of cannot be read.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A text file of the base is far larger than such files are.
    #[error("`{}` is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A file of the run folder is not what Heirloom writes there.
    #[error("`{}` is not what a run writes there, at line {line}: {what}", path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// `SOURCE_DATE_EPOCH` is not a number of seconds.
    #[error("the environment variable `SOURCE_DATE_EPOCH` is `{value}`, not a number of seconds")]
    SourceDateEpoch {
        /// Its value.
        value: String,
    },
    /// The release cannot be written.
    #[error("cannot write the release `{}`", path.display())]
    Unwritable {
        /// The release folder asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The payload lacks a file, or has one that no release may have.
    #[error("the payload is not fit for release: {what}")]
    Payload {
        /// What is wrong.
        what: String,
    },
    /// The facts cannot be written down.
    #[error("the release's documents cannot be rendered: {what}")]
    Render {
        /// What is wrong.
        what: String,
    },
}

impl Diagnose for ReleaseError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Exists { .. } => {
                Some("choose another folder, or replace this one with `--force`".to_owned())
            }
            Self::NotARelease { .. } => Some(format!(
                "choose another folder; only a folder with a `{MANIFEST}` in it is replaced"
            )),
            Self::Unreadable { source, .. } | Self::Unwritable { source, .. } => source.hint(),
            Self::TooLarge { .. } => Some("check that it is the right file".to_owned()),
            Self::Run { .. } => {
                Some("write it again with `heirloom eval` or `heirloom train --resume`".to_owned())
            }
            Self::SourceDateEpoch { .. } => {
                Some("unset it, or set it to seconds since 1970-01-01T00:00:00Z".to_owned())
            }
            Self::Payload { .. } | Self::Render { .. } => None,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Payload { .. } | Self::Render { .. } => Blame::Defect,
            _ => Blame::User,
        }
    }
}
