//! SmolLM 3: Llama with layers that have no rotary embedding.
//!
//! Reference: `modeling_smollm3.py`.

use serde_json::Value;

use super::{Defaults, Dense};
use crate::base::BaseError;
use crate::base::architecture::Architecture;
use crate::base::keys::Keys;

pub(super) fn smollm3(keys: &Keys) -> Result<Architecture, BaseError> {
    let mut dense = Dense::read(keys)?;
    if keys.get("num_key_value_heads").is_none() {
        dense.kv_heads = 4;
    }
    let bias = keys.flag("attention_bias")?;
    let mlp_bias = keys.flag("mlp_bias")?;
    let interval = keys.size("no_rope_layer_interval")?.unwrap_or(4);
    // 1 says that the layer has a rotary embedding, in spite of the name.
    let rotated = keys.list("no_rope_layers", Value::as_u64)?.unwrap_or_else(|| {
        (1..=dense.layers).map(|count| u64::from(!count.is_multiple_of(interval))).collect()
    });
    if rotated.len() != dense.layers {
        return Err(keys.refuse("no_rope_layers", format!("{} layers", rotated.len())));
    }
    let used = keys.flag("use_sliding_window")?;
    // Types that are named slide whatever the flag says, in Transformers.
    let named = keys.get("layer_types").is_some();
    let window = keys.size("sliding_window")?.filter(|_| used || named);
    // Inherited from Qwen 2 and never read.
    keys.get("max_window_layers");
    let windows = dense.windows(window, |index| rotated[index] == 0)?;
    let defaults = Defaults { model_type: "smollm3", theta: 2_000_000.0, tied: true };
    dense.build(defaults, |dense, index| {
        let mut attention = dense.attention(index).with_bias(bias, bias);
        attention.rope = attention.rope.filter(|_| rotated[index] != 0);
        attention.scores.sliding_window = windows[index];
        let mut layer = dense.layer_with(index, attention);
        layer.set_mlp_bias(mlp_bias);
        Ok(layer)
    })
}
