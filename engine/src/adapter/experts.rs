//! Updates of the weights of routed experts.
//!
//! Owns which tensors they are, and where they start. Their use stands in
//! `model::expert_update`, their keys are `heirloom::recipe`'s.
//!
//! Reference: PEFT 0.21.2's `target_parameters` of `LoraConfig`, and `lora.ParamWrapper`.

use heirloom::base::ExpertParameter;
use heirloom::recipe::{Lora, Start, parameter_keys};
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::model::{Decoder, ExpertLowRank};

/// Every tensor with its shape: A and B of one weight after the other.
pub(super) fn expected(model: &Decoder, lora: &Lora) -> Vec<(String, Vec<i64>)> {
    let mut expected = Vec::new();
    for both in model.expert_parameters() {
        let both = both.each_ref().map(|parameter| parameter.parameter.clone());
        for (parameter, keys) in both.iter().zip(lora.parameter_keys(&both)) {
            if let Some(keys) = keys {
                expected.extend(keys.into_iter().zip(shapes(parameter, lora).map(Vec::from)));
            }
        }
    }
    expected
}

/// Of A and B.
fn shapes(parameter: &ExpertParameter, lora: &Lora) -> [[i64; 2]; 2] {
    let ranks = i64::from(lora.rank_of(&parameter.name)) * parameter.experts as i64;
    [[ranks, parameter.in_features as i64], [parameter.out_features as i64, ranks]]
}

/// Puts the tensors that `get` gives in their places.
pub(super) fn attach(
    model: &mut Decoder,
    lora: &Lora,
    get: &mut impl FnMut(&str, &[i64]) -> Result<Tensor>,
) -> Result<()> {
    for both in model.expert_parameters_mut()? {
        let described = both.each_ref().map(|parameter| parameter.parameter.clone());
        for (parameter, keys) in both.iter_mut().zip(lora.parameter_keys(&described)) {
            let Some([a, b]) = keys else { continue };
            let [of_a, of_b] = shapes(&parameter.parameter, lora);
            parameter.low_rank = Some(ExpertLowRank {
                a: get(&a, &of_a)?,
                b: get(&b, &of_b)?,
                scaling: lora.scaling_of(&parameter.parameter.name),
            });
        }
    }
    Ok(())
}

/// The trained weights by key, in the order of [`attach`].
pub(super) fn weights(model: &Decoder) -> Vec<(String, Tensor)> {
    let mut weights = Vec::new();
    for both in model.expert_parameters() {
        let described = both.each_ref().map(|parameter| parameter.parameter.clone());
        let chosen = both.each_ref().map(|parameter| parameter.low_rank.is_some());
        for (parameter, keys) in both.iter().zip(parameter_keys(&described, chosen)) {
            let Some((low_rank, [a, b])) = parameter.low_rank.as_ref().zip(keys) else { continue };
            weights.push((a, low_rank.a.shallow_clone()));
            weights.push((b, low_rank.b.shallow_clone()));
        }
    }
    weights
}

/// Initial values, in the order of [`attach`]: A as of a layer as wide, B zero.
pub(super) fn initial(model: &Decoder, lora: &Lora) -> Result<Vec<(String, Tensor)>> {
    let mut initial = Vec::new();
    for both in model.expert_parameters() {
        let both = both.each_ref().map(|parameter| parameter.parameter.clone());
        for (parameter, keys) in both.iter().zip(lora.parameter_keys(&both)) {
            let Some([a, b]) = keys else { continue };
            let [of_a, of_b] = shapes(parameter, lora)
                .map(|shape| Tensor::f_zeros(shape, (Kind::Float, Device::Cpu)));
            let (mut of_a, of_b) = (of_a?, of_b?);
            if lora.init_lora_weights == Start::Gaussian {
                let _ = of_a.f_normal_(0.0, 1.0 / f64::from(lora.rank_of(&parameter.name)))?;
            } else {
                let bound = 1.0 / (parameter.in_features as f64).sqrt();
                let _ = of_a.f_uniform_(-bound, bound)?;
            }
            initial.extend([(a, of_a), (b, of_b)]);
        }
    }
    Ok(initial)
}
