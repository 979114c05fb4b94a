//! The loss of a micro-batch.

use heirloom::dataset::stream::MicroBatch;
use heirloom::recipe::memory::rounded_rows;
use tch::{Device, Kind, Tensor};

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
    sum(model, batch, train, 0.0)
}

/// The same where every target is smoothed: that share of it all tokens have alike, as
/// `label_smoothing` of `torch.nn.functional.cross_entropy`.
pub fn sum(
    model: &Decoder,
    batch: &MicroBatch,
    train: bool,
    smoothing: f64,
) -> Result<Option<Tensor>> {
    let (places, weights) = trained(batch);
    if places.is_empty() {
        return Ok(None);
    }
    Predicting::run(model, batch, &places, train)?.sum(model, weights, smoothing).map(Some)
}

/// Places of the tokens of a batch that are trained, and their weights.
pub(super) fn trained(batch: &MicroBatch) -> (Vec<usize>, Vec<f32>) {
    let weights = batch.weights.iter().copied().enumerate();
    weights.skip(1).filter(|(_, weight)| *weight > 0.0).unzip()
}

/// Hidden states that predict some tokens of a batch, and which tokens those are.
#[derive(Debug)]
pub(super) struct Predicting {
    /// `[m, hidden]`, with rows at the end that are there only so that few numbers occur.
    pub(super) hidden: Tensor,
    /// `[m]`.
    pub(super) ids: Tensor,
    /// Tokens that are predicted.
    tokens: usize,
}

impl Predicting {
    /// Runs a model on a batch, to predict the tokens at `places`, none of which is 0.
    pub(super) fn run(
        model: &Decoder,
        batch: &MicroBatch,
        places: &[usize],
        train: bool,
    ) -> Result<Self> {
        Self::run_as(model, batch, places, train, model.rounds_rows())
    }

    /// The same, with numbers of rows that are rounded or not, whatever the model.
    pub(super) fn run_as(
        model: &Decoder,
        batch: &MicroBatch,
        places: &[usize],
        train: bool,
        rounded: bool,
    ) -> Result<Self> {
        let mut rows: Vec<i64> = places.iter().map(|place| *place as i64 - 1).collect();
        let mut tokens: Vec<i64> = batch.tokens.iter().map(|token| i64::from(*token)).collect();
        let target = |place: &usize| tokens.get(*place).copied().unwrap_or_default();
        let mut targets: Vec<i64> = places.iter().map(target).collect();
        let mut lengths = batch.lengths.clone();
        let device = model.embedding.device();
        if rounded {
            fill_up(&mut tokens, &mut lengths);
            let rounded = rounded_rows(rows.len());
            rows.resize(rounded, 0);
            targets.resize(rounded, 0);
        }
        let layout = Layout::new(&lengths, device)?;
        let there = |ids: &[i64]| Tensor::f_from_slice(ids)?.f_to(device);
        let hidden = model.hidden(&there(&tokens)?, &layout, train)?;
        let hidden = hidden.f_index_select(0, &there(&rows)?)?;
        Ok(Self { hidden, ids: there(&targets)?, tokens: places.len() })
    }

    /// The negative log-likelihood of each token, in nats, outside of any graph.
    pub(super) fn each(&self, model: &Decoder) -> Result<Vec<f64>> {
        let _scope = scope("output projection");
        let each = cross_entropy::each(&self.hidden, &self.ids, |hidden| model.logits(hidden))?;
        let mut each: Vec<f64> = Vec::try_from(each.f_to_kind(Kind::Double)?.f_to(Device::Cpu)?)?;
        each.truncate(self.tokens);
        Ok(each)
    }

    /// The sum of all negative log-likelihoods, each times its weight, as a graph.
    pub(super) fn sum(&self, model: &Decoder, weights: Vec<f32>, smoothing: f64) -> Result<Tensor> {
        let weights = self.weights(weights)?;
        let targets = Targets { ids: &self.ids, weights: weights.as_ref(), smoothing };
        of_hidden(model, &self.hidden, targets)
    }

    /// A weight for every row, where they are not all 1.
    pub(super) fn weights(&self, mut weights: Vec<f32>) -> Result<Option<Tensor>> {
        weights.resize(self.ids.size1()? as usize, 0.0);
        // Nearly every row has plain weights: those pay nothing for the others.
        match weights.iter().all(|weight| *weight == 1.0) {
            true => Ok(None),
            false => Ok(Some(Tensor::f_from_slice(&weights)?.f_to(self.hidden.device())?)),
        }
    }
}

/// Adds documents that predict nothing, so that there are few numbers of rows: for each that it
/// meets in bfloat16, oneDNN makes kernels and keeps them.
fn fill_up(tokens: &mut Vec<i64>, lengths: &mut Vec<u32>) {
    let rounded = rounded_rows(tokens.len());
    let longest = lengths.iter().copied().max().unwrap_or(1).max(1);
    let mut missing = (rounded - tokens.len()) as u32;
    tokens.resize(rounded, 0);
    while missing > 0 {
        let length = missing.min(longest);
        lengths.push(length);
        missing -= length;
    }
}

/// Sum of the losses of hidden states, through the output projection however it is trained.
fn of_hidden(model: &Decoder, hidden: &Tensor, targets: Targets<'_>) -> Result<Tensor> {
    if reference::asked() {
        return ops::cross_entropy_sum(&model.logits(hidden)?, targets);
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
        _ => {
            let logits = |hidden: &Tensor| model.logits(hidden);
            cross_entropy::chunked(hidden, &[trained_output(model)], targets, logits)
        }
    }
}

/// What of the output projection is trained, if anything is.
pub(super) fn trained_output(model: &Decoder) -> &Tensor {
    model.replaced.output.as_ref().map_or(&model.output, Replacement::values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_rows_are_documents_of_their_own_and_few_numbers_occur() {
        let mut numbers = std::collections::BTreeSet::new();
        for rows in 1..=2048u32 {
            let mut lengths = vec![rows.min(40); (rows / 40).max(1) as usize];
            lengths.extend(rows.checked_sub(lengths.iter().sum()).filter(|rest| *rest > 0));
            let (documents, longest) = (lengths.clone(), lengths.iter().copied().max());
            let mut tokens = vec![7; rows as usize];
            fill_up(&mut tokens, &mut lengths);
            assert_eq!(lengths.iter().sum::<u32>() as usize, tokens.len());
            assert_eq!(lengths[..documents.len()], documents);
            assert_eq!(lengths.iter().copied().max(), longest);
            assert!(tokens.len() <= rows as usize + (rows as usize / 8).max(15));
            numbers.insert(tokens.len());
        }
        assert!(numbers.len() < 60, "{numbers:?}");
    }
}
