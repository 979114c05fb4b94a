//! A node as a serde deserializer.
//!
//! A hole deserializes as anything: numbers are 1, text is empty, lists are empty, structs
//! have every field and each is a hole, enums are their first variant.

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

use super::super::problem;
use super::super::yaml::{Entry, Node, Value, join};
use super::{Stop, What, shown};

/// A node, and the path that leads to it.
pub(super) struct Decoder<'t> {
    pub(super) node: &'t Node,
    pub(super) path: String,
}

impl<'t> Decoder<'t> {
    fn misfit(&self, expected: impl Into<String>) -> Stop {
        let found = match &self.node.value {
            _ if self.node.is_null() => "nothing".to_owned(),
            Value::Scalar { text, .. } => shown(text),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
            Value::Hole => "a hole".to_owned(),
        };
        Stop {
            path: Some(self.path.clone()),
            what: What::Type { expected: expected.into(), found },
        }
    }

    fn is_hole(&self) -> bool {
        matches!(self.node.value, Value::Hole)
    }

    /// The text of a scalar that stands without quotes: numbers and truth values do.
    fn plain(&self) -> Option<&'t str> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => Some(text),
            _ => None,
        }
    }

    fn unsigned(&self, max: u64) -> Result<u64, Stop> {
        if self.is_hole() {
            return Ok(1);
        }
        let text = self.plain().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        match text.and_then(|text| text.parse::<u64>().ok()) {
            Some(number) if number <= max => Ok(number),
            _ if text.is_some_and(|text| !text.is_empty()) => {
                Err(self.misfit(format!("at most {max}")))
            }
            _ => Err(self.misfit("a whole number from 0 up")),
        }
    }

    fn float(&self) -> Result<f64, Stop> {
        if self.is_hole() {
            return Ok(0.5);
        }
        // Rust also reads `inf` and `NaN`; no setting of a recipe can be either.
        self.plain()
            .filter(|text| text.bytes().all(|byte| b"0123456789.eE+-".contains(&byte)))
            .and_then(|text| text.parse::<f64>().ok())
            .filter(|number| number.is_finite())
            .ok_or_else(|| self.misfit("a number"))
    }

    fn entries(&self, keys: &[&str]) -> Result<&'t [Entry], Stop> {
        match &self.node.value {
            Value::Mapping(entries) => Ok(entries),
            Value::Hole => Ok(&[]),
            _ => {
                let keys = problem::listed(keys.iter().copied());
                Err(self.misfit(format!("a mapping with keys from {keys}")))
            }
        }
    }

    fn elements(&self) -> Result<&'t [Node], Stop> {
        match &self.node.value {
            Value::Sequence(nodes) => Ok(nodes),
            Value::Hole => Ok(&[]),
            _ => Err(self.misfit("a list (`[a, b]`)")),
        }
    }
}

