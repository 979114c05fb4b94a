//! Which rule decided about a row, in words.
//!
//! Owns the sentences. They say what the row records of its consent and what is asked, never
//! what the row is about.

use super::judge::{Rule, rule};
use super::{Ask, ConsentRow, Dataset, InLedger};

/// Longest value of a row that is repeated, in characters.
const MAX_QUOTED: usize = 80;

/// Why a row is used or left out, in plain sentences. `in_ledger` as in
/// [`judge`](super::judge).
pub fn explain(row: &ConsentRow<'_>, ask: &Ask, dataset: &Dataset, in_ledger: InLedger) -> String {
    match rule(row, ask, dataset, in_ledger) {
        Ok(()) => format!(
            "The row is used. Its basis is {} and its status {}; it allows the purposes {} and \
             the processing {}, which covers {} and {}, and it ends {}, after the planned end of \
             the run at {}.",
            word(row.basis),
            word(row.status),
            listed(row.purposes.as_deref()),
            listed(row.processing.as_deref()),
            asked(&ask.purpose),
            asked(&ask.processing),
            row.expires_at.map_or("never".to_owned(), |end| format!("at {end}")),
            ask.until,
        ),
        Err(rule) => {
            let why = refusal(rule, row, ask);
            format!("The row is left out as `{}`. {why}", rule.reason().key())
        }
    }
}

fn refusal(rule: Rule, row: &ConsentRow<'_>, ask: &Ask) -> String {
    let (basis, status) = (word(row.basis), word(row.status));
    let at = |instant: Option<_>| instant.map_or("nothing".to_owned(), |at| format!("{at}"));
    match rule {
        Rule::InLedger => {
            format!(
                "The ledger has a withdrawal of it that holds before the planned end of the run \
                 at {}.",
                ask.until
            )
        }
        Rule::NoColumn => {
            "Its file lacks at least one of the consent columns, and an absent column says \
             nothing."
                .to_owned()
        }
        Rule::NullValue => format!(
            "Basis, status, purposes and processing all have to be recorded; here they are \
             {basis}, {status}, {} and {}.",
            listed(row.purposes.as_deref()),
            listed(row.processing.as_deref())
        ),
        Rule::NoConsentRecord => {
            "Its basis is `consent`, and it names no record of that consent.".to_owned()
        }
        Rule::NoSubject => format!(
            "Its basis is {basis} and its `subject_ref` null, and the ledger has withdrawals by \
             subjects: nobody can tell that it is none of theirs."
        ),
        Rule::NoEnd => {
            "It records no end, and the data set does not say that consent without one is \
             `endless`."
                .to_owned()
        }
        Rule::NotJustified => format!(
            "Its basis is `not_personal_data`, and the data set gives no justification for its \
             source {}.",
            word(row.source_id)
        ),
        Rule::UndefinedBasis => format!("Its basis {basis} is none of the defined ones."),
        Rule::UndefinedStatus => format!("Its status {status} is none of the defined ones."),
        Rule::UnknownDataset => {
            "Its file has neither a readable footer `consent.v1` nor a sidecar `consent.json`, \
             and nobody can tell what its columns mean."
                .to_owned()
        }
        Rule::NobodyWithConsent => format!(
            "Its basis is `not_personal_data` and its status {status}: who is not there cannot \
             have consented."
        ),
        Rule::NobodyNamed => {
            "Its basis is `not_personal_data`, and yet `subject_ref` names somebody.".to_owned()
        }
        Rule::ConsentNotApplicable => {
            "Its basis is `consent` and its status `not_applicable`, which contradict each other."
                .to_owned()
        }
        Rule::EndedStatus => format!("Its status is {status}, which ends the permission."),
        Rule::WithdrawnAt => format!(
            "It is withdrawn at {}, and the run is planned to last until {}.",
            at(row.withdrawn_at),
            ask.until
        ),
        Rule::NotGivenStatus => {
            format!("Its basis is `consent` and its status {status}: nobody has said yes yet.")
        }
        Rule::GivenLater => format!(
            "Its consent is given at {}, after the start of the run at {}.",
            at(row.given_at),
            ask.at
        ),
        Rule::ExpiredStatus => "Its status is `expired`.".to_owned(),
        Rule::EndsTooEarly => format!(
            "It ends at {}, and the run is planned to last until {}.",
            at(row.expires_at),
            ask.until
        ),
        Rule::NoPurposeAsked => {
            "No purpose is asked for, and that is only enough for rows about nobody.".to_owned()
        }
        Rule::PurposeNotAllowed => format!(
            "It allows the purposes {}; asked are {}, and at least one of them is neither named \
             nor narrower than one that is.",
            listed(row.purposes.as_deref()),
            asked(&ask.purpose)
        ),
        Rule::NoProcessingAsked => {
            "No processing is asked for, and that is only enough for rows about nobody.".to_owned()
        }
        Rule::ProcessingNotAllowed => format!(
            "It allows the processing {}; asked is {}.",
            listed(row.processing.as_deref()),
            asked(&ask.processing)
        ),
    }
}

