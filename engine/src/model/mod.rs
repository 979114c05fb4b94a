//! The model room: modules that compute, and weights by checkpoint key.
//!
//! Owns the Decoder architecture (`llama`), linear layers ([`Linear`]) and loading weights
//! ([`weights`]). The description of an architecture is `heirloom::base::Architecture`. Does not
//! own adapters: a linear layer only has a place for one.
//!
//! Reference: Transformers' `modeling_llama.py`.

mod decoder;
mod linear;
pub mod weights;

pub use decoder::{Cache, Decoder};
pub use linear::{Linear, LowRank};
