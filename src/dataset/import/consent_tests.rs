use std::path::PathBuf;

use fs_err as fs;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::diagnose::Diagnose as _;
use crate::files;

/// What every declaration needs.
const HEAD: &str = "\
dataset_id: urn:uuid:f47ac10b-58cc-4372-a567-0e02b2c3d479
controller: Example Org
jurisdictions: [IE]
license: CC-BY-4.0
sources:
  letters: { origin: letters to the shop }
  rules: { origin: written by rule, justification: there is nobody in them }
";

struct World(TempDir);

impl World {
    fn new() -> Self {
        let world = Self(TempDir::new().unwrap());
        world.write("subject.key", "k".repeat(32));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        crate::files::write_atomically(&self.path(name), text.as_ref()).unwrap();
    }

    fn declares(&self, rest: &str) -> Result<Consents, ImportError> {
        self.write("consent.yaml", format!("{HEAD}{rest}"));
        Consents::new(declared::read(&self.path("consent.yaml"))?)
    }

    /// The error without the path.
    fn refuses(&self, rest: &str) -> String {
        let error = self.declares(rest).unwrap_err();
        let hint = error.hint().unwrap_or_default();
        format!("{error}; {hint}").replace(&self.path("").display().to_string(), "")
    }
}

fn of(consents: &Consents, row: Value) -> Result<RowConsent, (Reason, String)> {
    let Value::Object(row) = row else { panic!("not an object") };
    consents.of(&row).map_err(|reject| (reject.reason, reject.column.unwrap_or_default()))
}

const COLUMNS: &str = "\
subject_key: SUBJECT_KEY
columns:
  source: from
  subject: user
  basis: law
  status: { column: agreed, values: { yes: given, no: refused, true: given } }
  purposes: { column: uses, separator: ';', values: { all: [dpv:CustomerCare, dpv:Marketing] } }
  processing: { value: [ai:ModelFineTuning] }
  given_at: meta.when
  expires_at: until
  consent_record_id: form
";

fn by_columns(world: &World) -> Consents {
    let key = world.path("subject.key").display().to_string();
    world.declares(&COLUMNS.replace("SUBJECT_KEY", &key)).unwrap()
}

fn row() -> Value {
    json!({"from": "letters", "user": "anna", "law": "eu-gdpr:A6-1-a", "agreed": "yes",
           "uses": "all; dpv:ServiceProvision", "meta": {"when": "2026-01-02T03:04:05+02:00"},
           "until": "2027-01-01", "form": "urn:x:1"})
}

fn with(key: &str, value: Value) -> Value {
    let mut row = row();
    row[key] = value;
    row
}

#[test]
fn columns_say_it_in_words_of_their_own() {
    let world = World::new();
    let consents = by_columns(&world);
    let found = of(&consents, row()).unwrap();
    assert_eq!((found.basis, found.status), ("consent", "given"));
    assert_eq!(found.purposes, ["dpv:CustomerCare", "dpv:Marketing", "dpv:ServiceProvision"]);
    assert_eq!(found.processing, ["ai:ModelFineTuning"]);
    assert_eq!(found.given_at.unwrap().to_string(), "2026-01-02T01:04:05Z");
    assert_eq!(found.expires_at.unwrap().to_string(), "2027-01-01T00:00:00Z");
    assert_eq!((found.source.as_str(), found.license.as_str()), ("letters", "CC-BY-4.0"));
    assert_eq!(of(&consents, with("agreed", json!(true))).unwrap().status, "given");
    assert_eq!(of(&consents, with("agreed", json!("no"))).unwrap().status, "refused");
    assert_eq!(of(&consents, with("law", json!("contract"))).unwrap().basis, "contract");
    assert!(consents.columns().contains("meta") && consents.columns().contains("form"));
}

