use serde_json::json;

use super::*;

fn of(change: impl FnOnce(&mut Value)) -> Option<Record> {
    let mut node = json!({
        "@id": "urn:uuid:1", "@type": "dpv:ConsentRecord",
        "dpv:hasLegalBasis": "eu-gdpr:A6-1-a",
        "dpv:hasProcess": {"@type": "dpv:Process", "dpv:hasPurpose": ["dpv:CommercialPurpose"],
                           "dpv:hasProcessing": ["dpv-ai:ModelFineTuning", "dpv:Collect"]},
        "dpv:hasNotice": {"@id": "https://example.org/v3", "@type": "dpv:ConsentNotice"},
        "dpv:hasConsentStatus": [
            {"@type": ["dpv:ConsentGiven", "dpv:ExpressedConsent"],
             "dpv:isIndicatedAtTime": "2026-01-02T00:00:00Z",
             "dpv:hasDuration": {"@type": "dpv:UntilTimeDuration", "dct:valid": "2027-01-02"}},
        ],
    });
    change(&mut node);
    let bytes = serde_json::to_vec(&node).unwrap();
    let mut records = Records::new();
    parse(Path::new("r.jsonld"), &bytes, &mut records).unwrap();
    records.remove("urn:uuid:1").unwrap()
}

fn event_of(node: &mut Value, event: Value) {
    node["dpv:hasConsentStatus"].as_array_mut().unwrap().push(event);
}

#[test]
fn a_record_says_what_was_agreed_to() {
    let record = of(|_| {}).unwrap();
    assert_eq!((record.basis, record.status), ("consent", "given"));
    assert_eq!(record.purposes, ["dpv:CommercialPurpose"]);
    assert_eq!(record.processing, ["ai:ModelFineTuning"]);
    assert_eq!(record.expires_at, terms::instant("2027-01-02"));
    assert_eq!(record.given_at, terms::instant("2026-01-02"));
    assert_eq!(
        (record.withdrawn_at, record.notice.as_deref()),
        (None, Some("https://example.org/v3"))
    );
}

#[test]
fn the_latest_event_decides_in_whatever_order_they_stand() {
    let withdrawn = json!({"@type": "dpv:ConsentWithdrawn",
        "dpv:isIndicatedAtTime": "2026-05-01T00:00:00Z"});
    let record = of(|node| {
        node["dpv:hasConsentStatus"].as_array_mut().unwrap().insert(0, withdrawn.clone());
    });
    let record = record.unwrap();
    assert_eq!(record.status, "withdrawn");
    assert_eq!(record.withdrawn_at, terms::instant("2026-05-01"));
    let record = of(|node| {
        event_of(node, withdrawn);
        event_of(
            node,
            json!({"@type": "dpv:RenewedConsentGiven",
            "dpv:isIndicatedAtTime": "2026-06-01T00:00:00Z", "dpv:hasDuration": "P1M"}),
        );
    });
    let record = record.unwrap();
    assert_eq!((record.status, record.withdrawn_at), ("renewed", None));
    assert_eq!(record.expires_at, terms::instant("2026-07-01"));
}

#[test]
fn what_cannot_be_understood_is_unclear_and_never_a_yes() {
    let given = |more: Value| {
        let mut event = json!({"@type": "dpv:ConsentGiven",
            "dpv:isIndicatedAtTime": "2026-01-02T00:00:00Z"});
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event
    };
    for event in [
        given(json!({"@type": "dpv:ConsentTerminated"})),
        given(json!({"@type": ["dpv:ConsentGiven", "dpv:ConsentRefused"]})),
        given(json!({"dpv:isIndicatedAtTime": "yesterday"})),
        given(json!({"dpv:isIndicatedAtTime": "2026-01-02T00:00:00"})),
        given(json!({"dpv:hasDuration": {"@type": "dpv:UntilEventDuration"}})),
        given(json!({"dpv:hasDuration": "for a while"})),
        given(json!({"dpv:hasDuration": "-P1M"})),
        json!("dpv:ConsentGiven"),
    ] {
        let unclear = of(|node| node["dpv:hasConsentStatus"] = json!([event]));
        assert_eq!(unclear, None, "{event}");
    }
    // Two at the same time that contradict each other, one without a time among several.
    for more in [
        json!({"@type": "dpv:ConsentRefused", "dpv:isIndicatedAtTime": "2026-01-02T00:00:00Z"}),
        json!({"@type": "dpv:ConsentWithdrawn"}),
    ] {
        assert_eq!(of(|node| event_of(node, more)), None);
    }
    assert_eq!(of(|node| node["dpv:hasConsentStatus"] = json!([])), None);
    assert_eq!(of(|node| node["dpv:hasLegalBasis"] = json!("eu-gdpr:A9")), None);
    assert_eq!(
        of(|node| node["dpv:hasProcess"]["dpv:hasPurpose"] = json!(["anything at all"])),
        None
    );
}

