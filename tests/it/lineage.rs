//! Proofs about records, made and checked as people do it.

use fs_err as fs;
use heirloom::provenance::tree::{Commitment, Key, Row, TreeWriter, each_digest};
use heirloom::run::RunFolder;

use crate::world::World;

/// A world with a run over the bundled test file; every third row is left out.
struct Lineage {
    world: World,
    used: Vec<String>,
    left_out: Vec<String>,
    commitment: Commitment,
}

impl Lineage {
    fn new() -> Self {
        let world = World::new();
        fs::create_dir_all(world.path("runs/small")).unwrap();
        let mut tree =
            TreeWriter::new(&world.path("runs/small"), Key::from_bytes([7; 32])).unwrap();
        let (mut used, mut left_out) = (Vec::new(), Vec::new());
        let mut number = 0;
        each_digest(&world.path("data/test.parquet"), None, None, |record_id, digest| {
            let reason = (number % 3 == 2).then_some("withdrawn");
            number += 1;
            let list = if reason.is_some() { &mut left_out } else { &mut used };
            list.push(record_id.to_owned());
            let digest = Some(digest);
            tree.add(&Row { record_id, subject: None, salt: None, digest, left_out: reason })
        })
        .unwrap();
        let commitment = tree.finish().unwrap();
        Self { world, used, left_out, commitment }
    }

    fn root(&self) -> String {
        heirloom::files::hex(&self.commitment.root)
    }

    fn prove(&self, record: &str, more: &[&str]) {
        let words = ["lineage", "prove", "--record", record, "runs/small", "-o", "proof.json"];
        let ran = self.world.heirloom(&[words.as_slice(), more].concat());
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(0), ""), "{}", ran.stderr);
    }

    /// Exit status, and what is said.
    fn check(&self, more: &[&str]) -> (i32, String) {
        let ran = self
            .world
            .heirloom(&[["lineage", "check-proof", "proof.json"].as_slice(), more].concat());
        (ran.status.unwrap(), ran.stdout + &ran.stderr)
    }
}

const KEY: [&str; 2] = ["--key", "runs/small/record_key"];
const DATA: [&str; 2] = ["--data", "data/test.parquet"];
const RUN: [&str; 2] = ["--manifest", "runs/small"];

#[test]
fn a_record_that_was_used_is_proven_to_be() {
    let lineage = Lineage::new();
    lineage.prove(&lineage.used[5], &[]);
    let root = lineage.root();
    for more in [[RUN, KEY], [RUN, DATA], [["--root", &root], KEY], [["--root", &root], DATA]] {
        let (status, said) = lineage.check(more.as_flattened());
        assert_eq!(status, 0, "{said}");
        let content = if more[1] == DATA { ", with the content that the data has" } else { "" };
        let told = format!("is in the tree {root}{content}: the proof holds\n");
        assert!(said.ends_with(&told), "{said}");
    }
    assert_eq!(lineage.check(&[RUN, DATA, ["--format", "chat"]].concat()).0, 0);
    let (status, said) = lineage.check(&[RUN, DATA, ["--format", "alpaca"]].concat());
    assert_eq!(status, 1, "{said}");
    let (status, said) = lineage.check(&RUN);
    assert_eq!(status, 1);
    assert!(said.contains("give the run's key with `--key`, or the data with `--data`"), "{said}");
    let (status, said) = lineage.check(&[RUN, ["--data", "data/validation.parquet"]].concat());
    assert_eq!(status, 1);
    assert!(said.contains("the data has no record"), "{said}");
}

#[test]
fn a_record_that_was_not_used_is_proven_not_to_be() {
    let lineage = Lineage::new();
    for record in [lineage.left_out[3].as_str(), "never-heard-of"] {
        lineage.prove(record, &[]);
        let (status, said) = lineage.check(&[RUN, KEY].concat());
        assert_eq!(status, 0, "{said}");
        assert!(said.contains("is not in the tree"), "{said}");
        for more in [RUN.as_slice(), &[RUN, DATA].concat()] {
            let (status, said) = lineage.check(more);
            assert_eq!(status, 1);
            assert!(said.contains("nothing shows that its token is that of"), "{said}");
        }
        lineage.prove(record, &["--include-key"]);
        assert_eq!(lineage.check(&RUN).0, 0);
    }
}

