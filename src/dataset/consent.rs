//! The consent gate: may this row be used, for this, now? Deny by default.
//!
//! Owns the verdict on one row, as a pure function of what the row and its file record and
//! of what is asked. Does not own reading columns (`source`) nor withdrawals recorded
//! after a file was written. Terms are those of the W3C Data Privacy Vocabulary 2.3.

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
pub const COLUMNS: [&str; 8] = [
    "consent_basis",
    "consent_status",
    "consent_purposes",
    "consent_processing",
    "consent_given_at",
    "consent_expires_at",
    "consent_withdrawn_at",
    "consent_record_id",
];

/// The column that names, by a digest, whom a row is about. It need not be there, and only
/// whether it is null is ever looked at.
pub const SUBJECT: &str = "subject_ref";

/// The footer key of a consent-bearing Parquet file.
pub const FOOTER_KEY: &str = "consent.v1";

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
    /// Whether the row names whom it is about.
    pub has_subject: bool,
}

/// What the footer of a file says of all its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defaults {
    /// There is no footer (some tools drop it), or nobody can tell what it says.
    Unknown,
    /// A footer of the schema `consent/v1`.
    Known {
        /// Whether consent with no recorded end has none.
        endless: bool,
    },
}

impl Defaults {
    /// Reads the value of the footer key [`FOOTER_KEY`].
    pub fn parse(footer: Option<&str>) -> Self {
        #[derive(Deserialize)]
        struct Footer {
            schema: String,
            #[serde(default)]
            defaults: Expiry,
        }
        #[derive(Default, Deserialize)]
        struct Expiry {
            #[serde(default)]
            expiry: Option<String>,
        }
        match footer.map(serde_json::from_str::<Footer>) {
            Some(Ok(footer)) if footer.schema == "consent/v1" => {
                Self::Known { endless: footer.defaults.expiry.as_deref() == Some("endless") }
            }
            _ => Self::Unknown,
        }
    }
}

/// What a recorded status means for use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Given,
    NotGiven,
    Ended,
    Expired,
    NotApplicable,
}

/// May this row be used?
///
/// The first reason that applies, in the order of [`Reason`]. Besides the obvious:
/// - A status that says no (withdrawn, refused, objected to, expired) says so whatever the
///   basis; one that says "not yet" only matters where the basis is consent.
/// - A withdrawal dated before the planned end of the run is one already.
/// - A basis and a status that contradict each other are unknown, and so is a row about
///   nobody that names whom it is about.
/// - An ask with no purpose or no processing is only met by rows about nobody.
pub fn judge(row: &ConsentRow<'_>, ask: &Ask, defaults: &Defaults) -> Result<(), Reason> {
    let (Some(basis), Some(status), Some(purposes), Some(processing), true) =
        (row.basis, row.status, &row.purposes, &row.processing, row.complete)
    else {
        return Err(Reason::Missing);
    };
    let by_consent = basis == "consent";
    let about_nobody = basis == "not_personal_data";
    let endless = matches!(defaults, Defaults::Known { endless: true });
    if by_consent && row.record_id.is_none_or(str::is_empty) {
        return Err(Reason::Missing);
    }
    if row.expires_at.is_none() && !endless && *defaults != Defaults::Unknown {
        return Err(Reason::Missing);
    }
    let standing = standing(status).filter(|_| is_basis(basis)).ok_or(Reason::Unknown)?;
    let not_applicable = standing == Standing::NotApplicable;
    if *defaults == Defaults::Unknown
        || (about_nobody && (!not_applicable || row.has_subject))
        || (by_consent && not_applicable)
    {
        return Err(Reason::Unknown);
    }
    if standing == Standing::Ended || row.withdrawn_at.is_some_and(|at| at <= ask.until) {
        return Err(Reason::Withdrawn);
    }
    let not_yet = standing == Standing::NotGiven || row.given_at.is_some_and(|at| at > ask.at);
    if by_consent && not_yet {
        return Err(Reason::NotGiven);
    }
    if standing == Standing::Expired || row.expires_at.is_some_and(|end| end <= ask.until) {
        return Err(Reason::Expired);
    }
    let allowed = |purpose: &String| purposes.iter().any(|wider| includes(wider, purpose));
    if (ask.purpose.is_empty() && !about_nobody) || !ask.purpose.iter().all(allowed) {
        return Err(Reason::Purpose);
    }
    let allowed = |wanted: &String| processing.contains(&wanted.as_str());
    if (ask.processing.is_empty() && !about_nobody) || !ask.processing.iter().all(allowed) {
        return Err(Reason::Processing);
    }
    Ok(())
}

fn is_basis(basis: &str) -> bool {
    matches!(
        basis,
        "consent"
            | "contract"
            | "legal_obligation"
            | "vital_interest"
            | "public_task"
            | "legitimate_interest"
            | "not_personal_data"
    )
}

fn standing(status: &str) -> Option<Standing> {
    Some(match status {
        "given" | "renewed" => Standing::Given,
        "requested" | "deferred" => Standing::NotGiven,
        "refused" | "withdrawn" | "revoked" | "invalidated" | "objected" => Standing::Ended,
        "expired" => Standing::Expired,
        "not_applicable" => Standing::NotApplicable,
        _ => return None,
    })
}

/// `skos:broader` of DPV 2.3 (w3c/dpv, `2.3/dpv/modules/purposes.ttl`), for the purposes of
/// adapting a model: the narrower term, then the broader. `dpv:Purpose`, the top of the
/// vocabulary, is left out: a row that allows "any purpose" names none.
const BROADER: [(&str, &str); 8] = [
    ("dpv:AcademicResearch", "dpv:ResearchAndDevelopment"),
    ("dpv:ScientificResearch", "dpv:ResearchAndDevelopment"),
    ("dpv:CommercialResearch", "dpv:ResearchAndDevelopment"),
    ("dpv:CommercialResearch", "dpv:CommercialPurpose"),
    ("dpv:NonCommercialResearch", "dpv:ResearchAndDevelopment"),
    ("dpv:ServiceOptimisation", "dpv:ServiceManagement"),
    ("dpv:ServiceProvision", "dpv:ServiceManagement"),
    ("dpv:CustomerCare", "dpv:CustomerManagement"),
];

/// Whether `purpose` is `allowed` or narrower.
fn includes(allowed: &str, purpose: &str) -> bool {
    // No term of the table is both narrower and broader, so one level is all there is.
    allowed == purpose || BROADER.contains(&(purpose, allowed))
}

#[cfg(test)]
#[path = "consent_tests.rs"]
mod tests;
