//! The consent of one row: from its columns, from the record it names, from the default.
//!
//! Where a column and a record both speak, they have to say the same. The default holds for
//! rows of which neither says anything; what one of them says in part is never filled up by
//! it.

use std::collections::BTreeSet;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use serde_json::Value;
use sha2::Sha256;

use super::declared::{self, Declared, Mapping, Words};
use super::error::ImportError;
use super::record::{self, Record, Records};
use super::reject::{Reason, Reject};
use super::terms;
use crate::dataset::conversation::Json;

/// The consent columns of a row.
#[derive(Clone, Debug)]
pub(super) struct RowConsent {
    /// The id that the row brings along.
    pub(super) record_id: Option<String>,
    pub(super) subject_ref: Option<[u8; 32]>,
    pub(super) basis: &'static str,
    pub(super) status: &'static str,
    pub(super) purposes: Vec<String>,
    pub(super) processing: Vec<String>,
    pub(super) given_at: Option<Timestamp>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) withdrawn_at: Option<Timestamp>,
    pub(super) consent_record_id: Option<String>,
    pub(super) digest: Option<[u8; 32]>,
    pub(super) notice: Option<String>,
    pub(super) special_category: Option<&'static str>,
    pub(super) source: String,
    pub(super) license: String,
    pub(super) model_generated: Option<String>,
}

/// Fields that hold several words.
const LISTS: [&str; 2] = ["purposes", "processing"];

/// Knows the consent of rows.
#[derive(Debug)]
pub(super) struct Consents {
    pub(super) declared: Declared,
    records: Records,
    key: Option<Hmac<Sha256>>,
}

/// What a row's columns say of where its consent stands.
#[derive(Default, PartialEq)]
struct Said {
    basis: Option<&'static str>,
    status: Option<&'static str>,
    purposes: Option<Vec<String>>,
    processing: Option<Vec<String>>,
    given_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    withdrawn_at: Option<Timestamp>,
    record_id: Option<String>,
}

impl Consents {
    /// Reads the records and the key that a declaration names.
    pub(super) fn new(declared: Declared) -> Result<Self, ImportError> {
        let records = record::read(&declared.records)?;
        let key = declared.subject_key.as_deref().map(declared::subject_key).transpose()?;
        // A key of any length will do for HMAC.
        let key = key.and_then(|key| Hmac::new_from_slice(&key).ok());
        Ok(Self { declared, records, key })
    }

    /// The columns that are looked at.
    pub(super) fn columns(&self) -> BTreeSet<String> {
        let mappings = self.declared.columns.all();
        let columns = mappings.iter().filter_map(|(_, mapping)| mapping.as_ref()?.column.as_ref());
        let root = |column: &String| column.split('.').next().unwrap_or_default().to_owned();
        columns.flat_map(|column| [column.clone(), root(column)]).collect()
    }

    /// The id that a row brings along.
    pub(super) fn record_id(&self, row: &Json) -> Result<Option<String>, Reject> {
        self.one(row, "record_id", self.declared.columns.record_id.as_ref())
    }

