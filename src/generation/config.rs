//! `generation_config.json`: what the model's makers recommend.
//!
//! Owns reading it, as Transformers writes it. What would change the text and is not
//! understood is an error, never ignored.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::GenerationError;
use crate::dataset::tokenizer::one_or_many;
use crate::files;

/// Largest JSON file of a model that is read here, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What is understood, and the rest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    #[serde(deserialize_with = "or_default")]
    pub(super) do_sample: bool,
    pub(super) temperature: Option<f64>,
    pub(super) top_k: Option<usize>,
    pub(super) top_p: Option<f64>,
    pub(super) min_p: Option<f64>,
    pub(super) repetition_penalty: Option<f64>,
    pub(super) max_new_tokens: Option<usize>,
    #[serde(deserialize_with = "one_or_many")]
    pub(super) stop_strings: Vec<String>,
    #[serde(deserialize_with = "one_or_many")]
    pub(super) eos_token_id: Vec<u32>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Settings of Transformers 5.23 that change the text, with the value at which they do not.
/// What decides only speed, memory or what is returned besides the text is not here.
const NEUTRAL: [(&str, Option<f64>); 27] = [
    ("assistant_early_exit", None),
    ("bad_words_ids", None),
    ("begin_suppress_tokens", None),
    ("constraints", None),
    ("dola_layers", None),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
    ("exponential_decay_length_penalty", None),
    ("force_words_ids", None),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("guidance_scale", Some(1.0)),
    ("min_length", Some(0.0)),
    ("min_new_tokens", Some(0.0)),
    ("no_repeat_ngram_size", Some(0.0)),
    ("num_beam_groups", Some(1.0)),
    ("num_beams", Some(1.0)),
    ("num_return_sequences", Some(1.0)),
    ("penalty_alpha", None),
    ("sequence_bias", None),
    ("suppress_tokens", None),
    ("token_healing", None),
    ("top_h", None),
    ("typical_p", Some(1.0)),
    ("watermarking_config", None),
];

impl GenerationConfig {
    /// That of a model's folder; without the file, nothing is recommended.
    pub fn read(folder: &Path) -> Result<Self, GenerationError> {
        Ok(read_json(&folder.join("generation_config.json"))?.unwrap_or_default())
    }

    /// Refuses what would change the text and is not understood.
    pub(super) fn check(&self) -> Result<(), GenerationError> {
        for (key, neutral) in NEUTRAL {
            let value = self.rest.get(key).unwrap_or(&Value::Null);
            let empty = value.as_array().is_some_and(Vec::is_empty) || value == &Value::Bool(false);
            let same = neutral.is_some() && value.as_f64() == neutral;
            if !(value.is_null() || empty || same) {
                return Err(GenerationError::Unsupported { key: key.to_owned() });
            }
        }
        Ok(())
    }
}

/// A JSON file of a model, or `None` where there is no such file.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
) -> Result<Option<T>, GenerationError> {
    let bytes = files::read_if_there(path, MAX_BYTES)
        .map_err(|source| GenerationError::Read { path: path.to_owned(), source })?;
    let Some(bytes) = bytes else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| GenerationError::Json {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        reason: error.to_string(),
    })
}

fn or_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::Diagnose as _;

    fn read(text: &str) -> Result<GenerationConfig, GenerationError> {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("generation_config.json"), text).unwrap();
        GenerationConfig::read(folder.path())
    }

    #[test]
    fn one_value_or_a_list_or_null() {
        let ids = |text: &str| read(text).unwrap().eos_token_id;
        assert_eq!(ids(r#"{"eos_token_id": 2}"#), [2]);
        assert_eq!(ids(r#"{"eos_token_id": [2, 7], "do_sample": null}"#), [2, 7]);
        assert!(ids(r#"{"eos_token_id": null, "temperature": null}"#).is_empty());
        assert!(ids("{}").is_empty());
    }

    #[test]
    fn what_changes_the_text_and_is_unknown_is_refused() {
        let usual = r#"{"num_beams": 1, "typical_p": 1.0, "bad_words_ids": [], "use_cache": true,
            "min_length": 0, "transformers_version": "5.23.0", "pad_token_id": 3, "token_healing": false}"#;
        read(usual).unwrap().check().unwrap();
        for unusual in
            [r#"{"num_beams": 4}"#, r#"{"suppress_tokens": [1]}"#, r#"{"token_healing": true}"#]
        {
            let refused = read(unusual).unwrap().check().unwrap_err();
            assert!(matches!(refused, GenerationError::Unsupported { .. }), "{refused}");
        }
    }

    #[test]
    fn a_folder_in_the_place_of_the_file_or_a_huge_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation_config.json");
        fs_err::create_dir(&path).unwrap();
        let refused = GenerationConfig::read(folder.path()).unwrap_err();
        assert!(matches!(&refused, GenerationError::Read { .. }), "{refused}");
        assert!(refused.hint().unwrap().contains("regular file"));
        fs_err::remove_dir(&path).unwrap();
        fs_err::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        let refused = GenerationConfig::read(folder.path()).unwrap_err();
        assert!(matches!(&refused, GenerationError::Read { .. }), "{refused}");
    }

    #[test]
    fn a_damaged_file_is_named_with_its_line() {
        let refused = read("{\n\"temperature\": \"hot\"}").unwrap_err();
        let GenerationError::Json { line, .. } = refused else { panic!("{refused}") };
        assert_eq!(line, 2);
    }
}
