//! How much each token of a conversation counts in the loss.
//!
//! Owns which turns are learned, with what weight, and what of a turn is. Where a turn stands
//! in the text is [`spans`]'s, or the template's own `{% generation %}`. Padding and what ends
//! a turn are told by their place: the token that closes a learned turn carries loss whatever
//! its id is, and `pad_token` anywhere else in it never does.

use std::ops::Range;

use serde_json::Value;

use super::spans::{self, Close, Turn};
use super::{ChatEncoder, ChatError, Conversation, Document, LossMask, Tokens};
use crate::dataset::conversation::{Json, WEIGHT};
use crate::recipe::{EndOfTurn, TrainOn};

/// A turn of the assistant that is learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wanted {
    /// Index of the message.
    pub(super) message: usize,
    /// How much its tokens count.
    pub(super) weight: f32,
}

/// What is known of where the assistant's words stand in a text.
pub(super) enum Found {
    /// What `{% generation %}` stands for.
    Marks(Vec<Range<usize>>),
    /// The wanted turns.
    Turns(Vec<Result<Turn, ChatError>>),
}

/// Tokens that are learned together.
struct Learned {
    tokens: Range<usize>,
    /// The one of them that closes the turn.
    close: Option<usize>,
    weight: f32,
}

/// The turns that are learned; where all tokens are, those with the weight 0 too, to be
/// masked out.
pub(super) fn wanted(
    conversation: &Conversation,
    train_on: TrainOn,
) -> Result<Vec<Wanted>, ChatError> {
    let messages = &conversation.messages;
    let mut turns = Vec::new();
    for (message, turn) in messages.iter().enumerate() {
        let weight = weight_of(turn, message)?;
        if spans::is_assistant(turn) {
            turns.push(Wanted { message, weight: weight.unwrap_or(1.0) });
        }
    }
    let last = turns.last().ok_or(ChatError::NoAssistant)?.message;
    let from = match train_on {
        TrainOn::Assistant | TrainOn::All => 0,
        TrainOn::Last => last,
        TrainOn::Completion => conversation.completion_from.unwrap_or_else(|| {
            let user = |turn: &Json| turn.get("role").and_then(Value::as_str) == Some("user");
            messages.iter().rposition(user).map_or(0, |user| user + 1)
        }),
    };
    let all = train_on == TrainOn::All;
    turns.retain(|turn| turn.message >= from && (all || turn.weight > 0.0));
    if turns.is_empty() { Err(ChatError::NothingTrained) } else { Ok(turns) }
}

/// The weight that a message gives itself.
pub(super) fn weight_of(turn: &Json, message: usize) -> Result<Option<f32>, ChatError> {
    let Some(weight) = turn.get(WEIGHT).filter(|weight| !weight.is_null()) else {
        return Ok(None);
    };
    let weight = weight.as_f64().map(|weight| weight as f32);
    let weight = weight.filter(|weight| weight.is_finite() && *weight >= 0.0);
    weight.map(Some).ok_or(ChatError::Weight { message })
}

impl ChatEncoder {
    /// The tokens of a text with their weights, where only turns of the assistant are learned.
    pub(super) fn weigh_turns(
        &self,
        text: &str,
        tokens: Tokens,
        found: Found,
        wanted: &[Wanted],
        mask: LossMask,
    ) -> Result<Document, ChatError> {
        let learned = match found {
            Found::Marks(marks) => self.marked(text, &tokens, &marks, wanted)?,
            Found::Turns(turns) => {
                let turns = turns.into_iter().zip(wanted);
                let learned =
                    turns.map(|(turn, wanted)| self.learned(text, &turn?, &tokens, wanted.weight));
                learned.collect::<Result<Vec<_>, _>>()?
            }
        };
        let mut weights = vec![0.0; tokens.ids.len()];
        self.fill(&mut weights, &tokens.ids, &learned, mask.end_of_turn);
        Ok(Document { tokens: tokens.ids, weights, ..Document::default() })
    }

    /// The same where every token is learned: turns are looked for because of their ends, and
    /// because of what they say of their weight.
    pub(super) fn weigh_all(
        &self,
        text: &str,
        tokens: Tokens,
        turns: Vec<Result<Turn, ChatError>>,
        (wanted, others): (&[Wanted], &[(Range<usize>, f32)]),
        mask: LossMask,
    ) -> Result<Document, ChatError> {
        let weights = vec![1.0; tokens.ids.len()];
        let mut document = Document { tokens: tokens.ids, weights, ..Document::default() };
        self.forget_padding(&mut document);
        let tokens = Tokens { ids: document.tokens, offsets: tokens.offsets };
        let mut learned = Vec::new();
        for (turn, wanted) in turns.into_iter().zip(wanted) {
            match turn.and_then(|turn| self.learned(text, &turn, &tokens, wanted.weight)) {
                // A turn need not be told from those around it.
                Err(ChatError::NotAPrefix { .. } | ChatError::NotVerbatim { .. })
                    if wanted.weight == 1.0 && mask.end_of_turn == EndOfTurn::Every => {}
                turn => learned.push(turn?),
            }
        }
        for (words, weight) in others {
            let first = tokens.offsets.partition_point(|(start, _)| *start < words.start);
            let after = tokens.offsets.partition_point(|(_, end)| *end <= words.end);
            let inside = document.weights.get_mut(first..after).unwrap_or_default();
            inside.iter_mut().filter(|w| **w > 0.0).for_each(|w| *w = *weight);
        }
        self.fill(&mut document.weights, &tokens.ids, &learned, mask.end_of_turn);
        Ok(Document { tokens: tokens.ids, ..document })
    }

