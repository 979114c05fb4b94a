//! From logits to the next token of each row.
//!
//! Owns the processors of Transformers 5.23 (`generation/logits_process.py`), in the order
//! of its `_get_logits_processor` and with the same libtorch operations, so that the same
//! logits give the same probabilities: repetition penalty, temperature, top-k, top-p, min-p.
//! The draws are ours: each row has a stream of random numbers of its own, made of the seed
//! and the row's number, so that what a row draws does not depend on the rows beside it.

use heirloom::generation::{Sampling, Settings};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use tch::{Kind, Tensor};

use crate::error::{EngineError, Result};

/// Chooses the next token of every row of a batch.
#[derive(Debug)]
pub struct Sampler {
    repetition_penalty: f64,
    sampling: Option<Sampling>,
    /// Of each row.
    random: Vec<ChaCha8Rng>,
    /// Which tokens occurred in each row, `[rows, vocab_size]`; only with a penalty.
    seen: Option<Tensor>,
}

impl Sampler {
    /// For rows with these prompts; `streams` are their numbers.
    pub fn new(settings: &Settings, streams: &[u64]) -> Self {
        let seed = settings.sampling.map_or(0, |sampling| sampling.seed);
        let random = streams.iter().map(|stream| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(*stream);
            random
        });
        Self {
            repetition_penalty: settings.repetition_penalty,
            sampling: settings.sampling,
            random: random.collect(),
            seen: None,
        }
    }

    /// Takes note of the prompts, whose tokens a repetition penalty counts.
    pub fn see_prompts(&mut self, prompts: &[&[u32]], vocab_size: i64) -> Result<()> {
        if self.repetition_penalty == 1.0 {
            return Ok(());
        }
        let seen =
            Tensor::f_zeros([prompts.len() as i64, vocab_size], (Kind::Bool, tch::Device::Cpu))?;
        for (row, prompt) in prompts.iter().enumerate() {
            let tokens: Vec<i64> = prompt.iter().map(|token| i64::from(*token)).collect();
            let tokens = Tensor::f_from_slice(&tokens)?;
            let _ = seen.f_get(row as i64)?.f_index_fill_(0, &tokens, 1)?;
        }
        self.seen = Some(seen);
        Ok(())
    }

    /// The processed scores of logits `[rows, vocab_size]`, as f32; what is left out is
    /// minus infinity.
    pub fn scores(&self, logits: &Tensor) -> Result<Tensor> {
        let mut scores = logits.f_to_kind(Kind::Float)?;
        if let Some(seen) = &self.seen {
            let seen = seen.f_to(scores.device())?;
            scores = penalise(&scores, &seen, self.repetition_penalty)?;
        }
        match &self.sampling {
            Some(sampling) => warp(scores, sampling),
            None => Ok(scores),
        }
    }

    /// The next token of every row.
    pub fn choose(&mut self, logits: &Tensor) -> Result<Vec<u32>> {
        let scores = self.scores(logits)?;
        let chosen =
            if self.sampling.is_some() { self.draw(&scores)? } else { likeliest(&scores)? };
        if let Some(seen) = &mut self.seen {
            let tokens: Vec<i64> = chosen.iter().map(|token| i64::from(*token)).collect();
            let tokens = Tensor::f_from_slice(&tokens)?.f_unsqueeze(1)?;
            let _ = seen.f_scatter_value_(1, &tokens, 1)?;
        }
        Ok(chosen)
    }

    /// Goes on with these rows only, given in ascending order.
    pub fn keep(&mut self, rows: &[i64]) -> Result<()> {
        let mut place = 0..;
        self.random.retain(|_| place.next().is_some_and(|place| rows.contains(&place)));
        if let Some(seen) = &self.seen {
            self.seen = Some(seen.f_index_select(0, &Tensor::f_from_slice(rows)?)?);
        }
        Ok(())
    }

    /// A token of each row, with the probability that its score gives it.
    fn draw(&mut self, scores: &Tensor) -> Result<Vec<u32>> {
        let vocab_size = scores.size2()?.1 as usize;
        let probabilities = scores.f_softmax(-1, Kind::Float)?.f_to(tch::Device::Cpu)?;
        let probabilities = Vec::<f32>::try_from(&probabilities.f_reshape(-1)?)?;
        let rows = probabilities.chunks(vocab_size).zip(&mut self.random);
        rows.map(|(row, random)| pick(row, uniform(random)).ok_or(EngineError::NoToken)).collect()
    }
}

