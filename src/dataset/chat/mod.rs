//! Conversations to tokens: chat template, tokenizer, loss mask.
//!
//! Owns the encoder and its mask over tokens. What the assistant wrote is found in the
//! rendered text by [`spans`], never guessed. Does not own rendering (`template`) nor where
//! rows come from. Errors carry positions, never what was said.
//!
//! Reference: Transformers' `apply_chat_template`, which tokenises without adding special
//! tokens (the template writes them; adding them again doubles the first).

mod error;
mod spans;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use jiff::Timestamp;
use tokenizers::Tokenizer;

pub use super::conversation::{Conversation, Message};
pub use error::ChatError;

use self::spans::{Close, Turn};
use super::conversation::Values;
use super::template::{Ask, Cause, Failed, Template};
use super::tokenizer::pieces::{self, Pieces, Tokens};
use super::tokenizer::{Files, TemplateSource};
use crate::recipe::TrainOn;

/// The role whose turns are learned.
const ASSISTANT: &str = "assistant";

/// A tokenised conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// How much predicting `tokens[i]` (from the tokens before it) counts in the loss; 0: it
    /// carries none. `weights[0]` is always 0: nothing comes before it.
    pub weights: Vec<f32>,
}

impl Document {
    /// Whether `tokens[i]` carries loss, for every `i`.
    pub fn trained(&self) -> impl Iterator<Item = bool> + '_ {
        self.weights.iter().map(|weight| *weight > 0.0)
    }

    /// Tokens that carry loss.
    pub fn trained_tokens(&self) -> u64 {
        self.trained().filter(|trained| *trained).count() as u64
    }
}

/// Turns conversations into tokens with the base model's own template and tokenizer.
#[derive(Debug)]
pub struct ChatEncoder {
    tokenizer: Tokenizer,
    pieces: Option<Pieces>,
    template: Option<Template>,
    /// What some models use in the place of `template` where there are tools.
    tool_template: Option<Template>,
    /// Tokens that can close a turn: all special ones, and `eos_token`.
    closing: BTreeSet<u32>,
    stop: Vec<u32>,
    vocab_size: usize,
}

impl ChatEncoder {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, the chat templates and
    /// `generation_config.json` (all but the first where there are any) of a base folder.
    pub fn open(base_folder: &Path) -> Result<Self, ChatError> {
        let Files { tokenizer, special_tokens, templates, generation_stop } =
            Files::read(base_folder)?;
        let eos = special_tokens.get("eos_token").and_then(|token| tokenizer.token_to_id(token));
        let now = Timestamp::now();
        let compile = |source: TemplateSource| {
            Template::compile(&source.source, special_tokens.clone(), now).map_err(
                |Failed { line, reason, .. }| ChatError::TemplateSyntax {
                    path: source.path,
                    line,
                    reason,
                },
            )
        };
        let added = tokenizer.get_added_tokens_decoder();
        let mut closing: BTreeSet<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        closing.extend(eos);
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        let mut encoder = Self {
            pieces: Pieces::of(&tokenizer),
            tokenizer,
            template: templates.default.map(compile).transpose()?,
            tool_template: templates.tool_use.map(compile).transpose()?,
            closing,
            stop: Vec::new(),
            vocab_size,
        };
        let mut stop: BTreeSet<u32> = generation_stop.into_iter().chain(eos).collect();
        encoder.stop = stop.iter().copied().collect();
        stop.extend(encoder.probe_end_of_turn());
        encoder.stop = stop.into_iter().collect();
        Ok(encoder)
    }

    /// Fixes what the template's `strftime_now` answers (in UTC), so that the tokens of a
    /// resumed run are those of the run that it resumes.
    pub fn with_clock(mut self, now: Timestamp) -> Self {
        for template in [&mut self.template, &mut self.tool_template].into_iter().flatten() {
            template.set_clock(now);
        }
        self
    }

    /// The text that the template makes of a conversation.
    pub fn render(
        &self,
        conversation: impl Into<Conversation>,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let conversation = conversation.into();
        let template = self.template_for(&conversation)?;
        let values = values_of(&conversation)?;
        let ask = if add_generation_prompt { Ask::Answer } else { Ask::Nothing };
        Ok(template.render(&values.others, &values.messages, ask)?)
    }

    /// Tokenises a whole conversation with its mask.
    pub fn encode(
        &self,
        conversation: impl Into<Conversation>,
        train_on: TrainOn,
    ) -> Result<Document, ChatError> {
        let conversation = conversation.into();
        let template = self.template_for(&conversation)?;
        let values = values_of(&conversation)?;
        if !conversation.messages.iter().any(spans::is_assistant) {
            return Err(ChatError::NoAssistant);
        }
        let (text, marked) = if template.marks_assistant() && train_on == TrainOn::Assistant {
            let (text, marked) = template.render_marked(&values)?;
            (text, Some(marked))
        } else {
            (template.render(&values.others, &values.messages, Ask::Nothing)?, None)
        };
        let tokens = self.tokens(&text)?;
        let mut trained = vec![train_on == TrainOn::All; tokens.ids.len()];
        match marked {
            Some(marked) => marked.iter().for_each(|span| tokens.touch(span, &mut trained)),
            None => {
                for turn in spans::turns(template, &conversation, &values, &text) {
                    match turn.and_then(|turn| self.learned(&text, &turn, &tokens)) {
                        // Where all is learned, a turn need not be told from those around it.
                        Err(ChatError::NotAPrefix { .. } | ChatError::NotVerbatim { .. })
                            if train_on == TrainOn::All => {}
                        learned => {
                            let learned = trained.get_mut(learned?);
                            learned.ok_or(ChatError::Tokenize)?.fill(true);
                        }
                    }
                }
            }
        }
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        if !trained.contains(&true) {
            return Err(ChatError::NothingTrained);
        }
        let weights = trained.into_iter().map(|trained| f32::from(u8::from(trained))).collect();
        Ok(Document { tokens: tokens.ids, weights })
    }