fn limited(at: &str, key: &str, value: &Value) -> Option<Record> {
    of(|node| {
        let part = node.pointer_mut(at).unwrap();
        part.as_object_mut().unwrap().insert(key.to_owned(), value.clone());
    })
}

/// Where a record says it: of the whole, of the process, of the event.
const PARTS: [&str; 3] = ["", "/dpv:hasProcess", "/dpv:hasConsentStatus/0"];

#[test]
fn a_duration_beside_the_event_is_not_passed_over() {
    for key in ["dpv:hasDuration", "https://w3id.org/dpv#hasDuration"] {
        for at in &PARTS[..2] {
            // Half a year after it was given, long before the end that the event names.
            let ends = |value: Value| limited(at, key, &value).and_then(|record| record.expires_at);
            assert_eq!(ends(json!("P6M")), terms::instant("2026-07-02"), "{at} {key}");
            assert_eq!(ends(json!("P60Y")), terms::instant("2027-01-02"), "{at} {key}");
            let until = json!({"@type": "dpv:UntilTimeDuration", "dct:valid": "2026-03-01"});
            assert_eq!(ends(until), terms::instant("2026-03-01"), "{at} {key}");
            for unclear in [json!({"@type": "dpv:UntilEventDuration"}), json!("a while")] {
                assert_eq!(limited(at, key, &unclear), None, "{at} {key} {unclear}");
            }
        }
    }
    // Twice at the event, under two names.
    assert_eq!(limited(PARTS[2], "https://w3id.org/dpv#hasDuration", &json!("P6M")), None);
    let purpose = json!({"@id": "dpv:CommercialPurpose", "dpv:hasDuration": "P1D"});
    assert_eq!(of(|node| node["dpv:hasProcess"]["dpv:hasPurpose"] = purpose), None);
}

#[test]
fn a_prohibition_in_a_record_is_not_passed_over() {
    let rule = json!({"@type": "dpv:Prohibition", "dpv:hasProcessing": "ai:ModelFineTuning"});
    for at in PARTS {
        for key in [
            "dpv:hasRule",
            "https://w3id.org/dpv#hasRule",
            "dpv:hasProhibition",
            "odrl:prohibition",
            "http://purl.org/dc/terms/valid",
        ] {
            assert_eq!(limited(at, key, &rule), None, "{at} {key}");
        }
    }
}

#[test]
fn consent_that_nobody_can_date_is_unclear() {
    for status in ["dpv:ConsentGiven", "dpv:RenewedConsentGiven", "dpv:ConsentWithdrawn"] {
        let event = json!({"@type": status, "dpv:hasDuration": {"@type": "dpv:EndlessDuration"}});
        assert_eq!(of(|node| node["dpv:hasConsentStatus"] = event), None, "{status}");
    }
}

#[test]
fn a_purpose_of_one_process_does_not_spread_to_another() {
    let record = of(|node| {
        node["dpv:hasProcess"] = json!([
            {"dpv:hasPurpose": ["dpv:CustomerCare", "dpv:ScientificResearch"],
             "dpv:hasProcessing": "ai:ModelFineTuning"},
            {"dpv:hasPurpose": {"@id": "dpv:ScientificResearch"},
             "dpv:hasProcessing": {"@id": "dpv:MakeAvailable"}},
            {"dpv:hasPurpose": "dpv:Marketing", "dpv:hasProcessing": "dpv:Collect"},
        ]);
    });
    let record = record.unwrap();
    assert_eq!(record.purposes, ["dpv:ScientificResearch"]);
    assert_eq!(record.processing, ["ai:ModelFineTuning", "dpv:MakeAvailable"]);
}

#[test]
fn the_specimen_of_the_guide_is_read_whole_or_in_a_graph() {
    let graph = json!({"@graph": [
        {"@id": "urn:uuid:1", "@type": "https://w3id.org/dpv#ConsentRecord",
         "dpv:hasConsentStatus": {"@type": "https://w3id.org/dpv#ConsentGiven",
                                  "dpv:isIndicatedAtTime": "2026-01-02T00:00:00Z"}},
        {"@id": "https://example.org/", "@type": "dpv:DataController"},
    ]});
    let mut records = Records::new();
    let bytes = serde_json::to_vec(&graph).unwrap();
    parse(Path::new("r.jsonld"), &bytes, &mut records).unwrap();
    let record = records["urn:uuid:1"].as_ref().unwrap();
    assert_eq!((record.status, record.basis), ("given", "consent"));
    assert!(record.purposes.is_empty() && record.expires_at.is_none());
    let again = parse(Path::new("r.jsonld"), &bytes, &mut records).unwrap_err();
    assert!(again.to_string().contains("the same `@id`"), "{again}");
    let twice = "{\"@type\": \"dpv:ConsentWithdrawn\", \"@type\": \"dpv:ConsentRecord\"}";
    for (text, reason) in [
        (twice, "`@type` twice in one object, at line 1"),
        ("{", "not JSON at line 1"),
        ("[]", "nothing in it"),
        ("{}", "nothing in it"),
    ] {
        let error = parse(Path::new("r.jsonld"), text.as_bytes(), &mut records).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}
