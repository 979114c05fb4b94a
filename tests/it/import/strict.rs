//! What an import must not take for a yes.

use super::{
    DECLARATION, fs, import, imported, lines, rows, set_aside, texts, world, write_parquet,
};
use crate::world::World;
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use serde_json::{Value, json};
use std::sync::Arc;

/// Rows whose columns say all that is known of their consent.
const BY_COLUMNS: &str = "\
subject_key: key
columns:
  record_id: id
  subject: user
  basis: { value: consent }
  status: agreed
  purposes: { value: [dpv:ServiceProvision] }
  processing: { value: [ai:ModelFineTuning] }
  consent_record_id: form
";

fn consenting() -> World {
    let world = world();
    let head = DECLARATION.split("default:").next().unwrap();
    world.write("consent.yaml", format!("{head}{BY_COLUMNS}"));
    world.write("key", "k".repeat(32));
    world
}

fn row(id: &str, agreed: &str) -> Value {
    json!({"id": id, "text": id, "user": "anna", "agreed": agreed, "form": "urn:x:1"})
}

/// Refused, and nothing of it remains.
fn refused(world: &World, sources: &[&str], more: &[&str], told: &str) {
    let before = world.files();
    let ran = import(world, sources, more);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""), "{}", ran.stderr);
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    assert_eq!(world.files(), before);
}

fn parquet_of(world: &World, columns: &[&str]) {
    let texts = || Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
    let batch = RecordBatch::try_from_iter(columns.iter().map(|name| (*name, texts()))).unwrap();
    write_parquet(&world.path("in.parquet"), &batch);
}

#[test]
fn a_default_does_not_stand_in_for_consent_that_the_source_records() {
    let world = world();
    let told = "records consent in `consent_status` and `subject_ref`, which the declaration does \
                not map\n\nhint: map them under `columns`";
    let withdrawn = json!({"text": "b", "consent_status": "withdrawn", "subject_ref": "x"});
    world.write("in.jsonl", lines(&[json!({"text": "a"}), withdrawn]));
    world.write("in.csv", "text,consent_status,subject_ref\na,withdrawn,x\n");
    parquet_of(&world, &["text", "consent_status", "subject_ref"]);
    for source in ["in.jsonl", "in.csv", "in.parquet"] {
        refused(&world, &[source], &[], told);
    }
    world.write("in.jsonl", lines(&[json!({"text": "a", "Consent_Status": null})]));
    refused(&world, &["in.jsonl"], &[], "records consent in `Consent_Status`, which");
    // What is mapped is read, whatever it is called.
    let named = BY_COLUMNS.replace("agreed", "consent_status");
    let head = DECLARATION.split("default:").next().unwrap();
    world.write("consent.yaml", format!("{head}{named}"));
    world.write("key", "k".repeat(32));
    world.write("in.csv", "id,text,user,consent_status,form\n1,a,anna,withdrawn,urn:x:1\n");
    assert_eq!(imported(&world, &["in.csv"], &[])["statuses"], json!({"withdrawn": 1}));
}

#[test]
fn a_mapped_column_that_is_not_there_is_no_column_of_nothing() {
    let world = world();
    world.write("key", "k".repeat(32));
    let mapped = "subject_key: key\ncolumns: { withdrawn_at: revoked, subject: meta.user }\n";
    world.write("consent.yaml", format!("{DECLARATION}{mapped}"));
    let row = |name: &str| json!({"text": name, "revokd": "2026-01-01", "meta": {"user": "anna"}});
    world.write("in.jsonl", lines(&[row("a"), row("b")]));
    let told = "error: `columns.withdrawn_at` names the column `revoked`, which no row has\n\n\
                hint: did you mean `revokd`?";
    refused(&world, &["in.jsonl"], &[], told);
    world.write("in.csv", "text,revokd\na,2026-01-01\n");
    let told = "`columns.subject` names the column `meta.user`, which `in.csv` does not have";
    refused(&world, &["in.csv"], &[], told);
    parquet_of(&world, &["text", "revokd", "meta.user"]);
    let told = "`columns.withdrawn_at` names the column `revoked`, which `in.parquet` does not \
                have\n\nhint: did you mean `revokd`?";
    refused(&world, &["in.parquet"], &[], told);
    let told = "`--columns system` names the column `sytem`";
    world.write("consent.yaml", DECLARATION);
    world.write("in.jsonl", lines(&[json!({"instruction": "a", "output": "b", "system": "c"})]));
    refused(&world, &["in.jsonl"], &["--columns", "system=sytem"], told);
    // One row that has it is enough: keys of JSON may be left out.
    world.write("consent.yaml", format!("{DECLARATION}columns: {{ license: terms }}\n"));
    world.write("in.jsonl", lines(&[json!({"text": "a"}), json!({"text": "b", "terms": "MIT"})]));
    imported(&world, &["in.jsonl"], &[]);
}

