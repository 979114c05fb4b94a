//! The model room: modules that compute, and weights by checkpoint key.
//!
//! Owns the decoder of all families ([`Decoder`], put together from `block`, `attention`,
//! `feed_forward` and `parts` as `heirloom::base::Architecture` describes), its cache
//! ([`Cache`]), linear layers ([`Linear`]) and loading weights ([`weights`]). Does not own the
//! description, nor adapters: a linear layer, the weights of experts, the embedding and the output only have a
//! place for one.
//!
//! Reference: the `modeling_*.py` of Transformers 5.23.

mod attention;
mod block;
mod cache;
mod decoder;
mod expert_update;
mod feed_forward;
mod linear;
mod magnitude;
mod parts;
mod replacement;
mod stored;
mod weight;
pub mod weights;

pub use cache::Cache;
pub use decoder::Decoder;
pub use expert_update::{AdaptedExpert, ExpertLowRank, ExpertParameter};
pub use linear::{Linear, LowRank, Vectors};
pub use magnitude::{Magnitude, lengths};
pub use replacement::{Replaced, Replacement, Rows};
pub use weight::Weight;
