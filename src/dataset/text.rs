//! A plain text as token ids, the way Transformers' `tokenizer(text)` gives them.
//!
//! Owns reading the file and tokenising it whole, with the special tokens that the
//! post-processor of `tokenizer.json` adds. Does not own windows nor anything with tensors.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::chat::ChatError;
use super::tokenizer;
use crate::diagnose::Diagnose;

/// Largest text that is read; its tokens and their places take about forty times as much
/// memory while it is tokenised in one piece, as the reference does.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Tokens below which there is nothing to predict.
const MIN_TOKENS: usize = 2;

/// What can be wrong with a text or its tokenizer. Says where, never what.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder, a pipe or a device in the place of a file.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// More text than is tokenised at once.
    #[error("`{}` has {bytes} bytes, more than the {limit} that are tokenised at once", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Bytes that are no text.
    #[error("`{}` is not UTF-8 at byte {offset}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The first byte that is not.
        offset: usize,
    },
    /// A byte that no text has.
    #[error("`{}` has a NUL character at byte {offset}", path.display())]
    Nul {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
    },
    /// The tokenizer of the model cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] ChatError),
    /// The tokenizer cannot process the text.
    #[error("the tokenizer cannot process `{}`", path.display())]
    Tokenize {
        /// The file.
        path: PathBuf,
    },
    /// Nothing to predict.
    #[error("`{}` has {tokens} tokens, and the first is never scored", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// How many.
        tokens: usize,
    },
}

impl Diagnose for TextError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { source, .. } => return source.hint(),
            Self::NotAFile { .. } => "give a text file",
            Self::TooLarge { .. } => "give a part of it: a few megabytes give a stable figure",
            Self::NotUtf8 { .. } | Self::Nul { .. } => "save the text as UTF-8",
            Self::Tokenizer(error) => return error.hint(),
            Self::Tokenize { .. } => "download or export the model folder again",
            Self::TooShort { .. } => "give a longer text",
        };
        Some(hint.to_owned())
    }
}

/// Reads a text file.
pub fn read(path: &Path) -> Result<String, TextError> {
    let failed = |source| TextError::Read { path: path.to_owned(), source };
    // Asked first: opening a pipe would wait for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(TextError::NotAFile { path: path.to_owned() });
    }
    let file = fs::File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > MAX_TEXT_BYTES {
        return Err(TextError::TooLarge { path: path.to_owned(), bytes, limit: MAX_TEXT_BYTES });
    }
    let mut text = Vec::new();
    file.take(MAX_TEXT_BYTES).read_to_end(&mut text).map_err(failed)?;
    let text = String::from_utf8(text).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        TextError::NotUtf8 { path: path.to_owned(), offset }
    })?;
    match text.find('\0') {
        Some(offset) => Err(TextError::Nul { path: path.to_owned(), offset }),
        None => Ok(text),
    }
}

/// Tokenises a text file with the tokenizer of a model folder.
pub fn tokens(path: &Path, model: &Path) -> Result<Vec<u32>, TextError> {
    let text = read(path)?;
    let encoding = tokenizer::open(model)?.encode_fast(text, true);
    let encoding = encoding.map_err(|_| TextError::Tokenize { path: path.to_owned() })?;
    let tokens = encoding.get_ids().to_vec();
    if tokens.len() < MIN_TOKENS {
        return Err(TextError::TooShort { path: path.to_owned(), tokens: tokens.len() });
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn seedling() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/seedling"))
    }

    #[test]
    fn empty_and_too_short_texts_are_refused() {
        for (text, expected) in [("", 0), ("a", 1)] {
            let (_folder, path) = file(text.as_bytes());
            let error = tokens(&path, seedling()).unwrap_err();
            assert!(
                matches!(error, TextError::TooShort { tokens, .. } if tokens == expected),
                "{error}"
            );
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_where_they_stand() {
        let (_folder, path) = file(b"four\xff");
        assert!(matches!(read(&path), Err(TextError::NotUtf8 { offset: 4, .. })));
        // UTF-16, by its looks.
        let (_folder, path) = file(b"a\0b\0");
        assert!(matches!(read(&path), Err(TextError::Nul { offset: 1, .. })));
    }

    #[test]
    fn a_text_without_end_is_refused() {
        let (_folder, path) = file(b"");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(MAX_TEXT_BYTES + 1).unwrap();
        assert!(matches!(read(&path), Err(TextError::TooLarge { .. })));
        for other in ["/dev/zero", "/"] {
            assert!(matches!(read(Path::new(other)), Err(TextError::NotAFile { .. })));
        }
    }

    #[test]
    fn the_post_processor_adds_its_tokens() {
        let (folder, path) = file(b"hello there");
        let plain = tokens(&path, seedling()).unwrap();
        let text = fs::read_to_string(seedling().join("tokenizer.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<|end|>", "type_id": 0 } },
                       { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
                     { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<|end|>": { "id": "<|end|>", "ids": [1], "tokens": ["<|end|>"] } }
        });
        fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        assert_eq!(tokens(&path, folder.path()).unwrap(), [vec![1], plain].concat());
    }
}
