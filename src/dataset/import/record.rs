//! Consent records: JSON-LD in the form that DPV gives ISO/IEC TS 27560.
//!
//! Owns reading what a record says of one consent. The compact form is read, in which terms
//! have the prefixes of the DPV guide or are IRIs in full; there is no processor of JSON-LD
//! here. What cannot be understood makes the record unclear, never permissive.
//!
//! Reference: DPV guide to ISO/IEC TS 27560:2023, W3C DPV 2.3.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::super::consent::duration;
use super::super::source;
use super::error::ImportError;
use super::terms;
use crate::files;
use crate::json::{self, Fault};

/// Largest file of records, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// Terms that limit what they stand at and are not understood here. Where one stands at what a
/// record permits, nobody can tell how much it does.
const LIMITS: [&str; 7] = [
    "dpv:hasRule",
    "dpv:hasProhibition",
    "dpv:hasObligation",
    "odrl:prohibition",
    "odrl:obligation",
    "odrl:constraint",
    "dct:valid",
];

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) basis: &'static str,
    pub(super) status: &'static str,
    pub(super) purposes: Vec<String>,
    pub(super) processing: Vec<String>,
    pub(super) given_at: Option<Timestamp>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) withdrawn_at: Option<Timestamp>,
    pub(super) notice: Option<String>,
    pub(super) digest: [u8; 32],
}

/// Records by their ids; `None` for one that is unclear.
pub(super) type Records = BTreeMap<String, Option<Record>>;

/// Reads the records of files and globs.
pub(super) fn read(patterns: &[String]) -> Result<Records, ImportError> {
    let mut records = Records::new();
    for pattern in patterns {
        for path in source::resolve(pattern)? {
            let bytes = files::read_bounded(&path, MAX_BYTES).map_err(ImportError::read(&path))?;
            parse(&path, &bytes, &mut records)?;
        }
    }
    Ok(records)
}

fn parse(path: &Path, bytes: &[u8], records: &mut Records) -> Result<(), ImportError> {
    let wrong =
        |reason: &str| ImportError::Record { path: path.to_owned(), reason: reason.to_owned() };
    let not_json = |line, column| wrong(&format!("it is not JSON at line {line}, column {column}"));
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8"))?;
    json::check(text).map_err(|fault| match fault {
        Fault::Syntax { line, column, .. } => not_json(line, column),
        Fault::DuplicateKey { line, column, key } => {
            wrong(&format!("it has `{key}` twice in one object, at line {line}, column {column}"))
        }
    })?;
    let document: Value =
        serde_json::from_str(text).map_err(|error| not_json(error.line(), error.column()))?;
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    let nodes = document.get("@graph").map_or_else(|| vec![&document], items);
    let mut found = false;
    for node in nodes.into_iter().filter(|node| types(node).contains("dpv:ConsentRecord")) {
        found = true;
        let id = node.get("@id").and_then(Value::as_str).filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| wrong("it has no `@id`"))?;
        let understood = compact(node).and_then(|node| record(&node, digest));
        if records.insert(id.to_owned(), understood).is_some() {
            return Err(wrong("another file has a record of the same `@id`"));
        }
    }
    if found { Ok(()) } else { Err(wrong("nothing in it is of the type `dpv:ConsentRecord`")) }
}

fn record(node: &Value, digest: [u8; 32]) -> Option<Record> {
    // No basis is what the type of the record says: consent.
    let bases = ids(node.get("dpv:hasLegalBasis"))?;
    let mut bases = bases.iter().map(|term| terms::basis(term));
    let basis = bases.next().unwrap_or(Some("consent"))?;
    if bases.next().is_some() {
        return None;
    }
    let events: Option<Vec<Event>> =
        items_of(node, "dpv:hasConsentStatus").into_iter().map(event).collect();
    let mut events = events?;
    events.sort_by_key(|event| event.at);
    let latest = events.last()?;
    if events.iter().rev().skip(1).any(|e| e.at == latest.at && e.status != latest.status) {
        return None;
    }
    let permits = |event: &&Event| matches!(event.status, "given" | "renewed");
    let given = events.iter().rev().find(permits);
    let processes = processes(node)?;
    if is_limited(node) || processes.iter().any(|process| is_limited(process)) {
        return None;
    }
    // What is agreed to ends with the first of what it consists of.
    let mut ends: Vec<Timestamp> = given.iter().filter_map(|event| event.expires_at).collect();
    for part in processes.iter().copied().chain([node]) {
        ends.extend(end_of(part, given.map(|event| event.at))?);
    }
    let (purposes, processing) = together(&processes)?;
    let notice = node.get("dpv:hasNotice").and_then(id).map(str::to_owned);
    let stands = permits(&latest);
    Some(Record {
        basis,
        status: latest.status,
        purposes,
        processing,
        given_at: given.map(|event| event.at),
        expires_at: ends.into_iter().min(),
        withdrawn_at: if stands || given.is_none() { None } else { Some(latest.at) },
        notice,
        digest,
    })
}