#[test]
fn a_subject_is_a_keyed_digest_and_never_a_plain_one() {
    let world = World::new();
    let found = of(&by_columns(&world), row()).unwrap().subject_ref.unwrap();
    // hmac.new(b"k" * 32, b"anna", "sha256").hexdigest() in Python.
    let expected = "2dadd6a44590d38ab3042e24a19fe1200a1d2241357e00f02413c86d7498059d";
    assert_eq!(files::hex(&found), expected);
    world.write("subject.key", "q".repeat(32));
    assert_ne!(of(&by_columns(&world), row()).unwrap().subject_ref.unwrap(), found);
    world.write("subject.key", "short");
    let key = world.path("subject.key").display().to_string();
    let refusal = world.refuses(&COLUMNS.replace("SUBJECT_KEY", &key));
    assert!(refusal.starts_with("`subject_key` of `subject.key` has 5 bytes"), "{refusal}");
}

#[test]
fn a_value_that_nobody_defined_is_no_yes() {
    let world = World::new();
    let consents = by_columns(&world);
    for (key, value, field) in [
        ("agreed", json!("maybe"), "status"),
        ("agreed", json!("Given"), "status"),
        ("agreed", json!(["yes", "no"]), "status"),
        ("agreed", json!({"yes": 1}), "status"),
        ("law", json!("gdpr"), "basis"),
        ("uses", json!("everything"), "purposes"),
        ("uses", json!([["dpv:CustomerCare"]]), "purposes"),
        ("meta", json!({"when": "2026-01-02T03:04:05"}), "given_at"),
        ("until", json!("soon"), "expires_at"),
        ("until", json!(1767225600), "expires_at"),
    ] {
        let refused = of(&consents, with(key, value.clone())).unwrap_err();
        assert_eq!(refused, (Reason::UndefinedValue, field.to_owned()), "{key}: {value}");
    }
}

/// The gate takes neither for the word, and so must not the import.
#[test]
fn a_list_of_one_word_and_a_word_with_spaces_around_it_are_not_the_word() {
    let world = World::new();
    let consents = by_columns(&world);
    for (key, word, field) in [
        ("from", "letters", "source"),
        ("user", "anna", "subject"),
        ("law", "consent", "basis"),
        ("agreed", "yes", "status"),
        ("until", "2027-01-01", "expires_at"),
        ("form", "urn:x:1", "consent_record_id"),
    ] {
        of(&consents, with(key, json!(word))).unwrap();
        let spaced = [format!(" {word}"), format!("{word} "), format!("\t{word}\n")];
        for value in spaced.iter().map(|text| json!(text)).chain([json!([word]), json!([])]) {
            let refused = of(&consents, with(key, value.clone())).unwrap_err();
            assert_eq!(refused, (Reason::UndefinedValue, field.to_owned()), "{key}: {value}");
        }
    }
    let listed = of(&consents, with("uses", json!(["dpv:Marketing"]))).unwrap();
    assert_eq!(listed.purposes, ["dpv:Marketing"]);
}

#[test]
fn what_is_not_said_is_not_made_up() {
    let world = World::new();
    let consents = by_columns(&world);
    for (key, reason, field) in [
        ("law", Reason::Incomplete, "basis"),
        ("agreed", Reason::Incomplete, "status"),
        ("form", Reason::NoConsentRecord, "consent_record_id"),
        ("from", Reason::Incomplete, "source"),
    ] {
        for nothing in [json!(null), json!(" ")] {
            let refused = of(&consents, with(key, nothing)).unwrap_err();
            assert_eq!(refused, (reason, field.to_owned()));
        }
    }
    assert!(of(&consents, with("uses", json!(null))).unwrap().purposes.is_empty());
    let refused = of(&consents, with("from", json!("elsewhere"))).unwrap_err();
    assert_eq!(refused.0, Reason::UnknownSource);
    let refused = of(&consents, json!({"from": "letters"})).unwrap_err();
    assert_eq!(refused.0, Reason::NoConsent);
    // What the data itself calls unknown is written as that.
    let unknown = of(&consents, with("agreed", json!("dpv:ConsentUnknown"))).unwrap();
    assert_eq!(unknown.status, "unknown");
}

