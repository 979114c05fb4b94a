//! What can be wrong with what a user asks a model to generate.

use std::io;
use std::path::PathBuf;

use super::SETTABLE;
use crate::diagnose::Diagnose;

/// Says where something is wrong, never what a prompt says.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// A setting outside its range.
    #[error("`{key}` is {value}, not {wanted}")]
    OutOfRange {
        /// Its name in `generation_config.json`.
        key: &'static str,
        /// What was given.
        value: f64,
        /// The range in words.
        wanted: &'static str,
    },
    /// A stop string that every text begins with.
    #[error("a stop string is empty")]
    EmptyStop,
    /// `/set` of something else.
    #[error("there is no setting `{key}`")]
    NoSuchOption {
        /// What was typed.
        key: String,
    },
    /// `/set` to something else.
    #[error("`{value}` is no value of `{key}`")]
    NotAValue {
        /// The setting.
        key: String,
        /// What was typed.
        value: String,
    },
    /// A file of the model that cannot be understood.
    #[error("`{}`, line {line}, column {column}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A setting of the model that would change the text and is not understood.
    #[error("the model's `generation_config.json` asks for `{key}`, which is not supported")]
    Unsupported {
        /// The key.
        key: String,
    },
    /// A file of prompts cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of prompts that is too long for one prompt.
    #[error("`{}` is longer than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// In bytes.
        limit: u64,
    },
    /// The end of the name says neither JSONL nor Parquet.
    #[error("`{}` is neither `.jsonl` nor `.parquet`", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A line of JSONL is not a request.
    #[error("`{}`, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A Parquet file cannot be read.
    #[error("`{}` is not readable as Parquet: {reason}", path.display())]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// A Parquet file without prompts.
    #[error("`{}` has neither a column `messages` nor `prompt` of the right type", path.display())]
    NoColumn {
        /// The file.
        path: PathBuf,
    },
    /// A Parquet row without a prompt.
    #[error("row {row} (counted from 0) of `{}` has no `{column}`", path.display())]
    Null {
        /// The file.
        path: PathBuf,
        /// From 0.
        row: u64,
        /// What it lacks.
        column: &'static str,
    },
    /// No request at all.
    #[error("`{}` has no rows", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
    },
    /// A conversation where only text is taken.
    #[error("request {number} has `messages`, but `--raw` gives the model plain text")]
    RawMessages {
        /// From 1.
        number: u64,
    },
    /// Text that gives no token.
    #[error("request {number} has no text to go on from")]
    EmptyPrompt {
        /// From 1.
        number: u64,
    },
    /// The tokenizer fails on a text.
    #[error("the tokenizer cannot process a text")]
    Tokenize,
}

impl Diagnose for GenerationError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::OutOfRange { .. } => "give another value, or leave the setting out",
            Self::EmptyStop => "leave it out, or give some text",
            Self::NoSuchOption { .. } => return Some(format!("there are {}", settable())),
            Self::NotAValue { .. } => "give a number, or `default` (`greedy` is true or false)",
            Self::Json { .. } => {
                "download the model's folder again, or save it again with Transformers"
            }
            Self::Unsupported { .. } => {
                "with `--no-generation-config` the file's settings are left aside"
            }
            Self::Read { source, .. } => return source.hint(),
            Self::TooLarge { .. } => "give a shorter prompt",
            Self::UnknownFormat { .. } => {
                "give a file `*.jsonl` or `*.parquet`; one prompt of plain text is `--file`"
            }
            Self::Line { .. } => {
                "each line is an object with `prompt` (a text) or `messages` (a list of objects \
                 with `role` and `content`), and an `id` if you like"
            }
            Self::NotParquet { .. } => {
                "copy or download the file again; it may have been cut short"
            }
            Self::NoColumn { .. } => {
                "`prompt` is STRING; `messages` is LIST<STRUCT<role STRING, content STRING>>"
            }
            Self::Null { .. } => "fill in the value, or remove the row",
            Self::NoRows { .. } => "give a file with at least one prompt",
            Self::RawMessages { .. } => "leave `--raw` out, or give `prompt` instead",
            Self::EmptyPrompt { .. } => "give some text to go on from",
            Self::Tokenize => "check that `tokenizer.json` belongs to this model",
        };
        Some(hint.to_owned())
    }
}

fn settable() -> String {
    SETTABLE.map(|key| format!("`{key}`")).join(", ")
}
