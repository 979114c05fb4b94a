//! The generate room: decoding.
//!
//! Owns greedy decoding with a key-value cache, many prompts at once. As Transformers'
//! `generate(do_sample=False)`, token for token in f32.

use tch::Tensor;

use crate::error::Result;
use crate::model::Decoder;

/// Prompts that are decoded together; more would gain little on a CPU and cost cache.
const BATCH: usize = 64;

/// Continues every prompt until one of `stops` (kept off the answer) or `max_new_tokens`.
///
/// `tick` is told of every prompt that is done.
pub fn greedy(
    model: &Decoder,
    prompts: &[Vec<u32>],
    stops: &[u32],
    max_new_tokens: usize,
    mut tick: impl FnMut(usize),
) -> Result<Vec<Vec<u32>>> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    // Prompts of like length share a batch, so that little of the cache is padding.
    order.sort_by_key(|index| (prompts[*index].len(), *index));
    let mut answers = vec![Vec::new(); prompts.len()];
    for members in order.chunks(BATCH) {
        let batch: Vec<&[u32]> = members.iter().map(|index| prompts[*index].as_slice()).collect();
        let found = tch::no_grad(|| greedy_batch(model, &batch, stops, max_new_tokens))?;
        for (index, answer) in members.iter().zip(found) {
            answers[*index] = answer;
        }
        tick(members.len());
    }
    Ok(answers)
}

fn greedy_batch(
    model: &Decoder,
    prompts: &[&[u32]],
    stops: &[u32],
    max_new_tokens: usize,
) -> Result<Vec<Vec<u32>>> {
    let mut answers = vec![Vec::new(); prompts.len()];
    if max_new_tokens == 0 {
        return Ok(answers);
    }
    let tokens: Vec<i64> = prompts.concat().iter().map(|token| i64::from(*token)).collect();
    let lengths: Vec<u32> = prompts.iter().map(|prompt| prompt.len() as u32).collect();
    let (mut hidden, mut cache) =
        model.prefill(&Tensor::f_from_slice(&tokens)?, &lengths, max_new_tokens)?;
    let mut open = vec![true; prompts.len()];
    for _ in 0..max_new_tokens {
        let next = model.logits(&hidden)?.f_argmax(-1, false)?;
        let chosen = Vec::<i64>::try_from(&next)?;
        for ((answer, open), token) in answers.iter_mut().zip(&mut open).zip(chosen) {
            let token = token as u32;
            if stops.contains(&token) {
                *open = false;
            } else if *open {
                answer.push(token);
            }
        }
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        if !open.contains(&true) || longest == max_new_tokens {
            break;
        }
        hidden = model.decode(&next, &mut cache)?;
    }
    Ok(answers)
}