#[test]
fn rows_about_nobody_name_nobody_and_their_source_says_why() {
    let world = World::new();
    let consents = by_columns(&world);
    let mut row = with("law", json!("not_personal_data"));
    row["agreed"] = json!("not_applicable");
    assert_eq!(of(&consents, row.clone()).unwrap_err().0, Reason::SubjectOfNobody);
    row["user"] = json!(null);
    assert_eq!(of(&consents, row.clone()).unwrap_err().0, Reason::NoJustification);
    row["from"] = json!("rules");
    assert_eq!(of(&consents, row).unwrap().status, "not_applicable");
}

const DEFAULT: &str = "\
default:
  basis: not_personal_data
  justification: generated by rule
  purposes: [dpv:ServiceProvision]
  processing: [dpv-ai:ModelFineTuning]
  source: letters
";

#[test]
fn a_default_holds_for_rows_of_which_nothing_is_said_and_for_no_others() {
    let world = World::new();
    let consents = world.declares(DEFAULT).unwrap();
    let found = of(&consents, json!({"text": "x"})).unwrap();
    assert_eq!((found.basis, found.status), ("not_personal_data", "not_applicable"));
    assert_eq!(
        (found.source.as_str(), found.processing.as_slice()),
        ("letters", &["ai:ModelFineTuning".to_owned()][..])
    );
    let both = "columns: { basis: law, status: agreed }\n".to_owned() + DEFAULT;
    let consents = world.declares(&both).unwrap();
    assert_eq!(of(&consents, json!({"law": null})).unwrap().basis, "not_personal_data");
    // Half a row is not filled up: a withdrawal would become a yes.
    let refused = of(&consents, json!({"law": null, "agreed": "withdrawn"})).unwrap_err();
    assert_eq!(refused, (Reason::Incomplete, "basis".to_owned()));
}

#[test]
fn consent_by_default_needs_a_record() {
    let world = World::new();
    let by_consent = DEFAULT.replace("not_personal_data", "consent");
    let refusal = world.refuses(&by_consent);
    assert!(
        refusal.starts_with(
            "`default.basis` of `consent.yaml` is consent of which there is no record"
        )
    );
    world.write("r.jsonld", RECORD);
    let records = format!("records: ['{}']\n", world.path("r.jsonld").display());
    let named = format!("{by_consent}  consent_record_id: urn:uuid:1\n{records}");
    let found = of(&world.declares(&named).unwrap(), json!({})).unwrap();
    assert_eq!((found.basis, found.status), ("consent", "given"));
    let other = named.replace("urn:uuid:1", "urn:uuid:2");
    let refused = of(&world.declares(&other).unwrap(), json!({})).unwrap_err();
    assert_eq!(refused.0, Reason::UnknownConsentRecord);
}

const RECORD: &str = r#"{"@id": "urn:uuid:1", "@type": "dpv:ConsentRecord",
  "dpv:hasLegalBasis": "eu-gdpr:A6-1-a",
  "dpv:hasProcess": {"dpv:hasPurpose": "dpv:ServiceProvision", "dpv:hasProcessing": "ai:ModelFineTuning"},
  "dpv:hasNotice": "https://example.org/v3",
  "dpv:hasConsentStatus": {"@type": "dpv:ConsentGiven", "dpv:isIndicatedAtTime": "2026-01-02T00:00:00Z"}}"#;

