//! What ends an import. What is wrong with a single row is a [`super::reject::Reason`].

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::super::describe::DescribeError;
use super::super::format::LayoutError;
use super::super::source::SourceError;
use crate::diagnose::{Blame, Diagnose};
use crate::recipe::problem;

/// How the key that `subject_key` names comes to be.
pub(super) const MAKE_KEY: &str =
    "make one with `openssl rand -hex 32 > subject.key`, and keep it secret";

/// What ends an import; nothing of the output remains.
#[derive(Debug, Error)]
pub enum ImportError {
    /// No file by that name, or a pattern that is none.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The mapping names what is no field of the format.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The sidecars beside the output cannot be written, or are another data set's.
    #[error(transparent)]
    Describe(#[from] DescribeError),
    /// An input cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An output cannot be written.
    #[error("cannot write the rows")]
    Write(#[source] io::Error),
    /// An input is of a kind that is not read.
    #[error("`{}` is no `.jsonl`, `.json`, `.csv` or `.parquet`", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// An input cannot be understood from some place on.
    #[error("`{}` cannot be read from line {line} on: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// Why not.
        reason: String,
    },
    /// Not Parquet, cut short, or damaged.
    #[error("`{}` is not readable as Parquet: {reason}", path.display())]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// A source that lies in a store or on a server.
    #[error("`{address}` is an address, and only files are imported")]
    Address {
        /// The address, without its query, which may be a signature.
        address: String,
    },
    /// The key by which subjects become digests is not there.
    #[error("there is no file `{}`, which `subject_key` names", path.display())]
    NoSubjectKey {
        /// The key.
        path: PathBuf,
    },
    /// A text in another encoding.
    #[error("`{}` is not UTF-8 but UTF-16", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
    },
    /// A source records consent that the declaration would pass over.
    #[error(
        "`{}` records consent in {}, which the declaration does not map",
        path.display(),
        problem::listed(columns.iter().map(String::as_str))
    )]
    Unmapped {
        /// The source.
        path: PathBuf,
        /// The columns.
        columns: Vec<String>,
    },
    /// A mapping names a column that is not there.
    #[error("`{key}` names the column `{column}`, which {}", absent(path.as_deref()))]
    NoColumn {
        /// The source; none where no row of JSON has it.
        path: Option<PathBuf>,
        /// The key of the mapping.
        key: String,
        /// The column.
        column: String,
        /// The columns that are there.
        known: Vec<String>,
    },
    /// Rows of one id whose consent differs: nobody can tell which of them holds.
    #[error(
        "line {} of `{}` and line {} of `{}` have the same record id and different consent",
        first.1, first.0.display(), second.1, second.0.display()
    )]
    Conflict {
        /// The file and the line (in Parquet, the row) of the first.
        first: (PathBuf, u64),
        /// Those of the one that differs.
        second: (PathBuf, u64),
    },
    /// The keys of the rows are those of no format.
    #[error("the format of `{}` cannot be told from the keys of its rows", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The keys of its first rows.
        keys: Vec<String>,
    },
    /// No source has a row.
    #[error("there is no row in {}", named(.paths))]
    NoRow {
        /// The files.
        paths: Vec<PathBuf>,
    },
    /// Every row was refused.
    #[error("none of the {seen} rows could be imported; `{}` says why of each", rejects.display())]
    Nothing {
        /// How many there were.
        seen: u64,
        /// Where it is said.
        rejects: PathBuf,
        /// How many, by reason.
        reasons: Vec<(&'static str, u64)>,
    },
    /// The output is there already.
    #[error("`{}` is there already", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// Two of the files of one import are the same.
    #[error("`{}` is also read or written by this import", path.display())]
    Same {
        /// The output.
        path: PathBuf,
    },
    /// The declaration of consent cannot be read.
    #[error("{}:{line}:{column}: {what}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
        /// What is wrong.
        what: String,
        /// What to write.
        hint: Option<String>,
    },
    /// A value of the declaration that cannot work.
    #[error("`{key}` of `{}` {what}", path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        what: String,
        /// What to write.
        hint: String,
    },
    /// A file of consent records that holds none.
    #[error("`{}` is no consent record: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The writer refuses what it was given.
    #[error("the rows cannot be put into columns: {reason}")]
    Columns {
        /// What it says.
        reason: String,
    },
}

fn named(paths: &[PathBuf]) -> String {
    let names = paths.iter().map(|path| format!("`{}`", path.display()));
    names.collect::<Vec<_>>().join(", ")
}

fn absent(path: Option<&Path>) -> String {
    path.map_or("no row has".to_owned(), |path| format!("`{}` does not have", path.display()))
}

impl ImportError {
    pub(super) fn read(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }
}

impl Diagnose for ImportError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Source(error) => return error.hint(),
            Self::Describe(error) => return error.hint(),
            Self::Layout(LayoutError::UnknownField { field, known }) => {
                let known = known.iter().copied();
                let offer = problem::offer(field, known);
                format!("{offer} `--columns` takes FIELD=COLUMN, the format's word first")
            }
            Self::Layout(error) => return error.hint(),
            Self::Read { source, .. } | Self::Write(source) => return source.hint(),
            Self::Address { .. } => {
                "download it first and import the file; if it is Parquet with consent columns, \
                 no import is needed: name the address in a recipe"
                    .to_owned()
            }
            Self::NoSubjectKey { .. } => MAKE_KEY.to_owned(),
            Self::Kind { .. } => "convert it to one of these first".to_owned(),
            Self::Broken { .. } | Self::NotParquet { .. } => {
                "mend the file, or download it again; it may have been cut short".to_owned()
            }
            Self::Encoding { .. } => "convert it with `iconv -f UTF-16 -t UTF-8`".to_owned(),
            Self::Unmapped { .. } => "map them under `columns` of the declaration, or drop them \
                                      from the source if they are not to count"
                .to_owned(),
            Self::NoColumn { column, known, .. } => {
                problem::offer(column, known.iter().map(String::as_str))
            }
            Self::Conflict { .. } => {
                "keep the row whose consent holds today, and drop the others".to_owned()
            }
            Self::Format { keys, .. } => format!(
                "say it with `--format`, and `--columns FIELD=COLUMN` where columns have names \
                 of their own; the rows have {}",
                problem::listed(keys.iter().map(String::as_str))
            ),
            Self::NoRow { .. } => "check that these are the files that are meant".to_owned(),
            Self::Nothing { .. } => {
                "compare the reasons with `--format`, `--columns` and the declaration of consent"
                    .to_owned()
            }
            Self::Exists { .. } => "name another file, or add `--force` to replace it".to_owned(),
            Self::Same { .. } => "give the output a file of its own".to_owned(),
            Self::Yaml { hint, .. } => return hint.clone(),
            Self::Rule { hint, .. } => hint.clone(),
            Self::Record { .. } => {
                "a record is JSON-LD with `@id`, `@type: dpv:ConsentRecord` and \
                 `dpv:hasConsentStatus`"
                    .to_owned()
            }
            Self::Columns { .. } => return None,
        })
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Nothing { reasons, .. } => {
                reasons.iter().map(|(reason, rows)| format!("{rows} {reason}")).collect()
            }
            _ => Vec::new(),
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Columns { .. } => Blame::Defect,
            _ => Blame::User,
        }
    }
}
