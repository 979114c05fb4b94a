//! `consent.yaml`: what the importer is told of the rows' consent.
//!
//! Owns the words of that file and what of them cannot be meant. Consent never appears by
//! itself: there is no default of any kind that is not written there, and none without a
//! basis and the reason for it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use serde_saphyr::Error as YamlError;

use super::super::consent::duration;
use super::error::{ImportError, MAKE_KEY};
use super::terms;
use crate::files;
use crate::recipe::problem::offer;

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Fewest bytes of a key for subjects: those of its digest.
const KEY_BYTES: usize = 32;

/// What is said of a data set and the consent of its rows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// Identifies the data set: `urn:uuid:…` or another URI.
    pub dataset_id: String,
    /// A short name; that of the output where there is none.
    pub name: Option<String>,
    /// A sentence or two; where the rows come from, where there is none.
    pub description: Option<String>,
    /// Who decides over the data.
    pub controller: String,
    /// Whose law it is under, as ISO 3166 codes.
    pub jurisdictions: Vec<String>,
    /// SPDX expression of rows that name none.
    pub license: String,
    /// Version of the notice that subjects were given.
    pub notice: Option<String>,
    /// Where a subject withdraws.
    pub withdrawal: Option<String>,
    /// When consent ends that names no end: a duration (`P12M`) after it was given, or
    /// `endless`, which has to be said.
    pub expiry: Option<String>,
    /// When the rows were put together; `SOURCE_DATE_EPOCH` or now.
    pub snapshot_at: Option<String>,
    /// How old the snapshot may be when it is used (`P30D`).
    pub max_snapshot_age: Option<String>,
    /// The ledger of withdrawals that has to be asked.
    pub ledger: Option<String>,
    /// File whose bytes are the key by which subjects become digests.
    pub subject_key: Option<PathBuf>,
    /// Where rows come from.
    pub sources: BTreeMap<String, Origin>,
    /// Columns that say something of a row's consent.
    #[serde(default)]
    pub columns: Columns,
    /// Files or globs of consent records.
    #[serde(default)]
    pub records: Vec<String>,
    /// What holds for rows of which nothing is said.
    pub default: Option<Default>,
}

/// Where rows come from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// In words, or an address.
    pub origin: String,
    /// How they were collected, as a code of the OASIS Data Provenance Metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Why they are not personal data, if that is claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub justification: Option<String>,
    /// Where, as ISO 3166 codes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub geography: Vec<String>,
    /// Reservations against data mining that were seen there, as found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opt_out: Vec<String>,
}

/// Which columns say what.
#[derive(Clone, Debug, std::default::Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// Id of the row.
    pub record_id: Option<Mapping>,
    /// Whom the row is about; only its keyed digest is written.
    pub subject: Option<Mapping>,
    /// Legal basis.
    pub basis: Option<Mapping>,
    /// Where the consent stands.
    pub status: Option<Mapping>,
    /// DPV purposes allowed.
    pub purposes: Option<Mapping>,
    /// DPV processing allowed.
    pub processing: Option<Mapping>,
    /// When it was given.
    pub given_at: Option<Mapping>,
    /// When it ends.
    pub expires_at: Option<Mapping>,
    /// When it was withdrawn.
    pub withdrawn_at: Option<Mapping>,
    /// The record of the consent.
    pub consent_record_id: Option<Mapping>,
    /// Version of the notice.
    pub notice: Option<Mapping>,
    /// `none`, `sensitive` or `special`.
    pub special_category: Option<Mapping>,
    /// Key of `sources`.
    pub source: Option<Mapping>,
    /// SPDX expression.
    pub license: Option<Mapping>,
    /// The model that wrote the row.
    pub model_generated: Option<Mapping>,
}

