//! Errors of tokenising conversations. None of them quotes a conversation.

use std::path::PathBuf;

use thiserror::Error;

use crate::diagnose::{Blame, Diagnose};

/// What can be wrong with a base folder's tokenizer or with a conversation.
#[derive(Debug, Error)]
pub enum ChatError {
    /// A file of the base folder cannot be read.
    #[error("the tokenizer of the base model cannot be read")]
    Read(#[from] std::io::Error),
    /// `tokenizer.json` is not one.
    #[error("`{path}` is not a tokenizer: {reason}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizers library says.
        reason: String,
    },
    /// A JSON file of the base folder is not what Transformers writes.
    #[error("`{path}`, line {line}, column {column}: {reason}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The base folder has no chat template.
    #[error("`{folder}` has no chat template")]
    NoTemplate {
        /// The base folder.
        folder: PathBuf,
    },
    /// The base folder has named chat templates, none of which serves here.
    #[error("the base model has several chat templates and none of them is the default")]
    NoDefaultTemplate,
    /// The chat template does not compile.
    #[error("the chat template in `{path}` is wrong in its line {line}: {reason}")]
    TemplateSyntax {
        /// Where the template stands.
        path: PathBuf,
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The chat template refuses the conversation, with `raise_exception`.
    #[error("the chat template, line {line}, refuses the conversation: {reason}")]
    Refused {
        /// Line of the template, from 1.
        line: usize,
        /// What it says.
        reason: String,
    },
    /// The chat template takes more than a template may.
    #[error("the chat template, line {line}, goes beyond a limit: {reason}")]
    TemplateLimit {
        /// Line of the template, from 1.
        line: usize,
        /// Beyond which.
        reason: String,
    },
    /// The chat template does what cannot be done here.
    #[error("the chat template, line {line}, cannot be rendered: {reason}")]
    TemplateConstruct {
        /// Line of the template, from 1.
        line: usize,
        /// What it does.
        reason: String,
    },
    /// A value of `tokenizer_config.json` that Transformers would not take.
    #[error("`{}`: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Which key, and what it should be.
        reason: String,
    },
    /// There are no messages.
    #[error("the conversation has no messages")]
    Empty,
    /// Nobody to learn from.
    #[error("the conversation has no turn of the assistant")]
    NoAssistant,
    /// What the template writes before and in a turn changes with the turns after it.
    #[error(
        "the chat template rewrites the turns before message {message}, so what the assistant said there cannot be told apart"
    )]
    NotAPrefix {
        /// Index of the assistant's message, from 0.
        message: usize,
    },
    /// What the template writes of a turn is not what was said.
    #[error("the chat template does not write the assistant's message {message} as it stands")]
    NotVerbatim {
        /// Index of the assistant's message, from 0.
        message: usize,
    },
    /// The assistant would never learn to stop.
    #[error("the chat template closes the assistant's message {message} with no special token")]
    NoEndOfTurn {
        /// Index of the assistant's message, from 0.
        message: usize,
    },
    /// No token carries loss.
    #[error("no token of the conversation carries loss")]
    NothingTrained,
    /// A message's own weight is not one.
    #[error("the weight of message {message} is not a number from 0 on")]
    Weight {
        /// Index of the message, from 0.
        message: usize,
    },
    /// A text without turns, where turns are to be learned.
    #[error("a plain text has no turns of the assistant to learn")]
    NoTurns,
    /// A text with nothing in it.
    #[error("the text is empty")]
    EmptyText,
    /// A text has to end with a token that the model does not have.
    #[error("the base model has no `eos_token` to end a text with")]
    NoEos,
    /// Likelihoods have no weights.
    #[error("a turn of an answer that is judged has a weight of its own")]
    WeightedAnswer,
    /// There is nothing from which to generate.
    #[error("the chat template makes nothing of the conversation")]
    EmptyPrompt,
    /// The tokenizer cannot tokenise a text, or cannot turn ids into text.
    #[error("the tokenizer cannot process a text")]
    Tokenize,
}

impl Diagnose for ChatError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read(error) => return error.hint(),
            Self::Tokenizer { .. } | Self::Json { .. } | Self::Config { .. } => {
                "download the base model's folder again, or save it again with Transformers"
            }
            Self::NoTemplate { .. } => {
                "add a `chat_template.jinja`, such as that of the model's instruct sibling"
            }
            Self::NoDefaultTemplate => "save the one to use as `chat_template.jinja`",
            Self::TemplateSyntax { .. } => "mend the template; Transformers' rules apply",
            Self::Refused { .. } => "bring the messages into the order and roles it asks for",
            Self::TemplateLimit { .. } => {
                "the template is broken or hostile, or the conversation far too long: try another \
                 template, as `chat_template.jinja`"
            }
            Self::TemplateConstruct { .. } => {
                "give the messages every key that the template reads; if Transformers renders \
                 them, the template uses what is not supported here: try another one, as \
                 `chat_template.jinja`"
            }
            Self::NotVerbatim { .. } => {
                "give the message keys that the template writes, or use `train_on: all`"
            }
            Self::Empty | Self::NoAssistant | Self::NothingTrained => {
                "remove the row, or add what the assistant should have answered"
            }
            Self::NotAPrefix { .. } => {
                "split the row so that each ends at one answer, or use `train_on: all`"
            }
            Self::NoEndOfTurn { .. } => {
                "let the template write `eos_token` or an end-of-turn token after each answer; what \
                 it writes may have to become a token, with `base.added_tokens`"
            }
            Self::Weight { .. } => {
                "give `weight` a number such as 1 or 0.5, or 0 for no loss, or leave it out"
            }
            Self::NoTurns => "use `train_on: all`, or a format with turns",
            Self::EmptyText => "remove the row",
            Self::NoEos => "name `eos_token` in `tokenizer_config.json`",
            Self::WeightedAnswer => "leave `weight` out, or make it 0 or 1",
            Self::EmptyPrompt => "let the template write the messages and open the answer",
            Self::Tokenize => "check that `tokenizer.json` belongs to this model",
        };
        Some(hint.to_owned())
    }

    fn blame(&self) -> Blame {
        Blame::User
    }
}