/// A number of `[0, 1)` with the 53 bits that an f64 has.
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 * 2f64.powi(-53)
}

/// The first token at which the probabilities, added up, exceed `fraction` of their sum.
fn pick(probabilities: &[f32], fraction: f64) -> Option<u32> {
    let sum: f64 = probabilities.iter().map(|p| f64::from(*p)).sum();
    if !(sum > 0.0 && sum.is_finite()) {
        return None;
    }
    let mut left = fraction * sum;
    let mut last = None;
    for (token, probability) in probabilities.iter().enumerate() {
        if *probability > 0.0 {
            last = Some(token as u32);
            left -= f64::from(*probability);
            if left < 0.0 {
                break;
            }
        }
    }
    // Past the end only by rounding: then it is the last token that is possible.
    last
}

fn likeliest(scores: &Tensor) -> Result<Vec<u32>> {
    let (best, tokens) = scores.f_max_dim(-1, false)?;
    // A model that computes no numbers has no likeliest token. NaN counts as the largest.
    if !best.f_isfinite()?.f_all()?.f_to(tch::Device::Cpu)?.f_is_nonzero()? {
        return Err(EngineError::NoToken);
    }
    let tokens = Vec::<i64>::try_from(&tokens.f_to(tch::Device::Cpu)?)?;
    Ok(tokens.into_iter().map(|token| token as u32).collect())
}

/// `RepetitionPenaltyLogitsProcessor`: once for each token that occurred.
fn penalise(scores: &Tensor, seen: &Tensor, penalty: f64) -> Result<Tensor> {
    let negative = scores.f_lt(0.0)?;
    let penalised =
        scores.f_mul_scalar(penalty)?.f_where_self(&negative, &scores.f_div_scalar(penalty)?)?;
    Ok(penalised.f_where_self(seen, scores)?)
}

/// The processors that Transformers applies with `do_sample`, in its order.
fn warp(mut scores: Tensor, sampling: &Sampling) -> Result<Tensor> {
    let vocab_size = scores.size2()?.1;
    if sampling.temperature != 1.0 {
        scores = scores.f_div_scalar(sampling.temperature)?;
    }
    if sampling.top_k > 0 {
        scores = top_k(&scores, vocab_size.min(sampling.top_k as i64))?;
    }
    if sampling.top_p < 1.0 {
        scores = top_p(&scores, sampling.top_p, vocab_size)?;
    }
    if sampling.min_p > 0.0 {
        scores = min_p(&scores, sampling.min_p)?;
    }
    Ok(scores)
}

/// `TopKLogitsWarper`: tokens as likely as the last of the `k` stay too.
fn top_k(scores: &Tensor, k: i64) -> Result<Tensor> {
    let (best, _) = scores.f_topk(k, -1, true, true)?;
    leave_out(scores, &scores.f_lt_tensor(&best.f_narrow(-1, k - 1, 1)?)?)
}

/// `TopPLogitsWarper`: the likeliest token always stays.
fn top_p(scores: &Tensor, p: f64, vocab_size: i64) -> Result<Tensor> {
    let (sorted, places) = scores.f_sort(-1, false)?;
    let cumulative = sorted.f_softmax(-1, Kind::Float)?.f_cumsum(-1, Kind::Float)?;
    let out = cumulative.f_le(1.0 - p)?;
    let _ = out.f_narrow(-1, vocab_size - 1, 1)?.f_fill_(0)?;
    leave_out(scores, &out.f_scatter(1, &places, &out)?)
}

