//! Conversations to tokens: chat template, tokenizer, loss mask.

use serde::{Deserialize, Serialize};

/// One turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A tokenised conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether predicting `tokens[i]` (from the tokens before it) carries loss.
    /// `trained[0]` is always false: nothing comes before it.
    pub trained: Vec<bool>,
}