#[test]
fn a_record_speaks_for_its_rows_and_nothing_may_say_otherwise() {
    let world = World::new();
    world.write("r.jsonld", RECORD);
    let rest = format!(
        "expiry: P12M\nrecords: ['{}']\ncolumns: {{ consent_record_id: form, status: agreed, \
         purposes: uses, source: {{ value: letters }} }}\n",
        world.path("*.jsonld").display()
    );
    let consents = world.declares(&rest).unwrap();
    let found = of(&consents, json!({"form": "urn:uuid:1"})).unwrap();
    assert_eq!((found.basis, found.status), ("consent", "given"));
    assert_eq!(found.purposes, ["dpv:ServiceProvision"]);
    assert_eq!(found.notice.as_deref(), Some("https://example.org/v3"));
    assert_eq!(found.expires_at.unwrap().to_string(), "2027-01-02T00:00:00Z");
    let digest = files::sha256_of_bytes(RECORD.as_bytes());
    assert_eq!(files::hex(&found.digest.unwrap()), digest);
    for (key, value) in [("agreed", "withdrawn"), ("uses", "dpv:Marketing")] {
        let refused = of(&consents, json!({"form": "urn:uuid:1", key: value})).unwrap_err();
        assert_eq!(refused.0, Reason::Contradiction);
    }
    let refused = of(&consents, json!({"form": "urn:uuid:9"})).unwrap_err();
    assert_eq!(refused.0, Reason::UnknownConsentRecord);
    world.write("r.jsonld", RECORD.replace("dpv:ConsentGiven", "dpv:ConsentTerminated"));
    let consents = world.declares(&rest).unwrap();
    let refused = of(&consents, json!({"form": "urn:uuid:1"})).unwrap_err();
    assert_eq!(refused.0, Reason::UnclearConsentRecord);
}

#[test]
fn a_declaration_that_cannot_be_meant_is_refused_where_it_stands() {
    let world = World::new();
    for (rest, told) in [
        ("license: MIT\n", "consent.yaml:8:1: `license` stands there twice; keep one of the two"),
        ("---\na: b\n", "consent.yaml:9:1: another document begins here; "),
        ("collumns: {}\n", "consent.yaml:8:1: unknown key `collumns`; did you mean `columns`?"),
        (
            "columns: { status: { colum: x } }\n",
            "consent.yaml:8:22: unknown key `colum`; did you mean `column`?",
        ),
        ("", "`columns` of `consent.yaml` says nothing of consent; "),
        (
            "columns: { basis: { value: consent }, status: { value: given } }\n",
            "`columns.status` of `consent.yaml` cannot be the same for every row; ",
        ),
        (
            "columns: { basis: x, status: { column: y, values: { a: agreed } } }\n",
            "`columns.status` of `consent.yaml` cannot mean `agreed`; ",
        ),
        ("columns: { basis: x, subject: y }\n", "`columns.subject` of `consent.yaml` needs a key"),
        ("columns: { basis: x, status: y }\n", "`sources` of `consent.yaml` does not tell which"),
        (
            "columns: { basis: true }\n",
            "consent.yaml:8:12: this is boolean `true`, not the name of a column, or",
        ),
        ("expiry: 12 months\n", "`expiry` of `consent.yaml` is neither a duration nor `endless`; "),
        ("expiry: never\n", "`expiry` of `consent.yaml` is neither a duration nor `endless`; "),
        ("max_snapshot_age: 30\n", "`max_snapshot_age` of `consent.yaml` is no duration; "),
        ("snapshot_at: 2026-06-01T00:00:00\n", "`snapshot_at` of `consent.yaml` is no instant; "),
    ] {
        let refusal = world.refuses(rest);
        assert!(refusal.starts_with(told), "{refusal}");
    }
    for (from, to, told) in [
        ("  justification: generated by rule\n", "", "`justification` is missing"),
        ("generated by rule", "' '", "`default.justification` of `consent.yaml` says nothing"),
        ("  basis: not_personal_data\n", "", "`basis` is missing"),
        ("not_personal_data", "unknown", "`default.basis` of `consent.yaml` is no legal basis"),
        (
            "source: letters",
            "source: leters",
            "`default.source` of `consent.yaml` is none of `sources`; did you mean `letters`?",
        ),
        (
            "dpv-ai:ModelFineTuning",
            "ai:Anything",
            "`default.processing` of `consent.yaml` cannot contain `ai:Anything`",
        ),
    ] {
        let refusal = world.refuses(&DEFAULT.replace(from, to));
        assert!(refusal.contains(told), "{refusal}");
    }
    world.write("consent.yaml", "# nothing yet\n\n");
    let empty = declared::read(&world.path("consent.yaml")).unwrap_err().to_string();
    assert!(empty.ends_with("consent.yaml:1:1: the declaration is empty"), "{empty}");
    fs::remove_file(world.path("consent.yaml")).unwrap();
    assert!(declared::read(&world.path("consent.yaml")).is_err());
}
