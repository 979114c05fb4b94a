//! What a row holds, as the columns that are written.
//!
//! Of whatever format a row was read, it is written in one of six shapes, each of which the
//! stream reads by the format that is said with it. Messages have the same keys everywhere;
//! those that no row needs are left out of the schema.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::reject::{Reason, Reject};
use crate::dataset::conversation::{Conversation, Json};
use crate::dataset::format::Wrong;
use crate::dataset::sample::Sample;
use crate::recipe::Format;

/// Columns that are there only where a row needs them: JSON as text.
pub(super) const OPTIONAL_COLUMNS: [&str; 2] = ["tools", "documents"];

/// Keys of a message that are there only where one needs them.
pub(super) const OPTIONAL_KEYS: [&str; 5] =
    ["name", "reasoning_content", "tool_calls", "tool_call_id", "weight"];

/// Most keys that are remembered as left aside.
const MAX_LEFT_ASIDE: usize = 32;

/// The value of a content column.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String),
    Messages(Vec<Json>),
    Label(bool),
}

/// The type of a content column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CellKind {
    Text,
    Messages,
    Label,
}

/// The columns that rows of one kind have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Chat,
    Text,
    Completion,
    Turns,
    Preference,
    Labelled,
}

impl Shape {
    /// The content columns.
    pub(super) fn columns(self) -> &'static [(&'static str, CellKind)] {
        use CellKind::{Label, Messages, Text};
        match self {
            Self::Chat => &[("messages", Messages)],
            Self::Text => &[("text", Text)],
            Self::Completion => &[("prompt", Text), ("completion", Text)],
            Self::Turns => &[("prompt", Messages), ("completion", Messages)],
            Self::Preference => {
                &[("prompt", Messages), ("chosen", Messages), ("rejected", Messages)]
            }
            Self::Labelled => &[("prompt", Messages), ("completion", Messages), ("label", Label)],
        }
    }

    /// The format by which a recipe reads these columns.
    pub(super) fn format(self) -> Format {
        match self {
            Self::Chat => Format::Chat,
            Self::Text => Format::Text,
            Self::Completion | Self::Turns => Format::PromptCompletion,
            Self::Preference => Format::Preference,
            Self::Labelled => Format::Kto,
        }
    }
}

/// A row's content, without columns that hold nothing.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) shape: Shape,
    pub(super) cells: Vec<(&'static str, Cell)>,
}

impl Content {
    /// The content of what a row holds. Keys of messages that are not written are added to
    /// `left_aside`.
    pub(super) fn new(sample: Sample, left_aside: &mut BTreeSet<String>) -> Result<Self, Reject> {
        let mut flat = |messages: Vec<Json>| -> Cell {
            Cell::Messages(
                messages.into_iter().map(|message| written(message, left_aside)).collect(),
            )
        };
        let (shape, cells) = match sample {
            Sample::Text(text) => (Shape::Text, vec![("text", Cell::Text(text))]),
            Sample::Completion { prompt, completion } => {
                let prompt = ("prompt", Cell::Text(prompt));
                (Shape::Completion, vec![prompt, ("completion", Cell::Text(completion))])
            }
            Sample::Conversation(conversation) if conversation.completion_from.is_none() => {
                let Conversation { messages, tools, documents, .. } = conversation;
                let mut cells = vec![("messages", flat(messages))];
                cells.extend(listed("tools", tools));
                cells.extend(listed("documents", documents));
                (Shape::Chat, cells)
            }
            Sample::Conversation(conversation) => {
                let (prompt, completion, tools) = halves(conversation);
                let mut cells = vec![("prompt", flat(prompt)), ("completion", flat(completion))];
                cells.extend(listed("tools", tools));
                (Shape::Turns, cells)
            }
            Sample::Preference { chosen, rejected } => {
                let (prompt, chosen, tools) = halves(chosen);
                let (_, rejected, _) = halves(rejected);
                if chosen.is_empty() || rejected.is_empty() || chosen == rejected {
                    return Err(Reason::NoDifference.of("rejected"));
                }
                let mut cells = Vec::new();
                if !prompt.is_empty() {
                    cells.push(("prompt", flat(prompt)));
                }
                cells.extend([("chosen", flat(chosen)), ("rejected", flat(rejected))]);
                cells.extend(listed("tools", tools));
                (Shape::Preference, cells)
            }
            Sample::Labelled { conversation, desirable } => {
                let (prompt, completion, tools) = halves(conversation);
                let mut cells = vec![("prompt", flat(prompt)), ("completion", flat(completion))];
                cells.push(("label", Cell::Label(desirable)));
                cells.extend(listed("tools", tools));
                (Shape::Labelled, cells)
            }
        };
        Ok(Self { shape, cells })
    }

