//! Conversations to tokens: chat template, tokenizer, loss mask.
//!
//! Owns the mask: which tokens carry loss is found by rendering the conversation up to and
//! through each turn of the assistant, never guessed. Does not own rendering
//! (`template`) nor where rows come from. Errors carry positions, never what was said.
//!
//! Reference: Transformers' `apply_chat_template`, which tokenises without adding special
//! tokens (the template writes them; adding them again doubles the first).

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokenizers::Tokenizer;

use super::template::{Failed, Template};
use super::tokenizer::{
    GenerationConfig, TokenizerConfig, find_template, read_json, read_tokenizer,
};
use crate::diagnose::{Blame, Diagnose};
use crate::recipe::TrainOn;

/// The role whose turns are learned.
const ASSISTANT: &str = "assistant";

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
    /// The chat template refuses the conversation.
    #[error("the chat template, line {line}, refuses the conversation: {reason}")]
    Render {
        /// Line of the template, from 1.
        line: usize,
        /// What it says.
        reason: String,
    },
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
    /// The assistant would never learn to stop.
    #[error("the chat template closes the assistant's message {message} with no special token")]
    NoEndOfTurn {
        /// Index of the assistant's message, from 0.
        message: usize,
    },
    /// No token carries loss.
    #[error("no token of the conversation carries loss")]
    NothingTrained,
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
            Self::Tokenizer { .. } | Self::Json { .. } => {
                "download the base model's folder again, or save it again with Transformers"
            }
            Self::NoTemplate { .. } => {
                "add a `chat_template.jinja`, such as that of the model's instruct sibling"
            }
            Self::TemplateSyntax { .. } => "mend the template; Transformers' rules apply",
            Self::Render { .. } => "bring the messages into the order and roles it asks for",
            Self::NoAssistant | Self::NothingTrained => {
                "remove the row, or add what the assistant should have answered"
            }
            Self::NotAPrefix { .. } => {
                "split the row so that each ends at one answer, or use `train_on: all`"
            }
            Self::NoEndOfTurn { .. } => {
                "let the template write `eos_token` or an end-of-turn token after each answer"
            }
            Self::EmptyPrompt => "let the template write the messages and open the answer",
            Self::Tokenize => "check that `tokenizer.json` belongs to this model",
        };
        Some(hint.to_owned())
    }

    fn blame(&self) -> Blame {
        Blame::User
    }
}

/// Turns conversations into tokens with the base model's own template and tokenizer.
#[derive(Debug)]
pub struct ChatEncoder {
    tokenizer: Tokenizer,
    template: Template,
    /// Tokens that can close a turn: all special ones, and `eos_token`.
    closing: BTreeSet<u32>,
    stop: Vec<u32>,
    vocab_size: usize,
}

impl ChatEncoder {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and
    /// `generation_config.json` (the last three where there are any) of a base folder.
    pub fn open(base_folder: &Path) -> Result<Self, ChatError> {
        let tokenizer = read_tokenizer(&base_folder.join("tokenizer.json"))?;
        let config_path = base_folder.join("tokenizer_config.json");
        let config = read_json::<TokenizerConfig>(&config_path)?.unwrap_or_default();
        let (path, source) = find_template(base_folder, &config_path, &config)?;
        let special = config.special_tokens();
        let eos = special.get("eos_token").and_then(|token| tokenizer.token_to_id(token));
        let template = Template::compile(&source, special, Timestamp::now())
            .map_err(|Failed { line, reason }| ChatError::TemplateSyntax { path, line, reason })?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut closing: BTreeSet<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        closing.extend(eos);
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        let mut encoder = Self { tokenizer, template, closing, stop: Vec::new(), vocab_size };
        let generation = base_folder.join("generation_config.json");
        let generation = read_json::<GenerationConfig>(&generation)?.unwrap_or_default();
        let mut stop: BTreeSet<u32> = generation.eos_token_id.into_iter().collect();
        stop.extend(eos);
        stop.extend(encoder.probe_end_of_turn());
        encoder.stop = stop.into_iter().collect();
        Ok(encoder)
    }

    /// Fixes what the template's `strftime_now` answers (in UTC), so that the tokens of a
    /// resumed run are those of the run that it resumes.
    pub fn with_clock(mut self, now: Timestamp) -> Self {
        self.template.set_clock(now);
        self
    }

