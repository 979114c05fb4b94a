//! The perplexity of a text.
//!
//! Owns cutting the text into windows and scoring each token at most once, with as much of
//! the text before it as its window has.
//!
//! Reference: the loop of Transformers' guide "Perplexity of fixed-length models". Its mean
//! weighs windows by their tokens less one, which is only right where windows do not overlap;
//! here every scored token counts alike.

use tch::{Kind, Reduction, Tensor};

use crate::error::{EngineError, Result};
use crate::model::Decoder;
use crate::ops::Layout;

/// Tokens of one forward pass, unless a single window has more.
const BATCH_TOKENS: usize = 4096;

/// Bytes of f32 logits that are in memory at once, unless a single row has more.
const LOGITS_BYTES: usize = 64 << 20;

/// A part of the text that is run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its first token.
    pub begin: usize,
    /// The token after its last.
    pub end: usize,
    /// The first token that is scored: none before it in the window, none of an earlier window.
    pub scored: usize,
}

/// Cuts a text of `tokens` tokens. Each window begins `stride` after the last; where that is
/// less than `window`, only the tokens that no earlier window had are scored.
pub fn windows(tokens: usize, window: usize, stride: usize) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for begin in (0..tokens).step_by(stride.max(1)) {
        let end = begin.saturating_add(window).min(tokens);
        let before = windows.last().map_or(0, |last| last.end);
        windows.push(Window { begin, end, scored: before.max(begin + 1) });
        if end == tokens {
            break;
        }
    }
    windows
}

/// What a model makes of a text.
#[derive(Clone, Copy, Debug)]
pub struct Score {
    /// Mean negative log-likelihood of the scored tokens, in nats.
    pub nll: f64,
    /// How many were scored.
    pub tokens: u64,
    /// Windows that were run.
    pub windows: u64,
}

/// Scores a text of token ids; `tick` is told how many windows are done.
pub fn perplexity(
    model: &Decoder,
    tokens: &[u32],
    window: usize,
    stride: usize,
    mut tick: impl FnMut(usize),
) -> Result<Score> {
    let limit = model.architecture.max_position_embeddings;
    if window > limit {
        return Err(EngineError::Window { window, limit });
    }
    if stride > window {
        return Err(EngineError::Stride { stride, window });
    }
    let windows = windows(tokens.len(), window, stride);
    let (mut nll, mut scored) = (0.0, 0);
    for batch in windows.chunks((BATCH_TOKENS / window.max(1)).max(1)) {
        let sum = tch::no_grad(|| score(model, tokens, batch))?;
        if !sum.is_finite() {
            let (first, last) = batch_range(batch);
            return Err(EngineError::NoNumber { first, last });
        }
        nll += sum;
        scored += batch.iter().map(|window| window.end - window.scored).sum::<usize>() as u64;
        tick(batch.len());
    }
    Ok(Score { nll: nll / scored as f64, tokens: scored, windows: windows.len() as u64 })
}

fn batch_range(batch: &[Window]) -> (usize, usize) {
    (batch.first().map_or(0, |window| window.begin), batch.last().map_or(0, |window| window.end))
}

/// Sum of the negative log-likelihoods of what a batch of windows scores.
fn score(model: &Decoder, tokens: &[u32], batch: &[Window]) -> Result<f64> {
    let device = model.embedding.device();
    let mut ids: Vec<i64> = Vec::new();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for window in batch {
        let text = tokens.get(window.begin..window.end).unwrap_or_default();
        for (place, token) in text.iter().enumerate() {
            if window.begin + place >= window.scored {
                // Predicted by the row before it.
                rows.push(ids.len() as i64 - 1);
                targets.push(i64::from(*token));
            }
            ids.push(i64::from(*token));
        }
    }
    let lengths: Vec<u32> = batch.iter().map(|window| (window.end - window.begin) as u32).collect();
    let layout = Layout::new(&lengths, device)?;
    let hidden = model.hidden(&Tensor::f_from_slice(&ids)?.f_to(device)?, &layout, false)?;
    let chunk = (LOGITS_BYTES / 4 / model.architecture.vocab_size.max(1)).max(1);
    let mut sum = 0.0;
    for (rows, targets) in rows.chunks(chunk).zip(targets.chunks(chunk)) {
        let rows = hidden.f_index_select(0, &Tensor::f_from_slice(rows)?.f_to(device)?)?;
        let logits = model.logits(&rows)?.f_to_kind(Kind::Float)?;
        let targets = Tensor::f_from_slice(targets)?.f_to(device)?;
        let each =
            logits.f_cross_entropy_loss(&targets, None::<Tensor>, Reduction::None, -100, 0.0)?;
        sum += each.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop of the guide, in its own words.
    fn guide(seq_len: usize, max_length: usize, stride: usize) -> Vec<(usize, usize, usize)> {
        let (mut windows, mut prev_end_loc) = (Vec::new(), 0);
        for begin_loc in (0..seq_len).step_by(stride) {
            let end_loc = (begin_loc + max_length).min(seq_len);
            windows.push((begin_loc, end_loc, end_loc - prev_end_loc));
            prev_end_loc = end_loc;
            if end_loc == seq_len {
                break;
            }
        }
        windows
    }

    #[test]
    fn windows_are_those_of_the_guide() {
        for tokens in 1..40 {
            for window in 2..12 {
                for stride in 1..=window {
                    let expected = guide(tokens, window, stride);
                    let found = windows(tokens, window, stride);
                    assert_eq!(found.len(), expected.len());
                    for (found, (begin, end, new)) in found.iter().zip(expected) {
                        // The shift of labels takes the first of a window that is all new.
                        let scored = (end - new).max(begin + 1);
                        assert_eq!(*found, Window { begin, end, scored });
                    }
                }
            }
        }
    }

    #[test]
    fn overlapping_windows_score_all_tokens_but_the_first() {
        for stride in 1..7 {
            let scored: usize = windows(50, 7, stride).iter().map(|w| w.end - w.scored).sum();
            assert_eq!(scored, 49);
        }
        // Without overlap, no window scores its first.
        let scored: usize = windows(50, 7, 7).iter().map(|w| w.end - w.scored).sum();
        assert_eq!(scored, 50 - 8);
    }
}