impl Columns {
    /// Every mapping by its key.
    pub fn all(&self) -> [(&'static str, Option<&Mapping>); 15] {
        [
            ("record_id", self.record_id.as_ref()),
            ("subject", self.subject.as_ref()),
            ("basis", self.basis.as_ref()),
            ("status", self.status.as_ref()),
            ("purposes", self.purposes.as_ref()),
            ("processing", self.processing.as_ref()),
            ("given_at", self.given_at.as_ref()),
            ("expires_at", self.expires_at.as_ref()),
            ("withdrawn_at", self.withdrawn_at.as_ref()),
            ("consent_record_id", self.consent_record_id.as_ref()),
            ("notice", self.notice.as_ref()),
            ("special_category", self.special_category.as_ref()),
            ("source", self.source.as_ref()),
            ("license", self.license.as_ref()),
            ("model_generated", self.model_generated.as_ref()),
        ]
    }
}

/// Where a value comes from: a column, or the same words for every row.
#[derive(Clone, Debug, std::default::Default)]
pub struct Mapping {
    /// The column; a path with dots leads into objects.
    pub column: Option<String>,
    /// What stands for every row.
    pub value: Option<Words>,
    /// What the column's words mean.
    pub values: BTreeMap<String, Words>,
    /// What lies between the words of a list that is one text.
    pub separator: Option<String>,
}

/// One word or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Words;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or a list of words")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Words, E> {
                Ok(Words(vec![word.to_owned()]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = list.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InFull {
    column: Option<String>,
    value: Option<Words>,
    #[serde(default)]
    values: BTreeMap<String, Words>,
    separator: Option<String>,
}

impl<'de> Deserialize<'de> for Mapping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Mapping;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a column, or `{column: NAME, values: {…}}`")
            }
            fn visit_str<E: de::Error>(self, column: &str) -> Result<Mapping, E> {
                Ok(Mapping { column: Some(column.to_owned()), ..Mapping::default() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mapping, A::Error> {
                let InFull { column, value, values, separator } =
                    InFull::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Mapping { column, value, values, separator })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What holds for rows of which nothing is said.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Default {
    /// Legal basis.
    pub basis: String,
    /// Why that is the basis.
    pub justification: String,
    /// DPV purposes allowed.
    pub purposes: Vec<String>,
    /// DPV processing allowed.
    pub processing: Vec<String>,
    /// Key of `sources`.
    pub source: String,
    /// The record of the consent, where that is the basis.
    pub consent_record_id: Option<String>,
}

/// Reads and checks the declaration at `path`.
pub fn read(path: &Path) -> Result<Declared, ImportError> {
    let bytes = files::read_bounded(path, MAX_BYTES).map_err(ImportError::read(path))?;
    let text = String::from_utf8(bytes).map_err(|error| ImportError::Yaml {
        path: path.to_owned(),
        line: 1,
        column: 1,
        what: format!("this is not UTF-8 at byte {}", error.utf8_error().valid_up_to()),
        hint: None,
    })?;
    let says_something = |line: &str| !line.trim().is_empty() && !line.trim().starts_with('#');
    if !text.lines().any(says_something) {
        let hint = "docs/reference/import.md says what it holds".to_owned();
        let what = "the declaration is empty".to_owned();
        return Err(ImportError::Yaml {
            path: path.to_owned(),
            line: 1,
            column: 1,
            what,
            hint: Some(hint),
        });
    }
    // A column may be called `y`: only YAML 1.1 takes that for true.
    let options = serde_saphyr::options! { strict_booleans: true };
    let mut declared: Declared = serde_saphyr::from_str_with_options(&text, options)
        .map_err(|error| misread(path, &error))?;
    Rules(path).check(&mut declared)?;
    Ok(declared)
}

fn misread(path: &Path, error: &YamlError) -> ImportError {
    let error = error.without_snippet();
    let place = error.location();
    let line = place.as_ref().map_or(1, serde_saphyr::Location::line);
    let column = place.as_ref().map_or(1, serde_saphyr::Location::column);
    let (what, hint) = match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            (format!("unknown key `{field}`"), Some(offer(field, expected.iter().copied())))
        }
        YamlError::SerdeMissingField { field, .. } => (
            format!("`{field}` is missing"),
            Some(format!("add `{field}`; docs/reference/import.md says what it holds")),
        ),
        YamlError::SerdeInvalidType { unexpected, expected, .. } => {
            let hint = "put a word that looks like something else into quotes".to_owned();
            (format!("this is {unexpected}, not {expected}"), Some(hint))
        }
        YamlError::DuplicateMappingKey { key, .. } => {
            let key = key.as_ref().map_or("a key".to_owned(), |key| format!("`{key}`"));
            (format!("{key} stands there twice"), Some("keep one of the two".to_owned()))
        }
        YamlError::MultipleDocuments { .. } => {
            let hint = "keep one declaration in a file".to_owned();
            ("another document begins here".to_owned(), Some(hint))
        }
        error => (error.to_string(), None),
    };
    ImportError::Yaml { path: path.to_owned(), line, column, what, hint }
}

/// Rules that types cannot say.
struct Rules<'a>(&'a Path);

impl Rules<'_> {
    fn wrong(&self, key: &str, what: &str, hint: &str) -> ImportError {
        ImportError::Rule {
            path: self.0.to_owned(),
            key: key.to_owned(),
            what: what.to_owned(),
            hint: hint.to_owned(),
        }
    }

    fn check(&self, declared: &mut Declared) -> Result<(), ImportError> {
        for (key, text) in [
            ("dataset_id", &declared.dataset_id),
            ("controller", &declared.controller),
            ("license", &declared.license),
        ] {
            self.not_empty(key, text)?;
        }
        let lasts = |text: &str| duration(text).is_some_and(|span| span.is_positive());
        if declared.expiry.as_deref().is_some_and(|text| text != "endless" && !lasts(text)) {
            let hint = "write a duration of ISO 8601 such as `P12M`, or `endless`";
            return Err(self.wrong("expiry", "is neither a duration nor `endless`", hint));
        }
        if declared.max_snapshot_age.as_deref().is_some_and(|text| !lasts(text)) {
            let hint = "write a duration of ISO 8601 such as `P30D`";
            return Err(self.wrong("max_snapshot_age", "is no duration", hint));
        }
        if declared.snapshot_at.as_deref().is_some_and(|text| terms::instant(text).is_none()) {
            let hint = "write an instant with its zone, such as `2026-06-01T00:00:00Z`";
            return Err(self.wrong("snapshot_at", "is no instant", hint));
        }
        for (key, mapping) in declared.columns.all() {
            if let Some(mapping) = mapping {
                self.mapping(&format!("columns.{key}"), key, mapping)?;
            }
        }
        if declared.columns.subject.is_some() && declared.subject_key.is_none() {
            let hint = "make one with `openssl rand -hex 32 > subject.key`, keep it secret, and \
                        name it with `subject_key`";
            return Err(self.wrong("columns.subject", "needs a key to hide subjects behind", hint));
        }
        match declared.default.take() {
            Some(default) => declared.default = Some(self.default(default, declared)?),
            None if declared.columns.basis.is_none() && declared.records.is_empty() => {
                let hint = "say where consent is recorded, with `columns` or `records`, or \
                            declare a `default` with its `basis` and `justification`";
                return Err(self.wrong("columns", "says nothing of consent", hint));
            }
            None => {}
        }
        if declared.columns.source.is_none()
            && declared.default.is_none()
            && declared.sources.len() != 1
        {
            let hint = "name the column with `columns: {source: NAME}`, or declare one source";
            return Err(self.wrong("sources", "does not tell which source a row has", hint));
        }
        Ok(())
    }

    fn not_empty(&self, key: &str, text: &str) -> Result<(), ImportError> {
        if !text.trim().is_empty() {
            return Ok(());
        }
        Err(self.wrong(key, "says nothing", "write it out"))
    }

    fn mapping(&self, key: &str, field: &str, mapping: &Mapping) -> Result<(), ImportError> {
        if mapping.column.is_some() == mapping.value.is_some() {
            let hint = "write `column: NAME`, or `value: WORD` for all rows alike";
            return Err(self.wrong(key, "needs a column or a value, not both", hint));
        }
        let of_each_row = ["record_id", "subject", "status", "given_at", "withdrawn_at"];
        if mapping.value.is_some() && of_each_row.contains(&field) {
            let hint = "name the column that says it of each row";
            return Err(self.wrong(key, "cannot be the same for every row", hint));
        }
        if mapping.separator.as_deref() == Some("") {
            return Err(self.wrong(key, "has an empty separator", "write, for example, `\",\"`"));
        }
        let words = mapping.values.values().chain(&mapping.value).flat_map(|Words(words)| words);
        for word in words {
            if !terms::is_defined(field, word) {
                let what = format!("cannot mean `{word}`");
                return Err(self.wrong(key, &what, &terms::offered(field, word)));
            }
        }
        Ok(())
    }

    fn default(&self, mut default: Default, declared: &Declared) -> Result<Default, ImportError> {
        self.not_empty("default.justification", &default.justification)?;
        let basis = terms::basis(&default.basis).filter(|basis| *basis != "unknown");
        let Some(basis) = basis else {
            let hint = terms::offered("basis", &default.basis);
            return Err(self.wrong("default.basis", "is no legal basis", &hint));
        };
        default.basis = basis.to_owned();
        if basis == "consent" && default.consent_record_id.is_none() {
            let hint = "name the record with `consent_record_id`, and its file with `records`";
            return Err(self.wrong(
                "default.basis",
                "is consent of which there is no record",
                hint,
            ));
        }
        if !declared.sources.contains_key(&default.source) {
            let hint = offer(&default.source, declared.sources.keys().map(String::as_str));
            return Err(self.wrong("default.source", "is none of `sources`", &hint));
        }
        for (field, words) in
            [("purposes", &mut default.purposes), ("processing", &mut default.processing)]
        {
            for word in words {
                let term = terms::term(field, word).ok_or_else(|| {
                    let what = format!("cannot contain `{word}`");
                    self.wrong(&format!("default.{field}"), &what, &terms::offered(field, word))
                })?;
                *word = term;
            }
        }
        Ok(default)
    }
}

/// The key by which subjects become digests.
pub(super) fn subject_key(path: &Path) -> Result<Vec<u8>, ImportError> {
    let key = files::read_bounded(path, MAX_BYTES).map_err(|error| match error.kind() {
        ErrorKind::NotFound => ImportError::NoSubjectKey { path: path.to_owned() },
        _ => ImportError::read(path)(error),
    })?;
    if key.len() >= KEY_BYTES {
        return Ok(key);
    }
    Err(ImportError::Rule {
        path: path.to_owned(),
        key: "subject_key".to_owned(),
        what: format!("has {} bytes, fewer than {KEY_BYTES}", key.len()),
        hint: MAKE_KEY.to_owned(),
    })
}
