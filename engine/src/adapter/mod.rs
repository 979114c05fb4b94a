//! The adapter room: wrapping linear layers and routed experts (`experts`), trained rows, and PEFT's file format.
//!
//! Owns which tensors an adapter has ([`attach`]), where they start ([`start`]), what it trains
//! of embedding and output ([`tokens`]) and `adapter_config.json` with
//! `adapter_model.safetensors` ([`peft`]). Applying and merging stand in `model::Linear` and
//! `model::Replacement`.

mod experts;
pub mod peft;
pub mod start;
pub mod tokens;
mod vera;

use heirloom::recipe::Lora;
use tch::Tensor;

use crate::error::Result;
use crate::model::{Decoder, Linear, LowRank, Magnitude};
pub use start::initial;
use vera::Projections;

/// The checkpoint keys of what an adapter has of one layer.
struct Keys {
    a: String,
    b: String,
    magnitude: String,
    bias: String,
    /// VeRA's, see [`vera::keys`].
    vectors: [String; 2],
}

impl Keys {
    /// Of a layer that has a low-rank update, or of one that has not and trains its bias.
    fn new(linear: &str, wrapped: bool) -> Self {
        let prefix = format!("base_model.model.{linear}");
        let base_layer = if wrapped { ".base_layer" } else { "" };
        Self {
            a: format!("{prefix}.lora_A.weight"),
            b: format!("{prefix}.lora_B.weight"),
            magnitude: format!("{prefix}.lora_magnitude_vector"),
            bias: format!("{prefix}{base_layer}.bias"),
            vectors: vera::keys(linear),
        }
    }
}

/// Every tensor of the linear layers and of routed experts with its shape, in the order of [`attach`].
fn expected(model: &Decoder, lora: &Lora) -> Result<Vec<(String, Vec<i64>)>> {
    let mut expected = Vec::new();
    for linear in model.linears() {
        let (out_features, in_features) = linear.weight.size2()?;
        let wrapped = lora.chooses(&linear.name);
        let keys = Keys::new(&linear.name, wrapped);
        if wrapped {
            let rank = i64::from(lora.rank_of(&linear.name));
            if lora.vera.is_some() {
                expected.extend(keys.vectors.into_iter().zip([vec![rank], vec![out_features]]));
                continue;
            }
            expected.push((keys.a, vec![rank, in_features]));
            expected.push((keys.b, vec![out_features, rank]));
            if lora.use_dora {
                expected.push((keys.magnitude, vec![out_features]));
            }
        }
        if linear.bias.is_some() && lora.trains_bias(&linear.name) {
            expected.push((keys.bias, vec![out_features]));
        }
    }
    expected.extend(experts::expected(model, lora));
    if lora.vera.is_some_and(|vera| vera.save_projection) {
        let shapes = vera::shapes(model, lora)?.map(Vec::from);
        expected.extend(vera::PROJECTIONS.map(str::to_owned).into_iter().zip(shapes));
    }
    Ok(expected)
}

/// Wraps every target of `model`; `get` is asked for A (`[r, in]`), B (`[out, r]`), the
/// magnitude and the bias (`[out]`) of each layer that has them by key and shape, in the order
/// of the layers, then for A and B of routed experts and for what is trained of the embedding
/// and of the output.
pub fn attach(
    model: &mut Decoder,
    lora: &Lora,
    mut get: impl FnMut(&str, &[i64]) -> Result<Tensor>,
) -> Result<()> {
    let projections = Projections::of(model, lora)?;
    for linear in model.linears_mut()? {
        let (out_features, in_features) = linear.weight.size2()?;
        let wrapped = lora.chooses(&linear.name);
        let keys = Keys::new(&linear.name, wrapped);
        let (scaling, dropout) = (lora.scaling_of(&linear.name), lora.dropout);
        if let (true, Some(projections)) = (wrapped, &projections) {
            let [d, b] = &keys.vectors;
            let vectors = (get(d, &[i64::from(lora.rank)])?, get(b, &[out_features])?);
            let vectors = Some(projections.vectors(vectors.0, vectors.1));
            let (a, b) = projections.parts((out_features, in_features))?;
            let (start, magnitude) = (None, None);
            linear.low_rank = Some(LowRank { a, b, start, magnitude, vectors, scaling, dropout });
        } else if wrapped {
            let rank = i64::from(lora.rank_of(&linear.name));
            let a = get(&keys.a, &[rank, in_features])?;
            let b = get(&keys.b, &[out_features, rank])?;
            let magnitude = match lora.use_dora {
                true => {
                    let vector = get(&keys.magnitude, &[out_features])?;
                    Some(Magnitude::new(vector, &linear.weight)?)
                }
                false => None,
            };
            let (start, vectors) = (None, None);
            linear.low_rank = Some(LowRank { a, b, start, magnitude, vectors, scaling, dropout });
        }
        if linear.bias.is_some() && lora.trains_bias(&linear.name) {
            linear.trained_bias = Some(get(&keys.bias, &[out_features])?);
        }
    }
    experts::attach(model, lora, &mut get)?;
    tokens::attach(model, lora, get)
}

/// A model's trained weights by key, in the order of [`attach`].
pub fn weights(model: &Decoder) -> Vec<(String, Tensor)> {
    let one = |linear: &Linear| {
        let low_rank = linear.low_rank.as_ref();
        let keys = Keys::new(&linear.name, low_rank.is_some());
        let Keys { a, b, magnitude, bias, vectors } = keys;
        let length = low_rank.and_then(|low_rank| low_rank.magnitude.as_ref());
        let pair = low_rank.into_iter().flat_map(LowRank::trained);
        let keys = match low_rank.is_some_and(|low_rank| low_rank.vectors.is_some()) {
            true => vectors,
            false => [a, b],
        };
        let all = keys.into_iter().zip(pair);
        let all = all.chain(length.map(|length| (magnitude, &length.vector)));
        let all = all.chain(linear.trained_bias.as_ref().map(|trained| (bias, trained)));
        all.map(|(key, tensor)| (key, tensor.shallow_clone())).collect::<Vec<_>>()
    };
    let layers = model.linears().flat_map(one);
    layers.chain(experts::weights(model)).chain(tokens::weights(model)).collect()
}

/// What is written of a model's adapter: as [`weights`], but with what was taken out of the base
/// as a part of the update, so that it is one of the base as it is.
pub fn written(model: &Decoder) -> Result<Vec<(String, Tensor)>> {
    let mut written = weights(model);
    for linear in model.linears() {
        let Some(low_rank) = &linear.low_rank else { continue };
        if low_rank.start.is_none() {
            continue;
        }
        let (keys, (a, b)) = (Keys::new(&linear.name, true), low_rank.whole()?);
        for (key, tensor) in &mut written {
            if *key == keys.a {
                *tensor = a.shallow_clone();
            } else if *key == keys.b {
                *tensor = b.shallow_clone();
            }
        }
    }
    Ok(written)
}
