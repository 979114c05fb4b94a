//! The consent gate: may this row be used, for this, now? Deny by default.
//!
//! Owns the verdict as a pure function of what a row and its file record, of what is asked,
//! and of whether the ledger has a withdrawal: on one row ([`judge`]), on columns of rows
//! ([`judge_rows`]) and on what the statistics of a row group prove of all its rows
//! ([`prune`]). Owns judging files by their consent columns alone ([`count`]) and saying in words
//! which rule decided ([`explain`]). Does not own the text of rows (`source`, `group`) nor the
//! ledger. Terms are those of the W3C Data Privacy Vocabulary 2.3.

mod columns;
mod count;
mod dataset;
mod explain;
mod judge;
mod prune;
pub mod purposes;
mod texts;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use columns::{ColumnError, ConsentColumns, judge_rows};
pub use count::{Ledger, count, find, pruned};
pub use dataset::{ConsentError, Dataset, FOOTER_KEY, duration};
pub use explain::explain;
pub use judge::judge;
pub use prune::prune;

/// What a run asks of every row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// DPV purposes; a row must allow every one.
    pub purpose: Vec<String>,
    /// DPV processing; a row must allow every one.
    pub processing: Vec<String>,
    /// The instant of judgement: the start of the run.
    pub at: Timestamp,
    /// The planned end of the run: consent must outlast it.
    pub until: Timestamp,
}

/// Why a row is left out; one reason per row.
///
/// A withdrawal in the ledger comes before everything else. Then the first reason that
/// applies in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A consent value, the column for it, the record of a consent or the justification of a
    /// source is absent.
    Missing,
    /// A consent value that nobody defined, or that says it is unknown.
    Unknown,
    /// Withdrawn, revoked, invalidated, refused or objected to, or so by the planned end.
    Withdrawn,
    /// Never given: requested, deferred.
    NotGiven,
    /// Ends before the planned end of the run.
    Expired,
    /// Not for this purpose.
    Purpose,
    /// Not for this processing.
    Processing,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Withdrawn => "withdrawn",
            Self::NotGiven => "not given",
            Self::Expired => "expired",
            Self::Purpose => "not for this purpose",
            Self::Processing => "not for this processing",
        })
    }
}

impl Reason {
    /// Every reason, in the order in which they apply.
    pub const ALL: [Self; 7] = [
        Self::Missing,
        Self::Unknown,
        Self::Withdrawn,
        Self::NotGiven,
        Self::Expired,
        Self::Purpose,
        Self::Processing,
    ];

    /// The word under which it is counted in reports.
    pub fn key(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Withdrawn => "withdrawn",
            Self::NotGiven => "not-given",
            Self::Expired => "expired",
            Self::Purpose => "purpose",
            Self::Processing => "processing",
        }
    }
}

/// How many rows were seen, used, and left out for which reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows read.
    pub seen: u64,
    /// Rows that may be used.
    pub used: u64,
    /// Rows left out, by reason.
    pub excluded: BTreeMap<Reason, u64>,
}

impl Counts {
    /// Counts one row.
    pub fn count(&mut self, verdict: Result<(), Reason>) {
        self.seen += 1;
        match verdict {
            Ok(()) => self.used += 1,
            Err(reason) => *self.excluded.entry(reason).or_default() += 1,
        }
    }

    /// Adds the counts of other rows.
    pub fn add(&mut self, other: &Counts) {
        self.seen += other.seen;
        self.used += other.used;
        for (reason, rows) in &other.excluded {
            *self.excluded.entry(*reason).or_default() += rows;
        }
    }
}

/// The columns that a consent-bearing file has, all of them.
pub const COLUMNS: [&str; 9] = [
    SUBJECT,
    "consent_basis",
    "consent_status",
    "consent_purposes",
    "consent_processing",
    "consent_given_at",
    "consent_expires_at",
    "consent_withdrawn_at",
    "consent_record_id",
];

/// The column that names, by a keyed digest, whom a row is about. Null names nobody; without
/// the column nobody could tell whose rows a withdrawal concerns.
pub const SUBJECT: &str = "subject_ref";

/// The column that names the source of a row in [`Dataset`]. It need not be there.
pub const SOURCE: &str = "source_id";

/// Width of a keyed digest in the column [`SUBJECT`]: that of HMAC-SHA256.
pub const SUBJECT_WIDTH: usize = 32;

/// What the ledgers say of a row, for what is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InLedger {
    /// Nothing.
    #[default]
    Nothing,
    /// Nothing of it by name, but something of subjects: personal data that does not say whose
    /// it is may be theirs.
    Subjects,
    /// A withdrawal of its record, or of whom it is about.
    Withdrawn,
}

/// What a row records about its consent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsentRow<'a> {
    /// Whether the file has every one of [`COLUMNS`]: null means something, absent does not.
    pub complete: bool,
    /// Legal basis.
    pub basis: Option<&'a str>,
    /// Where the consent stands.
    pub status: Option<&'a str>,
    /// DPV purposes allowed.
    pub purposes: Option<Vec<&'a str>>,
    /// DPV processing allowed.
    pub processing: Option<Vec<&'a str>>,
    /// When it was given.
    pub given_at: Option<Timestamp>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was withdrawn.
    pub withdrawn_at: Option<Timestamp>,
    /// The consent record that the row rests on.
    pub record_id: Option<&'a str>,
    /// Where the row came from, a key of the data set's sources.
    pub source_id: Option<&'a str>,
    /// Whether the row names whom it is about.
    pub has_subject: bool,
}

#[cfg(test)]
pub(in crate::dataset) mod plain;
#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
