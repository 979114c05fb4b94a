//! What can be wrong with the files that hold weights.

use std::path::{Path, PathBuf};

use super::header::HeaderError;
use super::mismatch::{self, Mismatch};
use crate::diagnose::Diagnose;

/// Weights that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Only a pickle file.
    #[error("`{}` is a pickle file, which can run code when it is read", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The folder that has nothing else.
        folder: PathBuf,
    },
    /// A folder, a pipe or a device in the place of a file.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// Two checkpoints in one folder.
    #[error("`{}` and `{}` are two checkpoints in one folder", single.display(), index.display())]
    Ambiguous {
        /// The one in a single file.
        single: PathBuf,
        /// The index of the other, which does not name that file.
        index: PathBuf,
    },
    /// A safetensors file is truncated or lies about itself.
    #[error("`{}` is not a complete safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        source: HeaderError,
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
    /// An index without a single tensor.
    #[error("`{}` names no tensor", path.display())]
    EmptyIndex {
        /// The index.
        path: PathBuf,
    },
    /// Shards that are not there.
    #[error("{} of the {shards} shards that `{}` names are missing", missing.len(), path.display())]
    MissingShards {
        /// The index.
        path: PathBuf,
        /// Their names.
        missing: Vec<String>,
        /// How many shards there should be.
        shards: usize,
    },
    /// The shards hold other tensors than their index says.
    #[error("the shards do not hold what `{}` says: {}", path.display(), mismatch::summary(problems))]
    Index {
        /// The index.
        path: PathBuf,
        /// Every difference.
        problems: Vec<Mismatch>,
    },
    /// The tensors are not those of the architecture.
    #[error("the weights in `{}` do not fit its `config.json`: {}", folder.display(), mismatch::summary(problems))]
    Tensors {
        /// The folder.
        folder: PathBuf,
        /// Every difference.
        problems: Vec<Mismatch>,
    },
}

impl Diagnose for WeightsError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Pickle { folder, .. } => return Some(conversion(folder)),
            Self::NotAFile { .. } => "put the file itself there, or a link to it",
            Self::Ambiguous { .. } => {
                "move the one that is not meant out of the folder; programs differ in which they \
                 read (Transformers: `model.safetensors`)"
            }
            Self::Safetensors { .. } => {
                "the file is truncated or damaged: copy or download it again"
            }
            Self::ShardOutside { .. } => "do not use this folder: its index is not honest",
            Self::EmptyIndex { .. } | Self::MissingShards { .. } => {
                "copy or download the folder again, with all its files"
            }
            Self::Index { .. } => {
                "use the index and the shards of one and the same checkpoint: copy or download \
                 them again"
            }
            Self::Tensors { .. } => "use the `config.json` that belongs to these weights",
        };
        Some(hint.to_owned())
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::MissingShards { missing, .. } => {
                missing.iter().map(|shard| format!("`{shard}` is missing")).collect()
            }
            Self::Index { problems, .. } | Self::Tensors { problems, .. } => {
                mismatch::lines(problems)
            }
            _ => Vec::new(),
        }
    }
}

/// A command that writes the weights of a folder of pickle files as safetensors.
fn conversion(folder: &Path) -> String {
    let folder = folder.to_string_lossy();
    let plain = |letter: char| letter.is_alphanumeric() || "._-/ ".contains(letter);
    // A name that Python or a shell would read as more than a name is left to the reader.
    let folder = if folder.chars().all(plain) { &folder } else { "FOLDER" };
    format!(
        "convert it where running its code does no harm, then use the new folder: python -c \
         \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; f = \
         '{folder}'; o = f + '-safetensors'; M.from_pretrained(f, \
         dtype='auto').save_pretrained(o); T.from_pretrained(f).save_pretrained(o)\""
    )
}
