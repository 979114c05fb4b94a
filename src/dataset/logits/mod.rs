//! What a teacher says to rows, stored once: a Parquet file of its most likely tokens.
//!
//! Owns the file ([`Writer`], [`Stored`]), what is said of it as a whole ([`Header`]) and what is
//! wrong with one ([`LogitsError`]). Does not own the numbers, which the engine computes.
//!
//! A row of the file is one token that is to be predicted. It is found by the document that it
//! is in ([`key_of`]): its tokens, and which of them are trained. So the file fits whatever
//! packing, order and micro-batches, and never another tokenizer, template, mask or window than
//! it was made with. `record_id` says whose row it is.
//!
//! | column | type | what |
//! |---|---|---|
//! | `record_id` | STRING | the row of the data |
//! | `document` | FIXED_LEN_BYTE_ARRAY(32) | [`key_of`] its tokens |
//! | `position` | INT32 | place of the token in the document, from 0 |
//! | `ids` | LIST of INT32 | the teacher's most likely tokens there, likeliest first |
//! | `logprobs` | LIST of FLOAT | their log-probabilities, in nats |
//! | `rest` | FLOAT | that of all other tokens together |
//!
//! The rest is kept as one bucket rather than shared out among the tokens that are kept: that
//! would teach that nothing else can be said, and more of it the less sure a teacher is.

mod error;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::recipe::lock::LockedTeacher;
use crate::recipe::{Recipe, Storage};
pub use error::LogitsError;
pub use read::{Said, Stored};
pub use write::Writer;

/// Key of the [`Header`] in the footer.
pub const FOOTER_KEY: &str = "heirloom.logits";

/// The version of the file that is read and written.
const VERSION: u32 = 1;

/// What identifies a document: SHA-256 of its tokens and of which of them are trained.
pub type Key = [u8; 32];

/// The key of a document.
pub fn key_of(tokens: &[u32], weights: &[f32]) -> Key {
    let mut digest = Sha256::new();
    digest.update((tokens.len() as u64).to_le_bytes());
    for token in tokens {
        digest.update(token.to_le_bytes());
    }
    for weight in weights {
        digest.update([u8::from(*weight > 0.0)]);
    }
    digest.finalize().into()
}

/// What the footer says, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the file.
    pub version: u32,
    /// Version of Heirloom that wrote it.
    pub heirloom: String,
    /// Who said it.
    pub teacher: LockedTeacher,
    /// How its weights were held.
    pub storage: Storage,
    /// What its logits were divided by.
    pub temperature: f64,
    /// Tokens that are known at each position.
    pub top_k: usize,
    /// How many there are to choose from.
    pub vocabulary: usize,
    /// SHA-256 of the files by which text became tokens, by name.
    pub words: BTreeMap<String, String>,
    /// The settings by which rows became documents, by their keys in a recipe.
    pub settings: BTreeMap<String, String>,
    /// SHA-256 of the files of rows.
    pub data: Vec<String>,
}

impl Header {
    /// The version that is written.
    pub fn version() -> u32 {
        VERSION
    }

    /// The settings of a recipe by which rows become documents.
    pub fn settings(recipe: &Recipe) -> BTreeMap<String, String> {
        let data = &recipe.data;
        let words = |value: serde_json::Result<String>| value.unwrap_or_default();
        let cut = words(serde_json::to_string(&data.overlong));
        let mask = words(serde_json::to_string(&data.train_on));
        let end = words(serde_json::to_string(&data.end_of_turn));
        let settings = [
            ("data.sequence_length", data.sequence_length.to_string()),
            ("data.overlong", cut.trim_matches('"').to_owned()),
            ("data.train_on", mask.trim_matches('"').to_owned()),
            ("data.end_of_turn", end.trim_matches('"').to_owned()),
        ];
        settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}