    /// The value of a column.
    pub(super) fn cell(&self, name: &str) -> Option<&Cell> {
        self.cells.iter().find(|(column, _)| *column == name).map(|(_, cell)| cell)
    }

    /// The optional columns and keys that it needs.
    pub(super) fn needs(&self) -> BTreeSet<&'static str> {
        let mut needs = BTreeSet::new();
        for (column, cell) in &self.cells {
            needs.extend(OPTIONAL_COLUMNS.iter().filter(|name| *name == column));
            if let Cell::Messages(messages) = cell {
                for message in messages {
                    needs.extend(OPTIONAL_KEYS.iter().filter(|key| message.contains_key(**key)));
                }
            }
        }
        needs
    }

    /// SHA-256 of the content columns as one JSON object in its canonical form (RFC 8785),
    /// and the length of that.
    pub(super) fn digest(&self) -> Result<([u8; 32], usize), Reject> {
        let cell = |cell: &Cell| match cell {
            Cell::Text(text) => json!(text),
            Cell::Messages(messages) => json!(messages),
            Cell::Label(label) => json!(label),
        };
        let object: Json =
            self.cells.iter().map(|(name, value)| ((*name).to_owned(), cell(value))).collect();
        let canonical = serde_json_canonicalizer::to_vec(&object);
        let canonical = canonical.map_err(|_| Reason::Content(Wrong::NotFinite))?;
        Ok((Sha256::digest(&canonical).into(), canonical.len()))
    }
}

fn halves(conversation: Conversation) -> (Vec<Json>, Vec<Json>, Option<Vec<Json>>) {
    let Conversation { mut messages, tools, completion_from, .. } = conversation;
    let from = completion_from.unwrap_or_default().min(messages.len());
    let completion = messages.split_off(from);
    (messages, completion, tools)
}

fn listed(name: &'static str, objects: Option<Vec<Json>>) -> Option<(&'static str, Cell)> {
    objects.map(|objects| (name, Cell::Text(json!(objects).to_string())))
}

/// A message with the keys that are written: parts of a text are joined, reasoning has one
/// name, tool calls are JSON.
fn written(mut message: Json, left_aside: &mut BTreeSet<String>) -> Json {
    let mut written = Json::with_capacity(2);
    written.extend(message.remove_entry("role"));
    match message.remove("content") {
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
            written.insert("content".to_owned(), Value::from(texts.collect::<String>()));
        }
        Some(text) => {
            written.insert("content".to_owned(), text);
        }
        None => {}
    }
    for alias in ["reasoning", "thinking"] {
        if let Some(reasoning) = message.remove(alias) {
            message.entry("reasoning_content").or_insert(reasoning);
        }
    }
    for key in OPTIONAL_KEYS {
        let Some(value) = message.remove(key) else { continue };
        let value = match key {
            "tool_calls" => Value::from(value.to_string()),
            "weight" => json!(value.as_f64()),
            _ => value,
        };
        written.insert(key.to_owned(), value);
    }
    for (key, _) in message {
        leave_aside(left_aside, &key);
    }
    written
}

/// Remembers a key, if it is a word: what looks like a text is not repeated.
pub(super) fn leave_aside(left_aside: &mut BTreeSet<String>, key: &str) {
    let word =
        key.len() <= 64 && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    if word && left_aside.len() < MAX_LEFT_ASIDE && !left_aside.contains(key) {
        left_aside.insert(key.to_owned());
    }
}
