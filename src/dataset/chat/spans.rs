//! What of a rendered conversation the assistant wrote, where the template does not say.
//!
//! The template is asked, with other conversations: the messages before a turn with the
//! opening of an answer say where the turn starts, the messages through it where it ends.
//! Templates that write a turn otherwise once it is no longer the last (those that drop
//! earlier reasoning do) give another answer than the text; then a turn's content is put in
//! other words, and what stays the same before it is what the template writes around it.
//! Where that does not fit the text either, the turn is refused.

use std::ops::Range;

use minijinja::Value;
use serde_json::Value as Scalar;

use super::super::conversation::{Conversation, Json, Values, message};
use super::super::template::{Ask, Template};
use super::mask::Wanted;
use super::{ASSISTANT, ChatError};

/// Words that no conversation has: characters that nobody may interchange.
const OTHER_WORDS: &str = "\u{fdd2}\u{fdd3}\u{fdd2}";

/// A turn of the assistant in the rendered text, by bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn<Byte = usize> {
    /// Index of the message.
    pub(super) message: usize,
    /// Where the answer starts.
    pub(super) start: Byte,
    /// Where it has ended.
    pub(super) end: Byte,
    /// Which token before `end` closes it.
    pub(super) close: Close<Byte>,
    /// Whether the text departs at `start` from what the model is prompted with.
    pub(super) departs: bool,
}

/// How the token that closes a turn is told from those around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close<Byte = usize> {
    /// It is the last special token, and only white space follows it.
    Last,
    /// It is the first special token from this byte on, the end of what was said, and only
    /// white space comes before it.
    First(Byte),
    /// The opening of the next turn stands before `end` too: it is the last of those tokens
    /// that are known to end generation.
    Known,
}

impl<Byte> Turn<Byte> {
    /// The same turn where its bytes are somewhere else.
    pub(super) fn moved<To>(&self, to: impl Fn(&Byte) -> Option<To>) -> Option<Turn<To>> {
        let close = match &self.close {
            Close::Last => Close::Last,
            Close::First(byte) => Close::First(to(byte)?),
            Close::Known => Close::Known,
        };
        let (start, end) = (to(&self.start)?, to(&self.end)?);
        Some(Turn { message: self.message, start, end, close, departs: self.departs })
    }
}

/// What a template writes around the words of a small conversation.
struct Frame {
    /// What opens the assistant's answer; or what closes the question, where nothing does.
    opening: String,
    /// What the text has between the opening and the words.
    extra: String,
    /// Whether `opening` belongs to the question.
    closes_question: bool,
}

/// Where the words of any message stand in `text`, whoever says them.
pub(super) fn words(
    template: &Template,
    conversation: &Conversation,
    values: &Values,
    text: &str,
    message: usize,
) -> Option<Range<usize>> {
    let finder = Finder { template, conversation, values, text };
    let (before, after) = finder.around_content(message)?;
    let end = text.len().checked_sub(after.len())?;
    (before.len() <= end).then_some(before.len()..end)
}

/// Whether a message is one of those that are learned.
pub(super) fn is_assistant(message: &Json) -> bool {
    message.get("role").and_then(Scalar::as_str) == Some(ASSISTANT)
}

/// Finds the wanted turns in `text`, the conversation as it is rendered.
pub(super) fn turns(
    template: &Template,
    conversation: &Conversation,
    values: &Values,
    text: &str,
    wanted: &[Wanted],
) -> Vec<Result<Turn, ChatError>> {
    let finder = Finder { template, conversation, values, text };
    wanted.iter().map(|turn| finder.turn(turn.message)).collect()
}

struct Finder<'a> {
    template: &'a Template,
    conversation: &'a Conversation,
    values: &'a Values,
    text: &'a str,
}

