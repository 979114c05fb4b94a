//! What is trained of the embedding and of the output projection, in PEFT's words.
//!
//! Owns the values of `modules_to_save` and `trainable_token_indices`, and turning tokens
//! into ids. Does not own the tokenizer that knows them ([`crate::dataset::vocabulary`]).

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Lora;

/// A module with one row for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Module {
    /// The embedding.
    EmbedTokens,
    /// The output projection.
    LmHead,
}

impl Module {
    /// Both, in the order of the model.
    pub const ALL: [Self; 2] = [Self::EmbedTokens, Self::LmHead];

    /// Its name in Transformers' models.
    pub fn name(self) -> &'static str {
        match self {
            Self::EmbedTokens => "embed_tokens",
            Self::LmHead => "lm_head",
        }
    }
}

/// A token as a recipe names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenIndex {
    /// By its id.
    Id(u32),
    /// By its text, which the tokenizer must have as one token.
    Token(String),
}

/// Rows that are trained. As in PEFT, a list means the embedding (and the output projection
/// where the two are tied), and a mapping names the modules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenIndices {
    /// Rows of the embedding.
    pub embed_tokens: Vec<TokenIndex>,
    /// Rows of the output projection.
    pub lm_head: Vec<TokenIndex>,
}

/// A token that the tokenizer does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownToken(pub String);

impl TokenIndices {
    /// The rows of a module.
    pub fn of(&self, module: Module) -> &[TokenIndex] {
        match module {
            Module::EmbedTokens => &self.embed_tokens,
            Module::LmHead => &self.lm_head,
        }
    }

    /// The rows of a module, to be changed.
    pub fn of_mut(&mut self, module: Module) -> &mut Vec<TokenIndex> {
        match module {
            Module::EmbedTokens => &mut self.embed_tokens,
            Module::LmHead => &mut self.lm_head,
        }
    }

    /// The rows of a module by id; tokens that are not [resolved](Lora::resolve) are left out.
    pub fn ids(&self, module: Module) -> Vec<u32> {
        let id = |index: &TokenIndex| match index {
            TokenIndex::Id(id) => Some(*id),
            TokenIndex::Token(_) => None,
        };
        self.of(module).iter().filter_map(id).collect()
    }
}

impl Lora {
    /// The same with every token by its id, once, and with the rows of the `added` tokens
    /// trained in every module that is not trained whole. A base that is `tied` has one row
    /// for both modules, which stands under `embed_tokens`.
    pub fn resolve(
        &self,
        id_of: impl Fn(&str) -> Option<u32>,
        added: &[u32],
        tied: bool,
    ) -> Result<Self, UnknownToken> {
        let mut resolved = self.clone();
        for module in Module::ALL {
            let mut ids: Vec<TokenIndex> = Vec::new();
            let whole = self.modules_to_save.contains(&module);
            let added = added.iter().filter(|_| !whole).map(|id| Ok(TokenIndex::Id(*id)));
            let named = self.trainable_token_indices.of(module).iter().map(|index| match index {
                TokenIndex::Id(id) => Ok(TokenIndex::Id(*id)),
                TokenIndex::Token(token) => {
                    id_of(token).map(TokenIndex::Id).ok_or_else(|| UnknownToken(token.clone()))
                }
            });
            for index in named.chain(added) {
                let index = index?;
                if !ids.contains(&index) {
                    ids.push(index);
                }
            }
            *resolved.trainable_token_indices.of_mut(module) = ids;
        }
        if tied {
            resolved.trainable_token_indices.lm_head.clear();
        }
        Ok(resolved)
    }
}

impl Serialize for TokenIndex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Id(id) => serializer.serialize_u32(*id),
            Self::Token(token) => serializer.serialize_str(token),
        }
    }
}

