//! The files of a base folder that say how text becomes tokens.
//!
//! Owns reading them as Transformers reads them, old and new; [`super::chat`] uses them.
//!
//! Reference: `PreTrainedTokenizerBase.from_pretrained` and `TokenizersBackend` of
//! Transformers 5.23.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

use super::chat::ChatError;

/// Largest `tokenizer.json` that is read; the largest published ones have 40 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Special tokens that Transformers gives to templates by name.
const NAMED_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the files of a base folder say.
pub(super) struct Files {
    pub(super) tokenizer: Tokenizer,
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
        // Adds special tokens, which the template writes itself, and trims offsets.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let templates = find_templates(folder, &config_path, &config)?;
        let generation = folder.join("generation_config.json");
        let generation = read_json::<GenerationConfig>(&generation)?.unwrap_or_default();
        Ok(Self {
            tokenizer,
            special_tokens: config.special_tokens(),
            templates,
            generation_stop: generation.eos_token_id,
        })
    }
}

/// Reads a tokenizer as Transformers loads it for plain text: with the tokens that
/// `tokenizer_config.json` adds, and the post-processor of `tokenizer.json` as it is, whatever
/// `add_bos_token` says.
pub(crate) fn open(folder: &Path) -> Result<Tokenizer, ChatError> {
    Ok(open_with_config(folder)?.0)
}

fn open_with_config(folder: &Path) -> Result<(Tokenizer, TokenizerConfig), ChatError> {
    let config_path = folder.join("tokenizer_config.json");
    let config = read_json::<TokenizerConfig>(&config_path)?.unwrap_or_default();
    let path = folder.join("tokenizer.json");
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |error: tokenizers::Error| ChatError::Tokenizer { path, reason: error.to_string() }
    };
    let bytes = fs::metadata(&path)?.len();
    if bytes > MAX_TOKENIZER_BYTES {
        let reason = format!("{bytes} bytes, more than the {MAX_TOKENIZER_BYTES} that are read");
        return Err(ChatError::Tokenizer { path, reason });
    }
    let mut tokenizer = Tokenizer::from_bytes(fs::read(&path)?).map_err(wrong(&path))?;
    // Both only when asked for, in Transformers.
    tokenizer.with_truncation(None).map_err(wrong(&path))?;
    tokenizer.with_padding(None);
    config.add_tokens(&mut tokenizer).map_err(wrong(&config_path))?;
    Ok((tokenizer, config))
}

/// Template files win over `tokenizer_config.json`, as in Transformers.
fn find_templates(
    folder: &Path,
    config_path: &Path,
    config: &TokenizerConfig,
) -> Result<Templates, ChatError> {
    let read = |path: PathBuf| -> Result<Option<TemplateSource>, ChatError> {
        if !path.is_file() {
            return Ok(None);
        }
        let source = fs::read_to_string(&path)?;
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
    if found.default.is_none() && found.tool_use.is_none() {
        return Err(match &config.chat_template {
            Some(_) => ChatError::NoDefaultTemplate,
            None => ChatError::NoTemplate { folder: folder.to_owned() },
        });
    }
    Ok(found)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ChatError> {
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
struct TokenizerConfig {
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
    /// Adds the tokens that `tokenizer.json` lacks or has with other flags, in the order of
    /// their ids, and the named ones that are still missing, as Transformers does on loading.
    fn add_tokens(&self, tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
        let present = tokenizer.get_added_tokens_decoder();
        let has = |token: &AddedToken| present.values().any(|there| there == token);
        let mut missing: Vec<AddedToken> = self.declared_tokens();
        missing.retain(|token| !has(token));
        for content in self.special_tokens().into_values() {
            let known = present.values().any(|there| there.content == content)
                || missing.iter().any(|token| token.content == content);
            if !known {
                missing.push(AddedToken::from(content, true));
            }
        }
        if !missing.is_empty() {
            tokenizer.add_tokens(missing)?;
        }
        Ok(())
    }

    /// `added_tokens_decoder`, by id.
    fn declared_tokens(&self) -> Vec<AddedToken> {
        let Some(declared) = self.rest.get("added_tokens_decoder") else { return Vec::new() };
        let by_id: BTreeMap<u32, AddedToken> =
            serde_json::from_value(declared.clone()).unwrap_or_default();
        let named = self.special_tokens();
        let special = |token: AddedToken| {
            let special = token.special || named.values().any(|name| *name == token.content);
            token.special(special)
        };
        by_id.into_values().map(special).collect()
    }

    /// `bos_token`, `eos_token` and their like; older files write each as an object.
    fn special_tokens(&self) -> BTreeMap<String, String> {
        let text = |value: &serde_json::Value| {
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        };
        let named = NAMED_TOKENS.iter().filter_map(|name| self.rest.get_key_value(*name));
        named.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
    }
}

/// What is read of `generation_config.json`.
#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    #[serde(default, deserialize_with = "one_or_many")]
    eos_token_id: Vec<u32>,
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
