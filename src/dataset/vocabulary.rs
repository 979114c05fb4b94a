//! The words of a base as a recipe changes them: added tokens, and a template of its own.
//!
//! Owns the tokenizer files that come out of it, which training reads and releases carry, and
//! finding markers of a template that are no tokens. Does not own rows of the embedding
//! ([`crate::recipe::Lora::resolve`] says which are trained) nor the encoding itself
//! ([`super::chat`]).
//!
//! Reference: Transformers' `add_tokens(…, special_tokens=True)` and `save_pretrained`; ids are
//! given by the tokenizers library, from the end of the vocabulary on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::{Value, json};
use thiserror::Error;
use tokenizers::AddedToken;

use super::chat::{ChatEncoder, ChatError, Message};
use super::tokenizer::{self, MAX_TOKENIZER_BYTES};
use crate::base::{BaseError, BaseFolder};
use crate::diagnose::{Blame, Diagnose};
use crate::files::{read_bounded, read_if_there, sha256_of_bytes, write_atomically};
use crate::recipe::{self, Lora, UnknownToken};

/// Largest template of a recipe that is read, in bytes.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Longest marker that is looked for, in bytes.
const MAX_MARKER_BYTES: usize = 64;

/// Markers without bars that are tokens wherever they are used at all.
const TURN_MARKERS: [&str; 2] = ["<start_of_turn>", "<end_of_turn>"];

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const GENERATION_CONFIG: &str = "generation_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// Further templates, which are chosen by name.
const MORE_TEMPLATES: [&str; 2] =
    ["additional_chat_templates/default.jinja", "additional_chat_templates/tool_use.jinja"];

/// Files of a model folder that say how text becomes tokens and when an answer ends.
pub const FILES: [&str; 7] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    TEMPLATE,
    MORE_TEMPLATES[0],
    MORE_TEMPLATES[1],
    GENERATION_CONFIG,
];

/// What stands in the way of a recipe's words.
#[derive(Debug, Error)]
pub enum VocabularyError {
    /// The template or tokenizer does not work.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The recipe's template cannot be read.
    #[error("cannot read the chat template `{}`", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl Diagnose for VocabularyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Chat(error) => error.hint(),
            Self::Template { .. } => Some(
                "`base.chat_template` is a Jinja file, relative to the current directory"
                    .to_owned(),
            ),
        }
    }

    fn blame(&self) -> Blame {
        Blame::User
    }
}

/// An id that two tokenizers read differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlike {
    /// The id.
    pub id: u32,
    /// What it is here, if it is anything.
    pub ours: Option<String>,
    /// What it is there.
    pub theirs: Option<String>,
}

/// A tokenizer and a template, ready to be used.
#[derive(Debug)]
pub struct Vocabulary {
    /// Conversations to tokens.
    pub encoder: ChatEncoder,
    /// Ids of the tokens that the base did not have, in the order of the recipe.
    pub added: Vec<u32>,
    /// The changed files, by name; `None` where the base's are used as they are.
    pub files: Option<Files>,
}

impl Vocabulary {
    /// The words of the base in `folder` as `words` changes them.
    pub fn open(folder: &Path, words: &recipe::Base) -> Result<Self, VocabularyError> {
        if words.chat_template.is_none() && words.added_tokens.is_empty() {
            let encoder = ChatEncoder::open_for_texts(folder)?;
            return Ok(Self { encoder, added: Vec::new(), files: None });
        }
        let mut files = read(folder).map_err(ChatError::Read)?;
        let mut added = Vec::new();
        if !words.added_tokens.is_empty() {
            let new = add_tokens(&mut files, folder, &words.added_tokens)?;
            name_added_tokens(&mut files, &folder.join(TOKENIZER_CONFIG), &new)?;
            added = new.into_iter().map(|(id, _)| id).collect();
        }
        if let Some(path) = &words.chat_template {
            // Of several templates, Transformers would choose one that is not the recipe's.
            files.retain(|name, _| !MORE_TEMPLATES.contains(name));
            files.insert(TEMPLATE, read_template(path)?);
            edit(&mut files, TOKENIZER_CONFIG, &folder.join(TOKENIZER_CONFIG), |config| {
                config.as_object_mut().map(|config| config.shift_remove("chat_template"));
            })?;
        }
        let encoder = encoder(&files, words)?;
        let path = folder.join(GENERATION_CONFIG);
        stop_at(&mut files, &path, encoder.stop_ids())?;
        Ok(Self { encoder, added, files: Some(files) })
    }

