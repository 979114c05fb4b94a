//! Answers as text, as they come.
//!
//! Owns what lies between the tokens of a batch and the text that people see: where an
//! answer ends, and what of it may be shown already.

use heirloom::diagnose::Failure;
use heirloom::generation::Settings;
use heirloom::generation::text::Text;

use super::batch::{self, Finish, Limits, Past, Prompt, Timing};
use super::detokenizer::Detokenizer;
use super::stop::{Checked, StopStrings};
use crate::model::Decoder;

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Without the stop string that ended it.
    pub text: String,
    /// What was generated, the token that ended it left out.
    pub tokens: usize,
    /// Why it ended.
    pub finish: Finish,
}

/// The answers of a batch.
#[derive(Debug)]
pub struct Replies {
    /// By row.
    pub rows: Vec<Reply>,
    /// How long they took.
    pub timing: Timing,
    /// Of a single prompt and its answer, to go on from.
    pub past: Option<Past>,
}

/// Answers every prompt of a batch, going on from `past` where it can. `on_text` is told of the row and the next piece of its
/// text, and says whether to go on.
pub fn replies(
    model: &Decoder,
    text: &Text,
    settings: &Settings,
    prompts: &[Prompt<'_>],
    past: Option<Past>,
    mut on_text: impl FnMut(usize, &str) -> Result<bool, Failure>,
) -> Result<Replies, Failure> {
    let eos = settings.eos_token_id.as_deref().unwrap_or(text.stop_ids());
    let limits = Limits { max_new_tokens: settings.max_new_tokens, eos };
    let stops = stop_tokens(text, settings)?;
    let mut rows: Vec<Row<'_>> = prompts.iter().map(|_| Row::new(text, settings)).collect();
    let generated = batch::run(model, prompts, settings, limits, past, |row, token| {
        if stops.contains(&token) {
            return Ok::<_, Failure>(Some(Finish::Stop));
        }
        let Checked { text, stopped } = rows[row].push(token)?;
        let go_on = on_text(row, &text)?;
        Ok(if stopped { Some(Finish::Stop) } else { (!go_on).then_some(Finish::Interrupted) })
    })?;
    let mut replies = Vec::with_capacity(rows.len());
    for (row, (mut state, answer)) in rows.into_iter().zip(generated.rows).enumerate() {
        let mut finish = answer.finish;
        if finish != Finish::Stop {
            let Checked { text, stopped } = state.finish()?;
            on_text(row, &text)?;
            finish = if stopped { Finish::Stop } else { finish };
        }
        replies.push(Reply { text: state.shown, tokens: answer.tokens.len(), finish });
    }
    Ok(Replies { rows: replies, timing: generated.timing, past: generated.past })
}

/// Stop strings that are special tokens, and so never show up in the text.
fn stop_tokens(text: &Text, settings: &Settings) -> Result<Vec<u32>, Failure> {
    let mut tokens = Vec::new();
    for id in settings.stop.iter().filter_map(|stop| text.token_id(stop)) {
        if text.decode(&[id])?.is_empty() {
            tokens.push(id);
        }
    }
    Ok(tokens)
}

/// The text of one row.
struct Row<'t> {
    text: &'t Text,
    detokenizer: Detokenizer,
    stop: StopStrings<'t>,
    shown: String,
}

impl<'t> Row<'t> {
    fn new(text: &'t Text, settings: &'t Settings) -> Self {
        let (detokenizer, stop) = (Detokenizer::default(), StopStrings::new(&settings.stop));
        Self { text, detokenizer, stop, shown: String::new() }
    }

    /// What one more token lets be shown.
    fn push(&mut self, token: u32) -> Result<Checked, Failure> {
        let piece = self.detokenizer.push(token, |tokens| self.text.decode(tokens))?;
        let checked = self.stop.push(&piece);
        self.shown.push_str(&checked.text);
        Ok(checked)
    }

    /// What was held back.
    fn finish(&mut self) -> Result<Checked, Failure> {
        let piece = self.detokenizer.finish(|tokens| self.text.decode(tokens))?;
        let mut checked = self.stop.push(&piece);
        if !checked.stopped {
            checked.text.push_str(&self.stop.finish());
        }
        self.shown.push_str(&checked.text);
        Ok(checked)
    }
}