    /// The consent of a row.
    pub(super) fn of(&self, row: &Json) -> Result<RowConsent, Reject> {
        let columns = &self.declared.columns;
        let one = |field, mapping: &Option<Mapping>| self.one(row, field, mapping.as_ref());
        let mut said = self.said(row)?;
        let default = self.declared.default.as_ref().filter(|_| self.is_silent(row, &said));
        if let Some(default) = default {
            said = Said {
                basis: terms::basis(&default.basis),
                purposes: Some(default.purposes.clone()),
                processing: Some(default.processing.clone()),
                record_id: default.consent_record_id.clone(),
                ..Said::default()
            };
        } else if self.is_silent(row, &said) {
            return Err(Reason::NoConsent.into());
        }
        let record = self.record(said.record_id.as_deref())?;
        let said = agreed(said, record)?;
        let basis = said.basis.ok_or_else(|| Reason::Incomplete.of("basis"))?;
        let status = match (said.status, basis) {
            (Some(status), _) => status,
            (None, "consent") => return Err(Reason::Incomplete.of("status")),
            (None, "unknown") => "unknown",
            (None, _) => "not_applicable",
        };
        if basis == "consent" && said.record_id.is_none() {
            return Err(Reason::NoConsentRecord.of("consent_record_id"));
        }
        let subject = one("subject", &columns.subject)?;
        if basis == "consent" && columns.subject.is_some() && subject.is_none() {
            // Whoever gave it could never be found when they withdraw it.
            return Err(Reason::NoSubject.of("subject"));
        }
        let source = match (one("source", &columns.source)?, default) {
            (Some(source), _) => source,
            (None, Some(default)) => default.source.clone(),
            (None, None) if columns.source.is_none() => self.only_source()?,
            (None, None) => return Err(Reason::Incomplete.of("source")),
        };
        let origin = self.declared.sources.get(&source);
        let origin = origin.ok_or_else(|| Reason::UnknownSource.of("source"))?;
        if basis == "not_personal_data" {
            if subject.is_some() {
                return Err(Reason::SubjectOfNobody.of("subject"));
            }
            // The default says it of its own source, and of no other.
            let by_default = default.is_some_and(|default| default.source == source);
            let said = origin.justification.as_deref().is_some_and(|text| !text.trim().is_empty());
            if !by_default && !said {
                return Err(Reason::NoJustification.of("source"));
            }
        }
        let record_id = self.record_id(row)?;
        if columns.record_id.is_some() && record_id.is_none() {
            return Err(Reason::NoRecordId.of("record_id"));
        }
        let by_rule = || record::after(said.given_at?, self.declared.expiry.as_deref()?);
        let license = one("license", &columns.license)?;
        let notice = one("notice", &columns.notice)?;
        let category = one("special_category", &columns.special_category)?;
        Ok(RowConsent {
            record_id,
            subject_ref: subject.and_then(|subject| self.hidden(&subject)),
            basis,
            status,
            purposes: said.purposes.unwrap_or_default(),
            processing: said.processing.unwrap_or_default(),
            given_at: said.given_at,
            expires_at: said.expires_at.or_else(by_rule),
            withdrawn_at: said.withdrawn_at,
            consent_record_id: said.record_id,
            digest: record.map(|record| record.digest),
            notice: notice.or_else(|| record?.notice.clone()),
            special_category: category.and_then(|word| terms::category(&word)),
            source,
            license: license.unwrap_or_else(|| self.declared.license.clone()),
            model_generated: one("model_generated", &columns.model_generated)?,
        })
    }

    fn said(&self, row: &Json) -> Result<Said, Reject> {
        let columns = &self.declared.columns;
        let one = |field, mapping: &Option<Mapping>| self.one(row, field, mapping.as_ref());
        let terms_of = |field, mapping: &Option<Mapping>| {
            let words = self.words(row, field, mapping.as_ref())?;
            let terms = |words: Vec<String>| {
                words.iter().filter_map(|word| terms::term(field, word)).collect::<BTreeSet<_>>()
            };
            Ok::<_, Reject>(words.map(|words| terms(words).into_iter().collect()))
        };
        let instant = |field, mapping: &Option<Mapping>| {
            Ok::<_, Reject>(one(field, mapping)?.and_then(|word| terms::instant(&word)))
        };
        Ok(Said {
            basis: one("basis", &columns.basis)?.and_then(|word| terms::basis(&word)),
            status: one("status", &columns.status)?.and_then(|word| terms::status(&word)),
            purposes: terms_of("purposes", &columns.purposes)?,
            processing: terms_of("processing", &columns.processing)?,
            given_at: instant("given_at", &columns.given_at)?,
            expires_at: instant("expires_at", &columns.expires_at)?,
            withdrawn_at: instant("withdrawn_at", &columns.withdrawn_at)?,
            record_id: one("consent_record_id", &columns.consent_record_id)?,
        })
    }

    /// Whether the row itself says nothing of its consent: words that stand for every row are
    /// not its own.
    fn is_silent(&self, row: &Json, said: &Said) -> bool {
        let of_consent = ["basis", "status", "purposes", "processing", "consent_record_id"];
        let silent = self.declared.columns.all().iter().all(|(field, mapping)| {
            let column = mapping.and_then(|mapping| mapping.column.as_deref());
            let value = column.and_then(|column| look_up(row, column));
            !of_consent.contains(field) || value.is_none_or(is_nothing)
        });
        let undated = said.given_at.or(said.expires_at).or(said.withdrawn_at).is_none();
        silent && undated
    }

