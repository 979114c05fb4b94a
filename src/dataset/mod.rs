//! The dataset room: from Parquet files to a deterministic stream of token batches.
//!
//! Owns reading sources ([`source`]), the consent gate ([`consent`]), chat templates and
//! tokenising with the loss mask ([`chat`]), packing and the resumable stream ([`stream`]).
//! Does not own the recipe's words nor anything with tensors.
//!
//! References: `shared` columns of a consent-bearing row follow W3C DPV 2.3 terms; chat
//! templates follow Transformers' `apply_chat_template`.

pub mod chat;
pub mod consent;
mod contain;
#[cfg(test)]
mod fixture;
pub mod source;
pub mod stream;
mod template;
