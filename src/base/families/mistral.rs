//! Mistral 7B to Small: Llama with a sliding window on every layer.
//!
//! Reference: `modeling_mistral.py`.

use super::{Defaults, Dense};
use crate::base::BaseError;
use crate::base::architecture::Architecture;
use crate::base::keys::Keys;

pub(super) fn mistral(keys: &Keys) -> Result<Architecture, BaseError> {
    let dense = Dense::read(keys)?;
    let window = keys.size("sliding_window")?;
    let defaults = Defaults { model_type: "mistral", theta: 10_000.0, tied: false };
    dense.build(defaults, |dense, index| {
        let mut attention = dense.attention(index);
        attention.scores.sliding_window = window;
        Ok(dense.layer_with(index, attention))
    })
}
