//! The model room: modules that compute, and weights by checkpoint key.
//!
//! Owns the Llama architecture (`llama`), linear layers ([`Linear`]) and loading weights
//! ([`weights`]). The description of an architecture is `heirloom::base::Config`. Does not
//! own adapters: a linear layer only has a place for one.
//!
//! Reference: Transformers' `modeling_llama.py`.

mod linear;
mod llama;
pub mod weights;

pub use linear::{Linear, LowRank};
pub use llama::{Cache, Llama};
