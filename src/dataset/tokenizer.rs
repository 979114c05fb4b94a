//! The files of a base folder that say how text becomes tokens.
//!
//! Owns reading them as Transformers writes them, old and new; [`super::chat`] uses them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use super::chat::ChatError;

/// Reads the tokenizer and takes off what would change ids or offsets behind our back.
pub(super) fn read_tokenizer(path: &Path) -> Result<Tokenizer, ChatError> {
    let bytes = fs::read(path)?;
    let wrong = |error: tokenizers::Error| ChatError::Tokenizer {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(wrong)?;
    // A post-processor adds special tokens (never wanted here) and trims offsets.
    tokenizer.with_post_processor(None::<PostProcessorWrapper>);
    tokenizer.with_truncation(None).map_err(wrong)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// `chat_template.jinja` wins over `tokenizer_config.json`, as in Transformers.
pub(super) fn find_template(
    folder: &Path,
    config_path: &Path,
    config: &TokenizerConfig,
) -> Result<(PathBuf, String), ChatError> {
    let file = folder.join("chat_template.jinja");
    if file.is_file() {
        let source = fs::read_to_string(&file)?;
        return Ok((file, source));
    }
    let source = match &config.chat_template {
        Some(ChatTemplate::One(source)) => Some(source.clone()),
        Some(ChatTemplate::Named(named)) => named
            .iter()
            .find(|named| named.name == "default")
            .or(named.first())
            .map(|named| named.template.clone()),
        None => None,
    };
    let none = || ChatError::NoTemplate { folder: folder.to_owned() };
    Ok((config_path.to_owned(), source.ok_or_else(none)?))
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
) -> Result<Option<T>, ChatError> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = fs::read(path)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| ChatError::Json {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        reason: error.to_string(),
    })
}

/// What is read of `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    #[serde(default)]
    chat_template: Option<ChatTemplate>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ChatTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenizerConfig {
    /// `bos_token`, `eos_token` and their like; older files write each as an object.
    pub(super) fn special_tokens(&self) -> BTreeMap<String, String> {
        let text = |value: &serde_json::Value| {
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        };
        let named = self.rest.iter().filter(|(key, _)| key.ends_with("_token"));
        named.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
    }
}

/// What is read of `generation_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct GenerationConfig {
    #[serde(default, deserialize_with = "one_or_many")]
    pub(super) eos_token_id: Vec<u32>,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(u32),
        Many(Vec<u32>),
        Nothing(()),
    }
    Ok(match Ids::deserialize(deserializer)? {
        Ids::One(id) => vec![id],
        Ids::Many(ids) => ids,
        Ids::Nothing(()) => Vec::new(),
    })
}
