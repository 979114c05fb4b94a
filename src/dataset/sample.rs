//! What a row holds for the model, whatever its format.
//!
//! Owns the type alone: formats make it (`format`), the encoder turns it into tokens
//! (`chat`).
//!
//! Reference: the dataset formats and types of TRL.

use super::conversation::Conversation;

/// What a row holds for the model.
#[derive(Clone, Debug)]
pub enum Sample {
    /// Turns, for the chat template.
    Conversation(Conversation),
    /// A text as it is.
    Text(String),
    /// A text, and the text that should follow it; no template.
    Completion {
        /// What the model is given.
        prompt: String,
        /// What it should write.
        completion: String,
    },
    /// Two conversations that differ in how they end.
    Preference {
        /// The better one.
        chosen: Conversation,
        /// The worse one.
        rejected: Conversation,
    },
    /// A conversation and a verdict on how it ends.
    Labelled {
        /// The conversation.
        conversation: Conversation,
        /// Whether it ends as it should.
        desirable: bool,
    },
}
