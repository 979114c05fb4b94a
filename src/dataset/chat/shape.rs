//! Where turns stand in conversations of the same shape, found once.
//!
//! Most conversations have only roles and plain texts, and a template writes the same around
//! the texts of all that have the same roles. So a conversation of other words is looked
//! through once for each list of roles, and what stands between its words is kept. Where a
//! rendered conversation is exactly these frames with its own words between them, as they
//! stand or without the white space around them, its turns stand where the frames say; every
//! other conversation is looked through by itself. Development builds do that for all and
//! compare. Owns the frames; what a turn is, is [`spans`]'s.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, RwLock};

use serde_json::Value;

use super::mask::Wanted;
use super::spans::{self, Turn};
use super::{Conversation, Values};
use crate::dataset::conversation::{Json, WEIGHT};
use crate::dataset::template::{Ask, Template};

/// Shapes that are kept.
const MAX_SHAPES: usize = 1024;

/// Messages of the longest conversation that is looked for here.
const MAX_MESSAGES: usize = 64;

/// Longest role, in bytes.
const MAX_ROLE: usize = 32;

/// The shapes met so far, by their roles; `None` where the frames cannot be told.
#[derive(Debug, Default)]
pub(super) struct Shapes(RwLock<BTreeMap<Vec<String>, Option<Arc<Shape>>>>);

/// What a template writes around the words of conversations with the same roles.
#[derive(Debug)]
struct Shape {
    /// What stands before the words of each message, and after those of the last.
    frames: Vec<String>,
    /// All turns of the assistant, where they can be found.
    turns: Option<Vec<Turn<Place>>>,
    /// What the prompt goes on with where a turn departs from it, by the turn's message.
    departures: Vec<(usize, char)>,
    /// What `{% generation %}` stands for.
    marks: Option<Vec<Range<Place>>>,
}

/// A byte of a frame, or the one after its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    frame: usize,
    byte: usize,
}

/// A conversation that fits its shape.
pub(super) struct Fitted {
    shape: Arc<Shape>,
    /// Where each frame starts in the text.
    starts: Vec<usize>,
}

impl Shapes {
    /// The shape that a rendered conversation fits.
    pub(super) fn fit(
        &self,
        template: &Template,
        conversation: &Conversation,
        text: &str,
    ) -> Option<Fitted> {
        let (roles, words) = plain(conversation)?;
        let shape = self.shape(template, &roles)?;
        let as_they_stand = shape.starts(text, words.iter().copied());
        let starts =
            as_they_stand.or_else(|| shape.starts(text, words.iter().map(|words| words.trim())))?;
        // Words that begin as the prompt goes on depart from it elsewhere.
        let elsewhere = |(message, next): &(usize, char)| {
            words.get(*message).is_none_or(|words| words.trim_start().starts_with(*next))
        };
        if shape.departures.iter().any(elsewhere) {
            return None;
        }
        Some(Fitted { shape, starts })
    }

    fn shape(&self, template: &Template, roles: &[&str]) -> Option<Arc<Shape>> {
        let key: Vec<String> = roles.iter().map(|role| (*role).to_owned()).collect();
        if let Some(known) = self.0.read().ok()?.get(&key) {
            return known.clone();
        }
        let shape = Shape::of(template, roles).map(Arc::new);
        let mut known = self.0.write().ok()?;
        if known.len() < MAX_SHAPES {
            known.insert(key, shape.clone());
        }
        shape
    }
}

impl Fitted {
    /// The wanted turns; `None` where the frames do not tell.
    pub(super) fn turns(&self, wanted: &[Wanted]) -> Option<Vec<Turn>> {
        let turns = self.shape.turns.as_ref()?;
        let turn = |wanted: &Wanted| {
            let turn = turns.iter().find(|turn| turn.message == wanted.message)?;
            turn.moved(|place| self.byte(*place))
        };
        wanted.iter().map(turn).collect()
    }

    /// The bytes that `{% generation %}` marks.
    pub(super) fn marks(&self) -> Option<Vec<Range<usize>>> {
        let marks = self.shape.marks.as_ref()?.iter();
        marks.map(|mark| Some(self.byte(mark.start)?..self.byte(mark.end)?)).collect()
    }

    fn byte(&self, place: Place) -> Option<usize> {
        Some(self.starts.get(place.frame)? + place.byte)
    }
}

