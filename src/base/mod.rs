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
mod quantization;
mod rope;
mod tensors;

use std::io;
use std::path::{Path, PathBuf};

pub use architecture::*;
pub use checkpoint::{Checkpoint, HeaderError, Mismatch, StoredTensor, View, WeightsError};
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
const SIDE_FILES: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/default.jinja",
    "additional_chat_templates/tool_use.jinja",
    "generation_config.json",
    "model.safetensors.index.json",
];

/// Most rows that an embedding can grow by: a token id beyond them is a mistake.
const MAX_NEW_ROWS: usize = 65_536;

impl BaseFolder {
    /// Opens a folder; `from_scratch` leaves its weights alone.
    pub fn open(folder: &Path, from_scratch: bool) -> Result<Self, BaseError> {
        if !folder.is_dir() {
            return Err(BaseError::NoFolder { folder: folder.to_owned() });
        }
        let mut architecture = Architecture::open(folder)?;
        let checkpoint = if from_scratch {
            None
        } else {
            let mut checkpoint = Checkpoint::open_folder(folder)?;
            if let Some(block) = quantization::fp8_block(folder)? {
                checkpoint.set_fp8_block(block);
            }
            // As in the reference, weights that differ are not tied, whatever the config says.
            architecture.tie_word_embeddings =
                architecture.tie_word_embeddings && checkpoint.tie(EMBEDDING, OUTPUT);
            checkpoint
                .expect(&architecture.tensors(), |name| architecture.leaves_out(name))
                .map_err(|problems| WeightsError::Tensors {
                    folder: folder.to_owned(),
                    problems,
                })?;
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

    /// Gives the embedding and the output projection `rows` rows, if they have fewer. What the
    /// new rows hold is the engine's.
    pub fn grow(&mut self, rows: usize) -> Result<(), BaseError> {
        let stored = self.architecture.vocab_size;
        if rows.saturating_sub(stored) > MAX_NEW_ROWS {
            let folder = self.folder.clone();
            return Err(BaseError::TooManyNewRows { folder, rows, stored });
        }
        self.architecture.vocab_size = stored.max(rows);
        Ok(())
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
    /// Files that cannot be used, or tensors that are not those of the architecture.
    #[error(transparent)]
    Weights(#[from] WeightsError),

    // Tokenizer
    /// More new rows than anyone adds.
    #[error(
        "`{}` has an embedding of {stored} rows, which cannot grow to {rows}",
        folder.display()
    )]
    TooManyNewRows {
        /// The folder.
        folder: PathBuf,
        /// Rows that are asked for.
        rows: usize,
        /// Rows that are there.
        stored: usize,
    },
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
            Self::Weights(error) => return error.hint(),
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
            Self::TooManyNewRows { .. } => "use the base that the tokens belong to",
            Self::TokenizerTooLarge { .. } => {
                "use the tokenizer that belongs to this model; a recipe adds tokens to it with \
                 `base.added_tokens`"
            }
        };
        Some(hint.to_owned())
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Weights(error) => error.details(),
            _ => Vec::new(),
        }
    }
}
