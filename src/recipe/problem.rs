//! What can be wrong with a recipe, and where.
//!
//! Owns the places, the problems and the error that carries all of them at once. Does not
//! own the checks that find them (`yaml`, `decode`, `overrides`, `rules`, `plan`).

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::diagnose::{Blame, Diagnose, Failure};

/// How alike two words must be (Jaro-Winkler, 0 to 1) for the one to be offered for the other.
const ALIKE: f64 = 0.8;

/// Where in the user's words something stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the recipe file; both count from 1, columns in characters.
    File {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In a `--set` of the command line, as written there.
    Set(String),
}

/// Something wrong with a recipe, or with what it names.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The text is not YAML, or YAML that recipes do not use.
    #[error("{what}")]
    Syntax {
        /// The parser's words.
        what: String,
        /// How to write it.
        hint: String,
    },
    /// A key that the format does not have.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The whole key.
        key: String,
        /// The keys that may stand there.
        known: &'static [&'static str],
    },
    /// A key that stands twice.
    #[error("`{key}` stands twice")]
    DuplicateKey {
        /// The whole key.
        key: String,
    },
    /// A key without which there is no recipe.
    #[error("`{key}` is missing")]
    MissingKey {
        /// The whole key.
        key: String,
    },
    /// A value of another type.
    #[error("`{key}` must be {expected}, found {found}")]
    WrongType {
        /// The whole key.
        key: String,
        /// What would fit.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A word that is none of those that may stand there.
    #[error("`{key}` cannot be `{found}`")]
    UnknownWord {
        /// The whole key.
        key: String,
        /// The word.
        found: String,
        /// The words that may stand there.
        known: Vec<String>,
    },
    /// A `--set` that cannot be applied.
    #[error("{what}")]
    Override {
        /// Why not.
        what: String,
        /// How to write it.
        hint: String,
    },
    /// A value of the right type that cannot work.
    #[error("`{key}` {what}")]
    Rule {
        /// The whole key.
        key: String,
        /// What is wrong with it.
        what: String,
        /// What to write.
        hint: String,
    },
    /// What the recipe names cannot be used.
    #[error("{}", chain(.cause))]
    Input {
        /// Why not.
        cause: Failure,
    },
}

impl Fault {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Syntax { hint, .. } | Self::Override { hint, .. } | Self::Rule { hint, .. } => {
                Some(hint.clone())
            }
            Self::UnknownKey { key, known } => Some(offer(last_part(key), known.iter().copied())),
            Self::UnknownWord { found, known, .. } => {
                Some(offer(found, known.iter().map(String::as_str)))
            }
            Self::DuplicateKey { .. } => Some("keep one of the two".to_owned()),
            Self::MissingKey { key } => Some(match example(key) {
                Some(example) => format!("add `{}: {example}`", last_part(key)),
                None => format!("add `{}`", last_part(key)),
            }),
            Self::WrongType { key, .. } => example(key)
                .map(|example| format!("write, for example, `{}: {example}`", last_part(key))),
            Self::Input { cause } => cause.hint(),
        }
    }

    /// What belongs under the sentence.
    fn details(&self) -> Vec<String> {
        match self {
            Self::Input { cause } => cause.details(),
            _ => Vec::new(),
        }
    }

    /// Whose fault it is.
    fn blame(&self) -> Blame {
        match self {
            Self::Input { cause } => cause.blame(),
            _ => Blame::User,
        }
    }
}

/// An error and all that caused it, in one line.
fn chain(error: &Failure) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// A value that would do for a key, to show in a hint.
fn example(key: &str) -> Option<&'static str> {
    Some(match key {
        "data.train" | "data.validation" => {
            "[{ path: data/catalogue/train-*.parquet, format: chat }]"
        }
        "data.test" => "[{ name: catalogue, path: data/catalogue/test.parquet, format: chat }]",
        _ => return example_of_last(last_part(key)),
    })
}

fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn example_of_last(key: &str) -> Option<&'static str> {
    Some(match key {
        "heirloom" => "1",
        "name" => "my-first-run",
        "base" => "{ model: data/seedling }",
        "model" => "data/seedling",
        "adapter" => "{ lora: { rank: 16, alpha: 32 } }",
        "rank" => "16",
        "alpha" => "32",
        "dropout" => "0.0",
        "targets" => "all-linear",
        "purpose" => "[dpv:ServiceProvision]",
        "processing" => "[ai:ModelFineTuning]",
        "max_hours" => "24",
        "path" => "data/catalogue/train-*.parquet",
        "format" => "chat",
        "sequence_length" => "512",
        "packing" | "shuffle" => "true",
        "from_scratch" => "false",
        "epochs" => "3",
        "tokens_per_step" => "4096",
        "micro_batch_tokens" => "2048",
        "max_new_tokens" => "128",
        "optimizer" => "{ adamw: { lr: 2.0e-4 } }",
        "schedule" => "{ cosine: { warmup_ratio: 0.03 } }",
        "adamw" => "{ lr: 2.0e-4 }",
        "params" => "[lora_B]",
        "lr" => "2.0e-4",
        "betas" => "[0.9, 0.999]",
        "seed" => "17",
        "suites" => "[catalogue]",
        "metric" => "catalogue/exact_match",
        _ => return None,
    })
}

/// The known word most like `word`, if any is like it.
pub(crate) fn most_alike<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let likeness = |known: &str| strsim::jaro_winkler(word, known);
    known
        .into_iter()
        .filter(|known| likeness(known) > ALIKE)
        .max_by(|one, other| likeness(one).total_cmp(&likeness(other)))
}

/// "did you mean", or else all there is.
pub(crate) fn offer<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match most_alike(word, known.clone()) {
        Some(alike) => format!("did you mean `{alike}`?"),
        None => format!("write one of {}", listed(known)),
    }
}

/// "`a`, `b` and `c`", sorted.
pub(crate) fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut words: Vec<String> = words.map(|word| format!("`{word}`")).collect();
    words.sort();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        Some((last, _)) => last.clone(),
        None => "nothing".to_owned(),
    }
}

/// A fault and where it stands.
#[derive(Debug)]
pub struct Problem {
    /// The recipe file.
    pub file: PathBuf,
    /// Where in it, or which `--set`.
    pub place: Place,
    /// What is wrong.
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { line, column } => {
                write!(f, "{}:{line}:{column}: {}", self.file.display(), self.fault)
            }
            Place::Set(words) => write!(f, "--set {words}: {}", self.fault),
        }
    }
}

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is larger than any recipe.
    #[error("the recipe `{path}` is larger than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The file is not text.
    #[error("the recipe `{path}` is not UTF-8 at byte {offset}")]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is not.
        offset: usize,
    },
    /// All that is wrong, in the order of the file.
    #[error("{}", summary(.path, .problems))]
    Problems {
        /// The file.
        path: PathBuf,
        /// At least one.
        problems: Vec<Problem>,
    },
}

fn summary(path: &std::path::Path, problems: &[Problem]) -> String {
    match problems {
        [problem] => problem.to_string(),
        _ => format!("the recipe `{}` has {} problems", path.display(), problems.len()),
    }
}

impl Diagnose for RecipeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } => source.hint(),
            Self::TooLarge { .. } => {
                Some("give the recipe, a short YAML file, and not the data".to_owned())
            }
            Self::NotText { .. } => Some("save the recipe as UTF-8 text".to_owned()),
            Self::Problems { problems, .. } => match problems.as_slice() {
                [problem] => problem.fault.hint(),
                _ => None,
            },
        }
    }

    fn blame(&self) -> Blame {
        match self {
            // One defect of ours among the user's mistakes is still a defect.
            Self::Problems { problems, .. }
                if problems.iter().any(|problem| problem.fault.blame() == Blame::Defect) =>
            {
                Blame::Defect
            }
            _ => Blame::User,
        }
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Problems { problems, .. } => match problems.as_slice() {
                [problem] => problem.fault.details(),
                _ => problems.iter().map(in_full).collect(),
            },
            _ => Vec::new(),
        }
    }
}

/// One of several problems, with all that is known of it.
fn in_full(problem: &Problem) -> String {
    let mut lines = vec![problem.to_string()];
    lines.extend(problem.fault.details());
    lines.extend(problem.fault.hint());
    lines.join("\n  ")
}
