//! Turns of ShareGPT, by the names that data of the hub has for who speaks.

use serde_json::{Value, json};

use super::super::conversation::{Conversation, Json};
use super::super::sample::Sample;
use super::message::{checked, kind, list, object, turn};
use super::{FormatError, Row, Wrong};

const FIELD: &str = "conversations";

/// Who may speak.
enum Speaker {
    Role(&'static str),
    /// The assistant, who calls a function.
    Call,
}

fn speaker(name: &str) -> Option<Speaker> {
    Some(match name {
        "system" => Speaker::Role("system"),
        "developer" => Speaker::Role("developer"),
        "human" | "user" => Speaker::Role("user"),
        "gpt" | "assistant" | "model" | "chatgpt" | "bot" => Speaker::Role("assistant"),
        "observation" | "tool" | "function" | "function_response" | "tool_response" => {
            Speaker::Role("tool")
        }
        "function_call" | "tool_call" => Speaker::Call,
        _ => return None,
    })
}

pub(super) fn read(row: &mut Row<'_>) -> Result<Sample, FormatError> {
    let turns = list(row.required(FIELD)?).map_err(|wrong| wrong.of(FIELD))?;
    let mut messages =
        checked(turns.into_iter().map(|turn| object(turn).and_then(message)), FIELD)?;
    let begins = messages.first().and_then(|first| first.get("role")).and_then(Value::as_str);
    if begins != Some("system")
        && let Some(system) = row.optional_text("system")?
    {
        messages.insert(0, turn("system", system));
    }
    let tools = row.objects("tools")?;
    Ok(Sample::Conversation(Conversation { messages, tools, ..Conversation::default() }))
}

/// A message of the chat format; of further keys only `weight` is taken over.
fn message(mut turn: Json) -> Result<Json, Wrong> {
    turn.retain(|_, value| !value.is_null());
    let mut either = |one: &str, other: &str| turn.remove(one).or_else(|| turn.remove(other));
    let name = either("from", "role").ok_or(Wrong::NoRole)?;
    let said = either("value", "content").ok_or(Wrong::NoContent)?;
    let name = name.as_str().ok_or(Wrong::NotText(kind(&name)))?;
    let mut message = Json::new();
    match speaker(name).ok_or(Wrong::UnknownRole)? {
        Speaker::Role(role) => {
            message.insert("role".to_owned(), Value::from(role));
            message.insert("content".to_owned(), said);
        }
        Speaker::Call => {
            message.insert("role".to_owned(), Value::from("assistant"));
            message.insert("tool_calls".to_owned(), calls(said)?);
        }
    }
    message.extend(turn.remove("weight").map(|weight| ("weight".to_owned(), weight)));
    Ok(message)
}

/// `{"name": …, "arguments": …}` or a list of them, mostly as text.
fn calls(said: Value) -> Result<Value, Wrong> {
    let said = match said {
        Value::String(text) => serde_json::from_str(&text).map_err(|_| Wrong::NotJson)?,
        said => said,
    };
    let functions = if said.is_array() { list(said)? } else { vec![said] };
    let call = |function: Value| {
        let function = object(function)?;
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(Wrong::NotJson);
        }
        Ok(json!({"type": "function", "function": function}))
    };
    functions.into_iter().map(call).collect::<Result<Vec<_>, _>>().map(Value::Array)
}
