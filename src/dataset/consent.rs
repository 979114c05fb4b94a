//! The consent gate: may this row be used, for this, now? Deny by default.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

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

/// Why a row is left out; one reason per row, the first that applies in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A consent value, or the column for it, is absent.
    Missing,
    /// A consent value that nobody defined, or that says it is unknown.
    Unknown,
    /// Withdrawn, revoked, invalidated, refused or objected to.
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
    /// Adds the counts of other rows.
    pub fn add(&mut self, other: &Counts) {
        self.seen += other.seen;
        self.used += other.used;
        for (reason, rows) in &other.excluded {
            *self.excluded.entry(*reason).or_default() += rows;
        }
    }
}
