//! Between what is said and tokens: with the model's chat template, or raw.
//!
//! Owns which of the two is meant, and the tokenizer of plain text. The template and its
//! tokenizer are `dataset::chat`. Raw text is tokenised as Transformers' `tokenizer(text)`
//! does: with the special tokens that the post-processor of `tokenizer.json` adds.

use std::path::Path;

use serde::Deserialize;
use tokenizers::Tokenizer;

use super::GenerationError;
use super::config::{GenerationConfig, read_json};
use super::input::{Prompt, Request};
use crate::dataset::chat::ChatEncoder;
use crate::dataset::conversation::Message;
use crate::dataset::tokenizer::{self, one_or_many};
use crate::diagnose::Failure;

/// A model's tokenizer, and how it is spoken to.
#[derive(Debug)]
pub enum Text {
    /// Messages, through the chat template.
    Chat(Box<ChatEncoder>),
    /// Plain text to go on from.
    Raw(Box<RawText>),
}

/// The tokenizer of plain text.
#[derive(Debug)]
pub struct RawText {
    tokenizer: Tokenizer,
    stop: Vec<u32>,
}

/// What is read of `config.json` and `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EndOfSequence {
    #[serde(deserialize_with = "one_or_many")]
    eos_token_id: Vec<u32>,
}

impl Text {
    /// Reads the tokenizer of a model's folder.
    pub fn open(folder: &Path, raw: bool) -> Result<Self, Failure> {
        Ok(if raw {
            Self::Raw(Box::new(RawText::open(folder)?))
        } else {
            Self::Chat(Box::new(ChatEncoder::open(folder)?))
        })
    }

    /// Tokens that ask for an answer, at least one. `system` goes before a conversation
    /// that has no such message of its own.
    pub fn prompt(&self, request: &Request, system: Option<&str>) -> Result<Vec<u32>, Failure> {
        let number = request.number;
        let tokens = match (self, &request.prompt) {
            (Self::Chat(encoder), prompt) => encoder.prompt(&conversation(prompt, system))?,
            (Self::Raw(raw), Prompt::Text(text)) => raw.encode(text)?,
            (Self::Raw(_), Prompt::Messages(_)) => {
                return Err(GenerationError::RawMessages { number }.into());
            }
        };
        if tokens.is_empty() {
            Err(GenerationError::EmptyPrompt { number }.into())
        } else {
            Ok(tokens)
        }
    }

    /// The text of generated tokens, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Failure> {
        Ok(match self {
            Self::Chat(encoder) => encoder.decode(tokens)?,
            Self::Raw(raw) => {
                let decoded = raw.tokenizer.decode(tokens, true);
                decoded.map_err(|_| GenerationError::Tokenize)?
            }
        })
    }

    /// The id of a token that is spelt so.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Chat(encoder) => encoder.token_id(token),
            Self::Raw(raw) => raw.tokenizer.token_to_id(token),
        }
    }

    /// Tokens at which an answer ends, unless the user says otherwise.
    pub fn stop_ids(&self) -> &[u32] {
        match self {
            Self::Chat(encoder) => encoder.stop_ids(),
            Self::Raw(raw) => &raw.stop,
        }
    }

    /// Rows that an embedding needs: the largest token id plus one.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Chat(encoder) => encoder.vocab_size(),
            Self::Raw(raw) => {
                let largest = raw.tokenizer.get_vocab(true).into_values().max();
                largest.map_or(0, |id| id as usize + 1)
            }
        }
    }
}

/// What the template is given. A last answer is left off: it is what the model is asked for.
fn conversation(prompt: &Prompt, system: Option<&str>) -> Vec<Message> {
    let message =
        |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let mut messages = match prompt {
        Prompt::Text(text) => vec![message("user", text)],
        Prompt::Messages(messages) => messages.clone(),
    };
    messages.pop_if(|last| last.role == "assistant");
    if let Some(system) = system
        && messages.first().is_none_or(|first| first.role != "system")
    {
        messages.insert(0, message("system", system));
    }
    messages
}

impl RawText {
    fn open(folder: &Path) -> Result<Self, Failure> {
        let tokenizer = tokenizer::open(folder)?;
        // As Transformers: the model's own configuration where the other does not say.
        let mut stop = GenerationConfig::read(folder)?.eos_token_id;
        if stop.is_empty() {
            let config = read_json::<EndOfSequence>(&folder.join("config.json"))?;
            stop = config.unwrap_or_default().eos_token_id;
        }
        Ok(Self { tokenizer, stop })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, GenerationError> {
        let encoding = self.tokenizer.encode_fast(text, true);
        Ok(encoding.map_err(|_| GenerationError::Tokenize)?.get_ids().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::fixture::{self, TEMPLATE, special};

    fn open(raw: bool) -> Text {
        let folder = tempfile::tempdir().unwrap();
        fixture::base_folder(folder.path(), TEMPLATE);
        let config = br#"{"eos_token_id": [258, 262]}"#;
        fixture::write(&folder.path().join("config.json"), config);
        Text::open(folder.path(), raw).unwrap()
    }

    fn messages(turns: &[(&str, &str)]) -> Request {
        let message = |(role, content): &(&str, &str)| Message {
            role: (*role).to_owned(),
            content: (*content).to_owned(),
        };
        let prompt = Prompt::Messages(turns.iter().map(message).collect());
        Request { id: None, number: 3, prompt }
    }

    #[test]
    fn raw_text_gets_the_special_tokens_of_the_post_processor() {
        let text = open(true);
        let tokens = text.prompt(&Request::single("hi".to_owned()), None).unwrap();
        assert_eq!(tokens, [special("<|begin|>"), 256]);
        assert_eq!(text.stop_ids(), [258, 262]);
        let refused = text.prompt(&messages(&[("user", "hi")]), None).unwrap_err();
        assert!(refused.to_string().starts_with("request 3 has `messages`"), "{refused}");
    }

    #[test]
    fn a_system_message_goes_first_and_a_last_answer_is_left_off() {
        let text = open(false);
        let prompt = |request: &Request, system| text.prompt(request, system).unwrap();
        let single = prompt(&Request::single("hi".to_owned()), None);
        assert_eq!(prompt(&messages(&[("user", "hi"), ("assistant", "yo")]), None), single);
        let both = prompt(&messages(&[("system", "be"), ("user", "hi")]), None);
        assert_eq!(prompt(&messages(&[("user", "hi")]), Some("be")), both);
        assert_eq!(prompt(&messages(&[("system", "be"), ("user", "hi")]), Some("no")), both);
        assert_ne!(both, single);
    }
}