impl Shape {
    fn of(template: &Template, roles: &[&str]) -> Option<Self> {
        let words: Vec<String> = (0..roles.len()).map(other_words).collect();
        let message = |(role, words): (&&str, &String)| {
            let pairs = [("role", Value::from(*role)), ("content", Value::from(words.as_str()))];
            pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Json>()
        };
        let messages = roles.iter().zip(&words).map(message).collect();
        let conversation = Conversation { messages, ..Conversation::default() };
        let values = Values::new(&conversation);
        let text = template.render(&values.others, &values.messages, Ask::Nothing).ok()?;
        let mut rest = text.as_str();
        let mut frames = Vec::new();
        for words in &words {
            let (frame, after) = rest.split_once(words.as_str())?;
            frames.push(frame.to_owned());
            rest = after;
        }
        frames.push(rest.to_owned());
        let mut shape = Self { frames, turns: None, departures: Vec::new(), marks: None };
        let starts = shape.starts(&text, words.iter().map(String::as_str))?;
        shape.marks = shape.marks_of(template, &values, &text, &starts);
        let turns = conversation.messages.iter().enumerate();
        let wanted: Vec<Wanted> = turns
            .filter(|(_, turn)| spans::is_assistant(turn))
            .map(|(message, _)| Wanted { message, weight: 1.0 })
            .collect();
        let turns = spans::turns(template, &conversation, &values, &text, &wanted);
        for turn in turns.iter().flatten().filter(|turn| turn.departs) {
            let before = values.messages.get(..turn.message)?;
            let prompt = template.render(&values.others, before, Ask::Answer).ok()?;
            shape.departures.push((turn.message, prompt.get(turn.start..)?.chars().next()?));
        }
        let place = |byte: &usize| shape.place(&starts, *byte);
        shape.turns = turns.into_iter().map(|turn| turn.ok()?.moved(place)).collect();
        Some(shape)
    }

    fn marks_of(
        &self,
        template: &Template,
        values: &Values,
        text: &str,
        starts: &[usize],
    ) -> Option<Vec<Range<Place>>> {
        if !template.marks_assistant() {
            return None;
        }
        let marks = template.marks_in(values, text).ok()?.into_iter();
        let place = |byte| self.place(starts, byte);
        marks.map(|mark| Some(place(mark.start)?..place(mark.end)?)).collect()
    }

    /// Where the frames start in a text that has these words between them.
    fn starts<'a>(&self, text: &str, words: impl Iterator<Item = &'a str>) -> Option<Vec<usize>> {
        let mut starts = Vec::with_capacity(self.frames.len());
        let mut rest = text;
        for (frame, words) in self.frames.iter().zip(words.chain([""])) {
            starts.push(text.len() - rest.len());
            rest = rest.strip_prefix(frame.as_str())?.strip_prefix(words)?;
        }
        rest.is_empty().then_some(starts)
    }

    /// Which frame a byte belongs to; `None` of one within the words.
    fn place(&self, starts: &[usize], byte: usize) -> Option<Place> {
        let frame = starts.partition_point(|start| *start <= byte).checked_sub(1)?;
        let within = byte - starts.get(frame)?;
        (within <= self.frames.get(frame)?.len()).then_some(Place { frame, byte: within })
    }
}

/// Words of a message that nobody writes, other ones for every message.
fn other_words(message: usize) -> String {
    format!("\u{fdd4}{message}\u{fdd5}")
}

/// Roles and words, of a conversation that has nothing else.
fn plain(conversation: &Conversation) -> Option<(Vec<&str>, Vec<&str>)> {
    let Conversation { messages, tools, documents, variables, .. } = conversation;
    let bare = tools.is_none() && documents.is_none() && variables.is_empty();
    if !bare || messages.len() > MAX_MESSAGES {
        return None;
    }
    let mut found = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
    for message in messages {
        let other = |(key, value): (&String, &Value)| {
            !matches!(key.as_str(), "role" | "content" | WEIGHT) && !value.is_null()
        };
        if message.iter().any(other) {
            return None;
        }
        let text = |key| message.get(key).and_then(Value::as_str);
        found.0.push(text("role").filter(|role| role.len() <= MAX_ROLE)?);
        // Templates may do without a frame where there are no words.
        found.1.push(text("content").filter(|words| !words.trim().is_empty())?);
    }
    Some(found)
}
