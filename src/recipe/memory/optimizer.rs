//! What an optimiser remembers of the weights.
//!
//! | optimiser | bytes of `P` trained weights |
//! |---|---|
//! | `adamw` | `8·P`: a running mean and a running square, in f32 |
//! | `adamw_8bit` | `2·P` and `8·P / 256` for the scales; `8·P` of what stays in 32 bits |
//! | `adafactor` | 4 for each row and each column of a matrix, and for each element of a vector; `4·P` more with `beta1` |
//! | `lion` | `4·P`: a running mean |
//! | `muon` | `4·P` of the matrices of the blocks, `8·P` of the rest |

use super::{F32, bytes_of};
use crate::base::Architecture;
use crate::recipe::{Adapter, Optimizer, Recipe};

/// Elements that share a scale in eight bits.
const BLOCK: f64 = 256.0;

/// Bytes of the state of so many `trained` weights.
pub(super) fn state(recipe: &Recipe, architecture: &Architecture, trained: f64) -> f64 {
    let optimizer = &recipe.train.optimizer;
    let (whole, most) = (F32 * trained, 2.0 * F32 * trained);
    let state = match optimizer {
        Optimizer::Adamw(_) => return most,
        Optimizer::Lion(_) => return whole,
        Optimizer::Adafactor(adafactor) => {
            let squares: f64 = shapes(recipe, architecture).map(|(_, shape)| squares(&shape)).sum();
            squares + if adafactor.beta1.is_some() { whole } else { 0.0 }
        }
        Optimizer::Adamw8bit(_) | Optimizer::Muon(_) => {
            let per_weight = match optimizer {
                Optimizer::Muon(_) => F32,
                _ => 2.0 + 2.0 * F32 / BLOCK,
            };
            let its = |(name, shape): &(String, Vec<usize>)| !optimizer.leaves(name, shape);
            let its = shapes(recipe, architecture).filter(its);
            let its: f64 = its.map(|(_, shape)| bytes_of(&shape, 1.0)).sum();
            its * per_weight + (trained - its).max(0.0) * 2.0 * F32
        }
    };
    // Of weights whose shapes are not known here, the most.
    let known: f64 = shapes(recipe, architecture).map(|(_, shape)| bytes_of(&shape, 1.0)).sum();
    match optimizer {
        Optimizer::Adafactor(_) => state + (trained - known).max(0.0) * F32,
        _ => state,
    }
}

/// Bytes of running squares by row and by column.
fn squares(shape: &[usize]) -> f64 {
    match shape {
        [batches @ .., rows, columns] => bytes_of(batches, F32) * (rows + columns) as f64,
        vector => bytes_of(vector, F32),
    }
}

/// Names and shapes of the weights that are trained: all, or the low-rank pairs.
fn shapes(
    recipe: &Recipe,
    architecture: &Architecture,
) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (mut all, mut pairs) = (Vec::new(), Vec::new());
    match &recipe.adapter {
        Adapter::Full(_) => {
            let trained = |(name, _): &(String, Vec<usize>)| recipe.adapter.trains(name);
            all = architecture.tensors().into_iter().filter(trained).collect();
        }
        Adapter::Lora(lora) => {
            let layers = architecture.linear_layers();
            for layer in layers.into_iter().filter(|layer| lora.chooses(&layer.name)) {
                let rank = lora.rank_of(&layer.name) as usize;
                if lora.vera.is_some() {
                    pairs.push((format!("{}.vera_lambda_d", layer.name), vec![rank]));
                    pairs.push((format!("{}.vera_lambda_b", layer.name), vec![layer.out_features]));
                    continue;
                }
                pairs.push((format!("{}.lora_A", layer.name), vec![rank, layer.in_features]));
                pairs.push((format!("{}.lora_B", layer.name), vec![layer.out_features, rank]));
            }
            let parameters = architecture.expert_parameters().into_iter();
            for parameter in parameters.filter(|it| lora.chooses_parameter(&it.name)) {
                let rank = lora.rank_of(&parameter.name) as usize * parameter.experts;
                pairs.push((
                    format!("{}.lora_A", parameter.name),
                    vec![rank, parameter.in_features],
                ));
                pairs.push((
                    format!("{}.lora_B", parameter.name),
                    vec![parameter.out_features, rank],
                ));
            }
        }
    }
    all.into_iter().chain(pairs)
}