/// `MinPLogitsWarper`: the likeliest token always stays.
fn min_p(scores: &Tensor, p: f64) -> Result<Tensor> {
    let probabilities = scores.f_softmax(-1, Kind::Float)?;
    let (best, place) = probabilities.f_max_dim(-1, true)?;
    let mut out = probabilities.f_lt_tensor(&best.f_mul_scalar(p)?)?;
    let _ = out.f_scatter_value_(-1, &place, 0)?;
    leave_out(scores, &out)
}

fn leave_out(scores: &Tensor, out: &Tensor) -> Result<Tensor> {
    Ok(scores.f_masked_fill(out, f64::NEG_INFINITY)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(seed: u64) -> Settings {
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed };
        Settings { sampling: Some(sampling), ..Settings::greedy(1) }
    }

    #[test]
    fn a_fraction_picks_by_probability_and_never_the_impossible() {
        let row = [0.0, 0.25, 0.0, 0.75, 0.0];
        assert_eq!([0.0, 0.2499, 0.25, 0.9999].map(|f| pick(&row, f)), [1, 1, 3, 3].map(Some));
        assert_eq!(pick(&row, 1.0), Some(3));
        assert_eq!(pick(&[0.0, 0.0], 0.5), None);
        assert_eq!(pick(&[f32::NAN, 1.0], 0.5), None);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        // Logits of the probabilities 1/8, 1/8, 1/4, 1/2.
        let logits = Tensor::from_slice(&[0.0f32, 0.0, 2f32.ln(), 4f32.ln()]).view([1, 4]);
        let mut sampler = Sampler::new(&sampled(3), &[0]);
        let mut counts = [0i32; 4];
        for _ in 0..8000 {
            counts[sampler.choose(&logits).unwrap()[0] as usize] += 1;
        }
        // Four standard deviations.
        for (count, expected) in counts.into_iter().zip([1000, 1000, 2000, 4000]) {
            assert!((count - expected).abs() < 180, "{counts:?}");
        }
    }

    #[test]
    fn what_a_row_draws_does_not_depend_on_its_neighbours() {
        let even = |rows: i64| Tensor::zeros([rows, 1000], (Kind::Float, tch::Device::Cpu));
        let draw = |seed: u64, streams: &[u64]| -> Vec<Vec<u32>> {
            let mut sampler = Sampler::new(&sampled(seed), streams);
            (0..4).map(|_| sampler.choose(&even(streams.len() as i64)).unwrap()).collect()
        };
        let column = |draws: &[Vec<u32>], row: usize| -> Vec<u32> {
            draws.iter().map(|step| step[row]).collect()
        };
        let (together, alone) = (draw(5, &[0, 7, 9]), draw(5, &[7]));
        assert_eq!(column(&together, 1), column(&alone, 0));
        assert_ne!(column(&together, 0), column(&together, 1));
        assert_ne!(draw(6, &[7]), alone);
        // For ever: a seed that somebody wrote down gives what it gave.
        assert_eq!(column(&alone, 0), [882, 147, 259, 804]);
    }

    #[test]
    fn rows_that_leave_take_their_streams_along() {
        let even = |rows: i64| Tensor::zeros([rows, 1000], (Kind::Float, tch::Device::Cpu));
        let mut whole = Sampler::new(&sampled(5), &[0, 1, 2]);
        let mut kept = Sampler::new(&sampled(5), &[0, 1, 2]);
        whole.choose(&even(3)).unwrap();
        kept.choose(&even(3)).unwrap();
        kept.keep(&[0, 2]).unwrap();
        let (all, some) = (whole.choose(&even(3)).unwrap(), kept.choose(&even(2)).unwrap());
        assert_eq!(some, [all[0], all[2]]);
    }

    #[test]
    fn scores_that_are_no_numbers_are_an_error() {
        let broken = Tensor::from_slice(&[0.0f32, f32::NAN]).view([1, 2]);
        for settings in [Settings::greedy(1), sampled(0)] {
            let refused = Sampler::new(&settings, &[0]).choose(&broken);
            assert!(matches!(refused, Err(EngineError::NoToken)), "{refused:?}");
        }
    }
}
