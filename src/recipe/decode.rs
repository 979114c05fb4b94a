//! A tree to any type that serde can fill, finding every problem and not only the first.
//!
//! serde stops at the first error. Here the error carries the path of the value it is
//! about; that value is replaced by a hole, which fits every type, and the tree is read
//! again, until nothing more is found. Recipes are small: a file with ten mistakes is read
//! eleven times within a millisecond.

mod decoder;

use std::fmt;

use serde::de::{self, DeserializeOwned, Expected, Unexpected};

use super::problem::{Fault, Place, most_alike};
use super::yaml::{Entry, Node, Value, join};
use decoder::Decoder;

/// Most problems that are looked for; the rest shows when these are mended.
const MAX_PROBLEMS: usize = 64;

/// Longest part of a wrong value that a message repeats, in characters.
const MAX_SHOWN: usize = 40;

/// What could be read, and all that could not.
pub(super) struct Decoded<T> {
    /// The value, with something arbitrary at the paths in `holes`; `None` only when not
    /// even that could be made.
    pub(super) value: Option<T>,
    pub(super) faults: Vec<(Place, Fault)>,
    /// Paths whose values mean nothing, because they are already reported.
    pub(super) holes: Vec<String>,
}

/// Reads `root` as a `T`. Wrong values in the tree become holes, and unknown keys disappear.
pub(super) fn decode<T: DeserializeOwned>(root: &mut Node) -> Decoded<T> {
    let mut decoded = Decoded { value: None, faults: Vec::new(), holes: Vec::new() };
    while decoded.faults.len() < MAX_PROBLEMS {
        match T::deserialize(Decoder { node: root, path: String::new() }) {
            Ok(value) => {
                decoded.value = Some(value);
                forget_misspelt(&mut decoded.faults);
                break;
            }
            Err(stop) => {
                let Stop { path, what } = stop.within("");
                let path = path.unwrap_or_default();
                decoded.holes.push(what.whole_key(&path));
                let place = place_of(root, &path, &what);
                heal(root, &path, &what);
                decoded.faults.push((place, what.into_fault(&path)));
            }
        }
    }
    decoded
}

/// A key that is missing because it is misspelt is one mistake, not two.
fn forget_misspelt(faults: &mut Vec<(Place, Fault)>) {
    let parent = |key: &str| key.rsplit_once('.').map_or("", |(parent, _)| parent).to_owned();
    let mut meant = Vec::new();
    for (_, fault) in faults.iter() {
        if let Fault::UnknownKey { key, known } = fault {
            let last = key.rsplit('.').next().unwrap_or(key);
            let alike = most_alike(last, known.iter().copied());
            meant.extend(alike.map(|alike| join(&parent(key), alike)));
        }
    }
    faults.retain(|(_, fault)| match fault {
        Fault::MissingKey { key } => !meant.contains(key),
        _ => true,
    });
}

/// Where to point: at a key that is wrong, at a wrong value, or at the mapping that lacks a key.
fn place_of(root: &Node, path: &str, what: &What) -> Place {
    let (node, place) = root.find(path).unwrap_or((root, &root.place));
    let entry = match (what, &node.value) {
        (What::UnknownKey { key, .. }, Value::Mapping(entries)) => {
            entries.iter().find(|entry| entry.key == *key)
        }
        (What::UnknownWord { .. }, Value::Mapping(entries)) => entries.first(),
        _ => None,
    };
    entry.map_or(place, |entry| &entry.key_place).clone()
}

/// Takes the wrong thing out of the tree, so that the next reading gets past it.
fn heal(root: &mut Node, path: &str, what: &What) {
    let Some(node) = root.find_mut(path) else {
        root.value = Value::Hole;
        return;
    };
    match (what, &mut node.value) {
        (What::UnknownKey { key, .. }, Value::Mapping(entries)) => {
            entries.retain(|entry| entry.key != *key);
        }
        (What::Missing { key }, Value::Mapping(entries)) => {
            let hole = Node { place: node.place.clone(), value: Value::Hole };
            entries.push(Entry { key: key.clone(), key_place: node.place.clone(), node: hole });
        }
        (_, value) => *value = Value::Hole,
    }
}

/// The first thing that serde cannot get past.
#[derive(Debug)]
struct Stop {
    /// The value it is about, or the mapping of the key it is about; `None` until a decoder
    /// on the way out fills it in.
    path: Option<String>,
    what: What,
}

#[derive(Debug)]
enum What {
    UnknownKey { key: String, known: &'static [&'static str] },
    UnknownWord { word: String, known: Vec<String> },
    Missing { key: String },
    Type { expected: String, found: String },
    Other(String),
}

impl Stop {
    /// Says which value it is about, unless that is known: the innermost one knows best.
    fn within(mut self, path: &str) -> Self {
        self.path.get_or_insert_with(|| path.to_owned());
        self
    }
}

impl What {
    /// The path of what is wrong, in words.
    fn whole_key(&self, path: &str) -> String {
        match self {
            Self::UnknownKey { key, .. } | Self::Missing { key } => join(path, key),
            _ => path.to_owned(),
        }
    }

    fn into_fault(self, path: &str) -> Fault {
        let key = match self.whole_key(path) {
            key if key.is_empty() => "the recipe".to_owned(),
            key => key,
        };
        match self {
            Self::UnknownKey { known, .. } => Fault::UnknownKey { key, known },
            Self::UnknownWord { word, known } => Fault::UnknownWord { key, found: word, known },
            Self::Missing { .. } => Fault::MissingKey { key },
            Self::Type { expected, found } => Fault::WrongType { key, expected, found },
            Self::Other(message) => Fault::WrongType { key, expected: message, found: "it".into() },
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: None, what: What::Other(message.to_string()) }
    }
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_value(found, expected)
    }
    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Str(text) => shown(text),
            other => other.to_string(),
        };
        Self { path: None, what: What::Type { expected: expected.to_string(), found } }
    }
    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self { path: None, what: What::UnknownKey { key: key.to_owned(), known } }
    }
    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        let known = known.iter().map(|&word| word.to_owned()).collect();
        Self { path: None, what: What::UnknownWord { word: word.to_owned(), known } }
    }
    fn missing_field(key: &'static str) -> Self {
        Self { path: None, what: What::Missing { key: key.to_owned() } }
    }
}

fn shown(text: &str) -> String {
    if text.chars().count() <= MAX_SHOWN {
        return format!("`{text}`");
    }
    format!("`{}…`", text.chars().take(MAX_SHOWN).collect::<String>())
}
