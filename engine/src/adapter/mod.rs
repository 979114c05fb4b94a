//! The adapter room: wrapping linear layers, trained rows, and PEFT's file format.
//!
//! Owns which layers an adapter touches, its initial weights ([`attach`], as PEFT's
//! `LoraLayer.reset_lora_parameters`), what it trains of embedding and output ([`tokens`]) and
//! `adapter_config.json` with `adapter_model.safetensors` ([`peft`]). Applying and merging
//! stand in `model::Linear` and `model::Replacement`.

pub mod peft;
pub(crate) mod peft_settings;
pub mod tokens;

use heirloom::recipe::Lora;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::model::{Decoder, Linear, LowRank};

/// The checkpoint keys of a layer's A and B.
pub fn keys(linear: &str) -> (String, String) {
    let prefix = format!("base_model.model.{linear}");
    (format!("{prefix}.lora_A.weight"), format!("{prefix}.lora_B.weight"))
}

/// Wraps every target of `model`; `get` is asked for A (`[r, in]`) and B (`[out, r]`) of
/// each layer by key and shape, in the order of the layers, then for what is trained of the
/// embedding and of the output.
pub fn attach(
    model: &mut Decoder,
    lora: &Lora,
    mut get: impl FnMut(&str, [i64; 2]) -> Result<Tensor>,
) -> Result<()> {
    let rank = i64::from(lora.rank);
    for linear in model.linears_mut()?.filter(|linear| lora.targets.choose(&linear.name)) {
        let (out_features, in_features) = linear.weight.size2()?;
        let (key_a, key_b) = keys(&linear.name);
        linear.low_rank = Some(LowRank {
            a: get(&key_a, [rank, in_features])?,
            b: get(&key_b, [out_features, rank])?,
            scaling: lora.alpha / f64::from(lora.rank),
            dropout: lora.dropout,
        });
    }
    tokens::attach(model, lora, get)
}

/// PEFT's default start: A is Kaiming-uniform with a = √5, which is uniform within
/// ±1/√in_features; B is zero. Uses libtorch's generator.
pub fn draw(key: &str, shape: [i64; 2]) -> Result<Tensor> {
    let mut tensor = Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?;
    if key.ends_with("lora_A.weight") {
        let bound = 1.0 / (shape[1] as f64).sqrt();
        let _ = tensor.f_uniform_(-bound, bound)?;
    }
    Ok(tensor)
}

/// A model's adapter weights by key, in the order of [`attach`].
pub fn weights(model: &Decoder) -> Vec<(String, Tensor)> {
    let both = |linear: &Linear| {
        let (key_a, key_b) = keys(&linear.name);
        let low_rank = linear.low_rank.as_ref()?;
        Some([(key_a, low_rank.a.shallow_clone()), (key_b, low_rank.b.shallow_clone())])
    };
    model.linears().filter_map(both).flatten().chain(tokens::weights(model)).collect()
}