    fn record(&self, id: Option<&str>) -> Result<Option<&Record>, Reject> {
        let Some(id) = id.filter(|_| !self.records.is_empty()) else { return Ok(None) };
        let wrong = |reason: Reason| reason.of("consent_record_id");
        let record = self.records.get(id).ok_or_else(|| wrong(Reason::UnknownConsentRecord))?;
        record.as_ref().map(Some).ok_or_else(|| wrong(Reason::UnclearConsentRecord))
    }

    fn only_source(&self) -> Result<String, Reject> {
        let mut names = self.declared.sources.keys();
        let only = names.next().filter(|_| names.next().is_none());
        only.cloned().ok_or_else(|| Reason::Incomplete.of("source"))
    }

    /// The keyed digest of a subject's id.
    fn hidden(&self, subject: &str) -> Option<[u8; 32]> {
        let mut mac = self.key.clone()?;
        mac.update(subject.as_bytes());
        Some(mac.finalize().into_bytes().into())
    }

    /// The word of a field, `None` where the row has nothing for it.
    fn one(
        &self,
        row: &Json,
        field: &str,
        mapping: Option<&Mapping>,
    ) -> Result<Option<String>, Reject> {
        let Some(words) = self.words(row, field, mapping)? else { return Ok(None) };
        let mut words = words.into_iter();
        match (words.next(), words.next()) {
            (Some(word), None) => Ok(Some(word)),
            _ => Err(Reason::UndefinedValue.of(field)),
        }
    }

    /// The words of a field, each of them one that can stand there.
    fn words(
        &self,
        row: &Json,
        field: &str,
        mapping: Option<&Mapping>,
    ) -> Result<Option<Vec<String>>, Reject> {
        let Some(mapping) = mapping else { return Ok(None) };
        let undefined = || Reason::UndefinedValue.of(field);
        if let Some(Words(words)) = &mapping.value {
            return Ok(Some(words.clone()));
        }
        let value = mapping.column.as_deref().and_then(|column| look_up(row, column));
        let Some(value) = value.filter(|value| !is_nothing(value)) else { return Ok(None) };
        let found = match value {
            // A list is not one word, however many words are in it.
            Value::Array(items) if LISTS.contains(&field) => {
                items.iter().map(word).collect::<Option<Vec<_>>>().ok_or_else(undefined)?
            }
            one => vec![word(one).ok_or_else(undefined)?],
        };
        let mut words = Vec::new();
        for text in &found {
            let parts: Vec<&str> = match &mapping.separator {
                Some(separator) => {
                    text.split(separator).map(str::trim).filter(|part| !part.is_empty()).collect()
                }
                None => vec![text],
            };
            for part in parts {
                match mapping.values.get(part) {
                    Some(Words(meant)) => words.extend(meant.iter().cloned()),
                    None if terms::is_defined(field, part) => words.push(part.to_owned()),
                    None => return Err(undefined()),
                }
            }
        }
        Ok(Some(words))
    }
}

/// What columns and record say together.
fn agreed(said: Said, record: Option<&Record>) -> Result<Said, Reject> {
    let Some(record) = record else { return Ok(said) };
    fn both<T: PartialEq>(
        field: &str,
        one: Option<T>,
        other: Option<T>,
    ) -> Result<Option<T>, Reject> {
        match (one, other) {
            (Some(one), Some(other)) if one != other => Err(Reason::Contradiction.of(field)),
            (one, other) => Ok(one.or(other)),
        }
    }
    Ok(Said {
        basis: both("basis", said.basis, Some(record.basis))?,
        status: both("status", said.status, Some(record.status))?,
        purposes: both("purposes", said.purposes, Some(record.purposes.clone()))?,
        processing: both("processing", said.processing, Some(record.processing.clone()))?,
        given_at: both("given_at", said.given_at, record.given_at)?,
        expires_at: both("expires_at", said.expires_at, record.expires_at)?,
        withdrawn_at: both("withdrawn_at", said.withdrawn_at, record.withdrawn_at)?,
        record_id: said.record_id,
    })
}

/// The value of a column, or of a path with dots that leads into objects.
pub(super) fn look_up<'a>(row: &'a Json, column: &str) -> Option<&'a Value> {
    row.get(column).or_else(|| {
        let mut names = column.split('.');
        let first = row.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name))
    })
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        _ => false,
    }
}

fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "consent_tests.rs"]
mod tests;
