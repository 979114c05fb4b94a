//! The loop: prompts go in, tokens come out, a token a row at a time.

use std::time::{Duration, Instant};

use heirloom::generation::Settings;
use tch::Tensor;

use super::sampler::Sampler;
use crate::error::{EngineError, Result};
use crate::model::{Cache, Decoder};

/// A prompt of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'p> {
    /// At least one.
    pub tokens: &'p [u32],
    /// Which random numbers it draws.
    pub stream: u64,
}

/// Where answers end.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'l> {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Tokens at which an answer ends; they are kept off it.
    pub eos: &'l [u32],
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// The model ended it.
    Eos,
    /// A stop string.
    Stop,
    /// It has `max_new_tokens`.
    Length,
    /// The user.
    Interrupted,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Without the token that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What a batch gave.
#[derive(Debug)]
pub struct Generated {
    /// By row.
    pub rows: Vec<Answer>,
    /// How long it took.
    pub timing: Timing,
    /// Of a single prompt and its answer, to go on from.
    pub past: Option<Past>,
}

/// How long a batch took, and how much it did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Of all prompts, what a past saved left out.
    pub prompt_tokens: usize,
    /// Until every row had its first token.
    pub prefill: Duration,
    /// Tokens after the first of each row, those that ended an answer included.
    pub decoded_tokens: usize,
    /// From the first token of each row to the last.
    pub decode: Duration,
}

impl Timing {
    /// Adds what another batch took.
    pub fn add(&mut self, other: &Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.prefill += other.prefill;
        self.decoded_tokens += other.decoded_tokens;
        self.decode += other.decode;
    }
}

/// What a model has computed already: a sequence and its keys and values.
#[derive(Debug)]
pub struct Past {
    tokens: Vec<u32>,
    cache: Cache,
}

impl Past {
    /// What `prompt` has beyond it, where it begins with it.
    fn rest<'p>(&self, prompt: &'p [u32]) -> Option<&'p [u32]> {
        prompt.strip_prefix(self.tokens.as_slice()).filter(|rest| !rest.is_empty())
    }
}

/// Generates an answer for every prompt. A `past` that a single prompt begins with is not
/// computed again.
///
/// `on_token` is told of the row and its token, the one that ends a row for its own sake
/// left out, and ends the row by giving a reason.
pub fn run<E: From<EngineError>>(
    model: &Decoder,
    prompts: &[Prompt<'_>],
    settings: &Settings,
    limits: Limits<'_>,
    past: Option<Past>,
    mut on_token: impl FnMut(usize, u32) -> std::result::Result<Option<Finish>, E>,
) -> std::result::Result<Generated, E> {
    tch::no_grad(|| {
        let mut batch = Batch::start(model, prompts, settings, limits, past)?;
        while batch.step(model, &mut on_token)? {}
        Ok(batch.finish())
    })
}

/// A batch under way.
struct Batch<'b> {
    limits: Limits<'b>,
    sampler: Sampler,
    cache: Cache,
    /// Of the last token of every row of the cache.
    hidden: Tensor,
    rows: Vec<Row<'b>>,
    /// Which of them are the rows of the cache: those that go on.
    open: Vec<usize>,
    begun: Instant,
    first: Option<Instant>,
    timing: Timing,
}

/// A prompt and its answer so far.
struct Row<'b> {
    prompt: &'b [u32],
    answer: Vec<u32>,
    finish: Option<Finish>,
}

