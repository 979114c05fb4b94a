//! The base folder without tensors: what `config.json`, the safetensors headers and the
//! tokenizer say.
//!
//! Owns the architecture description and the memory-mapped checkpoint, so that
//! `heirloom check` can say everything about a base without libtorch. Does not own the
//! modules that compute (the engine's `model`) nor tokenising (`dataset::chat`).

mod architecture;
mod checkpoint;
mod families;
mod keys;
mod rope;
mod tensors;

use std::io;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;

pub use architecture::*;
pub use checkpoint::{Checkpoint, View};
pub use families::supported;
pub use rope::{Rope, RopeScaling};

use crate::diagnose::Diagnose;

/// A model folder in Hugging Face format that can be adapted.
#[derive(Debug)]
pub struct BaseFolder {
    folder: PathBuf,
    /// The architecture.
    pub architecture: Architecture,
    checkpoint: Option<Checkpoint>,
}

/// Files of a base folder that are read beside the weights, where they exist.
const SIDE_FILES: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "model.safetensors.index.json",
];

impl BaseFolder {
    /// Opens a folder; `from_scratch` leaves its weights alone.
    pub fn open(folder: &Path, from_scratch: bool) -> Result<Self, BaseError> {
        if !folder.is_dir() {
            return Err(BaseError::NoFolder { folder: folder.to_owned() });
        }
        let architecture = Architecture::open(folder)?;
        let checkpoint = if from_scratch {
            None
        } else {
            let checkpoint = Checkpoint::open_folder(folder)?;
            checkpoint
                .expect(&architecture.tensors(), |name| architecture.leaves_out(name))
                .map_err(|problems| BaseError::Tensors { folder: folder.to_owned(), problems })?;
            Some(checkpoint)
        };
        Ok(Self { folder: folder.to_owned(), architecture, checkpoint })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The mapped weights; `None` when opened from scratch.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// Every file that was or will be read, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        let side = SIDE_FILES.iter().map(|name| self.folder.join(name));
        let mut files: Vec<PathBuf> = side.filter(|path| path.is_file()).collect();
        if let Some(checkpoint) = &self.checkpoint {
            files.extend(checkpoint.files().map(Path::to_owned));
        } else {
            files.retain(|path| !path.ends_with("model.safetensors.index.json"));
        }
        files.sort();
        files
    }

    /// Refuses a tokenizer whose ids have no row in the embedding.
    pub fn fits_tokenizer(&self, tokens: usize) -> Result<(), BaseError> {
        if tokens <= self.architecture.vocab_size {
            return Ok(());
        }
        let (folder, rows) = (self.folder.clone(), self.architecture.vocab_size);
        Err(BaseError::TokenizerTooLarge { folder, tokens, rows })
    }
}

/// What can be wrong with a base folder or a safetensors file.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    // Files
    /// No such folder.
    #[error("there is no folder `{}`", folder.display())]
    NoFolder {
        /// What was asked for.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is larger than anything sensible.
    #[error("`{}` has {bytes} bytes, more than the {limit} that are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file is not the JSON it should be.
    #[error("`{}` is not valid", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },

    // Architecture
    /// `config.json` lacks a key.
    #[error("`{}` has no `{key}`", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A family that is not known.
    #[error("`{}` describes a model of type `{model_type}`, which is not supported", path.display())]
    UnsupportedFamily {
        /// The file.
        path: PathBuf,
        /// Its `model_type`.
        model_type: String,
    },
    /// A key that might change the computation.
    #[error("`{}` has `{key}` = `{value}`, whose meaning is not known", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// `config.json` asks for something that would change the computation.
    #[error("`{}` has `{key}` = `{value}`, which is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },

    // Weights
    /// Neither a checkpoint nor an index.
    #[error("`{}` has no `model.safetensors`", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// Only a pickle file.
    #[error("`{}` is a pickle file, which can run code when it is read", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// A safetensors file is truncated or lies about itself.
    #[error("`{}` is not a complete safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SafeTensorError,
    },
    /// An index points outside its folder.
    #[error("`{}` places `{tensor}` in `{shard}`, outside the folder", path.display())]
    ShardOutside {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard's name.
        shard: String,
    },
    /// A tensor stands in two shards.
    #[error("`{}` holds `{tensor}`, which another shard holds too", path.display())]
    Twice {
        /// The second shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The tensors are not those of the architecture.
    #[error("the weights in `{}` do not fit its `config.json`: {}", folder.display(), list(problems))]
    Tensors {
        /// The folder.
        folder: PathBuf,
        /// Every difference.
        problems: Vec<Mismatch>,
    },

    // Tokenizer
    /// Token ids without a row in the embedding.
    #[error(
        "the tokenizer of `{}` has {tokens} tokens, but the embedding only {rows} rows",
        folder.display()
    )]
    TokenizerTooLarge {
        /// The folder.
        folder: PathBuf,
        /// Size of the vocabulary.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
}

