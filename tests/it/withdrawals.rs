//! `heirloom data withdraw`: from the command line to the ledger, whatever happens between.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use heirloom::dataset::ledger::Withdrawals;
use heirloom::files::sha256_of_bytes;
use serde_json::{Value, json};

use crate::world::{Ran, World};

pub(crate) const LEDGER: &str = "withdrawals.jsonl";

pub(crate) fn withdraw(world: &World, more: &[&str]) -> Ran {
    world.heirloom(&[&["data", "withdraw", "--ledger", LEDGER], more].concat())
}

/// Lines of the ledger, which must hold.
fn lines(world: &World) -> Vec<Value> {
    let withdrawals = Withdrawals::open(&[world.path(LEDGER)]).unwrap();
    let text = world.read(LEDGER);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), withdrawals.len());
    lines
}

#[test]
fn a_withdrawal_begins_a_ledger_and_says_what_to_do_next() {
    let world = World::new();
    let ran = withdraw(&world, &["--record", "r 1", "--effective", "2026-05-01T00:00:00Z"]);
    let written = lines(&world);
    let id = written[0]["event_id"].as_str().unwrap();
    assert_eq!((ran.status, ran.stdout), (Some(0), format!("{id}\n")));
    assert_eq!(
        ran.stderr,
        "`withdrawals.jsonl` was not there, and begins with this event\n\
         withdrawn from 2026-05-01T00:00:00Z on, in line 1 of `withdrawals.jsonl`\n\
         runs leave the rows out whose recipe has the ledger among `data.consent.ledgers`\n\n\
         next: heirloom lineage affected --record 'r 1'\n"
    );
    assert_eq!(written[0]["record_id"], "r 1");
    assert_eq!(written[0]["scope"], json!({"purposes": ["*"], "processing": ["*"]}));
    assert_eq!(written[0]["evidence_sha256"], Value::Null);

    let again = withdraw(&world, &["--record", "r2", "--quiet"]);
    assert_eq!((again.status, again.stderr.as_str()), (Some(0), ""));
    let first = sha256_of_bytes(world.read(LEDGER).lines().next().unwrap().as_bytes());
    assert_eq!(lines(&world)[1]["prev_sha256"], first);
}

#[test]
fn every_option_is_written_down() {
    let world = World::new();
    world.write("letter.pdf", "please");
    let subject = "AB".repeat(32);
    let ran = withdraw(
        &world,
        &[
            "--subject",
            &subject,
            "--event",
            "objected",
            "--scope",
            "purpose=dpv:Marketing",
            "--scope",
            "purpose=dpv:ServiceProvision",
            "--scope",
            "purpose=dpv:Marketing",
            "--evidence",
            "letter.pdf",
        ],
    );
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let line = lines(&world).remove(0);
    assert_eq!(line["subject_ref"], subject.to_lowercase());
    assert_eq!(line["record_id"], Value::Null);
    assert_eq!(line["event"], "objected");
    let purposes = ["dpv:Marketing", "dpv:ServiceProvision"];
    assert_eq!(line["scope"], json!({"purposes": purposes, "processing": ["*"]}));
    assert_eq!(line["evidence_sha256"], sha256_of_bytes(b"please"));
    assert_eq!(line["effective_at"], line["recorded_at"]);
    assert!(ran.stderr.ends_with(&format!("--subject {}\n", subject.to_lowercase())));
}

