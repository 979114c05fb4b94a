//! What people are told who stumble on the way that `docs/guide/your-data.md` walks.

use crate::withdrawals::withdraw;
use crate::world::World;

/// One letter, and what is known of its consent, without the instant of the snapshot.
const DECLARATION: &str = "\
dataset_id: urn:uuid:f47ac10b-58cc-4372-a567-0e02b2c3d479
controller: Example Org
jurisdictions: [IE]
license: CC-BY-4.0
expiry: endless
ledger: withdrawals.jsonl
sources:
  rules: { origin: written by rule }
default:
  basis: not_personal_data
  justification: there is nobody in it
  purposes: [dpv:ServiceProvision]
  processing: [ai:ModelFineTuning]
  source: rules
";

const LETTER: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"Peas, please\"}, \
                      {\"role\": \"assistant\", \"content\": \"so # pea\"}]}\n";

fn world() -> World {
    let world = World::new();
    world.write("consent.yaml", DECLARATION);
    world.write("in.jsonl", LETTER);
    world
}

fn import<'a>(source: &'a str, output: &'a str) -> [&'a str; 7] {
    ["data", "import", source, "-o", output, "--consent", "consent.yaml"]
}

#[test]
fn an_address_cannot_be_imported_and_its_signature_is_not_repeated() {
    let world = world();
    for (source, named) in [
        ("s3://bucket/letters.jsonl", "s3://bucket/letters.jsonl"),
        ("https://example.org/a.csv?X-Amz-Signature=5ec2e7", "https://example.org/a.csv"),
        ("gs://bucket/*.parquet", "gs://bucket/*.parquet"),
    ] {
        let told = format!(
            "error: `{named}` is an address, and only files are imported\n\n\
             hint: download it first and import the file; if it is Parquet with consent columns, \
             no import is needed: name the address in a recipe\n"
        );
        world.refuses(&import(source, "out.parquet"), &told);
    }
}

#[test]
fn a_folder_or_a_file_that_is_missing_is_named() {
    let world = world();
    world.refuses(
        &import("in.jsonl", "absent/out.parquet"),
        "error: cannot write the rows\n  \
         caused by: there is no folder `absent` to write `absent/out.parquet` into\n\n\
         hint: make the folder first, or name another one\n",
    );
    let subject = "subject_key: subject.key\ncolumns: { subject: messages }\ndefault:";
    world.write("consent.yaml", DECLARATION.replace("default:", subject));
    world.refuses(
        &import("in.jsonl", "out.parquet"),
        "error: there is no file `subject.key`, which `subject_key` names\n\n\
         hint: make one with `openssl rand -hex 32 > subject.key`, and keep it secret\n",
    );
    fs_err::remove_file(world.path("consent.yaml")).unwrap();
    world.refuses(
        &import("in.jsonl", "out.parquet"),
        "error: cannot read `consent.yaml`\n  caused by: there is no file `consent.yaml`\n\n\
         hint: check the path for a typing mistake\n",
    );
}

#[test]
fn a_second_import_into_a_folder_is_told_about_the_snapshot() {
    let world = world();
    let run = |epoch: &str, output: &str| {
        let mut command = world.command(&import("in.jsonl", output));
        let output = command.env("SOURCE_DATE_EPOCH", epoch).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, said) = run("1790000000", "one.parquet");
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("`data.consent.ledgers: [withdrawals.jsonl]`"), "{said}");
    let (status, said) = run("1790000001", "two.parquet");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("it differs in `snapshot_at`"), "{said}");
    assert!(said.contains("hint: write the same `snapshot_at` into both declarations"), "{said}");
    // As the hint has it.
    world.write("consent.yaml", format!("{DECLARATION}snapshot_at: 2026-09-21T14:13:20Z\n"));
    let (status, said) = run("1790000001", "two.parquet");
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn a_file_of_rows_is_shown_by_its_ledger() {
    let world = world();
    let ran = world.heirloom(&import("in.jsonl", "out.parquet"));
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let model = ["--model", "base", "--purpose", "dpv:ServiceProvision"];
    let show = [&["data", "show", "out.parquet"], &model[..]].concat();
    let said = world.heirloom(&show);
    assert_eq!(said.status, Some(1));
    assert!(said.stderr.contains("or with `--ledger` where there is no recipe"), "{}", said.stderr);
    let show = [&show[..], &["--ledger", "withdrawals.jsonl"]].concat();
    let said = world.heirloom(&show);
    assert_eq!(said.status, Some(1));
    assert!(said.stderr.contains("an empty file is a ledger that has no event"), "{}", said.stderr);
    world.write("withdrawals.jsonl", "");
    let said = world.heirloom(&[&show[..], &["--format", "json"]].concat());
    let answer: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let id = answer["rows"][0]["record_id"].as_str().unwrap();
    assert_eq!(withdraw(&world, &["--record", id]).status, Some(0));
    let said = world.heirloom(&[&show[..], &["--record", id]].concat());
    assert!(said.stdout.contains("the consent gate refuses it: withdrawn"), "{}", said.stdout);
    assert!(said.stdout.contains("\n0 rows shown; of 1 row looked at"), "{}", said.stdout);
}