struct Event {
    status: &'static str,
    at: Timestamp,
    expires_at: Option<Timestamp>,
}

/// One without an instant is none: nobody can tell whether it is the latest, nor what its
/// duration is counted from.
fn event(node: &Value) -> Option<Event> {
    let types = types(node);
    let mut statuses = types.iter().filter_map(|term| terms::status(term));
    let status = statuses.next().filter(|_| statuses.next().is_none())?;
    let at = terms::instant(text(node.get("dpv:isIndicatedAtTime")?)?)?;
    if is_limited(node) {
        return None;
    }
    Some(Event { status, at, expires_at: end_of(node, Some(at))? })
}

fn is_limited(node: &Value) -> bool {
    LIMITS.iter().any(|limit| node.get(limit).is_some())
}

/// The first end of the durations that stand at `node`.
fn end_of(node: &Value, from: Option<Timestamp>) -> Option<Option<Timestamp>> {
    let mut ends = Vec::new();
    for duration in items_of(node, "dpv:hasDuration") {
        ends.extend(end(duration, from)?);
    }
    Some(ends.into_iter().min())
}

/// When a duration ends: `Some(None)` where it never does, `None` where nobody can tell.
fn end(duration: &Value, from: Option<Timestamp>) -> Option<Option<Timestamp>> {
    let types = types(duration);
    if types.contains("dpv:EndlessDuration") || id(duration) == Some("dpv:EndlessDuration") {
        return Some(None);
    }
    if types.contains("dpv:UntilTimeDuration") {
        return Some(Some(terms::instant(text(duration.get("dct:valid")?)?)?));
    }
    let length = duration.get("rdf:value").or_else(|| duration.get("@value")).unwrap_or(duration);
    after(from?, length.as_str()?).map(Some)
}

/// A duration of ISO 8601 after an instant, by the calendar.
pub(super) fn after(from: Timestamp, length: &str) -> Option<Timestamp> {
    let length = duration(length).filter(|span| span.is_positive())?;
    Some(from.to_zoned(TimeZone::UTC).checked_add(length).ok()?.timestamp())
}

/// The processes of a record that concern models. Processing that is of no concern here
/// (collecting, storing) does not make a process one of them.
fn processes(node: &Value) -> Option<Vec<&Value>> {
    let mut found = Vec::new();
    for process in items_of(node, "dpv:hasProcess") {
        let done = ids(process.get("dpv:hasProcessing"))?;
        if done.iter().any(|term| terms::is_of_models(term)) {
            found.push(process);
        }
    }
    Some(found)
}

/// Purposes and processing that are allowed together.
///
/// Columns cannot say "this purpose with that processing", so that of several processes only
/// the purposes that all of them have are taken.
fn together(processes: &[&Value]) -> Option<(Vec<String>, Vec<String>)> {
    let mut purposes: Option<BTreeSet<String>> = None;
    let mut processing = BTreeSet::new();
    for process in processes {
        let done = ids(process.get("dpv:hasProcessing"))?;
        processing.extend(done.into_iter().filter(|term| terms::is_of_models(term)));
        let named = ids(process.get("dpv:hasPurpose"))?;
        let named: Option<BTreeSet<String>> =
            named.iter().map(|term| terms::term("purposes", term)).collect();
        let named = named?;
        purposes = Some(match purposes {
            Some(others) => others.intersection(&named).cloned().collect(),
            None => named,
        });
    }
    Some((purposes.unwrap_or_default().into_iter().collect(), processing.into_iter().collect()))
}

/// A value as a list: JSON-LD writes a list of one without brackets.
fn items(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        one => vec![one],
    }
}

fn items_of<'a>(node: &'a Value, key: &str) -> Vec<&'a Value> {
    node.get(key).map(items).unwrap_or_default()
}

fn types(node: &Value) -> BTreeSet<String> {
    items_of(node, "@type").into_iter().filter_map(Value::as_str).map(terms::curie).collect()
}

/// The same with the prefixes that are used here, as keys, too; `None` where that gives one
/// key twice.
fn compact(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Object(object) => {
            let mut made = Map::new();
            for (key, value) in object {
                if made.insert(terms::curie(key), compact(value)?).is_some() {
                    return None;
                }
            }
            Value::Object(made)
        }
        Value::Array(items) => Value::Array(items.iter().map(compact).collect::<Option<_>>()?),
        other => other.clone(),
    })
}

/// What a reference refers to: `"x"` or `{"@id": "x"}`.
fn id(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("@id")?.as_str())
}

fn ids(value: Option<&Value>) -> Option<Vec<String>> {
    let items = value.map(items).unwrap_or_default();
    let id = |item: &Value| {
        // A term for a time only, say, is another term.
        let whole = !is_limited(item) && item.get("dpv:hasDuration").is_none();
        whole.then(|| id(item).map(terms::curie))?
    };
    items.into_iter().map(id).collect()
}

fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("@value")?.as_str())
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
