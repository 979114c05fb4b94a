//! What can be wrong with the description of a data set.

use std::io;
use std::path::PathBuf;

use super::MAX_FILES;
use crate::diagnose::Diagnose;

/// What can be wrong with the description of a data set.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// A sidecar or a file of rows cannot be read or written.
    #[error("the description of the data cannot be read or written")]
    Io(#[from] io::Error),
    /// A file of rows is not Parquet.
    #[error("`{}` is not readable as Parquet: {what}", path.display())]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        what: String,
    },
    /// A sidecar is not JSON.
    #[error("`{}` is not JSON at line {line}, column {column}: {what}", path.display())]
    NotJson {
        /// The sidecar.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// A key occurs twice in one object: readers disagree on which counts.
    #[error("`{}` has the key `{key}` twice, again at line {line}, column {column}", path.display())]
    DuplicateKey {
        /// The sidecar.
        path: PathBuf,
        /// The key.
        key: String,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
    /// The same, in the footer of a file of rows.
    #[error("the footer of `{}` has the key `{key}` twice, again at line {line}, column {column}", path.display())]
    FooterKey {
        /// The file of rows.
        path: PathBuf,
        /// The key.
        key: String,
        /// Where in the value of the footer's key, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
    /// A sidecar is JSON and yet no description.
    #[error("`{}` does not describe a data set: {what}", path.display())]
    Shape {
        /// The sidecar.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A sidecar names a file outside its folder.
    #[error("`{}` names a file {name:?}, which does not lie beside it", path.display())]
    Escapes {
        /// The sidecar.
        path: PathBuf,
        /// The `contentUrl`.
        name: String,
    },
    /// A sidecar describes other bytes.
    #[error("`{}` has {what} as `{}` says", path.display(), sidecar.display())]
    OtherFile {
        /// The file of rows.
        path: PathBuf,
        /// The sidecar.
        sidecar: PathBuf,
        /// What it has, and what it should have.
        what: String,
    },
    /// Footer and sidecar contradict each other.
    #[error("the footer of `{}` and `{}` disagree about `{key}`", path.display(), sidecar.display())]
    Disagree {
        /// The file of rows.
        path: PathBuf,
        /// The sidecar.
        sidecar: PathBuf,
        /// The first key that differs.
        key: String,
    },
    /// The folder holds another data set.
    #[error("`{}` describes another data set: it differs in `{key}`", sidecar.display())]
    Occupied {
        /// The sidecar that is there.
        sidecar: PathBuf,
        /// The first key that differs.
        key: String,
    },
    /// A file that does not lie in the folder of its description.
    #[error("`{}` does not lie in `{}`, whose files are described", path.display(), folder.display())]
    Elsewhere {
        /// The file of rows.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// More files than one description covers.
    #[error("`{}` has {files} files of rows, more than the {MAX_FILES} that are described", folder.display())]
    TooManyFiles {
        /// The folder.
        folder: PathBuf,
        /// How many.
        files: usize,
    },
}

impl Diagnose for DescribeError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Io(error) => return error.hint(),
                Self::NotParquet { .. } => {
                    "copy or download the file again; it may have been cut short"
                }
                Self::NotJson { .. } | Self::DuplicateKey { .. } | Self::Shape { .. } => {
                    "mend the file, or move it away if it belongs to other data"
                }
                Self::Escapes { .. } => "do not trust this description: write it again",
                Self::OtherFile { .. } | Self::Disagree { .. } | Self::FooterKey { .. } => {
                    "import the data again from its source, or restore file and sidecars together"
                }
                Self::Occupied { key, .. } if key == "snapshot_at" => {
                    "write the same `snapshot_at` into both declarations, since it is otherwise \
                     the time of each import, or import into a folder of its own"
                }
                Self::Occupied { .. } => {
                    "give each data set a folder of its own, or state the same of all of its files"
                }
                Self::Elsewhere { .. } => "write the description into the folder of the files",
                Self::TooManyFiles { .. } => "write fewer, larger files",
            }
            .to_owned(),
        )
    }
}
