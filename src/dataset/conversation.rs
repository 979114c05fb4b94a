//! A conversation as a chat template sees it.
//!
//! Owns the step from JSON to the template's values, with what Transformers does to them on
//! the way. Does not own where conversations come from, nor rendering.
//!
//! Reference: `apply_chat_template` and `_alias_reasoning_fields` of Transformers 5.23.

use std::collections::BTreeMap;

use minijinja::Value;
use minijinja::value::Serde;
use serde::{Deserialize, Serialize};
use serde_json::Map;

/// One turn of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A JSON object; its keys keep their order.
pub type Json = Map<String, serde_json::Value>;

/// The key of a message that says how much its tokens count in the loss, from 0 on.
pub const WEIGHT: &str = "weight";

/// Names under which a message's reasoning is known, the standard one first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Messages, and whatever else the template is to see.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Conversation {
    /// Turns with any keys: `role`, `content` (text or a list of parts), `tool_calls`,
    /// `tool_call_id`, `name`, `reasoning_content` and others.
    pub messages: Vec<Json>,
    /// JSON schemas of the tools that the assistant may call.
    #[serde(default)]
    pub tools: Option<Vec<Json>>,
    /// Documents that the assistant may use, each with `title` and `text`.
    #[serde(default)]
    pub documents: Option<Vec<Json>>,
    /// Other variables, such as `enable_thinking`; they win over special tokens.
    #[serde(default)]
    pub variables: Json,
    /// Index of the first message of the completion, where the row tells prompt and
    /// completion apart.
    #[serde(default)]
    pub completion_from: Option<usize>,
}

impl From<&[Message]> for Conversation {
    fn from(messages: &[Message]) -> Self {
        let json = |message: &Message| {
            let text = |text: &String| serde_json::Value::from(text.as_str());
            let pairs = [("role", text(&message.role)), ("content", text(&message.content))];
            pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
        };
        Self { messages: messages.iter().map(json).collect(), ..Self::default() }
    }
}

impl From<&Vec<Message>> for Conversation {
    fn from(messages: &Vec<Message>) -> Self {
        Self::from(messages.as_slice())
    }
}

impl<const TURNS: usize> From<&[Message; TURNS]> for Conversation {
    fn from(messages: &[Message; TURNS]) -> Self {
        Self::from(messages.as_slice())
    }
}

impl From<&Self> for Conversation {
    fn from(conversation: &Self) -> Self {
        conversation.clone()
    }
}

/// The values of a conversation, made once for all its renderings.
#[derive(Debug)]
pub(super) struct Values {
    /// The messages.
    pub(super) messages: Vec<Value>,
    /// Everything else by name: `tools`, `documents` and the variables.
    pub(super) others: BTreeMap<String, Value>,
}

impl Values {
    /// Makes the values that a template sees.
    pub(super) fn new(conversation: &Conversation) -> Self {
        let variables = conversation.variables.iter();
        let mut others: BTreeMap<String, Value> =
            variables.map(|(name, value)| (name.clone(), Value::from(Serde(value)))).collect();
        others.insert("tools".to_owned(), Value::from(Serde(&conversation.tools)));
        others.insert("documents".to_owned(), Value::from(Serde(&conversation.documents)));
        Self { messages: conversation.messages.iter().map(message).collect(), others }
    }
}

/// One message as Transformers hands it on: without keys that hold nothing, and with its
/// reasoning under all the names that templates read.
pub(super) fn message(json: &Json) -> Value {
    // A weight is for the trainer, not for the model.
    let held = || json.iter().filter(|(key, value)| !value.is_null() && *key != WEIGHT);
    let reasoning = REASONING.iter().find_map(|name| held().find(|(key, _)| key == name));
    let Some((_, reasoning)) = reasoning else {
        let held: Json = held().map(|(key, value)| (key.clone(), value.clone())).collect();
        return Value::from(Serde(held));
    };
    let mut aliased = Json::new();
    aliased.insert("thinking".to_owned(), reasoning.clone());
    aliased.extend(held().map(|(key, value)| (key.clone(), value.clone())));
    aliased.insert("reasoning_content".to_owned(), reasoning.clone());
    Value::from(Serde(aliased))
}
