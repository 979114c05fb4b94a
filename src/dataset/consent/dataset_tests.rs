use std::path::PathBuf;

use serde_json::json;

use super::*;

fn read(description: &Value) -> Dataset {
    Dataset::parse(Some(&description.to_string()))
}

fn known(endless: bool) -> Dataset {
    Dataset { known: true, endless, ..Dataset::default() }
}

#[test]
fn the_footer_is_read_or_nothing_is_known() {
    let endless =
        json!({"schema": "consent/v1", "defaults": {"expiry": "endless"}, "controller": "x"});
    assert_eq!(read(&endless), known(true));
    assert_eq!(read(&json!({"schema": "consent/v1"})), known(false));
    assert_eq!(
        read(&json!({"schema": "consent/v1", "defaults": {"expiry": "P12M"}})),
        known(false)
    );
    assert_eq!(Dataset::parse(None), Dataset::default());
    for wrong in [
        "",
        "{",
        "[]",
        r#"{"schema":"consent/v2"}"#,
        r#"{"schema":1}"#,
        r#"{"schema":"consent/v1","defaults":{"expiry":1}}"#,
        r#"{"schema":"consent/v1","defaults":"endless"}"#,
        r#"{"schema":"consent/v1","sources":["letters"]}"#,
        r#"{"schema":"consent/v1","ledger":{}}"#,
    ] {
        assert!(!Dataset::parse(Some(wrong)).is_known(), "{wrong}");
    }
}

#[test]
fn a_source_is_justified_by_words_alone() {
    let data = read(&json!({"schema": "consent/v1", "sources": {
        "good": {"justification": "weather measurements"}, "empty": {"justification": "  "},
        "number": {"justification": 1}, "none": {"origin": "x"}, "text": "some words", "null": null,
    }}));
    assert!(data.justifies("good"));
    for source in ["empty", "number", "none", "text", "null", "other", ""] {
        assert!(!data.justifies(source), "{source}");
    }
}

#[test]
fn a_snapshot_that_is_too_old_stops_its_file() {
    let check = |age: Value, snapshot: Value, at: &str| {
        let data = read(&json!({
            "schema": "consent/v1", "snapshot_at": snapshot, "max_snapshot_age": age
        }));
        data.check(Path::new("rows.parquet"), at.parse().unwrap(), &[])
    };
    let taken = json!("2026-01-31T12:00:00Z");
    let ok = |age: &str, at| check(json!(age), taken.clone(), at).is_ok();
    assert!(ok("P30D", "2026-03-02T12:00:00Z") && !ok("P30D", "2026-03-02T12:00:01Z"));
    // A month after the last of January is the last of February.
    assert!(ok("P1M", "2026-02-28T12:00:00Z") && !ok("P1M", "2026-02-28T12:00:01Z"));
    assert!(ok("P12M", "2027-01-31T12:00:00Z") && !ok("P1Y", "2027-01-31T12:00:01Z"));
    assert!(ok("PT1H", "2026-01-31T13:00:00Z") && !ok("PT1H", "2026-01-31T13:00:01Z"));
    assert!(ok("P0D", "2026-01-31T12:00:00Z"));
    let at = "2026-02-01T00:00:00Z";
    let stale = check(json!("PT1H"), taken.clone(), at).unwrap_err();
    assert_eq!(
        stale.to_string(),
        "the snapshot `rows.parquet` is of 2026-01-31T12:00:00Z, more than PT1H before \
         2026-02-01T00:00:00Z"
    );
    assert!(matches!(stale, ConsentError::Stale { .. }) && stale.hint().is_some());
    assert!(check(Value::Null, Value::Null, at).is_ok(), "nothing is limited");
    for age in [json!("30 days of rain"), json!(""), json!(30), json!("-P1D"), json!(["P30D"])] {
        let error = check(age.clone(), taken.clone(), at).unwrap_err();
        assert!(
            matches!(error, ConsentError::Age { key: "max_snapshot_age", .. }),
            "{age}: {error}"
        );
    }
    for snapshot in [Value::Null, json!("2026-01-31T12:00:00"), json!("soon"), json!(20260131)] {
        let error = check(json!("P30D"), snapshot.clone(), at).unwrap_err();
        assert!(matches!(error, ConsentError::Age { key: "snapshot_at", .. }), "{snapshot}");
    }
}

#[test]
fn an_age_beyond_the_calendar_is_no_age() {
    let data = read(&json!({
        "schema": "consent/v1", "snapshot_at": "1960-12-01T00:00:00Z", "max_snapshot_age": "P9000Y"
    }));
    let error = data.check(Path::new("x"), Timestamp::UNIX_EPOCH, &[]).unwrap_err();
    assert!(matches!(error, ConsentError::Age { .. }), "{error}");
}

#[test]
fn a_snapshot_of_the_future_is_not_fresh_for_ever() {
    let check = |limit: Value, at: &str| {
        let data = read(&json!({
            "schema": "consent/v1", "snapshot_at": "2099-01-01T00:00:00Z",
            "max_snapshot_age": limit,
        }));
        data.check(Path::new("rows.parquet"), at.parse().unwrap(), &[])
    };
    let error = check(json!("P30D"), "2098-12-31T23:59:59Z").unwrap_err();
    assert!(matches!(error, ConsentError::Future { .. }) && error.hint().is_some());
    assert_eq!(
        error.to_string(),
        "the snapshot `rows.parquet` is of 2099-01-01T00:00:00Z, which is after \
         2098-12-31T23:59:59Z"
    );
    assert!(check(json!("P30D"), "2099-01-01T00:00:00Z").is_ok());
    assert!(check(Value::Null, "2026-01-01T00:00:00Z").is_ok(), "its age is not limited");
}

#[test]
fn a_ledger_that_nobody_gives_stops_the_file() {
    let data = read(&json!({"schema": "consent/v1", "ledger": "withdrawals.jsonl"}));
    let check = |given: &[&str]| {
        let given: Vec<PathBuf> = given.iter().map(PathBuf::from).collect();
        data.check(Path::new("rows.parquet"), Timestamp::UNIX_EPOCH, &given)
    };
    assert!(check(&["other.jsonl", "elsewhere/withdrawals.jsonl"]).is_ok());
    // Another ledger says nothing of these rows.
    assert!(check(&["other.jsonl"]).is_err());
    let error = check(&[]).unwrap_err();
    assert!(error.to_string().contains("`withdrawals.jsonl`"), "{error}");
    assert!(error.hint().unwrap().contains("data.consent.ledgers"));
}
