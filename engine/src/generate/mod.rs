//! The generate room: decoding.
//!
//! Owns the loop over a batch with its key-value cache ([`batch`]), choosing tokens
//! ([`sampler`]), and turning them into text as they come ([`reply`], with [`detokenizer`]
//! and [`stop`]). What is asked for is `heirloom::generation`; printing is the jobs'.
//!
//! Reference: Transformers' `generate`, token for token in f32 where nothing is drawn.

pub mod batch;
pub mod detokenizer;
pub mod reply;
pub mod sampler;
pub mod stop;

use heirloom::generation::Settings;
use heirloom::recipe::memory::{SUITE_ROWS, SUITE_TOKENS};

pub use batch::{Finish, Limits, Past, Prompt, Timing};

use crate::error::EngineError;
use crate::model::Decoder;

/// Continues every prompt until one of `stops` (kept off the answer) or `max_new_tokens`.
///
/// `tick` is told of every prompt that is done.
pub fn greedy(
    model: &Decoder,
    prompts: &[Vec<u32>],
    stops: &[u32],
    max_new_tokens: usize,
    mut tick: impl FnMut(usize),
) -> Result<Vec<Vec<u32>>, EngineError> {
    let settings = Settings::greedy(max_new_tokens);
    let limits = Limits { max_new_tokens, eos: stops };
    let mut answers = vec![Vec::new(); prompts.len()];
    if max_new_tokens == 0 {
        return Ok(answers);
    }
    for members in by_length(prompts, SUITE_ROWS, |longest, rows| {
        rows.saturating_mul(longest.saturating_add(max_new_tokens)) <= SUITE_TOKENS
    }) {
        let found = batch::run(model, &members, &settings, limits, None, |_, _| {
            Ok::<_, EngineError>(None)
        })?;
        for (prompt, found) in members.iter().zip(found.rows) {
            answers[prompt.stream as usize] = found.tokens;
        }
        tick(members.len());
    }
    Ok(answers)
}

/// Batches of prompts of like length, so that little of the cache is padding: at most `size`
/// each, and as many as `fit` by the length of the longest, but one at least. The stream of a
/// prompt is its place in `prompts`.
pub fn by_length(
    prompts: &[Vec<u32>],
    size: usize,
    fit: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<Prompt<'_>>> {
    let prompt = |(stream, tokens): (usize, &'_ Vec<u32>)| (tokens.len(), stream as u64);
    let mut order: Vec<(usize, u64)> = prompts.iter().enumerate().map(prompt).collect();
    order.sort_unstable();
    let mut batches: Vec<Vec<Prompt<'_>>> = Vec::new();
    for (length, stream) in order {
        let prompt = Prompt { tokens: &prompts[stream as usize], stream };
        match batches.last_mut() {
            Some(last) if last.len() < size && fit(length, last.len() + 1) => last.push(prompt),
            _ => batches.push(vec![prompt]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_of_like_length_and_no_larger_than_fits() {
        let prompts: Vec<Vec<u32>> = [5, 1, 9, 1, 3].map(|length| vec![0; length]).into();
        let streams = |size, most| -> Vec<Vec<u64>> {
            let batches = by_length(&prompts, size, |longest, rows| longest * rows <= most);
            let streams = |batch: &Vec<Prompt<'_>>| batch.iter().map(|p| p.stream).collect();
            batches.iter().map(streams).collect()
        };
        assert_eq!(streams(2, 100), [vec![1, 3], vec![4, 0], vec![2]]);
        assert_eq!(streams(9, 9), [vec![1, 3, 4], vec![0], vec![2]]);
        // A prompt that is longer than what fits is a batch of its own.
        assert_eq!(streams(9, 0).len(), 5);
    }
}
