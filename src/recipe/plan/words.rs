//! The words of the base: its tokenizer, its template, and which rows are trained for them.

use serde::Serialize;

use super::Looking;
use crate::base::BaseFolder;
use crate::dataset::chat::ChatError;
use crate::dataset::vocabulary::{Vocabulary, VocabularyError};
use crate::recipe::problem::listed;
use crate::recipe::{Lora, Module, UnknownToken};

/// Something that may be a mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// What it is.
    pub message: String,
    /// What to do if it is one.
    pub hint: String,
}

impl Looking<'_> {
    /// The tokenizer and the template, with a row of the base for every token.
    pub(super) fn vocabulary(&mut self, base: Option<&mut BaseFolder>) -> Option<Vocabulary> {
        // Without its folder, everything about the tokenizer would be the same problem again.
        let base = base?;
        let words = &self.literal.recipe.base;
        let opened = Vocabulary::open(base.folder(), words);
        let of_recipe = |error: &VocabularyError| match error {
            VocabularyError::Template { .. } => true,
            VocabularyError::Chat(ChatError::TemplateSyntax { path, .. }) => {
                Some(path) == words.chat_template.as_ref()
            }
            VocabularyError::Chat(_) => false,
        };
        let key = match &opened {
            Err(error) if of_recipe(error) => "base.chat_template",
            _ => "base.model",
        };
        let vocabulary = self.take(key, opened)?;
        if self.literal.recipe.data.has_conversations() {
            self.take("base.model", vocabulary.encoder.check_template())?;
        }
        self.take("base.model", vocabulary.fit(base))?;
        Some(vocabulary)
    }

    /// How many weights of the embedding and of the output projection are trained.
    pub(super) fn trained_rows(
        &mut self,
        base: &BaseFolder,
        lora: &Lora,
        vocabulary: &Vocabulary,
    ) -> Option<u64> {
        let key = "adapter.lora.trainable_token_indices";
        let (rows, tied) = (base.architecture.vocab_size, base.architecture.tie_word_embeddings);
        if tied {
            self.trained_alike(lora);
        }
        let resolved = match vocabulary.resolve(lora, tied) {
            Ok(resolved) => resolved,
            Err(UnknownToken(token)) => {
                let hint = format!("write its id, or add `{token}` to `base.added_tokens`");
                let what = format!("names `{token}`, which is no token of the base");
                self.rule(key, what, hint);
                return None;
            }
        };
        let mut trained = 0;
        for module in Module::ALL {
            let ids = resolved.trainable_token_indices.ids(module);
            if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
                let what = format!("names {id}, and the embedding has {rows} rows");
                self.rule(key, what, format!("write an id below {rows}, or a token"));
            }
            let whole = resolved.modules_to_save.contains(&module);
            trained += if whole { rows as u64 } else { ids.len() as u64 };
        }
        Some(trained.saturating_mul(base.architecture.hidden_size as u64))
    }

    /// A tied base has one table for both modules; one cannot be trained without the other.
    fn trained_alike(&mut self, lora: &Lora) {
        let whole = &lora.modules_to_save;
        if whole.len() == 1 {
            self.rule(
                "adapter.lora.modules_to_save",
                "names one of two modules that are tied in this base".to_owned(),
                "write `[embed_tokens, lm_head]`, which unties them, or train single rows with \
                 `trainable_token_indices`"
                    .to_owned(),
            );
        }
        let rows = &lora.trainable_token_indices;
        if !rows.lm_head.is_empty() && rows.lm_head != rows.embed_tokens {
            self.rule(
                "adapter.lora.trainable_token_indices",
                "names other rows of `lm_head` than of `embed_tokens`, to which it is tied in \
                 this base"
                    .to_owned(),
                "write one list, which is for both".to_owned(),
            );
        }
    }
}

/// What looks wrong about a template, and is right for some models.
pub(super) fn warnings(vocabulary: &Vocabulary) -> Vec<Warning> {
    let markers = vocabulary.split_markers();
    if markers.is_empty() {
        return Vec::new();
    }
    vec![Warning {
        message: format!(
            "the chat template writes {}, which this tokenizer reads as several tokens",
            listed(markers.iter().map(String::as_str))
        ),
        hint: "if they are meant as tokens, name them in `base.added_tokens`; some models were \
               trained on them as text"
            .to_owned(),
    }]
}
