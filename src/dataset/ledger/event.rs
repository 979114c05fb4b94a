//! One line of a ledger: its words, and the strict reading of them.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use super::error::Fault;
use crate::dataset::consent::{Ask, purposes};
use crate::files::hex;
use crate::json;

/// In a scope, every purpose or every processing.
pub const ANY: &str = "*";

/// 32 bytes, written as 64 lower-case hexadecimal digits: a SHA-256, or an HMAC of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Reads 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Digest;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 lower-case hexadecimal digits")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Digest, E> {
                Digest::parse(text)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Other("a string"), &self))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// What happened to a consent, in the words of DPV's consent statuses and of `objected`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// By the subject.
    Withdrawn,
    /// By another entity.
    Revoked,
    /// By a court or an authority.
    Invalidated,
    /// An objection to a legitimate interest or a public task.
    Objected,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Withdrawn => "withdrawn",
            Self::Revoked => "revoked",
            Self::Invalidated => "invalidated",
            Self::Objected => "objected",
        })
    }
}

/// For what an event holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// DPV purposes, or [`ANY`].
    pub purposes: Vec<String>,
    /// DPV processing, or [`ANY`].
    pub processing: Vec<String>,
}

impl Default for Scope {
    fn default() -> Self {
        Self { purposes: vec![ANY.to_owned()], processing: vec![ANY.to_owned()] }
    }
}

impl Scope {
    /// Whether the event concerns what is asked: one purpose of it and one processing.
    ///
    /// In doubt it does: a broader or a narrower term counts as the term itself, and an ask
    /// that names nothing is met by everything.
    pub fn meets(&self, ask: &Ask) -> bool {
        meets(&self.purposes, &ask.purpose, related)
            && meets(&self.processing, &ask.processing, related_processing)
    }
}

fn meets(scope: &[String], asked: &[String], related: impl Fn(&str, &str) -> bool) -> bool {
    let met = |term: &String| asked.iter().any(|asked| related(term, asked));
    asked.is_empty() || scope.iter().any(|term| term == ANY || met(term))
}

/// Whether one of two purposes is the other or broader. A term that DPV does not have may
/// mean any.
fn related(one: &str, other: &str) -> bool {
    let known = purposes::is_known(one) && purposes::is_known(other);
    !known || purposes::includes(one, other) || purposes::includes(other, one)
}

/// The processings that are known to have nothing to do with each other, but for training
/// and fine-tuning. Any other term (`dpv:Use`, a misspelt one) may mean all of them.
const APART: [&str; 4] =
    ["ai:ModelFineTuning", "ai:ModelTraining", "dpv:DiscloseByTransmission", "dpv:MakeAvailable"];

fn related_processing(one: &str, other: &str) -> bool {
    let trains = |term: &str| ["ai:ModelFineTuning", "ai:ModelTraining"].contains(&term);
    one == other
        || (trains(one) && trains(other))
        || !(APART.contains(&one) && APART.contains(&other))
}

/// A line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its number, from 1.
    pub seq: u64,
    /// `urn:uuid:` and a UUID.
    pub event_id: String,
    /// Whose consent, by the record that it covers.
    #[serde(deserialize_with = "present")]
    pub record_id: Option<String>,
    /// Whose consent, by the subject: every record of theirs.
    #[serde(deserialize_with = "present")]
    pub subject_ref: Option<Digest>,
    /// What happened.
    pub event: Kind,
    /// For what.
    pub scope: Scope,
    /// From when on it holds.
    pub effective_at: Timestamp,
    /// When it was written down.
    pub recorded_at: Timestamp,
    /// SHA-256 of what proves it, where something does.
    #[serde(deserialize_with = "present")]
    pub evidence_sha256: Option<Digest>,
    /// SHA-256 of the line before, without its line feed; zeros in the first.
    pub prev_sha256: Digest,
}

/// The keys of a [`Line`] and of its [`Scope`].
const KEYS: [&str; 10] = [
    "seq",
    "event_id",
    "record_id",
    "subject_ref",
    "event",
    "scope",
    "effective_at",
    "recorded_at",
    "evidence_sha256",
    "prev_sha256",
];
const SCOPE_KEYS: [&str; 2] = ["purposes", "processing"];

/// serde takes an absent key for null; here null says something and absent does not.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

impl Line {
    /// Reads a line, without its line feed.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| Fault::NotUtf8 { column: error.valid_up_to() + 1 })?;
        let line: Self = serde_json::from_str(text).map_err(|error| fault(text, &error))?;
        let wrong = |what: &str| Err(Fault::Value { what: what.to_owned() });
        if line.record_id.is_none() && line.subject_ref.is_none() {
            return wrong("it names neither a record nor a subject");
        }
        if line.record_id.as_ref().is_some_and(String::is_empty) {
            return wrong("`record_id` is empty");
        }
        if line.scope.purposes.is_empty() || line.scope.processing.is_empty() {
            return wrong("its scope is for nothing");
        }
        let id = line.event_id.strip_prefix("urn:uuid:").map(uuid::Uuid::try_parse);
        if !matches!(id, Some(Ok(_))) {
            return wrong("`event_id` is not `urn:uuid:` and a UUID");
        }
        Ok(line)
    }
}

/// What it is that serde could not read.
fn fault(text: &str, error: &serde_json::Error) -> Fault {
    let (column, what) = (error.column(), json::message(error));
    match json::check(text) {
        Err(json::Fault::DuplicateKey { column, key, .. }) => Fault::DuplicateKey { column, key },
        Err(json::Fault::Syntax { column, what, .. }) => Fault::NotJson { column, what },
        Ok(()) => match serde_json::from_str(text) {
            Ok(Value::Object(object)) => {
                let scope = object.get("scope").and_then(Value::as_object);
                keys(&object, &KEYS)
                    .or_else(|| keys(scope?, &SCOPE_KEYS))
                    .unwrap_or(Fault::Value { what })
            }
            _ => Fault::NotJson { column, what: "it is not an object".to_owned() },
        },
    }
}

/// The first key that should not be there, or that is not.
fn keys(object: &serde_json::Map<String, Value>, known: &[&'static str]) -> Option<Fault> {
    let unknown = object.keys().find(|key| !known.contains(&key.as_str()));
    let missing = known.iter().find(|key| !object.contains_key(**key));
    unknown
        .map(|key| Fault::UnknownKey { key: key.clone() })
        .or_else(|| missing.map(|key| Fault::MissingKey { key }))
}