macro_rules! unsigned {
    ($($method:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
            visitor.visit_u64(self.unsigned(u64::from(<$type>::MAX))?)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Decoder<'_> {
    type Error = Stop;

    unsigned! { deserialize_u8 u8, deserialize_u16 u16, deserialize_u32 u32, deserialize_u64 u64 }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Scalar { text, .. } => visitor.visit_str(text),
            Value::Sequence(_) | Value::Hole => self.deserialize_seq(visitor),
            Value::Mapping(_) => visitor.visit_map(Entries::new(&self, &[])?),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.plain() {
            Some("true" | "True" | "TRUE") => visitor.visit_bool(true),
            Some("false" | "False" | "FALSE") => visitor.visit_bool(false),
            _ if self.is_hole() => visitor.visit_bool(false),
            _ => Err(self.misfit("`true` or `false`")),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_f64(self.float()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Hole => visitor.visit_str(""),
            Value::Scalar { text, .. } if !self.node.is_null() => visitor.visit_str(text),
            _ => Err(self.misfit("text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        if self.node.is_null() || self.is_hole() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_seq(Elements { nodes: self.elements()?, index: 0, path: &self.path })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        let hole = Node { place: self.node.place.clone(), value: Value::Hole };
        let holes = vec![hole; if self.is_hole() { length } else { 0 }];
        let nodes = if self.is_hole() { &holes } else { self.elements()? };
        if nodes.len() != length {
            return Err(Stop {
                path: Some(self.path),
                what: What::Type {
                    expected: format!("a list of {length} values"),
                    found: format!("{}", nodes.len()),
                },
            });
        }
        visitor.visit_seq(Elements { nodes, index: 0, path: &self.path })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_map(Entries::new(&self, &[])?)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        let entries = Entries::new(&self, fields)?;
        visitor.visit_map(entries).map_err(|stop| stop.within(&self.path))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        let (word, content) = match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => (text.as_str(), None),
            Value::Mapping(entries) => match entries.as_slice() {
                [entry] => (entry.key.as_str(), Some(&entry.node)),
                _ => return Err(self.misfit(format!("one of {}", listed(variants)))),
            },
            Value::Hole => (variants.first().copied().unwrap_or_default(), Some(self.node)),
            _ => return Err(self.misfit(format!("one of {}", listed(variants)))),
        };
        let path = if content.is_some() { join(&self.path, word) } else { self.path.clone() };
        visitor
            .visit_enum(Variant { decoder: &self, word, content, path })
            .map_err(|stop| stop.within(&self.path))
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        if self.node.is_null() || self.is_hole() {
            visitor.visit_unit()
        } else {
            Err(self.misfit("nothing"))
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 char bytes byte_buf unit_struct tuple_struct identifier
        ignored_any
    }
}

fn listed(words: &[&str]) -> String {
    problem::listed(words.iter().copied())
}

/// The elements of a list, one after the other.
struct Elements<'a> {
    nodes: &'a [Node],
    index: usize,
    path: &'a str,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Stop> {
        let Some(node) = self.nodes.get(self.index) else { return Ok(None) };
        let path = format!("{}[{}]", self.path, self.index);
        self.index += 1;
        let value = seed.deserialize(Decoder { node, path: path.clone() });
        value.map(Some).map_err(|stop| stop.within(&path))
    }
}

/// The entries of a mapping, one after the other; for a hole, every field, each a hole.
struct Entries<'t> {
    entries: &'t [Entry],
    /// Fields that a hole pretends to have.
    pretended: &'static [&'static str],
    hole: &'t Node,
    path: String,
    index: usize,
}

impl<'t> Entries<'t> {
    fn new(decoder: &Decoder<'t>, fields: &'static [&'static str]) -> Result<Self, Stop> {
        Ok(Self {
            entries: decoder.entries(fields)?,
            pretended: if decoder.is_hole() { fields } else { &[] },
            hole: decoder.node,
            path: decoder.path.clone(),
            index: 0,
        })
    }

    fn current(&self) -> Option<(&'t str, &'t Node)> {
        match self.entries.get(self.index) {
            Some(entry) => Some((&entry.key, &entry.node)),
            None => self.pretended.get(self.index).map(|&field| (field, self.hole)),
        }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Stop> {
        let Some((key, _)) = self.current() else { return Ok(None) };
        let key: StrDeserializer<'_, Stop> = key.into_deserializer();
        seed.deserialize(key).map(Some).map_err(|stop| stop.within(&self.path))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stop> {
        let Some((key, node)) = self.current() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        self.index += 1;
        let path = join(&self.path, key);
        let value = seed.deserialize(Decoder { node, path: path.clone() });
        value.map_err(|stop| stop.within(&path))
    }
}

/// An externally tagged variant: `word`, or `word: content`.
struct Variant<'a, 't> {
    decoder: &'a Decoder<'t>,
    word: &'t str,
    content: Option<&'t Node>,
    path: String,
}

impl<'de> EnumAccess<'de> for Variant<'_, '_> {
    type Error = Stop;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Stop> {
        let word: StrDeserializer<'_, Stop> = self.word.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, '_> {
    type Error = Stop;

    fn unit_variant(self) -> Result<(), Stop> {
        match self.content {
            Some(node) if !node.is_null() && !self.decoder.is_hole() => {
                Err(self.decoder.misfit(format!("`{}` alone, without settings", self.word)))
            }
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Stop> {
        match self.content {
            Some(node) => {
                let value = seed.deserialize(Decoder { node, path: self.path.clone() });
                value.map_err(|stop| stop.within(&self.path))
            }
            None => Err(self.decoder.misfit(format!("`{}: {{ ... }}` with settings", self.word))),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        match self.content {
            Some(node) => de::Deserializer::deserialize_tuple(
                Decoder { node, path: self.path },
                length,
                visitor,
            ),
            None => Err(self.decoder.misfit("a list")),
        }
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        match self.content {
            Some(node) => de::Deserializer::deserialize_struct(
                Decoder { node, path: self.path },
                "",
                fields,
                visitor,
            ),
            None => Err(self.decoder.misfit("a mapping")),
        }
    }
}
