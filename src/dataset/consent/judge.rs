//! The rules, and the one place that orders them.
//!
//! A row is first reduced to [`Facts`], small answers to small questions; [`decide`] then
//! knows nothing but these. That way single rows, columns of rows and statistics of row
//! groups are judged by the same lines.

use super::purposes::{includes, includes_processing};
use super::{Ask, ConsentRow, Dataset, InLedger, Reason};

/// What the legal basis means for use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    Consent,
    /// Any other basis on which personal data may be processed.
    Other,
    NotPersonalData,
    /// A word that nobody defined, or `unknown`.
    Undefined,
}

impl Basis {
    /// The words that have a meaning, sorted.
    pub(super) const WORDS: [&str; 7] = [
        "consent",
        "contract",
        "legal_obligation",
        "legitimate_interest",
        "not_personal_data",
        "public_task",
        "vital_interest",
    ];

    pub(super) fn of(word: &str) -> Self {
        match word {
            "consent" => Self::Consent,
            "not_personal_data" => Self::NotPersonalData,
            _ if Self::WORDS.contains(&word) => Self::Other,
            _ => Self::Undefined,
        }
    }
}

/// What the recorded status means for use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Given,
    NotGiven,
    Ended,
    Expired,
    NotApplicable,
    /// A word that nobody defined, or `unknown`.
    Undefined,
}

impl Standing {
    /// The words that have a meaning, sorted.
    pub(super) const WORDS: [&str; 11] = [
        "deferred",
        "expired",
        "given",
        "invalidated",
        "not_applicable",
        "objected",
        "refused",
        "renewed",
        "requested",
        "revoked",
        "withdrawn",
    ];

    pub(super) fn of(word: &str) -> Self {
        match word {
            "given" | "renewed" => Self::Given,
            "requested" | "deferred" => Self::NotGiven,
            "refused" | "withdrawn" | "revoked" | "invalidated" | "objected" => Self::Ended,
            "expired" => Self::Expired,
            "not_applicable" => Self::NotApplicable,
            _ => Self::Undefined,
        }
    }
}

/// All that a verdict depends on besides the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// What the ledgers say of the row.
    pub(super) in_ledger: InLedger,
    /// The file has every consent column.
    pub(super) complete: bool,
    /// `None`: null.
    pub(super) basis: Option<Basis>,
    /// `None`: null.
    pub(super) status: Option<Standing>,
    /// Whether every purpose that is asked is allowed; `None`: null.
    pub(super) purposes: Option<bool>,
    /// Whether all processing that is asked is allowed; `None`: null.
    pub(super) processing: Option<bool>,
    /// A consent record is named.
    pub(super) has_record: bool,
    /// Somebody is named whom the row is about.
    pub(super) has_subject: bool,
    /// The row's source says why it is not personal data.
    pub(super) justified: bool,
    /// Given only after the start of the run.
    pub(super) given_later: bool,
    /// Whether it ends by the planned end of the run; `None`: null.
    pub(super) ends: Option<bool>,
    /// Withdrawn by the planned end of the run.
    pub(super) withdrawn: bool,
}

impl Facts {
    fn of(row: &ConsentRow<'_>, ask: &Ask, dataset: &Dataset, in_ledger: InLedger) -> Self {
        Self {
            in_ledger,
            complete: row.complete,
            basis: row.basis.map(Basis::of),
            status: row.status.map(Standing::of),
            purposes: row.purposes.as_ref().map(|allowed| {
                let met = |wanted: &String| allowed.iter().any(|wider| includes(wider, wanted));
                ask.purpose.iter().all(met)
            }),
            processing: row.processing.as_ref().map(|allowed| {
                let met = |wanted: &String| {
                    allowed.iter().any(|wider| includes_processing(wider, wanted))
                };
                ask.processing.iter().all(met)
            }),
            has_record: row.record_id.is_some_and(|id| !id.is_empty()),
            has_subject: row.has_subject,
            justified: row.source_id.is_some_and(|source| dataset.justifies(source)),
            given_later: row.given_at.is_some_and(|at| at > ask.at),
            ends: row.expires_at.map(|end| end <= ask.until),
            withdrawn: row.withdrawn_at.is_some_and(|at| at <= ask.until),
        }
    }
}

/// The rule by which a row is left out, finer than the [`Reason`] that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    InLedger,
    NoColumn,
    NullValue,
    NoConsentRecord,
    NoSubject,
    NoEnd,
    NotJustified,
    UndefinedBasis,
    UndefinedStatus,
    UnknownDataset,
    NobodyWithConsent,
    NobodyNamed,
    ConsentNotApplicable,
    EndedStatus,
    WithdrawnAt,
    NotGivenStatus,
    GivenLater,
    ExpiredStatus,
    EndsTooEarly,
    NoPurposeAsked,
    PurposeNotAllowed,
    NoProcessingAsked,
    ProcessingNotAllowed,
}