impl Finder<'_> {
    fn turn(&self, index: usize) -> Result<Turn, ChatError> {
        let unclear = || ChatError::NotAPrefix { message: index };
        let (start, departs) = self.start(index).ok_or_else(unclear)?;
        let (end, close) = self.end(index, start).ok_or_else(unclear)?;
        let written = self.text.get(start..end).ok_or_else(unclear)?;
        if !self.says(index, written) {
            return Err(ChatError::NotVerbatim { message: index });
        }
        Ok(Turn { message: index, start, end, close, departs })
    }

    /// Where the answer starts, and whether the text departs there from the prompt.
    fn start(&self, index: usize) -> Option<(usize, bool)> {
        let before = self.values.messages.get(..index)?;
        let prompt = self.render(before, Ask::Answer);
        if let Some(prompt) = prompt.as_ref().filter(|prompt| self.text.starts_with(*prompt)) {
            return Some((prompt.len(), false));
        }
        let around = self.around_content(index)?.0;
        // The prompt opens the answer with more than the text has, such as `<think>`: the
        // answer starts where they part. Its own words must not decide where that is.
        let earlier = self.render(before, Ask::Nothing);
        if let Some((prompt, earlier)) = prompt.zip(earlier) {
            let shared = shared_length(&prompt, &around);
            if prompt.starts_with(&earlier) && shared > earlier.len() {
                return Some((shared, true));
            }
        }
        // Earlier turns are written otherwise: the template's own frame has to stand there.
        let frame = self.frame()?;
        let start = around.strip_suffix(&frame.extra)?;
        let asked = || {
            let before = index.checked_sub(1)?;
            self.conversation.messages.get(before)?.get("role")?.as_str()
        };
        let fits =
            start.ends_with(&frame.opening) && (!frame.closes_question || asked() == Some("user"));
        fits.then_some((start.len(), false))
    }

    /// Where the answer has ended, and how its closing token is found before that.
    fn end(&self, index: usize, start: usize) -> Option<(usize, Close)> {
        let messages = &self.values.messages;
        if index + 1 == messages.len() {
            return Some((self.text.len(), Close::Last));
        }
        let through = self.render(messages.get(..=index)?, Ask::Nothing);
        if let Some(through) = through.filter(|through| self.text.starts_with(through)) {
            return (through.len() >= start).then_some((through.len(), Close::Last));
        }
        let turn = self.conversation.messages.get(index)?;
        let found = if calls(turn).is_empty() {
            self.end_of_words(index, start)
        } else {
            self.end_of_calls(index, start)
        };
        if found.is_some() {
            return found;
        }
        let (around, _) = self.around_content(index + 1)?;
        (around.len() >= start).then_some((around.len(), Close::Known))
    }

    /// The end of a turn that is written otherwise when it is the last: what follows its
    /// words in both is what closes it. Some templates close the last turn with another token
    /// too; then it is what stands between the words and the opening of a further answer.
    fn end_of_words(&self, index: usize, start: usize) -> Option<(usize, Close)> {
        let (_, rest) = self.around_content(index)?;
        let words = self.text.len().checked_sub(rest.len()).filter(|end| *end >= start)?;
        let (_, closed) = self.with_other_words(index, index + 1)?;
        let mut shared = shared_length(&rest, &closed);
        if shared < closed.len() {
            // Two tokens may begin with the same characters.
            let closed = self.closed_before_an_answer(index).unwrap_or_default();
            shared = shared.max(shared_length(&rest, &closed));
        }
        (shared > 0).then_some((words + shared, Close::First(words)))
    }

    /// What the template writes between the words of a turn and a further answer.
    fn closed_before_an_answer(&self, index: usize) -> Option<String> {
        let frame = self.frame().filter(|frame| !frame.closes_question)?;
        let mut messages = self.values.messages.get(..=index)?.to_vec();
        *messages.get_mut(index)? = message(&self.saying(index, OTHER_WORDS)?);
        messages.push(turn(ASSISTANT, OTHER_WORDS));
        let text = self.render(&messages, Ask::Nothing)?;
        let (_, rest) = text.split_once(OTHER_WORDS)?;
        let (closed, _) = rest.split_once(&frame.opening)?;
        // Else it is not the opening of the further answer that was found.
        (!closed.contains(OTHER_WORDS)).then(|| closed.to_owned())
    }

    /// The end of calls that stand in the text as they do at the end of the conversation, with
    /// what is said beside them or without.
    fn end_of_calls(&self, index: usize, start: usize) -> Option<(usize, Close)> {
        let called = self.conversation.messages.get(index)?;
        let name = name_of(calls(called).last()?)?;
        let (around, _) = self.around_content(index + 1)?;
        let written = self.text.get(start..around.len())?;
        let end = |last: Value| {
            let mut messages = self.values.messages.get(..index)?.to_vec();
            messages.push(last);
            let through = self.render(&messages, Ask::Nothing)?;
            let call = through.get(through.rfind(name)?..)?;
            let mut found = written.match_indices(call);
            let (at, _) = found.next().filter(|_| found.next().is_none())?;
            Some((start + at + call.len(), Close::Last))
        };
        end(message(called)).or_else(|| end(message(&self.saying(index, "")?)))
    }

    /// What the template writes around a question and an answer.
    fn frame(&self) -> Option<Frame> {
        let small = [turn("user", OTHER_WORDS), turn(ASSISTANT, OTHER_WORDS)];
        let asked = self.render(&small[..1], Ask::Nothing)?;
        let prompt = self.render(&small[..1], Ask::Answer)?;
        let text = self.render(&small, Ask::Nothing)?;
        let extra = text.get(..text.rfind(OTHER_WORDS)?)?.strip_prefix(&prompt)?.to_owned();
        let opening = prompt.strip_prefix(&asked)?;
        let closes_question = opening.is_empty();
        let opening =
            if closes_question { prompt.split(OTHER_WORDS).nth(1)? } else { opening }.to_owned();
        (!opening.is_empty()).then_some(Frame { opening, extra, closes_question })
    }

    /// What stands before and after the content of a message, whatever the content is, in
    /// the whole conversation; `None` where that is not what the text has.
    fn around_content(&self, index: usize) -> Option<(String, String)> {
        let (before, after) = self.with_other_words(index, self.values.messages.len())?;
        (self.text.starts_with(&before) && self.text.ends_with(&after)).then_some((before, after))
    }

    /// What stands before and after the content of a message in the first messages.
    fn with_other_words(&self, index: usize, first: usize) -> Option<(String, String)> {
        let mut messages = self.values.messages.get(..first)?.to_vec();
        *messages.get_mut(index)? = message(&self.saying(index, OTHER_WORDS)?);
        let other = self.render(&messages, Ask::Nothing)?;
        let (before, after) = other.split_once(OTHER_WORDS)?;
        Some((before.to_owned(), after.to_owned()))
    }

    /// A message in other words.
    fn saying(&self, index: usize, words: &str) -> Option<Json> {
        let mut said = self.conversation.messages.get(index)?.clone();
        said.get("content").filter(|content| content.is_string())?;
        said.insert("content".to_owned(), Scalar::from(words));
        Some(said)
    }

    /// Whether a turn has the words of its message, all of them or those after the reasoning;
    /// of one that only calls, the names of what it calls.
    fn says(&self, index: usize, written: &str) -> bool {
        let Some(turn) = self.conversation.messages.get(index) else { return false };
        let calls = calls(turn);
        let content = turn.get("content");
        if !calls.is_empty() {
            // Some templates leave out what is said beside a call; the call is what is learned.
            // Others leave out the call, and nothing would be.
            let speaks = content.is_some_and(|content| !is_empty(content));
            return speaks || calls.iter().filter_map(name_of).all(|name| written.contains(name));
        }
        match content {
            Some(Scalar::String(words)) => {
                let answer = words.rsplit("</think>").next().unwrap_or(words);
                written.contains(words.trim()) || written.contains(answer.trim())
            }
            Some(Scalar::Array(parts)) => parts
                .iter()
                .filter_map(|part| part.get("text")?.as_str())
                .all(|words| written.contains(words.trim())),
            _ => true,
        }
    }

    fn render(&self, messages: &[Value], ask: Ask) -> Option<String> {
        self.template.render(&self.values.others, messages, ask).ok()
    }
}

fn turn(role: &str, content: &str) -> Value {
    let pairs = [("role", role), ("content", content)];
    message(&pairs.map(|(k, v)| (k.to_owned(), Scalar::from(v))).into_iter().collect())
}

fn is_empty(content: &Scalar) -> bool {
    match content {
        Scalar::String(words) => words.trim().is_empty(),
        Scalar::Array(parts) => parts.is_empty(),
        other => other.is_null(),
    }
}

/// The calls of a turn.
fn calls(turn: &Json) -> &[Scalar] {
    turn.get("tool_calls").and_then(Scalar::as_array).map_or(&[], Vec::as_slice)
}

/// The name of what is called.
fn name_of(call: &Scalar) -> Option<&str> {
    call.get("function").unwrap_or(call).get("name")?.as_str()
}

/// Bytes that two texts start with in common, in whole characters.
fn shared_length(a: &str, b: &str) -> usize {
    let pairs = a.chars().zip(b.chars());
    pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}
