//! The loss of a micro-batch.

use heirloom::dataset::stream::MicroBatch;
use tch::Tensor;

use crate::error::Result;
use crate::model::Decoder;
use crate::ops::{self, Layout};

/// Sum of the negative log-likelihoods of the trained tokens, each times its weight, in nats,
/// as a graph that can be differentiated; `None` when no token is trained. `train` turns
/// dropout on.
///
/// Only rows that predict a trained token reach the output projection.
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
    let layout = Layout::new(&batch.lengths, model.embedding.device())?;
    let hidden = model.hidden(&Tensor::f_from_slice(&tokens)?, &layout, train)?;
    let predicting = hidden.f_index_select(0, &Tensor::f_from_slice(&rows)?)?;
    let logits = model.logits(&predicting)?;
    let targets = Tensor::f_from_slice(&targets)?;
    // Nearly every row has plain weights: those pay nothing for the others.
    if weights.iter().all(|weight| *weight == 1.0) {
        return Ok(Some(ops::cross_entropy_sum(&logits, &targets)?));
    }
    let weights = Tensor::f_from_slice(&weights)?;
    Ok(Some(ops::weighted_cross_entropy_sum(&logits, &targets, &weights)?))
}
