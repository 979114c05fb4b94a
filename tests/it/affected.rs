//! `heirloom lineage affected`: from a record to what was made of it, wherever that lies.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use fs_err as fs;
use heirloom::files::sha256_of_bytes;
use heirloom::provenance::tree::{Key, Row, TreeWriter};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::withdrawals::{LEDGER, withdraw};
use crate::world::World;

/// What a run keeps of its rows, with two records of one subject.
fn write_index(world: &World, run: &str) {
    let mut tree = TreeWriter::new(&world.path(run), Key::random().unwrap()).unwrap();
    for (record_id, subject, left_out) in [
        ("alpha", Some([7; 32]), None),
        ("beta", Some([7; 32]), Some("withdrawn")),
        ("gamma", None, None),
    ] {
        tree.add(&Row { record_id, subject, salt: None, digest: Some([1; 32]), left_out }).unwrap();
    }
    tree.finish().unwrap();
}

/// Writes the index of a run anew, with other rows in it.
fn forge(world: &World, forged: impl Fn(&RecordBatch) -> RecordBatch) {
    let path = world.path("runs/small/record_index.parquet");
    let file = fs::File::open(&path).unwrap().into_parts().0;
    let mut rows = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let batch = forged(&rows.next().unwrap().unwrap());
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    world.write("runs/small/record_index.parquet", bytes);
}

/// The rows with a column replaced.
fn with(rows: &RecordBatch, name: &str, values: ArrayRef) -> RecordBatch {
    let mut columns = rows.columns().to_vec();
    columns[rows.schema().index_of(name).unwrap()] = values;
    RecordBatch::try_new(rows.schema(), columns).unwrap()
}

/// A run of full training as it is once trained, which begins as runs do.
fn trained() -> World {
    let world = World::new();
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    world.write("runs/small/model/model.safetensors", "the weights of the first run");
    write_index(&world, "runs/small");
    world
}

/// A second run, on top of what the first was trained into: its lock names these weights.
fn on_top(world: &World, run: &str) {
    let mut lock: Value = serde_json::from_str(&world.read("runs/small/recipe.lock")).unwrap();
    lock["base"] = json!([{
        "path": "runs/small/model/model.safetensors",
        "bytes": 28,
        "sha256": sha256_of_bytes(b"the weights of the first run"),
    }]);
    world.write(&format!("{run}/recipe.lock"), lock.to_string());
    world.write(&format!("{run}/model/model.safetensors"), "the weights of the second run");
}

fn affected(world: &World, more: &[&str]) -> (Option<i32>, Value) {
    let ran = world.heirloom(&[&["lineage", "affected", "--format", "json"], more].concat());
    let answer = serde_json::from_str(&ran.stdout);
    (ran.status, answer.unwrap_or_else(|_| panic!("{}", ran.stderr)))
}