#[test]
fn a_key_that_stands_twice_is_not_read_as_its_last() {
    let world = consenting();
    let twice = "{\"id\": \"1\", \"text\": \"a\", \"user\": \"anna\", \"agreed\": \"withdrawn\", \
                 \"agreed\": \"given\", \"form\": \"urn:x:1\"}\n";
    let nested = "{\"id\": \"3\", \"text\": \"a\", \"x\": [{\"y\": 1, \"\\u0079\": 2}]}\n";
    world.write("in.jsonl", format!("{twice}{}{nested}", lines(&[row("2", "given")])));
    imported(&world, &["in.jsonl"], &[]);
    let reason = "duplicate-key".to_owned();
    assert_eq!(set_aside(&world), [(1, reason.clone()), (3, reason)]);
}

#[test]
fn consent_of_a_subject_that_is_not_named_is_set_aside() {
    let world = consenting();
    let of = |id: &str, user: Value| {
        let mut row = row(id, "given");
        row["user"] = user;
        row
    };
    let all = [of("1", json!(null)), of("2", json!(" ")), of("3", json!("anna"))];
    world.write("in.jsonl", lines(&all));
    let answer = imported(&world, &["in.jsonl"], &[]);
    assert_eq!((&answer["rows"], &answer["without_subject"]), (&json!(1), &json!(0)));
    assert_eq!(answer["rejected"], json!({"no-subject": 2}));
    // Where no subject is mapped at all, that is said of all rows at once.
    let declared = world.read("consent.yaml").replace("  subject: user\n", "");
    world.write("consent.yaml", declared);
    let ran = import(&world, &["in.jsonl"], &["--force"]);
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&answer["rows"], &answer["without_subject"]), (&json!(3), &json!(3)));
    assert!(ran.stderr.contains("warning: 3 rows rest on consent and do not say whose"));
}

#[test]
fn of_two_rows_of_one_id_the_stale_consent_does_not_win() {
    let world = consenting();
    let conflict = "error: line 2 of `in.jsonl` and line 3 of `in.jsonl` have the same record id \
                    and different consent";
    let mut without_text = row("1", "withdrawn");
    without_text["text"] = json!(null);
    let mut unclear = row("1", "given");
    unclear["agreed"] = json!("no longer");
    for later in [row("1", "withdrawn"), without_text, unclear] {
        world.write("in.jsonl", lines(&[row("0", "given"), row("1", "given"), later]));
        refused(&world, &["in.jsonl"], &["--format", "text"], conflict);
    }
    world.write("in.jsonl", lines(&[row("0", "given"), row("1", "withdrawn"), row("1", "given")]));
    refused(&world, &["in.jsonl"], &[], conflict);
    world.write("more.jsonl", lines(&[row("2", "given"), row("0", "refused")]));
    world.write("in.jsonl", lines(&[row("0", "given")]));
    let told = "line 1 of `in.jsonl` and line 2 of `more.jsonl` have the same";
    refused(&world, &["in.jsonl", "more.jsonl"], &[], told);
    // The same consent: the later one is set aside, unless the first could not be used.
    let mut unusable = row("2", "given");
    unusable["text"] = json!(null);
    let again = [row("0", "given"), unusable, row("0", "given"), row("2", "given")];
    world.write("in.jsonl", lines(&again));
    imported(&world, &["in.jsonl"], &[]);
    let ids = texts(&rows(&world.path("out.parquet")), "record_id");
    assert_eq!(ids, [Some("0".to_owned()), Some("2".to_owned())]);
    assert_eq!(set_aside(&world)[1], (3, "duplicate-record-id".to_owned()));
}

#[test]
fn text_in_utf16_is_said_to_be_that() {
    let world = world();
    let text = lines(&[json!({"text": "a"})]);
    let letters = || text.encode_utf16().flat_map(u16::to_le_bytes);
    for bytes in
        [letters().collect::<Vec<u8>>(), [0xff, 0xfe].into_iter().chain(letters()).collect()]
    {
        fs::write(world.path("in.jsonl"), bytes).unwrap();
        let told = "error: `in.jsonl` is not UTF-8 but UTF-16\n\nhint: convert it with `iconv";
        refused(&world, &["in.jsonl"], &[], told);
    }
}
