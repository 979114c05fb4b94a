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
}

/// How long a batch took, and how much it did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Of all prompts.
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

/// Generates an answer for every prompt.
///
/// `on_token` is told of the row and its token, the one that ends a row for its own sake
/// left out, and ends the row by giving a reason.
pub fn run<E: From<EngineError>>(
    model: &Decoder,
    prompts: &[Prompt<'_>],
    settings: &Settings,
    limits: Limits<'_>,
    mut on_token: impl FnMut(usize, u32) -> std::result::Result<Option<Finish>, E>,
) -> std::result::Result<Generated, E> {
    tch::no_grad(|| {
        let mut batch = Batch::start(model, prompts, settings, limits)?;
        while batch.step(model, &mut on_token)? {}
        Ok(batch.finish())
    })
}

/// A batch under way.
struct Batch<'l> {
    limits: Limits<'l>,
    sampler: Sampler,
    cache: Cache,
    /// Of the last token of every row that is in the cache.
    hidden: Tensor,
    /// The answers of all rows.
    answers: Vec<(Vec<u32>, Option<Finish>)>,
    /// Which of them the rows of the cache are.
    rows: Vec<usize>,
    begun: Instant,
    first: Option<Instant>,
    timing: Timing,
}

impl<'l> Batch<'l> {
    fn start(
        model: &Decoder,
        prompts: &[Prompt<'_>],
        settings: &Settings,
        limits: Limits<'l>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let texts: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.tokens).collect();
        let tokens: Vec<i64> = texts.concat().iter().map(|token| i64::from(*token)).collect();
        let lengths: Vec<u32> = texts.iter().map(|text| text.len() as u32).collect();
        let (hidden, cache) =
            model.prefill(&Tensor::f_from_slice(&tokens)?, &lengths, limits.max_new_tokens)?;
        let streams: Vec<u64> = prompts.iter().map(|prompt| prompt.stream).collect();
        let mut sampler = Sampler::new(settings, &streams);
        sampler.see_prompts(&texts, model.architecture.vocab_size as i64)?;
        Ok(Self {
            limits,
            sampler,
            cache,
            hidden,
            answers: vec![(Vec::new(), None); prompts.len()],
            rows: (0..prompts.len()).collect(),
            begun,
            first: None,
            timing: Timing { prompt_tokens: tokens.len(), ..Timing::default() },
        })
    }

    /// One token for every row; false when no row is left open.
    fn step<E: From<EngineError>>(
        &mut self,
        model: &Decoder,
        on_token: &mut impl FnMut(usize, u32) -> std::result::Result<Option<Finish>, E>,
    ) -> std::result::Result<bool, E> {
        let chosen = self.sampler.choose(&model.logits(&self.hidden)?)?;
        for (row, token) in self.rows.iter().zip(&chosen) {
            let (answer, finish) = &mut self.answers[*row];
            if finish.is_some() {
                continue;
            }
            if self.first.is_some() {
                self.timing.decoded_tokens += 1;
            }
            if self.limits.eos.contains(token) {
                *finish = Some(Finish::Eos);
                continue;
            }
            answer.push(*token);
            *finish = on_token(*row, *token)?;
            if finish.is_none() && answer.len() >= self.limits.max_new_tokens {
                *finish = Some(Finish::Length);
            }
        }
        self.first.get_or_insert_with(Instant::now);
        let open = self.answers.iter().any(|(_, finish)| finish.is_none());
        if open {
            self.hidden = self.advance(model, &chosen)?;
        }
        Ok(open)
    }

    /// The hidden states of the chosen tokens.
    fn advance(&mut self, model: &Decoder, chosen: &[u32]) -> Result<Tensor> {
        let tokens: Vec<i64> = chosen.iter().map(|token| i64::from(*token)).collect();
        model.decode(&Tensor::f_from_slice(&tokens)?, &mut self.cache)
    }

    fn finish(mut self) -> Generated {
        let first = self.first.unwrap_or(self.begun);
        self.timing.prefill = first - self.begun;
        self.timing.decode = first.elapsed();
        let answer = |(tokens, finish): (Vec<u32>, Option<Finish>)| Answer {
            tokens,
            finish: finish.unwrap_or(Finish::Length),
        };
        Generated { rows: self.answers.into_iter().map(answer).collect(), timing: self.timing }
    }
}
