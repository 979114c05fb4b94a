//! The loss of a micro-batch.

use heirloom::dataset::stream::MicroBatch;
use tch::Tensor;

use crate::error::Result;
use crate::model::{Decoder, Replacement};
use crate::ops::cross_entropy::{self, Logits, Targets};
use crate::ops::profile::scope;
use crate::ops::{self, Layout, reference};

/// Sum of the negative log-likelihoods of the trained tokens, each times its weight, in nats,
/// as a graph that can be differentiated; `None` when no token is trained. `train` turns
/// dropout on.
///
/// Only rows that predict a trained token reach the output projection, and only some of them at
/// a time.
pub fn nll_sum(model: &Decoder, batch: &MicroBatch, train: bool) -> Result<Option<Tensor>> {
    let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (row, (token, weight)) in batch.tokens.iter().zip(&batch.weights).enumerate().skip(1) {
        if *weight > 0.0 {
            rows.push(row as i64 - 1);
            targets.push(i64::from(*token));
            weights.push(*weight);
        }
    }
    if rows.is_empty() {
        return Ok(None);
    }
    let tokens: Vec<i64> = batch.tokens.iter().map(|token| i64::from(*token)).collect();
    let device = model.embedding.device();
    let layout = Layout::new(&batch.lengths, device)?;
    let there = |ids: &[i64]| Tensor::f_from_slice(ids)?.f_to(device);
    let hidden = model.hidden(&there(&tokens)?, &layout, train)?;
    let predicting = hidden.f_index_select(0, &there(&rows)?)?;
    let ids = there(&targets)?;
    // Nearly every row has plain weights: those pay nothing for the others.
    let plain = weights.iter().all(|weight| *weight == 1.0);
    let weights = if plain { None } else { Some(Tensor::f_from_slice(&weights)?.f_to(device)?) };
    let targets = Targets { ids: &ids, weights: weights.as_ref() };
    Ok(Some(of_hidden(model, &predicting, targets)?))
}

/// Sum of the losses of hidden states, through the output projection however it is trained.
fn of_hidden(model: &Decoder, hidden: &Tensor, targets: Targets<'_>) -> Result<Tensor> {
    if reference::asked() {
        let logits = model.logits(hidden)?;
        return match targets.weights {
            Some(weights) => ops::weighted_cross_entropy_sum(&logits, targets.ids, weights),
            None => ops::cross_entropy_sum(&logits, targets.ids),
        };
    }
    let architecture = &model.architecture;
    match &model.replaced.output {
        None if cross_entropy::computes(hidden, &model.output) => {
            let logits = Logits {
                scaling: architecture.logits_scaling,
                softcap: architecture.final_logit_softcapping,
            };
            let _scope = scope("output projection");
            cross_entropy::frozen(hidden, &model.output, logits, targets)
        }
        replaced => {
            let trained = replaced.as_ref().map_or(&model.output, Replacement::values);
            let logits = |hidden: &Tensor| model.logits(hidden);
            cross_entropy::chunked(hidden, &[trained], targets, logits)
        }
    }
}