/// The digits are those of `openssl dgst -sha256 -hmac Jefe-Jefe-Jefe-Jefe-Jefe-Jefe-Jefe`.
#[test]
fn a_subject_is_found_by_its_id_and_the_key() {
    let world = World::new();
    world.write("subjects.key", "Jefe-Jefe-Jefe-Jefe-Jefe-Jefe-Jefe");
    let id = "what do ya want for nothing?";
    let ran = withdraw(&world, &["--subject-id", id, "--key-file", "subjects.key"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let line = lines(&world).remove(0);
    let expected = "5ddbaa947cf301becf7aa2f5d56a9c1554b5f166ad2330d0c92799f492a76aa0";
    assert_eq!(line["subject_ref"], expected);
    assert!(!world.read(LEDGER).contains("ya want"), "the id itself is not for the ledger");

    world.write("short.key", "Jefe");
    let ran = withdraw(&world, &["--subject-id", id, "--key-file", "short.key"]);
    assert_eq!(ran.status, Some(1));
    let told = "error: the key `short.key` has 4 bytes, fewer than 32\n";
    assert!(ran.stderr.starts_with(told), "{}", ran.stderr);
    assert_eq!(lines(&world).len(), 1);
}

#[test]
fn what_cannot_be_meant_is_refused_and_writes_nothing() {
    let world = World::new();
    let before = world.files();
    for (arguments, told) in [
        (vec![], "required arguments were not provided"),
        (vec!["--record", "r", "--subject", "ab"], "64 hexadecimal digits"),
        (vec!["--record", "r", "--subject-id", "s", "--key-file", "k"], "cannot be used with"),
        (vec!["--subject-id", "s"], "--key-file"),
        (vec!["--key-file", "k"], "required arguments were not provided"),
        (vec!["--record", "r", "--key-file", "k"], "cannot be used with"),
        (vec!["--record", "r", "--event", "given"], "invalid value"),
        (vec!["--record", "r", "--scope", "dpv:Marketing"], "`purpose=TERM`"),
        (vec!["--record", "r", "--scope", "purpose="], "no purpose of DPV 2.3"),
        (
            vec!["--record", "r", "--scope", "purpose=dpv:Marketign"],
            "`dpv:Marketign` is no purpose of DPV 2.3; did you mean `dpv:Marketing`?",
        ),
        (vec!["--record", "r", "--scope", "processing=dpv:Marketing"], "is no processing of DPV"),
        (vec!["--record", "r", "--effective", "2026-05-01"], "a time with its zone"),
        (vec!["--record", "r", "--effective", "2026-05-01T00:00:00"], "a time with its zone"),
        (vec!["--record", "r", "--evidence", "nowhere.pdf"], "the evidence cannot be read"),
        (vec!["--record", ""], "`record_id` is empty"),
        (vec!["--subject-id", "s", "--key-file", "nowhere"], "key of the subjects cannot be used"),
    ] {
        let ran = withdraw(&world, &arguments);
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(ran.stderr.contains(told), "{arguments:?}: {}", ran.stderr);
        assert_eq!(world.files(), before, "{arguments:?}");
    }
}

#[test]
fn a_ledger_edited_in_the_middle_stops_everything() {
    let world = World::new();
    for record in ["r1", "r2", "r3"] {
        withdraw(&world, &["--record", record]);
    }
    let edited = world.read(LEDGER).replace("\"r1\"", "\"r9\"");
    world.write(LEDGER, &edited);
    let told = "error: line 2 of the ledger `withdrawals.jsonl` does not follow from the line \
                before it, which was changed after it was written\n  expected sha256 ";
    let asked = ["lineage", "affected", "--ledger", LEDGER];
    for ran in [withdraw(&world, &["--record", "r4"]), world.heirloom(&asked)] {
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
        assert!(ran.stderr.starts_with(told), "{}", ran.stderr);
    }
    assert_eq!(world.read(LEDGER), edited);
}

#[test]
fn two_programs_at_once_both_land() {
    let world = World::new();
    let children: Vec<_> = (0..8)
        .map(|number| {
            let record = format!("r{number}");
            let arguments = ["data", "withdraw", "--ledger", LEDGER, "--record", &record, "-q"];
            world.command(&arguments).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let mut records: Vec<String> =
        lines(&world).iter().map(|line| line["record_id"].as_str().unwrap().to_owned()).collect();
    records.sort();
    assert_eq!(records, ["r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7"]);
    let ledger = |name: &String| name.starts_with("withdrawals") || name.starts_with(".heirloom");
    assert_eq!(world.files().iter().filter(|name| ledger(name)).count(), 1);
}

#[test]
fn a_kill_at_any_time_leaves_whole_lines() {
    let world = World::new();
    withdraw(&world, &["--record", "first"]);
    for round in 0..40 {
        let arguments = ["data", "withdraw", "--ledger", LEDGER, "--record", "r", "-q"];
        let mut child = world.command(&arguments).stdout(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_micros(250 * round));
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!lines(&world).is_empty());
    }
    let before = lines(&world).len();
    assert_eq!(withdraw(&world, &["--record", "last"]).status, Some(0));
    assert_eq!(lines(&world).len(), before + 1);
}

/// A limit on the size of files stands in for a full disk; with the signal ignored the
/// program is told so, without it it is killed in the middle.
#[test]
fn a_full_disk_leaves_the_ledger_as_it_was() {
    let world = World::new();
    for number in 0..3 {
        withdraw(&world, &["--record", &format!("{number}-{}", "x".repeat(400))]);
    }
    let before = world.read(LEDGER);
    assert!(before.len() > 2048);
    for trap in ["trap '' XFSZ; ", ""] {
        let mut shell = Command::new("sh");
        // In blocks of 512 bytes: fewer than the ledger has.
        let script = format!("{trap}ulimit -f 3; exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_heirloom")]);
        shell.args(["data", "withdraw", "--ledger", LEDGER, "--record", "r"]);
        let output = shell.current_dir(world.path("")).output().unwrap();
        assert!(!output.status.success());
        assert_eq!(world.read(LEDGER), before);
    }
    assert_eq!(withdraw(&world, &["--record", "r"]).status, Some(0));
    assert_eq!(lines(&world).len(), 4);
}
