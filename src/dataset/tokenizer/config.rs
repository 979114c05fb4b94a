//! `tokenizer_config.json`: templates, and tokens beyond those of `tokenizer.json`.
//!
//! Owns which tokens are added on loading, in which order and with which flags. What
//! Transformers refuses is an error here, never ignored.
//!
//! Reference: `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__` of
//! Transformers 5.23.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::super::chat::ChatError;

/// Special tokens that have a name in every model, in the order in which they are added.
const NAMED_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The ending of the names of a model's own special tokens, such as `image_token`.
const NAME_ENDING: &str = "_token";

/// Special tokens without a name; the second is what the first was called before.
const EXTRA: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// Tokens by id.
const DECODER: &str = "added_tokens_decoder";

/// What is read of the file.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    #[serde(default)]
    pub(super) chat_template: Option<ChatTemplate>,
    /// Special tokens in a text are read as text.
    #[serde(default)]
    pub(super) split_special_tokens: bool,
    /// In the order of the file, which is the order of the ids.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum ChatTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
pub(super) struct NamedTemplate {
    pub(super) name: String,
    pub(super) template: String,
}

/// A token as it is written where it is more than its text.
#[derive(Debug, Deserialize)]
struct Declared {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Declared {
    fn into_token(self, named: bool) -> AddedToken {
        let special = self.special || named;
        AddedToken::from(self.content, special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!special))
    }
}

impl TokenizerConfig {
    /// The tokens that `tokenizer.json` lacks or has with other flags: by their ids, then the
    /// named ones that are still missing, then those without a name.
    pub(super) fn lacking_tokens(
        &self,
        tokenizer: &Tokenizer,
        path: &Path,
    ) -> Result<Vec<AddedToken>, ChatError> {
        let named = self.named_tokens(path)?;
        let present = tokenizer.get_added_tokens_decoder();
        let mut known: BTreeSet<String> =
            present.values().map(|token| token.content.clone()).collect();
        let mut lacking = self.tokens_by_id(&named, path)?;
        lacking.retain(|token| !present.values().any(|there| there == token));
        known.extend(lacking.iter().map(|token| token.content.clone()));
        let named = named.into_iter().map(|(_, token)| token);
        for token in named.chain(self.extra_tokens(path)?) {
            if known.insert(token.content.clone()) {
                lacking.push(token);
            }
        }
        Ok(lacking)
    }

    /// What a template can call by name: `bos_token` and its like, and a model's own.
    pub(super) fn special_tokens(
        &self,
        path: &Path,
    ) -> Result<BTreeMap<String, String>, ChatError> {
        let named = self.named_tokens(path)?.into_iter();
        Ok(named.map(|(name, token)| (name, token.content)).collect())
    }

    /// Those of every model first, then a model's own in the order of the file, then those
    /// that `extra_special_tokens` names.
    fn named_tokens(&self, path: &Path) -> Result<Vec<(String, AddedToken)>, ChatError> {
        let standard = NAMED_TOKENS.iter().filter_map(|name| self.rest.get_key_value(*name));
        let own = self.rest.iter().filter(|(name, value)| {
            let token = value.is_string() || value.get("content").is_some();
            name.ends_with(NAME_ENDING) && token && !NAMED_TOKENS.contains(&name.as_str())
        });
        let extra = self.extra().and_then(|(_, value)| value.as_object()).into_iter().flatten();
        let named = standard.chain(own).chain(extra).filter(|(_, value)| !value.is_null());
        named.map(|(name, value)| Ok((name.clone(), token(name, value, true, path)?))).collect()
    }

    /// The list of `extra_special_tokens`.
    fn extra_tokens(&self, path: &Path) -> Result<Vec<AddedToken>, ChatError> {
        let Some((key, value)) = self.extra() else { return Ok(Vec::new()) };
        match value {
            Value::Array(tokens) => {
                tokens.iter().map(|value| token(key, value, false, path)).collect()
            }
            // By name: they are among the named ones.
            Value::Object(_) | Value::Null => Ok(Vec::new()),
            _ => Err(wrong(key, "a list of tokens, nor an object of them", path)),
        }
    }

    /// The newer of both keys, unless it is empty.
    fn extra(&self) -> Option<(&'static str, &Value)> {
        let filled = |value: &&Value| match value {
            Value::Array(tokens) => !tokens.is_empty(),
            Value::Object(tokens) => !tokens.is_empty(),
            value => !value.is_null(),
        };
        EXTRA.into_iter().find_map(|key| Some((key, self.rest.get(key).filter(filled)?)))
    }

    /// `added_tokens_decoder`, by id.
    fn tokens_by_id(
        &self,
        named: &[(String, AddedToken)],
        path: &Path,
    ) -> Result<Vec<AddedToken>, ChatError> {
        let Some(declared) = self.rest.get(DECODER) else { return Ok(Vec::new()) };
        let by_id: BTreeMap<u32, Declared> = Deserialize::deserialize(declared)
            .map_err(|_| wrong(DECODER, "an object from ids to tokens", path))?;
        let is_named =
            |token: &Declared| named.iter().any(|(_, name)| name.content == token.content);
        let tokens = by_id.into_values().map(|token| {
            let named = is_named(&token);
            token.into_token(named)
        });
        Ok(tokens.collect())
    }
}

/// A token that is written as its text, or as an object with flags.
fn token(key: &str, value: &Value, named: bool, path: &Path) -> Result<AddedToken, ChatError> {
    if let Some(content) = value.as_str() {
        return Ok(AddedToken::from(content, true));
    }
    let declared = Declared::deserialize(value);
    declared
        .map(|declared| declared.into_token(named))
        .map_err(|_| wrong(key, "a token: a text, or an object with `content`", path))
}

fn wrong(key: &str, wanted: &str, path: &Path) -> ChatError {
    ChatError::Config { path: path.to_owned(), reason: format!("`{key}` is not {wanted}") }
}