    /// Gives `base` a row for every token; only added tokens may be beyond those it has.
    pub fn fit(&self, base: &mut BaseFolder) -> Result<(), BaseError> {
        let tokens = self.encoder.vocab_size();
        match self.added.iter().min() {
            None => base.fits_tokenizer(tokens),
            Some(first) => {
                base.fits_tokenizer(*first as usize)?;
                base.grow(tokens)
            }
        }
    }

    /// `lora` with its tokens by id, see [`Lora::resolve`].
    pub fn resolve(&self, lora: &Lora, tied: bool) -> Result<Lora, UnknownToken> {
        let tokenizer = self.encoder.tokenizer();
        lora.resolve(|token| tokenizer.token_to_id(token), &self.added, tied)
    }

    /// The first id that the tokenizer of another model's folder reads as another token, if there
    /// is one. How text is divided into tokens is not compared: the other model is given ids.
    pub fn unlike(&self, folder: &Path) -> Result<Option<Unlike>, ChatError> {
        let by_id = |tokenizer: &tokenizers::Tokenizer| -> BTreeMap<u32, String> {
            let tokens = tokenizer.get_vocab(true).into_iter();
            tokens.map(|(token, id)| (id, token)).collect()
        };
        let mut ours = by_id(self.encoder.tokenizer());
        let mut theirs = by_id(&tokenizer::open(folder)?);
        let ids: BTreeSet<u32> = ours.keys().chain(theirs.keys()).copied().collect();
        let differs = ids.into_iter().find(|id| ours.get(id) != theirs.get(id));
        Ok(differs.map(|id| Unlike { id, ours: ours.remove(&id), theirs: theirs.remove(&id) }))
    }

    /// SHA-256 of the files of a base by which text becomes tokens, as the recipe changes them.
    pub fn digests(&self, folder: &Path) -> std::io::Result<BTreeMap<String, String>> {
        let own;
        let files = match &self.files {
            Some(files) => files,
            None => {
                own = read(folder)?;
                &own
            }
        };
        let makes_tokens = files.iter().filter(|(name, _)| **name != GENERATION_CONFIG);
        Ok(makes_tokens.map(|(name, bytes)| ((*name).to_owned(), sha256_of_bytes(bytes))).collect())
    }

    /// Markers that the template writes in a small conversation and that are several tokens
    /// each, so that the model reads them as text. Some models are made that way.
    pub fn split_markers(&self) -> Vec<String> {
        let turn = |role: &str| Message { role: role.to_owned(), content: "a".to_owned() };
        let small = [turn("user"), turn("assistant"), turn("user")];
        // A template that refuses this conversation is judged by the rows.
        let text = self.encoder.render(small.as_slice(), true).unwrap_or_default();
        let split = |marker: &&str| {
            let encoding = self.encoder.tokenizer().encode_fast(*marker, false);
            encoding.is_ok_and(|encoding| encoding.len() > 1)
        };
        let found: BTreeSet<&str> = markers(&text).filter(split).collect();
        found.into_iter().map(str::to_owned).collect()
    }
}

/// Writes files into a folder that is not yet in its place.
pub fn write(files: &Files, folder: &Path) -> std::io::Result<()> {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        write_atomically(&path, bytes)?;
    }
    Ok(())
}

/// Files of a tokenizer by name.
pub type Files = BTreeMap<&'static str, Vec<u8>>;

fn read(folder: &Path) -> std::io::Result<Files> {
    let mut files = Files::new();
    for name in FILES {
        // No file of a tokenizer is larger than its vocabulary.
        let bytes = read_if_there(&folder.join(name), MAX_TOKENIZER_BYTES)?;
        files.extend(bytes.map(|bytes| (name, bytes)));
    }
    Ok(files)
}

fn read_template(path: &Path) -> Result<Vec<u8>, VocabularyError> {
    let refuse = |source| VocabularyError::Template { path: path.to_owned(), source };
    let bytes = read_bounded(path, MAX_TEMPLATE_BYTES).map_err(refuse)?;
    let not_utf8 = || std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not UTF-8");
    let text = String::from_utf8(bytes).map_err(|_| refuse(not_utf8()))?;
    Ok(text.into_bytes())
}

