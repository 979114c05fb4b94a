//! Shapes of a row: from columns or JSON to what a row holds for the model.
//!
//! Owns the fields of every format and what they mean ([`read`]), and their place in a file
//! of Parquet ([`Layout`]). Does not own where rows come from, nor rendering them.
//!
//! References: the dataset formats and types of TRL (chat, prompt-completion, preference,
//! unpaired preference), the ShareGPT and Alpaca formats as LLaMA-Factory reads them, the
//! chat message of the OpenAI API for tools.

mod columns;
mod error;
mod layout;
mod message;
mod sharegpt;

use serde_json::Value;

pub use columns::value;
pub use error::{FormatError, LayoutError, Wrong};
pub use layout::{Layout, check_names};

use super::conversation::{Conversation, Json};
use super::sample::Sample;
use crate::recipe::Format;
use message::{list_of_objects, messages, text, turn};

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// A list of messages.
    Messages,
    /// A list of ShareGPT's turns.
    Turns,
    /// A text, or a list of messages.
    TextOrMessages,
    /// A list of objects, or the JSON text of one.
    Objects,
    /// A list of pairs of texts: what the user said, what was answered.
    Pairs,
    /// Yes or no.
    Label,
}

/// One field of a format.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name, which is that of the column unless a mapping says otherwise.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether there is no row without it.
    pub required: bool,
}

const fn needs(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, required: true }
}

const fn may(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, required: false }
}

/// The fields of a format.
pub fn fields(format: Format) -> &'static [Field] {
    use Kind::{Label, Messages, Objects, Pairs, Text, TextOrMessages, Turns};
    match format {
        Format::Chat => {
            const { &[needs("messages", Messages), may("tools", Objects), may("documents", Objects)] }
        }
        Format::Sharegpt => {
            const { &[needs("conversations", Turns), may("system", Text), may("tools", Objects)] }
        }
        Format::Alpaca => {
            const {
                &[
                    needs("instruction", Text),
                    may("input", Text),
                    needs("output", Text),
                    may("system", Text),
                    may("history", Pairs),
                ]
            }
        }
        Format::PromptCompletion => {
            const {
                &[
                    needs("prompt", TextOrMessages),
                    needs("completion", TextOrMessages),
                    may("tools", Objects),
                ]
            }
        }
        Format::Text => const { &[needs("text", Text)] },
        Format::Preference => {
            const {
                &[
                    may("prompt", TextOrMessages),
                    needs("chosen", TextOrMessages),
                    needs("rejected", TextOrMessages),
                    may("tools", Objects),
                ]
            }
        }
        Format::Kto => {
            const {
                &[
                    needs("prompt", TextOrMessages),
                    needs("completion", TextOrMessages),
                    needs("label", Label),
                    may("tools", Objects),
                ]
            }
        }
    }
}

/// The fields of one row, taken out one by one.
struct Row<'a> {
    /// The value of a field; `None` where it is absent or null.
    take: &'a mut dyn FnMut(&'static str) -> Result<Option<Value>, Wrong>,
}

impl Row<'_> {
    fn optional(&mut self, field: &'static str) -> Result<Option<Value>, FormatError> {
        let value = (self.take)(field).map_err(|wrong| wrong.of(field))?;
        Ok(value.filter(|value| !value.is_null()))
    }

    fn required(&mut self, field: &'static str) -> Result<Value, FormatError> {
        self.optional(field)?.ok_or_else(|| Wrong::Absent.of(field))
    }

    fn text(&mut self, field: &'static str) -> Result<String, FormatError> {
        text(self.required(field)?).map_err(|wrong| wrong.of(field))
    }

    /// A text that may be absent; an empty one is.
    fn optional_text(&mut self, field: &'static str) -> Result<Option<String>, FormatError> {
        let value = self.optional(field)?.map(text).transpose();
        Ok(value.map_err(|wrong| wrong.of(field))?.filter(|text| !text.is_empty()))
    }

    fn objects(&mut self, field: &'static str) -> Result<Option<Vec<Json>>, FormatError> {
        let value = self.optional(field)?.filter(|value| value.as_str() != Some(""));
        let objects = value.map(list_of_objects).transpose().map_err(|wrong| wrong.of(field))?;
        Ok(objects.filter(|objects| !objects.is_empty()))
    }
}

