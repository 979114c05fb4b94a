use std::sync::LazyLock;

use serde_json::json;

use super::*;

static KNOWN: LazyLock<Dataset> = LazyLock::new(|| dataset(json!({"expiry": "P12M"})));
static ENDLESS: LazyLock<Dataset> = LazyLock::new(|| dataset(json!({"expiry": "endless"})));
static UNKNOWN: LazyLock<Dataset> = LazyLock::new(Dataset::default);

/// A data set with one source that is justified and two that are not.
fn dataset(defaults: serde_json::Value) -> Dataset {
    let sources = json!({
        "letters": {"justification": "a rule wrote them"}, "web": {}, "blank": {"justification": " "}
    });
    let footer = json!({"schema": "consent/v1", "defaults": defaults, "sources": sources});
    Dataset::parse(Some(&footer.to_string()))
}

/// The verdict where the ledger has nothing.
fn judge(row: &ConsentRow<'_>, ask: &Ask, dataset: &Dataset) -> Result<(), Reason> {
    super::judge(row, ask, dataset, InLedger::Nothing)
}

fn day(day: i64) -> Timestamp {
    Timestamp::from_second(1_780_000_000 + day * 86_400).unwrap()
}

/// Asked on day 10 for a run that ends on day 11.
fn ask() -> Ask {
    Ask {
        purpose: vec!["dpv:ServiceProvision".to_owned()],
        processing: vec!["ai:ModelFineTuning".to_owned()],
        at: day(10),
        until: day(11),
    }
}

fn good() -> ConsentRow<'static> {
    ConsentRow {
        complete: true,
        basis: Some("consent"),
        status: Some("given"),
        purposes: Some(vec!["dpv:CustomerCare", "dpv:ServiceProvision"]),
        processing: Some(vec!["ai:ModelFineTuning"]),
        given_at: Some(day(0)),
        expires_at: Some(day(100)),
        withdrawn_at: None,
        record_id: Some("urn:uuid:1"),
        source_id: Some("letters"),
        has_subject: false,
    }
}

