//! What a data set says of all its rows: the footer of a file, and the sidecar beside it.
//!
//! Owns reading both and holding them to each other. The footer is a cache: some tools drop
//! it when they copy a file, none may contradict the sidecar. Whether a snapshot is too old is
//! asked of the whole file, because it is nothing that a single row could mend.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use jiff::fmt::temporal::SpanParser;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::diagnose::Diagnose;

/// The footer key of a consent-bearing Parquet file.
pub const FOOTER_KEY: &str = "consent.v1";

/// The only schema that is understood.
const SCHEMA: &str = "consent/v1";

/// A duration of ISO 8601; `str::parse` would take `12 months`, too, which other readers of the
/// same file do not.
pub fn duration(text: &str) -> Option<Span> {
    SpanParser::new().parse_span(text).ok()
}

/// What stops a whole file.
#[derive(Debug, Error)]
pub enum ConsentError {
    /// The data set was put together too long ago to go by.
    #[error("the snapshot `{path}` is of {snapshot_at}, more than {max_age} before {at}")]
    Stale {
        /// The file of rows.
        path: PathBuf,
        /// When it was taken.
        snapshot_at: Timestamp,
        /// The age at which it is too old, as the data set puts it.
        max_age: String,
        /// The instant of judgement.
        at: Timestamp,
    },
    /// The data set was put together only later, so that no limit to its age would ever pass.
    #[error("the snapshot `{path}` is of {snapshot_at}, which is after {at}")]
    Future {
        /// The file of rows.
        path: PathBuf,
        /// When it says that it was taken.
        snapshot_at: Timestamp,
        /// The instant of judgement.
        at: Timestamp,
    },
    /// The data set limits the age of a snapshot, and nobody can tell its age.
    #[error("`{path}` limits the age of its snapshot, but its `{key}` is {found}")]
    Age {
        /// The file of rows.
        path: PathBuf,
        /// `snapshot_at` or `max_snapshot_age`.
        key: &'static str,
        /// What stands there.
        found: String,
    },
    /// The data set has a ledger of withdrawals, and none is named.
    #[error(
        "`{path}` keeps its withdrawals in the ledger `{ledger}`, which is not among the ledgers given"
    )]
    NoLedger {
        /// The file of rows.
        path: PathBuf,
        /// What the data set calls its ledger.
        ledger: String,
    },
}

impl Diagnose for ConsentError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Stale { .. } => {
                "export the data again from where consent is kept up to date".to_owned()
            }
            Self::Future { .. } => {
                "correct its `snapshot_at`, or this machine's clock; with `--at`, ask about an \
                 instant after it"
                    .to_owned()
            }
            Self::Age { key: "snapshot_at", .. } => {
                "write an instant such as `2026-06-01T00:00:00Z`".to_owned()
            }
            Self::Age { .. } => "write a duration of ISO 8601 such as `P30D` or `P12M`".to_owned(),
            Self::NoLedger { .. } => {
                "name the ledger in the recipe's `data.consent.ledgers`, or with `--ledger` \
                 where there is no recipe"
                    .to_owned()
            }
        })
    }
}

/// What a data set says of all rows of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    known: bool,
    endless: bool,
    justified: BTreeSet<String>,
    /// As they stand there, read when they are asked for: a limit that cannot be read has to
    /// stop the file and not to vanish.
    snapshot_at: Option<Value>,
    max_snapshot_age: Option<Value>,
    ledger: Option<String>,
}

impl Dataset {
    /// Reads the value of the footer key [`FOOTER_KEY`]. Without one, or with one that nobody
    /// can make sense of, nothing is known of the rows.
    pub fn parse(footer: Option<&str>) -> Self {
        footer.and_then(|text| described(text.as_bytes()).ok()).map(Self::of).unwrap_or_default()
    }

