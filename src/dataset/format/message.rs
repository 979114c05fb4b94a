//! Messages of a chat, from JSON as people write it to JSON as templates read it.

use serde_json::Value;

use super::super::conversation::Json;
use super::{FormatError, Wrong};

/// Roles that a message may have.
pub(super) const ROLES: [&str; 6] =
    ["system", "developer", "user", "assistant", "tool", "function"];

/// Keys of a message that hold a text, where they are there.
const TEXTS: [&str; 5] = ["name", "tool_call_id", "reasoning_content", "reasoning", "thinking"];

/// A message of a role and a text.
pub(super) fn turn(role: &str, content: String) -> Json {
    let mut message = Json::with_capacity(2);
    message.insert("role".to_owned(), Value::from(role));
    message.insert("content".to_owned(), Value::String(content));
    message
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn text(value: Value) -> Result<String, Wrong> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Wrong::NotText(kind(&other))),
    }
}

pub(super) fn list(value: Value) -> Result<Vec<Value>, Wrong> {
    match value {
        Value::Array(list) => Ok(list),
        other => Err(Wrong::NotList(kind(&other))),
    }
}

pub(super) fn object(value: Value) -> Result<Json, Wrong> {
    match value {
        Value::Object(object) => Ok(object),
        other => Err(Wrong::NotObject(kind(&other))),
    }
}

/// A list of objects, or its JSON text: Parquet has no type for schemas that differ by tool.
pub(super) fn list_of_objects(value: Value) -> Result<Vec<Json>, Wrong> {
    let value = match value {
        Value::String(text) => serde_json::from_str(&text).map_err(|_| Wrong::NotJson)?,
        value => value,
    };
    list(value)?.into_iter().map(object).collect()
}

/// The messages of a conversation, at least one.
pub(super) fn messages(value: Value, field: &'static str) -> Result<Vec<Json>, FormatError> {
    let turns = list(value).map_err(|wrong| wrong.of(field))?;
    checked(turns.into_iter().map(object), field)
}

/// Checks messages; an error says which one it is about.
pub(super) fn checked(
    messages: impl Iterator<Item = Result<Json, Wrong>>,
    field: &'static str,
) -> Result<Vec<Json>, FormatError> {
    let at = |turn: usize, wrong: Wrong| FormatError { turn: Some(turn), ..wrong.of(field) };
    let numbered = messages.enumerate();
    let checked: Result<Vec<Json>, FormatError> = numbered
        .map(|(turn, message)| message.and_then(check).map_err(|wrong| at(turn, wrong)))
        .collect();
    match checked {
        Ok(messages) if messages.is_empty() => Err(Wrong::Empty.of(field)),
        checked => checked,
    }
}

/// One message, without keys that hold nothing.
fn check(mut message: Json) -> Result<Json, Wrong> {
    message.retain(|_, value| !value.is_null());
    let role = message.get("role").ok_or(Wrong::NoRole)?;
    let role = role.as_str().ok_or(Wrong::NotText(kind(role)))?;
    if !ROLES.contains(&role) {
        return Err(Wrong::UnknownRole);
    }
    let assistant = role == "assistant";
    if let Some(weight) = message.get("weight")
        && weight.as_f64().is_none_or(|weight| weight < 0.0)
    {
        return Err(Wrong::Weight);
    }
    if let Some(wrong) = TEXTS.iter().filter_map(|key| message.get(*key)).find(|v| !v.is_string()) {
        return Err(Wrong::NotText(kind(wrong)));
    }
    if let Some(calls) = message.get_mut("tool_calls") {
        let calls = tool_calls(calls.take())?;
        if calls.is_empty() {
            message.shift_remove("tool_calls");
        } else {
            message.insert("tool_calls".to_owned(), Value::Array(calls));
        }
    }
    match message.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) if parts.iter().all(is_text_part) => {}
        Some(Value::Array(_)) => return Err(Wrong::Part),
        Some(other) => return Err(Wrong::NotText(kind(other))),
        None => {
            let speaks = |key: &str| message.contains_key(key);
            if !(assistant && (speaks("tool_calls") || speaks("reasoning_content"))) {
                return Err(Wrong::NoContent);
            }
        }
    }
    Ok(message)
}

fn is_text_part(part: &Value) -> bool {
    let of = |key: &str| part.get(key).and_then(Value::as_str);
    of("type") == Some("text") && of("text").is_some()
}

/// Tool calls whose arguments are objects: templates write them out as JSON, and would quote
/// a text twice.
fn tool_calls(value: Value) -> Result<Vec<Value>, Wrong> {
    let mut calls = list_of_objects(value)?;
    for call in &mut calls {
        let function = match call.get_mut("function") {
            Some(Value::Object(function)) => function,
            Some(other) => return Err(Wrong::NotObject(kind(other))),
            None => call,
        };
        if let Some(arguments) = function.get_mut("arguments") {
            let parsed = arguments.as_str().map(serde_json::from_str::<Json>);
            if let Some(Ok(parsed)) = parsed {
                *arguments = Value::Object(parsed);
            }
        }
    }
    Ok(calls.into_iter().map(Value::Object).collect())
}
