//! `config.json` key by key: every key is understood, known to be harmless, or an error.
//!
//! Owns the limits of numbers from outside and the list of keys that do not change the
//! computation. Does not own what keys mean (`families`). A key that is `null` or empty asks
//! for nothing and is never an error.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::BaseError;

/// Largest dimension that is believed; keeps products of two within 64 bits.
const MAX_DIMENSION: u64 = 1 << 24;

/// Keys that say nothing about what is computed: names, tokens, memory, decoding, training
/// losses that Transformers adds outside the model.
const HARMLESS: [&str; 63] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "auto_map",
    "aux_loss_alpha",
    "begin_suppress_tokens",
    "boi_token_index",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eoi_token_index",
    "eos_token_id",
    "ep_size",
    "experts_per_token",
    "id2label",
    "initial_context_length",
    "initializer_range",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_mtp_layers",
    "num_nextn_predict_layers",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "sep_token_id",
    "seq_aux",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "use_bfloat16",
    "use_cache",
];

/// Flags that ask for nothing when they are false. Others may be true by default.
const OFF: [&str; 6] = [
    "add_cross_attention",
    "is_decoder",
    "is_encoder_decoder",
    "tie_encoder_decoder",
    "use_mrope",
    "use_qk_norm",
];

/// An object of `config.json`, and which of its keys were asked for.
pub(super) struct Keys<'a> {
    path: &'a Path,
    /// Dotted path of the object, with a dot at its end; empty at the root.
    prefix: String,
    map: &'a Map<String, Value>,
    taken: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Keys<'a> {
    /// The root object.
    pub(super) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), map, taken: RefCell::default() }
    }

    /// Refuses keys that were never asked for, unless they are harmless or ask for nothing.
    pub(super) fn finish(self) -> Result<(), BaseError> {
        let taken = self.taken.borrow();
        for (key, value) in self.map {
            let nothing = match value {
                Value::Null => true,
                Value::Bool(false) => OFF.contains(&key.as_str()),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            let harmless = self.prefix.is_empty() && HARMLESS.contains(&key.as_str());
            if !nothing && !harmless && !taken.contains(key.as_str()) {
                return Err(BaseError::UnknownKey {
                    path: self.path.to_owned(),
                    key: format!("{}{key}", self.prefix),
                    value: value.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The value of a key that is there and not null.
    pub(super) fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.taken.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key stands there, be it as null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// An error about a value.
    pub(super) fn refuse(&self, key: &str, value: impl ToString) -> BaseError {
        let key = format!("{}{key}", self.prefix);
        BaseError::Unsupported { path: self.path.to_owned(), key, value: value.to_string() }
    }

    /// A required value, from one of the readers that give an option.
    pub(super) fn require<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Self, &'static str) -> Result<Option<T>, BaseError>,
    ) -> Result<T, BaseError> {
        let missing = || BaseError::MissingKey {
            path: PathBuf::from(self.path),
            key: format!("{}{key}", self.prefix),
        };
        read(self, key)?.ok_or_else(missing)
    }

    /// A dimension: a whole number from 1.
    pub(super) fn size(&self, key: &'static str) -> Result<Option<usize>, BaseError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size @ 1..=MAX_DIMENSION) => Ok(Some(size as usize)),
            _ => Err(self.refuse(key, value)),
        }
    }

    /// A whole number from 0.
    pub(super) fn count(&self, key: &'static str) -> Result<Option<usize>, BaseError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(count @ 0..=MAX_DIMENSION) => Ok(Some(count as usize)),
            _ => Err(self.refuse(key, value)),
        }
    }

    /// A finite number.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<f64>, BaseError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.refuse(key, value)),
        }
    }

    /// A number above zero.
    pub(super) fn positive(&self, key: &'static str) -> Result<Option<f64>, BaseError> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => Err(self.refuse(key, number)),
            number => Ok(number),
        }
    }

    /// A probability of dropping something.
    pub(super) fn dropout(&self, key: &'static str) -> Result<f64, BaseError> {
        match self.number(key)? {
            None => Ok(0.0),
            Some(p) if (0.0..1.0).contains(&p) => Ok(p),
            Some(p) => Err(self.refuse(key, p)),
        }
    }

    /// A flag, false when absent.
    pub(super) fn flag(&self, key: &'static str) -> Result<bool, BaseError> {
        Ok(self.maybe_flag(key)?.unwrap_or(false))
    }

    /// A flag.
    pub(super) fn maybe_flag(&self, key: &'static str) -> Result<Option<bool>, BaseError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.refuse(key, value))
    }

    /// A word.
    pub(super) fn text(&self, key: &'static str) -> Result<Option<&'a str>, BaseError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.refuse(key, value))
    }

    /// A list, item by item.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        item: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, BaseError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let items = value.as_array().and_then(|list| list.iter().map(item).collect());
        items.map(Some).ok_or_else(|| self.refuse(key, value))
    }

    /// An object within the object; the caller finishes it.
    pub(super) fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>, BaseError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.refuse(key, value))?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(Some(Keys { path: self.path, prefix, map, taken: RefCell::default() }))
    }

    /// Refuses any value but the one that is computed, which may be absent.
    pub(super) fn only(&self, key: &'static str, value: &Value) -> Result<(), BaseError> {
        match self.get(key) {
            Some(found) if found != value => Err(self.refuse(key, found)),
            _ => Ok(()),
        }
    }
}
