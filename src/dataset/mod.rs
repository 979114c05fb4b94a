//! The dataset room: from Parquet files to a deterministic stream of token batches.
//!
//! Owns reading sources ([`source`]), the consent gate ([`consent`]), chat templates and
//! tokenising with the loss mask ([`chat`]), what a recipe changes of a base's tokenizer
//! ([`vocabulary`]), packing and the resumable stream ([`stream`]).
//! Does not own the recipe's words nor anything with tensors.
//!
//! References: the columns of a consent-bearing row hold W3C DPV 2.3 terms; chat
//! templates follow Transformers' `apply_chat_template`.

pub mod batch;
pub mod chat;
pub mod consent;
pub(crate) mod contain;
pub mod conversation;
pub mod describe;
pub mod documents;
pub mod error;
pub mod evaluation;
#[cfg(test)]
pub(crate) mod fixture;
pub mod format;
pub mod gate;
pub mod import;
pub mod ledger;
pub mod logits;
pub mod look;
mod rows;
pub mod sample;
pub mod source;
pub mod spec;
pub mod stats;
pub mod stream;
pub mod survey;
mod template;
pub mod text;
pub(crate) mod tokenizer;
pub mod vocabulary;