    /// Tokens that ask the assistant for its next turn, at least one.
    pub fn prompt(&self, conversation: impl Into<Conversation>) -> Result<Vec<u32>, ChatError> {
        let text = self.render(conversation, true)?;
        let tokens = self.tokens(&text)?.ids;
        if tokens.is_empty() { Err(ChatError::EmptyPrompt) } else { Ok(tokens) }
    }

    /// The text of generated tokens, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ChatError> {
        self.tokenizer.decode(tokens, true).map_err(|_| ChatError::Tokenize)
    }

    /// Tokens at which generation ends: `eos_token`, those of `generation_config.json`, and
    /// the token with which the template closes the assistant's turn. Sorted.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }

    /// The id of a token that is spelt so.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Rows that an embedding needs: the largest token id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The tokenizer.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// `tool_use` where there are tools and such a template, as in Transformers.
    fn template_for(&self, conversation: &Conversation) -> Result<&Template, ChatError> {
        let tools = conversation.tools.as_ref().and(self.tool_template.as_ref());
        tools.or(self.template.as_ref()).ok_or(ChatError::NoDefaultTemplate)
    }

    fn tokens(&self, text: &str) -> Result<Tokens, ChatError> {
        let tokens = pieces::tokens(&self.tokenizer, self.pieces.as_ref(), text);
        tokens.map_err(|_| ChatError::Tokenize)
    }

    /// Tokens of a turn that are wholly the assistant's, through the one that closes it.
    fn learned(&self, text: &str, turn: &Turn, tokens: &Tokens) -> Result<Range<usize>, ChatError> {
        let no_end = || ChatError::NoEndOfTurn { message: turn.message };
        let first = tokens.first_in(turn);
        let inside = tokens.offsets.get(first..).unwrap_or_default();
        let inside = inside.iter().take_while(|(_, end)| *end <= turn.end).count();
        let ids = tokens.ids.get(first..first + inside).ok_or(ChatError::Tokenize)?;
        let (close, must_be_blank) = match turn.close {
            Close::Last => {
                let close = ids.iter().rposition(|token| self.closing.contains(token));
                let close = first + close.ok_or_else(no_end)?;
                (close, tokens.end(close)..turn.end)
            }
            Close::First(words) => {
                let from = tokens.offsets.partition_point(|(start, _)| *start < words);
                let rest = tokens.ids.get(from..first + inside).unwrap_or_default();
                let close = rest.iter().position(|token| self.closing.contains(token));
                let close = from + close.ok_or_else(no_end)?;
                (close, words..tokens.start(close))
            }
            Close::Known => {
                let close = ids.iter().rposition(|token| self.stop.contains(token));
                (first + close.ok_or_else(no_end)?, 0..0)
            }
        };
        let blank = text.get(must_be_blank).is_some_and(|text| text.trim().is_empty());
        if blank { Ok(first..close + 1) } else { Err(no_end()) }
    }

    /// The token that closes the assistant's turn in a small conversation; `None` where the
    /// template refuses that one: each row is still judged by itself.
    fn probe_end_of_turn(&self) -> Option<u32> {
        let turn = |role: &str| Message { role: role.to_owned(), content: "a".to_owned() };
        let small = [turn("user"), turn(ASSISTANT)];
        let conversation = Conversation::from(small.as_slice());
        let values = Values::new(&conversation);
        let template = self.template.as_ref().or(self.tool_template.as_ref())?;
        let text = template.render(&values.others, &values.messages, Ask::Nothing).ok()?;
        let tokens = self.tokens(&text).ok()?;
        let turn = spans::turns(template, &conversation, &values, &text).pop()?.ok()?;
        let learned = self.learned(&text, &turn, &tokens).ok()?;
        tokens.ids.get(learned)?.last().copied()
    }
}

impl Tokens {
    fn start(&self, token: usize) -> usize {
        self.offsets.get(token).map_or(0, |(start, _)| *start)
    }

    fn end(&self, token: usize) -> usize {
        self.offsets.get(token).map_or(0, |(_, end)| *end)
    }

    /// The first token of a turn: one that the prompt already holds part of is not learned,
    /// unless the prompt's own tokens end otherwise there.
    fn first_in(&self, turn: &Turn) -> usize {
        let first = self.offsets.partition_point(|(start, _)| *start < turn.start);
        match first.checked_sub(1).and_then(|before| self.offsets.get(before)) {
            Some((_, end)) if turn.departs && *end > turn.start => first - 1,
            _ => first,
        }
    }

    /// Marks every token that stands for any of the bytes, as Transformers' mask does.
    fn touch(&self, span: &Range<usize>, trained: &mut [bool]) {
        for ((start, end), trained) in self.offsets.iter().zip(trained) {
            *trained |= *start < span.end && *end > span.start;
        }
    }
}

fn values_of(conversation: &Conversation) -> Result<Values, ChatError> {
    if conversation.messages.is_empty() {
        return Err(ChatError::Empty);
    }
    Ok(Values::new(conversation))
}

impl From<Failed> for ChatError {
    fn from(Failed { cause, line, reason }: Failed) -> Self {
        match cause {
            Cause::Refusal => Self::Refused { line, reason },
            Cause::Limit => Self::TemplateLimit { line, reason },
            Cause::Construct => Self::TemplateConstruct { line, reason },
        }
    }
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