/// A value of a row, as short and as harmless as a terminal needs it.
fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_QUOTED).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_QUOTED).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

fn word(word: Option<&str>) -> String {
    word.map_or("null".to_owned(), quoted)
}

fn listed(words: Option<&[&str]>) -> String {
    match words {
        None => "null".to_owned(),
        Some([]) => "none".to_owned(),
        Some(words) => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "),
    }
}

fn asked(words: &[String]) -> String {
    listed(Some(&words.iter().map(String::as_str).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn ask() -> Ask {
        Ask {
            purpose: vec!["dpv:ServiceProvision".to_owned()],
            processing: vec!["ai:ModelFineTuning".to_owned()],
            at: Timestamp::from_second(1_780_000_000).unwrap(),
            until: Timestamp::from_second(1_780_086_400).unwrap(),
        }
    }

    fn row() -> ConsentRow<'static> {
        ConsentRow {
            complete: true,
            basis: Some("consent"),
            status: Some("given"),
            purposes: Some(vec!["dpv:ServiceManagement"]),
            processing: Some(vec!["ai:ModelFineTuning"]),
            expires_at: Some(Timestamp::from_second(1_790_000_000).unwrap()),
            record_id: Some("urn:uuid:1"),
            ..ConsentRow::default()
        }
    }

    fn words(row: &ConsentRow<'_>) -> String {
        explain(row, &ask(), &Dataset::parse(Some(r#"{"schema":"consent/v1"}"#)), InLedger::Nothing)
    }

    #[test]
    fn a_used_row_says_what_covers_what() {
        assert_eq!(
            words(&row()),
            "The row is used. Its basis is `consent` and its status `given`; it allows the \
             purposes `dpv:ServiceManagement` and the processing `ai:ModelFineTuning`, which \
             covers `dpv:ServiceProvision` and `ai:ModelFineTuning`, and it ends at \
             2026-09-21T14:13:20Z, after the planned end of the run at 2026-05-29T20:26:40Z."
        );
    }

    #[test]
    fn a_row_that_is_left_out_says_by_which_rule() {
        let other = ConsentRow { purposes: Some(vec!["dpv:Marketing"]), ..row() };
        assert_eq!(
            words(&other),
            "The row is left out as `purpose`. It allows the purposes `dpv:Marketing`; asked are \
             `dpv:ServiceProvision`, and at least one of them is neither named nor narrower than \
             one that is."
        );
        let gone = explain(&row(), &ask(), &Dataset::default(), InLedger::Withdrawn);
        assert!(gone.starts_with("The row is left out as `withdrawn`. The ledger"), "{gone}");
    }

    #[test]
    fn values_that_would_confuse_a_terminal_are_tamed() {
        let long = "x".repeat(1000);
        for (status, shown) in [("\u{1b}[2Jgiven", "`\\u{1b}[2Jgiven`"), (&long, "…`")] {
            let words = words(&ConsentRow { status: Some(status), ..row() });
            assert!(words.contains(shown) && words.len() < 300, "{words}");
        }
    }
}
