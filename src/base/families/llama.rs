//! Llama 2 to 3.3, and all that were published as Llama: Yi, SmolLM 2, DeepSeek-R1-Distill-Llama.
//!
//! Reference: `modeling_llama.py`.

use super::{Defaults, Dense};
use crate::base::BaseError;
use crate::base::architecture::Architecture;
use crate::base::keys::Keys;

pub(super) fn llama(keys: &Keys) -> Result<Architecture, BaseError> {
    let dense = Dense::read(keys)?;
    let attention_bias = keys.flag("attention_bias")?;
    let mlp_bias = keys.flag("mlp_bias")?;
    let defaults = Defaults { model_type: "llama", theta: 10_000.0, tied: false };
    dense.build(defaults, |dense, index| {
        let mut layer = dense
            .layer_with(index, dense.attention(index).with_bias(attention_bias, attention_bias));
        layer.set_mlp_bias(mlp_bias);
        Ok(layer)
    })
}
