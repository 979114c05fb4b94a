//! The files of a base folder that say how text becomes tokens.
//!
//! Owns reading them as Transformers reads them, old and new; [`super::chat`] uses them. What
//! `tokenizer_config.json` says is understood in [`config`].
//!
//! Reference: `PreTrainedTokenizerBase.from_pretrained` and `TokenizersBackend` of
//! Transformers 5.23.

mod config;
pub(super) mod pieces;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use self::config::{ChatTemplate, TokenizerConfig};
use super::chat::ChatError;
use crate::files::{read_bounded, read_if_there};

/// Largest `tokenizer.json` that is read; the largest published ones have 40 MB.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Largest `tokenizer_config.json` that is read: one with 100 000 added tokens has 20 MB.
const MAX_CONFIG_BYTES: u64 = 32 << 20;

/// Largest `generation_config.json` that is read.
const MAX_GENERATION_BYTES: u64 = 1 << 20;

/// Largest template that is read; fewer bytes are compiled.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// What the files of a base folder say.
pub(super) struct Files {
    /// Without its post-processor.
    pub(super) tokenizer: Tokenizer,
    /// What the post-processor puts before and after a text, where it can be told.
    pub(super) affixes: Option<(Vec<u32>, Vec<u32>)>,
    /// `bos_token`, `eos_token` and their like.
    pub(super) special_tokens: BTreeMap<String, String>,
    pub(super) templates: Templates,
    /// `eos_token_id` of `generation_config.json`.
    pub(super) generation_stop: Vec<u32>,
}

/// The chat templates that are chosen by what a conversation has.
#[derive(Default)]
pub(super) struct Templates {
    pub(super) default: Option<TemplateSource>,
    pub(super) tool_use: Option<TemplateSource>,
}

/// A template and the file it stands in.
pub(super) struct TemplateSource {
    pub(super) path: PathBuf,
    pub(super) source: String,
}

impl Files {
    /// Reads a base folder.
    pub(super) fn read(folder: &Path) -> Result<Self, ChatError> {
        let config_path = folder.join("tokenizer_config.json");
        let (mut tokenizer, config) = open_with_config(folder)?;
        let affixes = affixes(&tokenizer);
        // Adds special tokens, which the template writes itself, and trims offsets.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let templates = find_templates(folder, &config_path, &config)?;
        let generation = folder.join("generation_config.json");
        let generation =
            read_json::<GenerationConfig>(&generation, MAX_GENERATION_BYTES)?.unwrap_or_default();
        Ok(Self {
            tokenizer,
            affixes,
            special_tokens: config.special_tokens(&config_path)?,
            templates,
            generation_stop: generation.eos_token_id,
        })
    }
}

/// What the post-processor puts before and after any text, seen on a small one.
fn affixes(tokenizer: &Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    let bare = tokenizer.encode_fast("a", false).ok()?;
    let whole = tokenizer.encode_fast("a", true).ok()?;
    let (bare, whole) = (bare.get_ids(), whole.get_ids());
    let start = whole.windows(bare.len().max(1)).position(|window| window == bare)?;
    Some((whole.get(..start)?.to_vec(), whole.get(start + bare.len()..)?.to_vec()))
}

/// Reads a tokenizer as Transformers loads it for plain text: with the tokens that
/// `tokenizer_config.json` adds, and the post-processor of `tokenizer.json` as it is, whatever
/// `add_bos_token` says.
pub(crate) fn open(folder: &Path) -> Result<Tokenizer, ChatError> {
    Ok(open_with_config(folder)?.0)
}

fn open_with_config(folder: &Path) -> Result<(Tokenizer, TokenizerConfig), ChatError> {
    let config_path = folder.join("tokenizer_config.json");
    let config = read_json::<TokenizerConfig>(&config_path, MAX_CONFIG_BYTES)?.unwrap_or_default();
    let path = folder.join("tokenizer.json");
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |error: tokenizers::Error| ChatError::Tokenizer { path, reason: error.to_string() }
    };
    let bytes = read_bounded(&path, MAX_TOKENIZER_BYTES)?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(wrong(&path))?;
    // Both only when asked for, in Transformers.
    tokenizer.with_truncation(None).map_err(wrong(&path))?;
    tokenizer.with_padding(None);
    let tokens = config.lacking_tokens(&tokenizer, &config_path)?;
    tokenizer.add_tokens(tokens).map_err(wrong(&config_path))?;
    tokenizer.set_encode_special_tokens(config.split_special_tokens);
    Ok((tokenizer, config))
}

/// Template files win over `tokenizer_config.json`, as in Transformers.
fn find_templates(
    folder: &Path,
    config_path: &Path,
    config: &TokenizerConfig,
) -> Result<Templates, ChatError> {
    let read = |path: PathBuf| -> Result<Option<TemplateSource>, ChatError> {
        let Some(bytes) = read_if_there(&path, MAX_TEMPLATE_BYTES)? else { return Ok(None) };
        let not_utf8 = || ChatError::TemplateSyntax {
            path: path.clone(),
            line: 1,
            reason: "it is not UTF-8".to_owned(),
        };
        let source = String::from_utf8(bytes).map_err(|_| not_utf8())?;
        Ok(Some(TemplateSource { path, source }))
    };
    let additional = folder.join("additional_chat_templates");
    let mut found = Templates {
        default: read(folder.join("chat_template.jinja"))?
            .or(read(additional.join("default.jinja"))?),
        tool_use: read(additional.join("tool_use.jinja"))?,
    };
    if found.default.is_none() && found.tool_use.is_none() {
        let named = |name: &str| {
            let source = match &config.chat_template {
                Some(ChatTemplate::One(source)) => (name == "default").then_some(source),
                // The last of a name wins.
                Some(ChatTemplate::Named(named)) => {
                    let mut named = named.iter().rev();
                    named.find(|named| named.name == name).map(|named| &named.template)
                }
                None => None,
            };
            let path = config_path.to_owned();
            source.map(|source| TemplateSource { path, source: source.clone() })
        };
        found = Templates { default: named("default"), tool_use: named("tool_use") };
    }
    let none = found.default.is_none() && found.tool_use.is_none();
    if none && config.chat_template.is_some() {
        return Err(ChatError::NoDefaultTemplate);
    }
    Ok(found)
}

fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    limit: u64,
) -> Result<Option<T>, ChatError> {
    let Some(bytes) = read_if_there(path, limit)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| ChatError::Json {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        reason: error.to_string(),
    })
}

/// What is read of `generation_config.json`.
#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    #[serde(default, deserialize_with = "one_or_many")]
    eos_token_id: Vec<u32>,
}

/// A list of which Transformers writes a single value without its brackets, and none as null.
pub(crate) fn one_or_many<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Values<T> {
        One(T),
        Many(Vec<T>),
        Nothing(()),
    }
    Ok(match Values::deserialize(deserializer)? {
        Values::One(value) => vec![value],
        Values::Many(values) => values,
        Values::Nothing(()) => Vec::new(),
    })
}
