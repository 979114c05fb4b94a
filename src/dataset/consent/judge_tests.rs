use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const KNOWN: Defaults = Defaults::Known { endless: false };
const ENDLESS: Defaults = Defaults::Known { endless: true };

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
    assert_eq!(judge(&good(), &ask(), &Defaults::Unknown), Err(Reason::Unknown));
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
fn the_footer_is_read_or_unknown() {
    let endless = r#"{"schema":"consent/v1","defaults":{"expiry":"endless"},"controller":"x"}"#;
    assert_eq!(Defaults::parse(Some(endless)), ENDLESS);
    assert_eq!(Defaults::parse(Some(r#"{"schema":"consent/v1"}"#)), KNOWN);
    let year = r#"{"schema":"consent/v1","defaults":{"expiry":"P12M"}}"#;
    assert_eq!(Defaults::parse(Some(year)), KNOWN);
    let wrong = [
        None,
        Some(""),
        Some("{"),
        Some("[]"),
        Some(r#"{"schema":"consent/v2"}"#),
        Some(r#"{"schema":"consent/v1","defaults":{"expiry":1}}"#),
    ];
    for footer in wrong {
        assert_eq!(Defaults::parse(footer), Defaults::Unknown, "{footer:?}");
    }
}

/// The same rules once more, each by itself: all reasons that apply, the first of which is
/// the verdict.
fn plainly(row: &ConsentRow<'_>, ask: &Ask, defaults: &Defaults) -> Result<(), Reason> {
    let mut reasons = BTreeSet::new();
    let (basis, status) = (row.basis.unwrap_or(""), row.status.unwrap_or(""));
    let personal = basis != "not_personal_data";
    let known = *defaults != Defaults::Unknown;
    let absent = !row.complete
        || row.basis.is_none()
        || row.status.is_none()
        || row.purposes.is_none()
        || row.processing.is_none()
        || (basis == "consent" && row.record_id.unwrap_or("").is_empty())
        || (row.expires_at.is_none() && *defaults == KNOWN);
    let bases = "consent contract legal_obligation vital_interest public_task \
                 legitimate_interest not_personal_data";
    let statuses = "given renewed requested deferred refused expired withdrawn revoked \
                    invalidated objected not_applicable";
    let defined = |words: &str, word| words.split_whitespace().any(|known| known == word);
    let purposes = row.purposes.clone().unwrap_or_default();
    let processing = row.processing.clone().unwrap_or_default();
    let purpose_allowed = |wanted: &str| match wanted {
        "dpv:CommercialResearch" => purposes.iter().any(|allowed| {
            *allowed == wanted
                || *allowed == "dpv:CommercialPurpose"
                || *allowed == "dpv:ResearchAndDevelopment"
        }),
        _ => purposes.contains(&wanted),
    };
    let mut rule = |applies: bool, reason| {
        if applies {
            reasons.insert(reason);
        }
    };
    rule(absent, Reason::Missing);
    rule(!known || !defined(bases, basis) || !defined(statuses, status), Reason::Unknown);
    rule(!personal && status != "not_applicable", Reason::Unknown);
    rule(!personal && row.has_subject, Reason::Unknown);
    rule(basis == "consent" && status == "not_applicable", Reason::Unknown);
    rule(defined("refused withdrawn revoked invalidated objected", status), Reason::Withdrawn);
    rule(row.withdrawn_at.is_some_and(|at| at <= ask.until), Reason::Withdrawn);
    rule(basis == "consent" && defined("requested deferred", status), Reason::NotGiven);
    rule(basis == "consent" && row.given_at > Some(ask.at), Reason::NotGiven);
    rule(status == "expired", Reason::Expired);
    rule(row.expires_at.is_some_and(|end| end <= ask.until), Reason::Expired);
    rule(personal && ask.purpose.is_empty(), Reason::Purpose);
    rule(ask.purpose.iter().any(|wanted| !purpose_allowed(wanted)), Reason::Purpose);
    rule(personal && ask.processing.is_empty(), Reason::Processing);
    rule(ask.processing.iter().any(|p| !processing.contains(&p.as_str())), Reason::Processing);
    reasons.first().map_or(Ok(()), |reason| Err(*reason))
}

fn one_of(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    proptest::sample::select(words)
}

fn words(from: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(from, 0..=from.len())
}

const PURPOSES: &[&str] =
    &["dpv:CommercialPurpose", "dpv:CommercialResearch", "dpv:ResearchAndDevelopment"];
const PROCESSING: &[&str] = &["ai:ModelFineTuning", "dpv:MakeAvailable"];
const BASES: &[&str] =
    &["consent", "consent", "contract", "legitimate_interest", "not_personal_data", "unknown"];
#[rustfmt::skip]
const STATUSES: &[&str] = &[
    "given", "given", "given", "renewed", "requested", "deferred", "refused", "expired", "withdrawn",
    "revoked", "invalidated", "objected", "unknown", "not_applicable", "not_applicable", "else",
];

fn instant() -> impl Strategy<Value = Option<Timestamp>> {
    proptest::option::weighted(0.8, (8_i64..14).prop_map(day))
}

fn some<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(0.95, of)
}

prop_compose! {
    fn any_row()(
        complete in proptest::bool::weighted(0.95),
        basis in some(one_of(BASES)),
        status in some(one_of(STATUSES)),
        purposes in some(words(PURPOSES)),
        processing in some(words(PROCESSING)),
        given_at in instant(),
        expires_at in instant(),
        withdrawn_at in proptest::option::weighted(0.2, (8_i64..14).prop_map(day)),
        record_id in some(one_of(&["urn:1", "urn:2", ""])),
        has_subject: bool,
    ) -> ConsentRow<'static> {
        ConsentRow {
            complete, basis, status, purposes, processing, given_at, expires_at, withdrawn_at,
            record_id, has_subject,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_gate_agrees_with_the_rules_written_plainly(
        row in any_row(),
        purpose in words(PURPOSES),
        processing in words(PROCESSING),
        defaults in proptest::sample::select(&[KNOWN, ENDLESS, ENDLESS, Defaults::Unknown][..]),
    ) {
        let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
        let ask = Ask { purpose: owned(purpose), processing: owned(processing), ..ask() };
        prop_assert_eq!(judge(&row, &ask, &defaults), plainly(&row, &ask, &defaults));
    }
}