/// What a row of a format holds for the model. `take` gives the value of a field, `None`
/// where the row has none.
pub fn read(
    format: Format,
    take: &mut dyn FnMut(&'static str) -> Result<Option<Value>, Wrong>,
) -> Result<Sample, FormatError> {
    let row = &mut Row { take };
    match format {
        Format::Chat => {
            let messages = messages(row.required("messages")?, "messages")?;
            let (tools, documents) = (row.objects("tools")?, row.objects("documents")?);
            Ok(Sample::Conversation(Conversation {
                messages,
                tools,
                documents,
                ..Conversation::default()
            }))
        }
        Format::Sharegpt => sharegpt::read(row),
        Format::Alpaca => alpaca(row),
        Format::PromptCompletion => prompt_completion(row),
        Format::Text => Ok(Sample::Text(row.text("text")?)),
        Format::Preference => preference(row),
        Format::Kto => {
            let label = label(row.required("label")?).map_err(|wrong| wrong.of("label"))?;
            let prompt = opening(row.required("prompt")?, "prompt")?;
            let ending = ending(row.required("completion")?, "completion")?;
            let tools = row.objects("tools")?;
            Ok(Sample::Labelled { conversation: joined(prompt, ending, tools), desirable: label })
        }
    }
}

/// The prompt is the instruction and, on a line of its own, the input.
fn alpaca(row: &mut Row<'_>) -> Result<Sample, FormatError> {
    let mut messages = Vec::new();
    messages.extend(row.optional_text("system")?.map(|system| turn("system", system)));
    if let Some(history) = row.optional("history")? {
        let wrong = || Wrong::NotPairs.of("history");
        let Value::Array(rounds) = history else { return Err(wrong()) };
        for round in rounds {
            let pair: [String; 2] = serde_json::from_value(round).map_err(|_| wrong())?;
            let [asked, answered] = pair;
            messages.extend([turn("user", asked), turn("assistant", answered)]);
        }
    }
    let instruction = row.text("instruction")?;
    let asked = match row.optional_text("input")? {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction,
    };
    messages.extend([turn("user", asked), turn("assistant", row.text("output")?)]);
    Ok(Sample::Conversation(Conversation { messages, ..Conversation::default() }))
}

fn prompt_completion(row: &mut Row<'_>) -> Result<Sample, FormatError> {
    let (prompt, completion) = (row.required("prompt")?, row.required("completion")?);
    match (prompt, completion) {
        (Value::String(prompt), Value::String(completion)) => {
            if completion.is_empty() {
                return Err(Wrong::Empty.of("completion"));
            }
            Ok(Sample::Completion { prompt, completion })
        }
        (Value::String(_), Value::Array(_)) | (Value::Array(_), Value::String(_)) => {
            Err(Wrong::Mixed.of("completion"))
        }
        (prompt, completion) => {
            let prompt = messages(prompt, "prompt")?;
            let completion = messages(completion, "completion")?;
            Ok(Sample::Conversation(joined(prompt, completion, row.objects("tools")?)))
        }
    }
}

fn preference(row: &mut Row<'_>) -> Result<Sample, FormatError> {
    let (chosen, rejected) = (row.required("chosen")?, row.required("rejected")?);
    let prompt = match (row.optional("prompt")?, &chosen, &rejected) {
        (Some(prompt), ..) => Some(prompt),
        (None, Value::String(chosen), Value::String(rejected)) => {
            return implicit_text(chosen, rejected, row.objects("tools")?);
        }
        (None, ..) => None,
    };
    let (chosen, rejected) = (ending(chosen, "chosen")?, ending(rejected, "rejected")?);
    let tools = row.objects("tools")?;
    // Much data of the hub repeats the prompt at the head of both.
    let repeats = |ending: &[Json]| ending.first().is_some_and(|first| !is_answer(first));
    let prompt = match prompt {
        Some(Value::String(_)) if repeats(&chosen) && repeats(&rejected) => None,
        prompt => prompt,
    };
    if let Some(prompt) = prompt {
        let prompt = opening(prompt, "prompt")?;
        let chosen = joined(prompt.clone(), chosen, tools.clone());
        return Ok(Sample::Preference { chosen, rejected: joined(prompt, rejected, tools) });
    }
    let shared = chosen.iter().zip(&rejected).take_while(|(one, other)| one == other).count();
    let whole = |messages: Vec<Json>| Conversation {
        messages,
        tools: tools.clone(),
        completion_from: Some(shared),
        ..Conversation::default()
    };
    Ok(Sample::Preference { chosen: whole(chosen), rejected: whole(rejected) })
}

/// Two texts without a prompt: the prompt is what both begin with, as TRL's `extract_prompt`
/// has it, without a space at its end.
fn implicit_text(
    chosen: &str,
    rejected: &str,
    tools: Option<Vec<Json>>,
) -> Result<Sample, FormatError> {
    let pairs = chosen.char_indices().zip(rejected.chars());
    let mut shared = pairs
        .take_while(|((_, one), other)| one == other)
        .last()
        .map_or(0, |((at, letter), _)| at + letter.len_utf8());
    if chosen.get(..shared).is_some_and(|prompt| prompt.ends_with(' ')) {
        shared -= 1;
    }
    let (prompt, chosen) = chosen.split_at(shared);
    let rejected = rejected.get(shared..).unwrap_or_default();
    for (text, field) in [(prompt, "prompt"), (chosen, "chosen"), (rejected, "rejected")] {
        if text.is_empty() {
            return Err(if field == "prompt" { Wrong::Absent } else { Wrong::Empty }.of(field));
        }
    }
    let sides = [chosen, rejected].map(|end| {
        let prompt = vec![turn("user", prompt.to_owned())];
        joined(prompt, vec![turn("assistant", end.to_owned())], tools.clone())
    });
    let [chosen, rejected] = sides;
    Ok(Sample::Preference { chosen, rejected })
}

fn is_answer(message: &Json) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

/// A prompt: messages, or what the user said.
fn opening(value: Value, field: &'static str) -> Result<Vec<Json>, FormatError> {
    match value {
        Value::String(text) => Ok(vec![turn("user", text)]),
        list => messages(list, field),
    }
}

/// An answer: messages, or what the assistant said.
fn ending(value: Value, field: &'static str) -> Result<Vec<Json>, FormatError> {
    match value {
        Value::String(text) if text.is_empty() => Err(Wrong::Empty.of(field)),
        Value::String(text) => Ok(vec![turn("assistant", text)]),
        list => messages(list, field),
    }
}

fn joined(mut prompt: Vec<Json>, ending: Vec<Json>, tools: Option<Vec<Json>>) -> Conversation {
    let completion_from = Some(prompt.len());
    prompt.extend(ending);
    Conversation { messages: prompt, tools, completion_from, ..Conversation::default() }
}

/// Yes or no, also as the numbers and words that CSV has for them.
fn label(value: Value) -> Result<bool, Wrong> {
    match &value {
        Value::Bool(label) => return Ok(*label),
        Value::Number(number) => match number.as_i64() {
            Some(0) => return Ok(false),
            Some(1) => return Ok(true),
            _ => {}
        },
        Value::String(word) => match word.to_ascii_lowercase().as_str() {
            "true" | "1" => return Ok(true),
            "false" | "0" => return Ok(false),
            _ => {}
        },
        _ => {}
    }
    Err(Wrong::NotLabel)
}

#[cfg(test)]
mod tests;