#[test]
fn a_proof_against_another_root_or_with_another_key_fails() {
    let (lineage, other) = (Lineage::new(), Lineage::new());
    lineage.prove(&lineage.used[0], &[]);
    let zeros = "0".repeat(64);
    let other_run = other.world.path("runs/small");
    for tree in [["--root", &zeros], ["--manifest", other_run.to_str().unwrap()]] {
        let (status, said) = lineage.check(&[tree, KEY].concat());
        assert_eq!(status, 1);
        assert!(said.contains("it is about the tree"), "{said}");
    }
    lineage.world.write("key", "ab".repeat(32));
    let (status, said) = lineage.check(&[RUN, ["--key", "key"]].concat());
    assert_eq!(status, 1);
    assert!(said.contains("it is about tokens of the key"), "{said}");
}

#[test]
fn a_proof_that_was_tampered_with_fails() {
    let lineage = Lineage::new();
    lineage.prove(&lineage.used[7], &[]);
    let good = lineage.world.read("proof.json");
    let flip = |text: &str, after: &str| {
        let at = text.find(after).unwrap() + after.len();
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        bytes
    };
    for member in
        ["\"salt\": \"", "\"digest\": \"", "\"token\": \"", "\"root\": \"", "\"key_id\": \""]
    {
        let member = member.replace("key_id", "keyId");
        lineage.world.write("proof.json", flip(&good, &member));
        let (status, said) = lineage.check(&[RUN, KEY].concat());
        assert_eq!(status, 1, "{member} {said}");
    }
    for (text, expected) in [
        (good.replace(&lineage.used[7], &lineage.used[8]), "its token is not that of"),
        (good.replace("inclusion", "exclusion"), "is no proof at line"),
        (good.replacen('{', "{\"token\": \"\",", 1), "is no proof at line"),
        ("[]".to_owned(), "is no proof at line 1"),
        (String::new(), "is no proof at line 1"),
    ] {
        lineage.world.write("proof.json", text);
        let (status, said) = lineage.check(&[RUN, KEY].concat());
        assert_eq!(status, 1);
        assert!(said.contains(expected), "{said}");
    }
    lineage.world.write("proof.json", " ".repeat(2 << 20));
    let (status, said) = lineage.check(&[RUN, KEY].concat());
    assert_eq!(status, 1);
    assert!(said.contains("more than the 1048576 that are read"), "{said}");
}

#[test]
fn what_cannot_be_proven_is_said_to_be_so() {
    let lineage = Lineage::new();
    lineage.world.refuses(
        &["lineage", "prove", "--record", "x", "data"],
        "error: `data` has no record tree\n\nhint: name a run folder that has its \
         `record_tree.json` and `record_index.parquet`\n",
    );
    lineage.prove(&lineage.used[0], &[]);
    let (status, said) = lineage.check(&KEY);
    assert_eq!(status, 1);
    assert!(said.contains("--root <HEX>|--manifest <PATH>"), "{said}");
    let (status, said) = lineage.check(&["--root", "ABC"]);
    assert_eq!(status, 1);
    assert!(said.contains("is not a root of 64 lower-case hexadecimal digits"), "{said}");
    let run = RunFolder::new(lineage.world.path("runs/small"));
    lineage.world.write("runs/small/record_tree.json", "{}");
    assert!(run.record_index().is_file());
    let ran = lineage.world.heirloom(&["lineage", "prove", "--record", "x", "runs/small"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("is no commitment to a record tree"), "{}", ran.stderr);
}

#[test]
fn a_printed_proof_is_the_written_one_and_holds_no_key_unless_asked() {
    let lineage = Lineage::new();
    let record = lineage.used[1].as_str();
    lineage.prove(record, &[]);
    let printed =
        lineage.world.heirloom(&["lineage", "prove", "--record", record, "runs/small"]).stdout;
    assert_eq!(printed, lineage.world.read("proof.json"));
    assert!(!printed.contains(&"07".repeat(32)));
    lineage.prove(record, &["--include-key"]);
    assert!(lineage.world.read("proof.json").contains(&"07".repeat(32)));
}