    fn of(mut description: Map<String, Value>) -> Self {
        let expiry = description.get("defaults").and_then(|defaults| defaults.get("expiry"));
        let justified = |source: &Value| {
            let words = source.get("justification").and_then(Value::as_str);
            words.is_some_and(|words| !words.trim().is_empty())
        };
        let sources = description.get("sources").and_then(Value::as_object);
        Self {
            known: true,
            endless: expiry.and_then(Value::as_str) == Some("endless"),
            justified: sources
                .into_iter()
                .flatten()
                .filter(|(_, source)| justified(source))
                .map(|(name, _)| name.clone())
                .collect(),
            ledger: description.get("ledger").and_then(Value::as_str).map(str::to_owned),
            snapshot_at: description.remove("snapshot_at"),
            max_snapshot_age: description.remove("max_snapshot_age").filter(|age| !age.is_null()),
        }
    }

    /// Whether anything is known of the rows at all.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Whether consent with no recorded end has none.
    pub fn is_endless(&self) -> bool {
        self.endless
    }

    /// Whether a source says why its rows are not personal data.
    pub fn justifies(&self, source: &str) -> bool {
        self.justified.contains(source)
    }

    /// The sources that say why their rows are not personal data, sorted.
    pub(super) fn justified(&self) -> impl Iterator<Item = &str> {
        self.justified.iter().map(String::as_str)
    }

    /// Where the data set keeps its withdrawals, as it puts it.
    pub fn ledger(&self) -> Option<&str> {
        self.ledger.as_deref()
    }

    /// Refuses the file of rows `path` where its snapshot is too old at the start of a run, or
    /// of an instant after it, or where it has a ledger of which none of the `given` has the
    /// name.
    pub fn check(&self, path: &Path, at: Timestamp, given: &[PathBuf]) -> Result<(), ConsentError> {
        // By their names: where a ledger lies differs from one machine to another.
        let is_given = |ledger: &String| {
            let name = ledger.rsplit('/').next();
            given.iter().any(|given| given.file_name().and_then(OsStr::to_str) == name)
        };
        if let Some(ledger) = self.ledger.clone().filter(|ledger| !is_given(ledger)) {
            return Err(ConsentError::NoLedger { path: path.to_owned(), ledger });
        }
        let Some(limit) = &self.max_snapshot_age else { return Ok(()) };
        let unreadable = |key, value: Option<&Value>| ConsentError::Age {
            path: path.to_owned(),
            key,
            found: value.map_or("not there".to_owned(), |value| format!("`{value}`")),
        };
        let snapshot_at = self.snapshot_at.as_ref().and_then(Value::as_str);
        let snapshot_at: Timestamp = snapshot_at
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| unreadable("snapshot_at", self.snapshot_at.as_ref()))?;
        if snapshot_at > at {
            return Err(ConsentError::Future { path: path.to_owned(), snapshot_at, at });
        }
        let max_age = limit.as_str().unwrap_or_default();
        let ends = duration(max_age).filter(|age| !age.is_negative()).and_then(|age| {
            // Months and years have their length by the calendar.
            Some(snapshot_at.to_zoned(TimeZone::UTC).checked_add(age).ok()?.timestamp())
        });
        let ends = ends.ok_or_else(|| unreadable("max_snapshot_age", Some(limit)))?;
        if ends < at {
            let (path, max_age) = (path.to_owned(), max_age.to_owned());
            return Err(ConsentError::Stale { path, snapshot_at, max_age, at });
        }
        Ok(())
    }
}

/// The keys of a description of the schema that is understood, where they are of the right
/// kind: half a description is none.
fn described(text: &[u8]) -> Result<Map<String, Value>, String> {
    let description: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match description.get("schema").and_then(Value::as_str) {
        Some(SCHEMA) => {}
        Some(_) => return Err("its `schema` is another".to_owned()),
        None => return Err("it has no `schema`".to_owned()),
    }
    let expiry = description.get("defaults").and_then(|defaults| defaults.get("expiry"));
    let absent = |value: &Value| value.is_null();
    for (key, value, fits) in [
        ("defaults", description.get("defaults"), Value::is_object as fn(&Value) -> bool),
        ("defaults.expiry", expiry, Value::is_string),
        ("sources", description.get("sources"), Value::is_object),
        ("ledger", description.get("ledger"), Value::is_string),
    ] {
        if value.is_some_and(|value| !fits(value) && !absent(value)) {
            return Err(format!("its `{key}` is of another type"));
        }
    }
    Ok(description)
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
