//! JSON in which no object has a key twice.
//!
//! Owns the check that every strict reader of JSON begins with. serde_json keeps the last of
//! two equal keys, other readers the first: a text could say one thing to one reader and
//! another to the next.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// Why a text is not one JSON value with unique keys. Places count from 1.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Not JSON, or more than one value.
    Syntax { line: usize, column: usize, what: String },
    /// A key occurs twice in one object.
    DuplicateKey { line: usize, column: usize, key: String },
}

/// Whether `text` is one JSON value without duplicate keys.
pub(crate) fn check(text: &str) -> Result<(), Fault> {
    let duplicate = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = Unique { duplicate: &duplicate }
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    parsed.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        match duplicate.take() {
            Some(key) => Fault::DuplicateKey { line, column, key },
            None => Fault::Syntax { line, column, what: message(&error) },
        }
    })
}

/// What serde_json says, without the place that it appends.
pub(crate) fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// Walks any value and keeps nothing of it but the first duplicate key.
#[derive(Clone, Copy)]
struct Unique<'a> {
    duplicate: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if keys.contains(&key) {
                self.duplicate.replace(Some(key));
                return Err(A::Error::custom("a key occurs twice"));
            }
            keys.insert(key);
            map.next_value_seed(self)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}