    fn fill(&self, weights: &mut [f32], ids: &[u32], learned: &[Learned], ends: EndOfTurn) {
        let last = learned.iter().rposition(|turn| turn.close.is_some() && turn.weight > 0.0);
        for (index, turn) in learned.iter().enumerate() {
            for token in turn.tokens.clone() {
                let is_close = turn.close == Some(token);
                let is_padding =
                    !is_close && self.pad.is_some_and(|pad| ids.get(token) == Some(&pad));
                let is_other_end = is_close && ends == EndOfTurn::Last && last != Some(index);
                if let Some(weight) = weights.get_mut(token) {
                    *weight = if is_padding || is_other_end { 0.0 } else { turn.weight };
                }
            }
        }
    }

    /// Tokens of a turn that are wholly the assistant's, through the one that closes it.
    fn learned(
        &self,
        text: &str,
        turn: &Turn,
        tokens: &Tokens,
        weight: f32,
    ) -> Result<Learned, ChatError> {
        let no_end = || ChatError::NoEndOfTurn { message: turn.message };
        let first = first_in(tokens, turn);
        let inside = tokens.offsets.get(first..).unwrap_or_default();
        let inside = inside.iter().take_while(|(_, end)| *end <= turn.end).count();
        let ids = tokens.ids.get(first..first + inside).ok_or(ChatError::Tokenize)?;
        let (close, must_be_blank) = match turn.close {
            Close::Last => {
                let close = ids.iter().rposition(|token| self.closing.contains(token));
                let close = first + close.ok_or_else(no_end)?;
                (close, end(tokens, close)..turn.end)
            }
            Close::First(words) => {
                let from = tokens.offsets.partition_point(|(start, _)| *start < words);
                let rest = tokens.ids.get(from..first + inside).unwrap_or_default();
                let close = rest.iter().position(|token| self.closing.contains(token));
                let close = from + close.ok_or_else(no_end)?;
                (close, words..start(tokens, close))
            }
            Close::Known => {
                let close = ids.iter().rposition(|token| self.stop.contains(token));
                (first + close.ok_or_else(no_end)?, 0..0)
            }
        };
        let blank = text.get(must_be_blank).is_some_and(|text| text.trim().is_empty());
        let tokens = first..close + 1;
        if blank { Ok(Learned { tokens, close: Some(close), weight }) } else { Err(no_end()) }
    }

    /// Tokens that stand for any of the bytes that the template marks, as in Transformers.
    /// Each mark has to be closed inside, or go on in the next one.
    fn marked(
        &self,
        text: &str,
        tokens: &Tokens,
        marks: &[Range<usize>],
        wanted: &[Wanted],
    ) -> Result<Vec<Learned>, ChatError> {
        let mut learned = Vec::new();
        for (index, mark) in marks.iter().enumerate().filter(|(_, mark)| !mark.is_empty()) {
            let first = tokens.offsets.partition_point(|(_, end)| *end <= mark.start);
            let after = tokens.offsets.partition_point(|(start, _)| *start < mark.end);
            let turn = wanted.get(index).or(wanted.last()).ok_or(ChatError::NoAssistant)?;
            let ids = tokens.ids.get(first..after).unwrap_or_default();
            let close = ids.iter().rposition(|token| self.closing.contains(token));
            let close = close.map(|close| first + close).filter(|close| {
                let rest = text.get(end(tokens, *close)..mark.end);
                rest.is_some_and(|rest| rest.trim().is_empty())
            });
            let next = marks.get(index + 1).map(|next| next.start);
            if close.is_none() && self.ends_unmarked(tokens, after, next) {
                return Err(ChatError::NoEndOfTurn { message: turn.message });
            }
            learned.push(Learned { tokens: first..after, close, weight: turn.weight });
        }
        Ok(learned)
    }

    /// Whether a turn that is not closed inside its mark ends before the next mark.
    fn ends_unmarked(&self, tokens: &Tokens, from: usize, next: Option<usize>) -> bool {
        let Some(next) = next else { return true };
        let until = tokens.offsets.partition_point(|(start, _)| *start < next);
        let between = tokens.ids.get(from..until).unwrap_or_default();
        let special = between.iter().find(|token| self.closing.contains(token));
        special.is_some_and(|token| self.stop.contains(token))
    }

    /// The token that closes a turn.
    pub(super) fn end_of_turn(&self, text: &str, turn: &Turn, tokens: &Tokens) -> Option<u32> {
        let close = self.learned(text, turn, tokens, 1.0).ok()?.close?;
        tokens.ids.get(close).copied()
    }
}

fn start(tokens: &Tokens, token: usize) -> usize {
    tokens.offsets.get(token).map_or(0, |(start, _)| *start)
}

fn end(tokens: &Tokens, token: usize) -> usize {
    tokens.offsets.get(token).map_or(0, |(_, end)| *end)
}

/// The first token of a turn: one that the prompt already holds part of is not learned,
/// unless the prompt's own tokens end otherwise there.
fn first_in(tokens: &Tokens, turn: &Turn) -> usize {
    let first = tokens.offsets.partition_point(|(start, _)| *start < turn.start);
    match first.checked_sub(1).and_then(|before| tokens.offsets.get(before)) {
        Some((_, end)) if turn.departs && *end > turn.start => first - 1,
        _ => first,
    }
}