impl Rule {
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::InLedger | Self::EndedStatus | Self::WithdrawnAt => Reason::Withdrawn,
            Self::NoColumn
            | Self::NullValue
            | Self::NoConsentRecord
            | Self::NoSubject
            | Self::NoEnd
            | Self::NotJustified => Reason::Missing,
            Self::UndefinedBasis
            | Self::UndefinedStatus
            | Self::UnknownDataset
            | Self::NobodyWithConsent
            | Self::NobodyNamed
            | Self::ConsentNotApplicable => Reason::Unknown,
            Self::NotGivenStatus | Self::GivenLater => Reason::NotGiven,
            Self::ExpiredStatus | Self::EndsTooEarly => Reason::Expired,
            Self::NoPurposeAsked | Self::PurposeNotAllowed => Reason::Purpose,
            Self::NoProcessingAsked | Self::ProcessingNotAllowed => Reason::Processing,
        }
    }
}

/// May this row be used? `in_ledger` is what the ledgers say of it.
///
/// A withdrawal in the ledger first, then the first reason in the order of [`Reason`].
/// Besides the obvious:
/// - A status that says no (withdrawn, refused, objected to, expired) says so whatever the
///   basis; one that says "not yet" only matters where the basis is consent.
/// - A withdrawal dated before the planned end of the run is one already.
/// - A basis and a status that contradict each other are unknown, and so is a row about
///   nobody that names whom it is about.
/// - Where subjects have withdrawn, personal data has to say whose it is: it may be theirs.
/// - A row about nobody needs a source that says why it is about nobody.
/// - An ask with no purpose or no processing is only met by rows about nobody.
pub fn judge(
    row: &ConsentRow<'_>,
    ask: &Ask,
    dataset: &Dataset,
    in_ledger: InLedger,
) -> Result<(), Reason> {
    rule(row, ask, dataset, in_ledger).map_err(Rule::reason)
}

/// The verdict with the rule that led to it.
pub(super) fn rule(
    row: &ConsentRow<'_>,
    ask: &Ask,
    dataset: &Dataset,
    in_ledger: InLedger,
) -> Result<(), Rule> {
    decide(&Facts::of(row, ask, dataset, in_ledger), ask, dataset)
}

/// The rules in their order.
pub(super) fn decide(facts: &Facts, ask: &Ask, dataset: &Dataset) -> Result<(), Rule> {
    if facts.in_ledger == InLedger::Withdrawn {
        return Err(Rule::InLedger);
    }
    if !facts.complete {
        return Err(Rule::NoColumn);
    }
    let (Some(basis), Some(status), Some(purposes), Some(processing)) =
        (facts.basis, facts.status, facts.purposes, facts.processing)
    else {
        return Err(Rule::NullValue);
    };
    let by_consent = basis == Basis::Consent;
    let about_nobody = basis == Basis::NotPersonalData;
    let personal = by_consent || basis == Basis::Other;
    let whose = facts.has_subject || facts.in_ledger == InLedger::Nothing;
    let no_end = facts.ends.is_none() && !dataset.is_endless();
    for (applies, rule) in [
        (by_consent && !facts.has_record, Rule::NoConsentRecord),
        (personal && !whose, Rule::NoSubject),
        // What an unknown data set lacks is known no better than anything else about it.
        (no_end && dataset.is_known(), Rule::NoEnd),
        (about_nobody && !facts.justified && dataset.is_known(), Rule::NotJustified),
        (basis == Basis::Undefined, Rule::UndefinedBasis),
        (status == Standing::Undefined, Rule::UndefinedStatus),
        (!dataset.is_known(), Rule::UnknownDataset),
        (about_nobody && status != Standing::NotApplicable, Rule::NobodyWithConsent),
        (about_nobody && facts.has_subject, Rule::NobodyNamed),
        (by_consent && status == Standing::NotApplicable, Rule::ConsentNotApplicable),
        (status == Standing::Ended, Rule::EndedStatus),
        (facts.withdrawn, Rule::WithdrawnAt),
        (by_consent && status == Standing::NotGiven, Rule::NotGivenStatus),
        (by_consent && facts.given_later, Rule::GivenLater),
        (status == Standing::Expired, Rule::ExpiredStatus),
        (facts.ends == Some(true), Rule::EndsTooEarly),
        (ask.purpose.is_empty() && !about_nobody, Rule::NoPurposeAsked),
        (!purposes, Rule::PurposeNotAllowed),
        (ask.processing.is_empty() && !about_nobody, Rule::NoProcessingAsked),
        (!processing, Rule::ProcessingNotAllowed),
    ] {
        if applies {
            return Err(rule);
        }
    }
    Ok(())
}
