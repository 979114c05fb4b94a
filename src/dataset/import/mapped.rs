//! Whether declaration and sources speak of the same columns.
//!
//! Owns the two ways in which they may not: a source records consent that no mapping reads,
//! so that a default would stand in for it; a mapping names a column that no row has, so that
//! whatever it should say would be nothing. What the values mean is `super::consent`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::consent::{Consents, look_up};
use super::content;
use super::error::ImportError;
use super::rows;
use crate::dataset::conversation::Json;

/// A mapping, as it is written and as it is read.
#[derive(Clone, Debug)]
struct Mapping {
    key: String,
    column: String,
}

/// The mappings of an import, and what of them rows of JSON still owe.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    wanted: BTreeSet<String>,
    all: Vec<Mapping>,
    /// Those whose column no row of JSON had so far.
    unseen: Vec<Mapping>,
    /// Whether there was such a row.
    any: bool,
    /// Columns of those rows, as far as they are words.
    known: BTreeSet<String>,
}

impl Mapped {
    /// `columns` are those of the format's fields, `wanted` all that are read.
    pub(super) fn new(
        consents: &Consents,
        columns: &BTreeMap<String, String>,
        wanted: BTreeSet<String>,
    ) -> Self {
        let of_consent =
            consents.declared.columns.all().into_iter().filter_map(|(key, mapping)| {
                let column = mapping?.column.clone()?;
                Some(Mapping { key: format!("columns.{key}"), column })
            });
        let of_content = columns.iter().map(|(field, column)| Mapping {
            key: format!("--columns {field}"),
            column: column.clone(),
        });
        let all: Vec<Mapping> = of_consent.chain(of_content).collect();
        Self { wanted, unseen: all.clone(), all, any: false, known: BTreeSet::new() }
    }

    /// Looks at the header or the schema of a source, if it has one.
    pub(super) fn check_header(&self, path: &Path) -> Result<(), ImportError> {
        let Some(names) = rows::columns(path)? else { return Ok(()) };
        if let Some(missing) = self.all.iter().find(|mapping| !names.contains(&mapping.column)) {
            return Err(ImportError::NoColumn {
                path: Some(path.to_owned()),
                key: missing.key.clone(),
                column: missing.column.clone(),
                known: names.into_iter().collect(),
            });
        }
        self.check_names(path, names.iter().filter(|name| !name.contains('.')))
    }

    /// Looks at a row of a source in which each row has keys of its own.
    pub(super) fn check_row(&mut self, path: &Path, row: &Json) -> Result<(), ImportError> {
        self.any = true;
        if !self.unseen.is_empty() {
            self.unseen.retain(|mapping| look_up(row, &mapping.column).is_none());
            row.keys().for_each(|key| content::leave_aside(&mut self.known, key));
        }
        self.check_names(path, row.keys())
    }

    /// Whether rows of JSON, if there were any, had every column between them.
    pub(super) fn check_end(&self) -> Result<(), ImportError> {
        let Some(missing) = self.unseen.first().filter(|_| self.any) else { return Ok(()) };
        Err(ImportError::NoColumn {
            path: None,
            key: missing.key.clone(),
            column: missing.column.clone(),
            known: self.known.iter().cloned().collect(),
        })
    }

    fn check_names<'a>(
        &self,
        path: &Path,
        names: impl Iterator<Item = &'a String>,
    ) -> Result<(), ImportError> {
        let unmapped = names.filter(|name| records_consent(name) && !self.wanted.contains(*name));
        let columns: BTreeSet<String> = unmapped.map(|name| word(name)).collect();
        if columns.is_empty() {
            return Ok(());
        }
        let columns = columns.into_iter().collect();
        Err(ImportError::Unmapped { path: path.to_owned(), columns })
    }
}

/// Whether a column has a name of those in which consent-bearing data records consent.
fn records_consent(name: &str) -> bool {
    let begins = name.get(.."consent_".len());
    begins.is_some_and(|begin| begin.eq_ignore_ascii_case("consent_"))
        || name.eq_ignore_ascii_case("subject_ref")
}

/// The part of a key that is no text of a row.
fn word(key: &str) -> String {
    key.chars().take_while(|c| c.is_ascii_alphanumeric() || "_-.".contains(*c)).take(64).collect()
}
