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

pub use batch::{Finish, Limits, Past, Prompt, Timing};

use crate::error::EngineError;
use crate::model::Decoder;

/// Prompts that are decoded together; more would gain little on a CPU and cost cache.
pub const BATCH: usize = 64;

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
    for members in by_length(prompts, BATCH) {
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

/// Batches of prompts of like length, so that little of the cache is padding. The stream of
/// a prompt is its place in `prompts`.
pub fn by_length(prompts: &[Vec<u32>], size: usize) -> Vec<Vec<Prompt<'_>>> {
    let prompt = |(index, tokens): (usize, &'_ Vec<u32>)| (index as u64, tokens.len());
    let mut order: Vec<(u64, usize)> = prompts.iter().enumerate().map(prompt).collect();
    order.sort_by_key(|(stream, length)| (*length, *stream));
    order
        .chunks(size.max(1))
        .map(|members| {
            let prompt = |(stream, _): &(u64, usize)| Prompt {
                tokens: &prompts[*stream as usize],
                stream: *stream,
            };
            members.iter().map(prompt).collect()
        })
        .collect()
}
