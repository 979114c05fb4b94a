//! Rows without turns: a text, and a prompt with its completion.
//!
//! Both are tokenised as `tokenizer(text)` does in Transformers, with what the tokenizer's
//! post-processor puts before and after, never twice; `eos_token` ends them. Of a completion,
//! every token carries loss that has nothing of the prompt, and `eos_token`. That is TRL's
//! mask wherever its prompt and its whole row agree on their first tokens. Where a token
//! holds the end of the prompt and the start of the completion, TRL warns; here that token
//! belongs to the prompt, as it does in a chat.
//!
//! Reference: `tokenize_fn` of TRL's `SFTTrainer` for `text` and `prompt`/`completion`.

use super::{ChatEncoder, ChatError, Document, LossMask};
use crate::recipe::TrainOn;

impl ChatEncoder {
    /// A text in which every token is learned.
    pub(super) fn encode_text(&self, text: &str, mask: LossMask) -> Result<Document, ChatError> {
        if mask.train_on != TrainOn::All {
            return Err(ChatError::NoTurns);
        }
        self.encode_from(text, 0)
    }

    /// A prompt and the completion that should follow.
    pub(super) fn encode_completion(
        &self,
        prompt: &str,
        completion: &str,
        mask: LossMask,
    ) -> Result<Document, ChatError> {
        let whole = [prompt, completion].concat();
        let learned = if mask.train_on == TrainOn::All { 0 } else { prompt.len() };
        let document = self.encode_from(&whole, learned)?;
        // Only `eos_token` is left to learn where the last token swallows the completion.
        if completion.is_empty() || document.trained_tokens() < 2 {
            return Err(ChatError::NothingTrained);
        }
        Ok(document)
    }

    /// A text whose tokens are learned that hold nothing before a byte of it.
    fn encode_from(&self, text: &str, learned: usize) -> Result<Document, ChatError> {
        let eos = self.eos.ok_or(ChatError::NoEos)?;
        let found = self.tokens(text)?;
        if found.ids.is_empty() {
            return Err(ChatError::EmptyText);
        }
        let (before, after) = self.affixes.as_ref().ok_or(ChatError::Tokenize)?;
        let mut document = Document::default();
        if !found.ids.starts_with(before) {
            document.tokens.extend(before);
        }
        let first = match learned {
            0 => 0,
            _ => {
                let prompt = found.offsets.partition_point(|(start, _)| *start < learned);
                document.tokens.len() + prompt
            }
        };
        document.tokens.extend(&found.ids);
        if !document.tokens.ends_with(after) {
            document.tokens.extend(after);
        }
        if document.tokens.last() != Some(&eos) {
            document.tokens.push(eos);
        }
        document.weights = vec![0.0; first];
        document.weights.resize(document.tokens.len(), 1.0);
        self.forget_padding(&mut document);
        document.open();
        if document.trained_tokens() == 0 { Err(ChatError::NothingTrained) } else { Ok(document) }
    }

    /// Padding that a text brings along carries no loss: a `pad_token` that does not end
    /// anything, or comes once more after one that does.
    pub(super) fn forget_padding(&self, document: &mut Document) {
        let Some(pad) = self.pad else { return };
        let ends = self.stop.contains(&pad);
        let mut before = None;
        for (token, weight) in document.tokens.iter().zip(&mut document.weights) {
            if *token == pad && (!ends || before == Some(pad)) {
                *weight = 0.0;
            }
            before = Some(*token);
        }
    }
}