impl<'b> Batch<'b> {
    fn start(
        model: &Decoder,
        prompts: &[Prompt<'b>],
        settings: &Settings,
        limits: Limits<'b>,
        past: Option<Past>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let row =
            |prompt: &Prompt<'b>| Row { prompt: prompt.tokens, answer: Vec::new(), finish: None };
        let rows: Vec<Row<'b>> = prompts.iter().map(row).collect();
        let texts: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.tokens).collect();
        let mut computed: usize = texts.iter().map(|text| text.len()).sum();
        let (hidden, cache) = match (past, prompts) {
            (Some(mut past), [prompt]) if past.rest(prompt.tokens).is_some() => {
                let rest = past.rest(prompt.tokens).unwrap_or_default();
                computed = rest.len();
                (model.extend(&ids(rest, model)?, &mut past.cache)?, past.cache)
            }
            _ => {
                let lengths: Vec<u32> = texts.iter().map(|text| text.len() as u32).collect();
                model.prefill(&ids(&texts.concat(), model)?, &lengths, limits.max_new_tokens)?
            }
        };
        let streams: Vec<u64> = prompts.iter().map(|prompt| prompt.stream).collect();
        let mut sampler = Sampler::new(settings, &streams);
        sampler.see_prompts(&texts, model.architecture.vocab_size as i64)?;
        let open = (0..rows.len()).collect();
        let timing = Timing { prompt_tokens: computed, ..Timing::default() };
        Ok(Self { limits, sampler, cache, hidden, rows, open, begun, first: None, timing })
    }

    /// One token for every open row; false when none is left open.
    fn step<E: From<EngineError>>(
        &mut self,
        model: &Decoder,
        on_token: &mut impl FnMut(usize, u32) -> std::result::Result<Option<Finish>, E>,
    ) -> std::result::Result<bool, E> {
        let chosen = self.sampler.choose(&model.logits(&self.hidden)?)?;
        if self.first.is_some() {
            self.timing.decoded_tokens += chosen.len();
        }
        for (index, token) in self.open.iter().zip(&chosen) {
            let row = &mut self.rows[*index];
            if self.limits.eos.contains(token) {
                row.finish = Some(Finish::Eos);
                continue;
            }
            row.answer.push(*token);
            row.finish = on_token(*index, *token)?;
            if row.finish.is_none() && row.answer.len() >= self.limits.max_new_tokens {
                row.finish = Some(Finish::Length);
            }
        }
        self.first.get_or_insert_with(Instant::now);
        let ended = |index: &usize| self.rows[*index].finish.is_some();
        if self.open.iter().all(ended) {
            return Ok(false);
        }
        self.close_ended()?;
        self.hidden = self.advance(model)?;
        Ok(true)
    }

    /// Rows that have ended leave the batch.
    fn close_ended(&mut self) -> Result<()> {
        let goes_on = |index: &usize| self.rows[*index].finish.is_none();
        let places = self.open.iter().enumerate().filter(|(_, index)| goes_on(index));
        let places: Vec<i64> = places.map(|(place, _)| place as i64).collect();
        if places.len() < self.open.len() {
            self.cache.keep(&places)?;
            self.sampler.keep(&places)?;
            self.open = places.iter().map(|place| self.open[*place as usize]).collect();
        }
        Ok(())
    }

    /// The hidden states of the tokens that were just chosen.
    fn advance(&mut self, model: &Decoder) -> Result<Tensor> {
        let open = self.open.iter().map(|index| &self.rows[*index]);
        let last: Vec<u32> = open.filter_map(|row| row.answer.last().copied()).collect();
        model.decode(&ids(&last, model)?, &mut self.cache)
    }

    fn finish(mut self) -> Generated {
        let first = self.first.unwrap_or(self.begun);
        self.timing.prefill = first - self.begun;
        self.timing.decode = first.elapsed();
        let past = match (self.rows.as_slice(), self.cache.lengths()) {
            // The last token was chosen and not computed.
            ([row], [length]) => {
                let tokens = row.prompt.iter().chain(&row.answer).take(*length as usize);
                Some(Past { tokens: tokens.copied().collect(), cache: self.cache })
            }
            _ => None,
        };
        let answer = |row: Row<'_>| Answer {
            tokens: row.answer,
            finish: row.finish.unwrap_or(Finish::Length),
        };
        let rows = self.rows.into_iter().map(answer).collect();
        Generated { rows, timing: self.timing, past }
    }
}

fn ids(tokens: &[u32], model: &Decoder) -> Result<Tensor> {
    let tokens: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
    Ok(Tensor::f_from_slice(&tokens)?.f_to(model.embedding.device())?)
}
