//! What is said in a row, turn by turn, whatever its format.

use serde_json::Value;

use super::super::conversation::{Conversation, Json};
use super::super::sample::Sample;

/// Something that somebody says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Who: `user`, `assistant`, `system`, `tool` and so on.
    pub role: String,
    /// What.
    pub text: String,
    /// What else the message holds that makes it another one: calls of tools, as JSON.
    pub calls: Option<String>,
}

impl Turn {
    fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), text: text.to_owned(), calls: None }
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.text.trim().is_empty() && self.calls.is_none()
    }
}

/// The turns of a row. Where a row has two endings, the worse one comes last, by the role
/// `rejected`.
pub fn turns(sample: &Sample) -> Vec<Turn> {
    match sample {
        Sample::Conversation(conversation) | Sample::Labelled { conversation, .. } => {
            of_conversation(conversation)
        }
        Sample::Text(text) => vec![Turn::new("text", text)],
        Sample::Completion { prompt, completion } => {
            vec![Turn::new("user", prompt), Turn::new("assistant", completion)]
        }
        Sample::Preference { chosen, rejected } => {
            let mut turns = of_conversation(chosen);
            let worse =
                of_conversation(rejected).into_iter().skip_while(|turn| turns.contains(turn));
            let worse: Vec<Turn> =
                worse.map(|turn| Turn { role: "rejected".to_owned(), ..turn }).collect();
            turns.extend(worse);
            turns
        }
    }
}

fn of_conversation(conversation: &Conversation) -> Vec<Turn> {
    conversation.messages.iter().map(turn).collect()
}

fn turn(message: &Json) -> Turn {
    let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
    let calls = message.get("tool_calls").filter(|calls| !calls.is_null());
    let text = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    };
    Turn { role: role.to_owned(), text, calls: calls.map(Value::to_string) }
}