/// Adds the tokens that are missing, and returns them with their ids; those that are there
/// stay what they are.
fn add_tokens<'t>(
    files: &mut Files,
    folder: &Path,
    tokens: &'t [String],
) -> Result<Vec<(u32, &'t String)>, ChatError> {
    let wrong = |error: tokenizers::Error| ChatError::Tokenizer {
        path: folder.join(TOKENIZER),
        reason: error.to_string(),
    };
    // With the tokens that only `tokenizer_config.json` names: they have their ids already.
    let mut tokenizer = tokenizer::open(folder)?;
    let known = tokenizer.get_added_tokens_decoder();
    let known: BTreeSet<&String> = known.values().map(|token| &token.content).collect();
    let lacks = |token: &&String| tokenizer.token_to_id(token).is_none();
    let lacking: Vec<&String> = tokens.iter().filter(lacks).collect();
    // A word of the vocabulary becomes a special token, with the id that it has.
    let special = tokens.iter().filter(|token| !known.contains(token));
    let special: Vec<AddedToken> =
        special.map(|token| AddedToken::from(token.clone(), true)).collect();
    tokenizer.add_special_tokens(special).map_err(wrong)?;
    let with_id = |token: &'t String| Some((tokenizer.token_to_id(token)?, token));
    let added = lacking.into_iter().filter_map(with_id).collect();
    files.insert(TOKENIZER, tokenizer.to_string(true).map_err(wrong)?.into_bytes());
    Ok(added)
}

/// Older files list the added tokens a second time; Transformers reads that list, too.
fn name_added_tokens(
    files: &mut Files,
    path: &Path,
    added: &[(u32, &String)],
) -> Result<(), ChatError> {
    edit(files, TOKENIZER_CONFIG, path, |config| {
        let Some(Value::Object(decoder)) = config.get_mut("added_tokens_decoder") else { return };
        for (id, token) in added {
            let token = json!({
                "content": token, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": true,
            });
            decoder.insert(id.to_string(), token);
        }
    })
}

/// Lets Transformers' `generate` end where ours does: at the token with which the template
/// closes an answer.
fn stop_at(files: &mut Files, path: &Path, stop: &[u32]) -> Result<(), ChatError> {
    files.entry(GENERATION_CONFIG).or_insert_with(|| b"{}".to_vec());
    edit(files, GENERATION_CONFIG, path, |config| {
        if let Some(config) = config.as_object_mut() {
            config.insert("eos_token_id".to_owned(), json!(stop));
        }
    })
}

/// Changes a JSON file, if it is there.
fn edit(
    files: &mut Files,
    name: &'static str,
    path: &Path,
    change: impl FnOnce(&mut Value),
) -> Result<(), ChatError> {
    let Some(bytes) = files.get_mut(name) else { return Ok(()) };
    let wrong = |error: serde_json::Error| ChatError::Json {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        reason: error.to_string(),
    };
    let mut value: Value = serde_json::from_slice(bytes).map_err(wrong)?;
    change(&mut value);
    *bytes = serde_json::to_vec_pretty(&value).map_err(wrong)?;
    bytes.push(b'\n');
    Ok(())
}

/// Reads the files as every later reader will.
fn encoder(files: &Files, words: &recipe::Base) -> Result<ChatEncoder, ChatError> {
    let folder = tempfile::tempdir()?;
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(folder.path()))?;
        fs::write(path, bytes)?;
    }
    ChatEncoder::open_for_texts(folder.path()).map_err(|error| {
        match (error, &words.chat_template) {
            (ChatError::TemplateSyntax { line, reason, .. }, Some(path)) => {
                ChatError::TemplateSyntax { path: path.clone(), line, reason }
            }
            (error, _) => error,
        }
    })
}

/// `<|word|>` and the like in a text.
fn markers(text: &str) -> impl Iterator<Item = &str> {
    let barred = text.match_indices("<|").filter_map(|(start, _)| {
        let rest = text.get(start..)?;
        let marker = rest.get(..rest.get(2..)?.find("|>")? + 4)?;
        let inside = marker.get(2..marker.len() - 2)?;
        let word = |c: char| c.is_alphanumeric() || "_-.".contains(c);
        let fits = !inside.is_empty() && marker.len() <= MAX_MARKER_BYTES;
        (fits && inside.chars().all(word)).then_some(marker)
    });
    barred.chain(TURN_MARKERS.into_iter().filter(|marker| text.contains(marker)))
}

#[cfg(test)]
#[path = "vocabulary_tests.rs"]
mod tests;
