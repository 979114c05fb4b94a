//! `heirloom data consent`: which rows a recipe may use, and why.

use std::path::Path;

use arrow::array::{Array as _, AsArray as _, StringArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::world::{RECIPE, Ran, World};

const FILES: &str = "data/train-*.parquet";

fn consent(world: &World, path: &str, more: &[&str]) -> Ran {
    let first = ["data", "consent", path, "--recipe", "recipe.yaml"];
    world.heirloom(&[&first, more].concat())
}

fn counted(world: &World, path: &str, more: &[&str]) -> Value {
    let ran = consent(world, path, &[&["--format", "json"], more].concat());
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    serde_json::from_str(&ran.stdout).unwrap()
}

/// Ids of the rows of a status, and the words of their letters.
fn rows(world: &World, file: &str, status: &str) -> Vec<String> {
    let file = fs_err::File::open(world.path(file)).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.into_file()).unwrap();
    let mut ids = Vec::new();
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        let column = |name| -> &StringArray { batch.column_by_name(name).unwrap().as_string() };
        let (names, statuses) = (column("record_id"), column("consent_status"));
        let named = (0..names.len())
            .filter(|row| statuses.is_valid(*row) && statuses.value(*row) == status);
        ids.extend(named.map(|row| names.value(row).to_owned()));
    }
    ids
}

#[test]
fn the_bundled_rows_are_counted_by_reason() {
    let world = World::new();
    // Twelve rows of each of twenty ways to be refused.
    let expected = json!({
        "seen": 2840, "used": 2600,
        "excluded": {"missing": 60, "unknown": 36, "withdrawn": 60, "not-given": 24, "expired": 24,
                     "purpose": 24, "processing": 12},
    });
    assert_eq!(counted(&world, FILES, &[]), expected);
    let text = consent(&world, FILES, &[]).stdout;
    for words in ["left out: withdrawn", "2600", "2840"] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn the_same_rows_are_seen_as_by_check() {
    let world = World::new();
    let ran = world.heirloom(&["check", "recipe.yaml", "--format", "json"]);
    let checked: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(checked["plan"]["rows"]["train"], counted(&world, FILES, &[]));
}

#[test]
fn what_is_asked_and_when_decides() {
    let world = World::new();
    let later = counted(&world, FILES, &["--at", "2099-06-01T00:00:00Z"]);
    assert_eq!((&later["used"], later["seen"].as_u64()), (&json!(0), Some(2840)));
    let marketing = ["--set", "data.purpose.0=dpv:Marketing"];
    assert_eq!(counted(&world, FILES, &marketing)["used"], 0);
    // Narrower than what the rows allow, by two steps.
    let narrower = ["--set", "data.purpose.0=dpv:DeliveryOfGoods"];
    assert_eq!(counted(&world, FILES, &narrower)["used"], 2600);
    let publish = RECIPE
        .replace("  train:", "  processing: [ai:ModelFineTuning, dpv:MakeAvailable]\n  train:");
    world.write("recipe.yaml", publish);
    assert_eq!(counted(&world, FILES, &[])["used"], 2600);
    let refused = ["--set", "data.processing.1=dpv:Share"];
    assert_eq!(counted(&world, FILES, &refused)["used"], 0);
}

#[test]
fn one_row_is_explained_without_its_text() {
    let world = World::new();
    let file = "data/validation.parquet";
    let id = rows(&world, file, "revoked").remove(0);
    let ran = consent(&world, file, &["--explain", &id]);
    let expected = "data/validation.parquet: The row is left out as `withdrawn`. Its status is \
                    `revoked`, which ends the permission.\n";
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), expected, ""));
    let used = rows(&world, file, "renewed").remove(0);
    let ran = consent(&world, file, &["--explain", &used, "--format", "json"]);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&told[0]["used"], &told[0]["record_id"]), (&json!(true), &json!(used)));
    assert!(told[0]["why"].as_str().unwrap().contains("`dpv:ServiceProvision`"), "{told}");
}

#[test]
fn a_record_that_is_not_there_is_told_with_a_hint() {
    let world = World::new();
    let words = "error: no row of `data/test.parquet` has the `record_id` `nobody`\n\n\
                 hint: an id is given whole, with its upper and lower case; 320 rows were looked \
                 at\n";
    let path = "data/test.parquet";
    let command = ["data", "consent", path, "--recipe", "recipe.yaml", "--explain", "nobody"];
    world.refuses(&command, words);
}

#[test]
fn a_withdrawal_in_the_ledger_leaves_its_row_out() {
    let world = World::new();
    let file = "data/validation.parquet";
    let id = rows(&world, file, "given").remove(0);
    let before = counted(&world, file, &[])["used"].as_u64().unwrap();
    let effective = ["--effective", "2026-05-01T00:00:00Z"];
    let withdraw = ["data", "withdraw", "--ledger", "gone.jsonl", "--record", &id];
    assert_eq!(world.heirloom(&[&withdraw[..], &effective].concat()).status, Some(0));
    world.write(
        "recipe.yaml",
        RECIPE.replace("  train:", "  consent: { ledgers: [gone.jsonl] }\n  train:"),
    );
    let after = counted(&world, file, &[]);
    assert_eq!(after["used"].as_u64(), Some(before - 1));
    let told = consent(&world, file, &["--explain", &id]).stdout;
    let words = "The ledger has a withdrawal of it that holds before the planned end of the run";
    assert!(told.contains(words), "{told}");
    assert!(told.ends_with("of `gone.jsonl`: withdrawn, in effect from 2026-05-01T00:00:00Z.\n"));

    // A ledger that was edited in the middle stops everything.
    let ledger = world.read("gone.jsonl");
    assert_eq!(world.heirloom(&withdraw).status, Some(0));
    let second = world.read("gone.jsonl");
    world.write("gone.jsonl", second.replacen("2026-05-01", "2096-05-01", 1));
    assert_ne!(ledger, world.read("gone.jsonl"));
    let ran = consent(&world, file, &["--format", "json"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("gone.jsonl"), "{}", ran.stderr);
}

#[test]
fn a_snapshot_too_old_or_a_ledger_not_given_stops_the_file() {
    let world = World::new();
    let file = "data/validation.parquet";
    let footer = footer(&world.path(file));
    for (key, value, told) in [
        ("max_snapshot_age", json!("P30D"), "more than P30D before 2027-01-01T00:00:00Z"),
        ("ledger", json!("withdrawals.jsonl"), "keeps its withdrawals in the ledger"),
    ] {
        let mut said: Value = serde_json::from_str(&footer).unwrap();
        said[key] = value;
        rewrite(&world, file, &said.to_string());
        let ran = consent(&world, file, &["--at", "2027-01-01T00:00:00Z"]);
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
        assert!(ran.stderr.contains(told) && ran.stderr.contains("hint: "), "{}", ran.stderr);
    }
}

/// What a file says of its data set.
fn footer(path: &Path) -> String {
    let file = fs_err::File::open(path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.into_file()).unwrap();
    let pairs = reader.metadata().file_metadata().key_value_metadata().unwrap();
    pairs.iter().find(|pair| pair.key == "consent.v1").unwrap().value.clone().unwrap()
}

/// Writes the rows of a file again, under another footer.
fn rewrite(world: &World, name: &str, footer: &str) {
    use parquet::file::metadata::KeyValue;
    let file = fs_err::File::open(world.path(name)).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.into_file()).unwrap();
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    let pair = KeyValue::new("consent.v1".to_owned(), footer.to_owned());
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_key_value_metadata(Some(vec![pair]))
        .build();
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batches[0].schema(), Some(properties))
            .unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
    world.write(name, bytes);
}