/// The verdict on a good row after a change.
fn after(change: impl FnOnce(&mut ConsentRow<'static>)) -> Result<(), Reason> {
    let mut row = good();
    change(&mut row);
    judge(&row, &ask(), &KNOWN)
}

#[test]
fn a_row_that_allows_everything_asked_is_used() {
    assert_eq!(after(|_| ()), Ok(()));
    assert_eq!(after(|row| row.status = Some("renewed")), Ok(()));
    assert_eq!(after(|row| row.basis = Some("contract")), Ok(()));
    assert_eq!(after(|row| row.withdrawn_at = Some(day(12))), Ok(()));
}

#[test]
fn what_is_not_recorded_is_missing() {
    assert_eq!(after(|row| row.complete = false), Err(Reason::Missing));
    assert_eq!(after(|row| row.basis = None), Err(Reason::Missing));
    assert_eq!(after(|row| row.status = None), Err(Reason::Missing));
    assert_eq!(after(|row| row.purposes = None), Err(Reason::Missing));
    assert_eq!(after(|row| row.processing = None), Err(Reason::Missing));
    assert_eq!(after(|row| row.record_id = None), Err(Reason::Missing));
    assert_eq!(after(|row| row.record_id = Some("")), Err(Reason::Missing));
    assert_eq!(after(|row| row.expires_at = None), Err(Reason::Missing));
}

#[test]
fn no_recorded_end_is_fine_where_the_file_says_endless() {
    let row = ConsentRow { expires_at: None, ..good() };
    assert_eq!(judge(&row, &ask(), &ENDLESS), Ok(()));
}

#[test]
fn words_that_nobody_defined_are_unknown() {
    for word in ["unknown", "Given", "", "dpv:ConsentGiven", "ja"] {
        assert_eq!(after(|row| row.status = Some(word)), Err(Reason::Unknown), "{word}");
        let basis = judge(&ConsentRow { basis: Some(word), ..good() }, &ask(), &KNOWN);
        assert_eq!(basis, Err(Reason::Unknown), "{word}");
    }
    assert_eq!(judge(&good(), &ask(), &UNKNOWN), Err(Reason::Unknown));
}

#[test]
fn a_basis_and_a_status_that_contradict_each_other_are_unknown() {
    assert_eq!(after(|row| row.status = Some("not_applicable")), Err(Reason::Unknown));
    assert_eq!(after(|row| row.basis = Some("not_personal_data")), Err(Reason::Unknown));
    let nobody = after(|row| {
        row.basis = Some("not_personal_data");
        row.status = Some("not_applicable");
        row.record_id = None;
    });
    assert_eq!(nobody, Ok(()));
    let somebody = after(|row| {
        row.basis = Some("not_personal_data");
        row.status = Some("not_applicable");
        row.has_subject = true;
    });
    assert_eq!(somebody, Err(Reason::Unknown));
    assert_eq!(after(|row| row.has_subject = true), Ok(()));
}

#[test]
fn an_ended_consent_is_withdrawn_on_any_basis() {
    for status in ["refused", "withdrawn", "revoked", "invalidated", "objected"] {
        for basis in ["consent", "legitimate_interest"] {
            let verdict = after(|row| (row.status, row.basis) = (Some(status), Some(basis)));
            assert_eq!(verdict, Err(Reason::Withdrawn), "{basis} {status}");
        }
    }
    assert_eq!(after(|row| row.withdrawn_at = Some(day(10))), Err(Reason::Withdrawn));
}

#[test]
fn a_withdrawal_up_to_the_planned_end_is_one_already() {
    assert_eq!(after(|row| row.withdrawn_at = Some(day(11))), Err(Reason::Withdrawn));
    let later = day(11) + jiff::SignedDuration::from_micros(1);
    assert_eq!(after(|row| row.withdrawn_at = Some(later)), Ok(()));
}

#[test]
fn consent_that_was_never_given_is_not_given() {
    assert_eq!(after(|row| row.status = Some("requested")), Err(Reason::NotGiven));
    assert_eq!(after(|row| row.status = Some("deferred")), Err(Reason::NotGiven));
    assert_eq!(after(|row| row.given_at = Some(day(11))), Err(Reason::NotGiven));
    // Nobody has to answer where the basis is a contract.
    let contract = after(|row| (row.status, row.basis) = (Some("requested"), Some("contract")));
    assert_eq!(contract, Ok(()));
}

#[test]
fn consent_must_outlast_the_planned_end() {
    assert_eq!(after(|row| row.status = Some("expired")), Err(Reason::Expired));
    assert_eq!(after(|row| row.expires_at = Some(day(11))), Err(Reason::Expired));
    let later = day(11) + jiff::SignedDuration::from_micros(1);
    assert_eq!(after(|row| row.expires_at = Some(later)), Ok(()));
}

#[test]
fn only_the_purposes_named_or_narrower_ones_are_allowed() {
    assert_eq!(after(|row| row.purposes = Some(vec![])), Err(Reason::Purpose));
    assert_eq!(after(|row| row.purposes = Some(vec!["dpv:CustomerCare"])), Err(Reason::Purpose));
    assert_eq!(after(|row| row.purposes = Some(vec!["dpv:Purpose"])), Err(Reason::Purpose));
    assert_eq!(after(|row| row.purposes = Some(vec!["dpv:ServiceManagement"])), Ok(()));
    // A recipe for a broader purpose is not allowed by a narrower consent.
    let broad = Ask { purpose: vec!["dpv:ServiceManagement".to_owned()], ..ask() };
    assert_eq!(judge(&good(), &broad, &KNOWN), Err(Reason::Purpose));
    let both = Ask {
        purpose: vec!["dpv:ServiceProvision".to_owned(), "dpv:AcademicResearch".to_owned()],
        ..ask()
    };
    assert_eq!(judge(&good(), &both, &KNOWN), Err(Reason::Purpose));
}

#[test]
fn only_the_processing_named_is_allowed() {
    assert_eq!(after(|row| row.processing = Some(vec![])), Err(Reason::Processing));
    let publish = Ask {
        processing: vec!["ai:ModelFineTuning".to_owned(), "dpv:MakeAvailable".to_owned()],
        ..ask()
    };
    assert_eq!(judge(&good(), &publish, &KNOWN), Err(Reason::Processing));
}

#[test]
fn asking_for_nothing_only_meets_rows_about_nobody() {
    let nothing = Ask { purpose: vec![], processing: vec![], ..ask() };
    assert_eq!(judge(&good(), &nothing, &KNOWN), Err(Reason::Purpose));
    let nobody =
        ConsentRow { basis: Some("not_personal_data"), status: Some("not_applicable"), ..good() };
    assert_eq!(judge(&nobody, &nothing, &KNOWN), Ok(()));
}

#[test]
fn publishing_needs_the_rows_permission_to_publish() {
    let publish = Ask { processing: vec!["dpv:MakeAvailable".to_owned()], ..ask() };
    let allows = |allowed| {
        judge(&ConsentRow { processing: Some(vec![allowed]), ..good() }, &publish, &KNOWN)
    };
    assert_eq!(allows("dpv:MakeAvailable"), Ok(()));
    for other in ["ai:ModelFineTuning", "ai:ModelTraining", "dpv:Disclose", "dpv:Processing"] {
        assert_eq!(allows(other), Err(Reason::Processing), "{other}");
    }
    assert_eq!(after(|row| row.processing = Some(vec!["ai:ModelTraining"])), Ok(()));
}

#[test]
fn a_withdrawal_in_the_ledger_comes_before_everything() {
    let withdrawn = |row: &ConsentRow<'_>, dataset: &Dataset| {
        super::judge(row, &ask(), dataset, InLedger::Withdrawn)
    };
    assert_eq!(withdrawn(&good(), &KNOWN), Err(Reason::Withdrawn));
    assert_eq!(withdrawn(&ConsentRow::default(), &UNKNOWN), Err(Reason::Withdrawn));
}

#[test]
fn nobody_is_only_there_where_the_source_says_why() {
    let nobody = |source| {
        after(|row| {
            (row.basis, row.status) = (Some("not_personal_data"), Some("not_applicable"));
            row.source_id = source;
        })
    };
    assert_eq!(nobody(Some("letters")), Ok(()));
    for source in [None, Some("web"), Some("blank"), Some("Letters"), Some("")] {
        assert_eq!(nobody(source), Err(Reason::Missing), "{source:?}");
    }
    // Somebody's consent needs no such thing.
    assert_eq!(after(|row| row.source_id = None), Ok(()));
}

#[test]
fn reasons_are_told_by_one_word_everywhere() {
    for reason in Reason::ALL {
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.key());
    }
    assert!(Reason::ALL.is_sorted());
}