/// One difference between a checkpoint and what the architecture expects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Expected and not there.
    #[error("`{tensor}` is missing")]
    Missing {
        /// Checkpoint key.
        tensor: String,
    },
    /// There and not expected.
    #[error("`{tensor}` is unexpected{}", nearest.as_ref().map(|name| format!(" (nearest: `{name}`)")).unwrap_or_default())]
    Unexpected {
        /// Checkpoint key.
        tensor: String,
        /// The expected name that is most alike.
        nearest: Option<String>,
    },
    /// Another shape.
    #[error("`{tensor}` has shape {found:?} instead of {expected:?}")]
    Shape {
        /// Checkpoint key.
        tensor: String,
        /// By the architecture.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A dtype that cannot be loaded.
    #[error("`{tensor}` has dtype {dtype}, which cannot be loaded")]
    Dtype {
        /// Checkpoint key.
        tensor: String,
        /// In the file.
        dtype: String,
    },
}

/// At most so many differences are spelled out.
const MAX_LISTED: usize = 20;

fn list(problems: &[Mismatch]) -> String {
    let mut lines: Vec<String> =
        problems.iter().take(MAX_LISTED).map(Mismatch::to_string).collect();
    if problems.len() > MAX_LISTED {
        lines.push(format!("and {} more", problems.len() - MAX_LISTED));
    }
    lines.join(", ")
}

impl BaseError {
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }
}

impl Diagnose for BaseError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoFolder { .. } => {
                "`base.model` is a folder in Hugging Face format, relative to the current directory"
            }
            Self::Read { source, .. } => return source.hint(),
            Self::TooLarge { .. } | Self::Json { .. } | Self::MissingKey { .. } => {
                "download or export the model folder again"
            }
            Self::UnsupportedFamily { .. } => {
                let supported: Vec<_> = supported().map(|name| format!("`{name}`")).collect();
                return Some(format!(
                    "supported are {}; docs/contributing/adding-a-family.md shows how to add one",
                    supported.join(", ")
                ));
            }
            Self::UnknownKey { .. } => {
                "it may change what the model computes, so it is not ignored: if it does not, \
                 remove it from `config.json`, and tell us"
            }
            Self::Unsupported { .. } => "choose a base without this setting",
            Self::NoWeights { .. } => "set `base.from_scratch: true` to grow a model from nothing",
            Self::Pickle { .. } => {
                "convert the weights to safetensors, for example by loading and saving the model \
                 with Transformers"
            }
            Self::Safetensors { .. } => {
                "the file is truncated or damaged: copy or download it again"
            }
            Self::ShardOutside { .. } => "do not use this folder: its index is not honest",
            Self::Twice { .. } => "remove shards that do not belong to this model",
            Self::Tensors { .. } => "use the `config.json` that belongs to these weights",
            Self::TokenizerTooLarge { .. } => {
                "use the tokenizer that belongs to this model; adding tokens is not supported yet"
            }
        };
        Some(hint.to_owned())
    }
}