fn real(world: &World, name: &str) -> String {
    fs::canonicalize(world.path(name)).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_record_leads_to_its_run_and_the_models_on_top() {
    let world = trained();
    let run = heirloom::files::sha256_of_file(&world.path("runs/small/recipe.lock")).unwrap();
    let (status, answer) = affected(&world, &["--record", "alpha"]);
    assert_eq!(status, Some(0));
    let found = &answer["affected"][0];
    assert_eq!((&found["run"], &found["rows"]), (&json!(run), &json!(1)));
    let place = json!([{"path": real(&world, "runs/small"), "there": true}]);
    assert_eq!(found["places"], place);
    let model = &found["models"][0];
    assert_eq!(model["kind"], "merged");
    assert_eq!(model["weights"], json!([sha256_of_bytes(b"the weights of the first run")]));

    on_top(&world, "elsewhere/second");
    let (status, answer) = affected(&world, &["--record", "alpha", "--search", "elsewhere"]);
    // Its own index is not there; that of its base says enough.
    assert_eq!((status, answer["unknown"].as_array().unwrap().len()), (Some(0), 0));
    let second = answer["affected"].as_array().unwrap().iter().find(|one| one["run"] != run);
    let second = second.unwrap();
    assert_eq!((&second["base_from"], &second["rows"]), (&json!([run]), &Value::Null));
    assert_eq!(
        second["models"][0]["weights"],
        json!([sha256_of_bytes(b"the weights of the second run")])
    );
}

#[test]
fn left_out_is_not_affected_and_a_subject_is_all_its_records() {
    let world = trained();
    let (status, answer) = affected(&world, &["--record", "beta"]);
    assert_eq!((status, &answer["affected"]), (Some(0), &json!([])));
    assert_eq!(answer["clear"][0]["left_out"], 1);
    let (_, answer) = affected(&world, &["--record", "nobody"]);
    assert_eq!(answer["clear"][0]["left_out"], 0);
    let (status, answer) = affected(&world, &["--subject", &"07".repeat(32)]);
    assert_eq!((status, &answer["affected"][0]["rows"]), (Some(0), &json!(1)));
    let ran = withdraw(
        &world,
        &["--subject", &"07".repeat(32), "--scope", "processing=ai:ModelTraining"],
    );
    assert_eq!(ran.status, Some(0));
    withdraw(&world, &["--record", "gamma", "--scope", "processing=dpv:MakeAvailable"]);
    let (_, answer) = affected(&world, &["--ledger", LEDGER]);
    assert_eq!(answer["affected"][0]["rows"], 1);
    withdraw(&world, &["--record", "gamma"]);
    let (_, answer) = affected(&world, &["--ledger", LEDGER]);
    assert_eq!(answer["affected"][0]["rows"], 2);
}

#[test]
fn a_moved_run_is_found_again_and_a_gone_one_is_never_clear() {
    let world = trained();
    let before = real(&world, "runs/small");
    fs::create_dir(world.path("archive")).unwrap();
    fs::rename(world.path("runs/small"), world.path("archive/2026")).unwrap();
    let ran = world.heirloom(&["lineage", "affected", "--record", "nobody"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stdout.starts_with("0 runs affected, 1 of which nobody can tell, 0 clear\n"));
    assert!(
        ran.stdout.contains(&format!("its folder is gone\n            {before} (no longer there)"))
    );
    assert!(
        ran.stderr.contains("hint: name the folders that runs were moved to"),
        "{}",
        ran.stderr
    );

    let (status, answer) = affected(&world, &["--record", "alpha", "--search", "."]);
    assert_eq!(status, Some(0));
    let places = &answer["affected"][0]["places"];
    let there = heirloom::files::sha256_of_file(&world.path("archive/2026/recipe.lock")).unwrap();
    assert_eq!(*places, json!([{"path": real(&world, "archive/2026"), "there": true}]));
    assert_eq!(answer["affected"][0]["run"], there);

    fs::remove_file(world.path("archive/2026/record_index.parquet")).unwrap();
    let (status, answer) = affected(&world, &["--record", "nobody", "--search", "."]);
    assert_eq!((status, &answer["clear"]), (Some(1), &json!([])));
    assert_eq!(answer["unknown"][0]["why"], "its `record_index.parquet` is gone");
    assert_eq!(answer["unknown"][0]["models"].as_array().unwrap().len(), 1);
}

/// A row taken out of the index, marked as not used, or given another name: the run has
/// committed to it all the same.
#[test]
fn an_index_that_contradicts_the_root_of_its_run_is_never_clear() {
    let alpha = |rows: &RecordBatch| -> Vec<bool> {
        let ids = rows.column_by_name("record_id").unwrap().as_string::<i32>();
        ids.iter().map(|id| id == Some("alpha")).collect()
    };
    let others = |rows: &RecordBatch| alpha(rows).into_iter().map(|is| !is).collect::<Vec<_>>();
    type Forged<'a> = &'a dyn Fn(&RecordBatch) -> RecordBatch;
    let forged: [(&str, Forged<'_>); 3] = [
        ("taken out", &|rows| filter_record_batch(rows, &others(rows).into()).unwrap()),
        ("not used", &|rows| {
            let used = rows.column_by_name("used").unwrap().as_boolean();
            let used = used.values().iter().zip(others(rows)).map(|(used, other)| used && other);
            with(rows, "used", Arc::new(BooleanArray::from(used.collect::<Vec<_>>())))
        }),
        ("renamed", &|rows| {
            let ids = rows.column_by_name("record_id").unwrap().as_string::<i32>();
            let ids = ids.iter().map(|id| if id == Some("alpha") { Some("omega") } else { id });
            with(rows, "record_id", Arc::new(ids.collect::<StringArray>()))
        }),
    ];
    for (how, forged) in forged {
        let world = trained();
        forge(&world, |rows| rows.clone());
        let (status, answer) = affected(&world, &["--record", "beta"]);
        assert_eq!((status, answer["clear"].as_array().unwrap().len()), (Some(0), 1), "{how}");
        forge(&world, forged);
        let (status, answer) = affected(&world, &["--record", "alpha"]);
        assert_eq!((status, &answer["clear"]), (Some(1), &json!([])), "{how}");
        let why = answer["unknown"][0]["why"].as_str().unwrap();
        assert!(why.starts_with("its index cannot be believed: "), "{how}: {why}");
    }
    let world = trained();
    fs::remove_file(world.path("runs/small/record_tree.json")).unwrap();
    assert_eq!(affected(&world, &["--record", "nobody"]).0, Some(1));
}

#[test]
fn another_run_in_the_same_place_is_another_run() {
    let world = trained();
    fs::remove_dir_all(world.path("runs/small")).unwrap();
    assert_eq!(world.heirloom(&["train", "recipe.yaml"]).status, Some(0));
    write_index(&world, "runs/small");
    let (status, answer) = affected(&world, &["--record", "nobody"]);
    assert_eq!(status, Some(1));
    assert_eq!(answer["clear"].as_array().unwrap().len(), 1);
    assert_eq!(answer["unknown"][0]["why"], "its folder is gone");
}

#[test]
fn where_nothing_is_known_that_is_said() {
    let world = World::new();
    let ran = world.heirloom(&["lineage", "affected", "--record", "r"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.starts_with("error: no run is known: the registry `"), "{}", ran.stderr);
    assert!(ran.stderr.contains("`--search`"), "{}", ran.stderr);
}

#[test]
fn a_registry_that_cannot_be_written_costs_a_warning_and_not_the_run() {
    let world = World::new();
    let mut command = world.command(&["train", "recipe.yaml"]);
    let output = command.env("HEIRLOOM_HOME", world.path("recipe.yaml")).output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{words}");
    assert!(words.starts_with("warning: the registry `"), "{words}");
    assert!(world.path("runs/small/recipe.lock").is_file());
}

#[test]
fn a_broken_registry_says_how_to_go_on_without_it() {
    let world = trained();
    let path = world.home().join("registry.jsonl");
    fs::write(&path, [b"nonsense\n".as_slice(), &fs::read(&path).unwrap()].concat()).unwrap();
    let ran = world.heirloom(&["lineage", "affected", "--record", "alpha", "--search", "."]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
    assert!(
        ran.stderr.contains("hint: move `") && ran.stderr.contains("--search"),
        "{}",
        ran.stderr
    );
    fs::remove_file(&path).unwrap();
    let (status, answer) = affected(&world, &["--record", "alpha", "--search", "."]);
    assert_eq!((status, &answer["affected"][0]["rows"]), (Some(0), &json!(1)));
}