    /// Tokenises a whole conversation with its mask.
    pub fn encode(&self, messages: &[Message], train_on: TrainOn) -> Result<Document, ChatError> {
        let text = self.render(messages, false)?;
        let encoding = self.tokenizer.encode(text.as_str(), false);
        let encoding = encoding.map_err(|_| ChatError::Tokenize)?;
        let (tokens, offsets) = (encoding.get_ids().to_vec(), encoding.get_offsets());
        let mut trained = vec![train_on == TrainOn::All; tokens.len()];
        if !messages.iter().any(|turn| turn.role == ASSISTANT) {
            return Err(ChatError::NoAssistant);
        }
        let turns = messages.iter().enumerate().filter(|(_, turn)| turn.role == ASSISTANT);
        for (message, _) in turns {
            let span = match self.assistant_span(messages, message, &text) {
                // Where everything is learned, a turn need not be told from those around it.
                Err(ChatError::NotAPrefix { .. }) if train_on == TrainOn::All => continue,
                span => span?,
            };
            let learned = self
                .learned_tokens(&text, span, &tokens, offsets)
                .ok_or(ChatError::NoEndOfTurn { message })?;
            trained.get_mut(learned).ok_or(ChatError::Tokenize)?.fill(true);
        }
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        if !trained.contains(&true) {
            return Err(ChatError::NothingTrained);
        }
        Ok(Document { tokens, trained })
    }

    /// Tokens that ask the assistant for its next turn, at least one.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, ChatError> {
        let text = self.render(messages, true)?;
        let encoding = self.tokenizer.encode_fast(text.as_str(), false);
        let tokens = encoding.map_err(|_| ChatError::Tokenize)?.get_ids().to_vec();
        if tokens.is_empty() { Err(ChatError::EmptyPrompt) } else { Ok(tokens) }
    }

    /// The text of generated tokens, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ChatError> {
        self.tokenizer.decode(tokens, true).map_err(|_| ChatError::Tokenize)
    }

    /// Tokens at which generation ends: `eos_token`, those of `generation_config.json`, and
    /// the token with which the template closes the assistant's turn. Sorted.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }

    /// Rows that an embedding needs: the largest token id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn render(&self, messages: &[Message], ask: bool) -> Result<String, ChatError> {
        let rendered = self.template.render(messages, ask);
        rendered.map_err(|Failed { line, reason }| ChatError::Render { line, reason })
    }

    /// Bytes of `text` that one turn of the assistant adds to what the model is given.
    fn assistant_span(
        &self,
        messages: &[Message],
        message: usize,
        text: &str,
    ) -> Result<Range<usize>, ChatError> {
        let before = self.render(&messages[..message], true)?;
        let end = if message + 1 == messages.len() {
            text.len()
        } else {
            let through = self.render(&messages[..=message], false)?;
            if !text.starts_with(&through) {
                return Err(ChatError::NotAPrefix { message });
            }
            through.len()
        };
        if before.len() > end || !text.starts_with(&before) {
            return Err(ChatError::NotAPrefix { message });
        }
        Ok(before.len()..end)
    }

    /// Tokens wholly inside `span`, through the special token that closes it. `None` when
    /// none does, or when more than white space follows it.
    ///
    /// Offsets are in bytes; the pieces of a character that is split over several tokens
    /// all have the offsets of the character.
    fn learned_tokens(
        &self,
        text: &str,
        span: Range<usize>,
        tokens: &[u32],
        offsets: &[(usize, usize)],
    ) -> Option<Range<usize>> {
        let first = offsets.partition_point(|(start, _)| *start < span.start);
        let inside = offsets.get(first..)?.iter().take_while(|(_, end)| *end <= span.end).count();
        let inside = tokens.get(first..first + inside)?;
        let close = first + inside.iter().rposition(|token| self.closing.contains(token))?;
        let rest = text.get(offsets.get(close)?.1..span.end)?;
        rest.trim().is_empty().then_some(first..close + 1)
    }

    /// The token that closes the assistant's turn in a small conversation; `None` where the
    /// template refuses that one: each row is still judged by itself.
    fn probe_end_of_turn(&self) -> Option<u32> {
        let turn = |role: &str| Message { role: role.to_owned(), content: "a".to_owned() };
        let document = self.encode(&[turn("user"), turn(ASSISTANT)], TrainOn::Assistant).ok()?;
        let last = document.trained.iter().rposition(|trained| *trained)?;
        document.tokens.get(last).copied()
    }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