impl<'de> Deserialize<'de> for TokenIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = TokenIndex;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the id of a token, or the token")
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<TokenIndex, E> {
                let large = |_| E::invalid_value(de::Unexpected::Unsigned(id), &self);
                u32::try_from(id).map(TokenIndex::Id).map_err(large)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TokenIndex, E> {
                if text.is_empty() {
                    return Err(E::invalid_value(de::Unexpected::Str(text), &self));
                }
                // Recipes hand every scalar over as text.
                if text.bytes().all(|byte| byte.is_ascii_digit()) {
                    let large = |_| E::invalid_value(de::Unexpected::Str(text), &self);
                    return text.parse().map(TokenIndex::Id).map_err(large);
                }
                Ok(TokenIndex::Token(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The mapping.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ByModule {
    #[serde(default)]
    embed_tokens: Vec<TokenIndex>,
    #[serde(default)]
    lm_head: Vec<TokenIndex>,
}

impl Serialize for TokenIndices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.lm_head.is_empty() {
            return self.embed_tokens.serialize(serializer);
        }
        let Self { embed_tokens, lm_head } = self.clone();
        ByModule { embed_tokens, lm_head }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TokenIndices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TokenIndices;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tokens, or `{ embed_tokens: […], lm_head: […] }`")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<TokenIndices, A::Error> {
                let embed_tokens = Vec::deserialize(SeqAccessDeserializer::new(seq))?;
                Ok(TokenIndices { embed_tokens, lm_head: Vec::new() })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TokenIndices, A::Error> {
                let ByModule { embed_tokens, lm_head } =
                    ByModule::deserialize(MapAccessDeserializer::new(map))?;
                Ok(TokenIndices { embed_tokens, lm_head })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(more: &str) -> Lora {
        serde_json::from_str(&format!(r#"{{"rank": 2, "alpha": 4{more}}}"#)).unwrap()
    }

    fn ids(lora: &Lora) -> [Vec<u32>; 2] {
        Module::ALL.map(|module| lora.trainable_token_indices.ids(module))
    }

    fn id_of(token: &str) -> Option<u32> {
        ["<a>", "<b>"].iter().position(|known| *known == token).map(|id| id as u32 + 10)
    }

    #[test]
    fn a_list_is_the_embedding_and_a_mapping_says_which() {
        let list = lora(r#", "trainable_token_indices": [3, "<b>"]"#);
        assert_eq!(ids(&list.resolve(id_of, &[], false).unwrap()), [vec![3, 11], vec![]]);
        let mapping = lora(r#", "trainable_token_indices": {"lm_head": ["<a>", 10]}"#);
        assert_eq!(ids(&mapping.resolve(id_of, &[], false).unwrap()), [vec![], vec![10]]);
        for lora in [list, mapping] {
            let text = serde_json::to_string(&lora).unwrap();
            assert_eq!(serde_json::from_str::<Lora>(&text).unwrap(), lora);
        }
    }

    #[test]
    fn added_tokens_are_trained_once_where_the_module_is_not_trained_whole() {
        let named = lora(r#", "trainable_token_indices": [8]"#);
        assert_eq!(ids(&named.resolve(id_of, &[8, 9], false).unwrap()), [vec![8, 9], vec![8, 9]]);
        assert_eq!(ids(&named.resolve(id_of, &[8, 9], true).unwrap()), [vec![8, 9], vec![]]);
        let whole = lora(r#", "modules_to_save": ["lm_head"]"#);
        assert_eq!(ids(&whole.resolve(id_of, &[9], false).unwrap()), [vec![9], vec![]]);
    }

    #[test]
    fn an_unknown_token_is_named() {
        let unknown = lora(r#", "trainable_token_indices": ["<c>"]"#).resolve(id_of, &[], true);
        assert_eq!(unknown.unwrap_err(), UnknownToken("<c>".to_owned()));
    }

    #[test]
    fn ids_beyond_32_bits_and_empty_tokens_are_refused() {
        for wrong in ["4294967296", r#""4294967296""#, "-1", r#""""#, "1.5"] {
            let text = format!(r#"{{"rank":2,"alpha":4,"trainable_token_indices":[{wrong}]}}"#);
            assert!(serde_json::from_str::<Lora>(&text).is_err(), "{wrong}");
        }
    }
}
