//! `heirloom data show` and `heirloom data stats`: what people and programs see of rows.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, ListBuilder, StringArray, StringBuilder, StructBuilder, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::datatypes::{DataType, Field, Fields};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use crate::world::World;

/// What moves the cursor, turns words round, hides or rings.
const HOSTILE: &str = "\0\x07\x1b[2J\x1b]0;owned\x07\r\u{9b}2J\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041} ⟦not trained⟧";

/// Years after the clock of any test.
const LATER: i64 = 4_000_000_000_000_000;

/// A record id, what the user says, what the assistant answers, and whether it may be used.
type Row<'a> = (&'a str, &'a str, &'a str, bool);

/// Writes rows with their consent.
fn write_rows(world: &World, name: &str, rows: &[Row<'_>]) {
    let strings = |of: &dyn Fn(&Row<'_>) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(of).collect::<StringArray>())
    };
    let lists = |word: &str| -> ArrayRef {
        let mut builder = ListBuilder::new(StringBuilder::new());
        rows.iter().for_each(|_| builder.append_value([Some(word)]));
        Arc::new(builder.finish())
    };
    let instants = |micros: Option<i64>| -> ArrayRef {
        let values: TimestampMicrosecondArray = rows.iter().map(|_| micros).collect();
        Arc::new(values.with_timezone("UTC"))
    };
    let text = |name| Field::new(name, DataType::Utf8, true);
    let fields = Fields::from(vec![text("role"), text("content")]);
    let mut messages = ListBuilder::new(StructBuilder::from_fields(fields, 0));
    for (_, question, answer, _) in rows {
        for (role, content) in [("user", question), ("assistant", answer)] {
            let turn = messages.values();
            turn.field_builder::<StringBuilder>(0).unwrap().append_value(role);
            turn.field_builder::<StringBuilder>(1).unwrap().append_value(content);
            turn.append(true);
        }
        messages.append(true);
    }
    let status = |row: &Row<'_>| Some(if row.3 { "given" } else { "withdrawn" }.to_owned());
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("record_id", strings(&|row| Some(row.0.to_owned())), false),
        ("messages", Arc::new(messages.finish()) as ArrayRef, true),
        ("subject_ref", new_null_array(&DataType::FixedSizeBinary(32), rows.len()), true),
        ("consent_basis", strings(&|_| Some("consent".to_owned())), true),
        ("consent_status", strings(&status), true),
        ("consent_purposes", lists("dpv:ServiceProvision"), true),
        ("consent_processing", lists("ai:ModelFineTuning"), true),
        ("consent_given_at", instants(Some(0)), true),
        ("consent_expires_at", instants(Some(LATER)), true),
        ("consent_withdrawn_at", instants(None), true),
        ("consent_record_id", strings(&|_| Some("urn:uuid:1".to_owned())), true),
    ])
    .unwrap();
    let footer = r#"{"schema":"consent/v1","defaults":{"expiry":"P12M"}}"#.to_owned();
    let properties = WriterProperties::builder()
        .set_key_value_metadata(Some(vec![KeyValue::new("consent.v1".to_owned(), footer)]))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    world.write(name, bytes);
}

fn ok(world: &World, arguments: &[&str]) -> String {
    let ran = world.heirloom(arguments);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    ran.stdout
}

fn json(world: &World, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--format", "json"]].concat();
    serde_json::from_str(&ok(world, &arguments)).unwrap()
}

/// What options a file of rows needs.
const LOOSE: [&str; 4] = ["--model", "base", "--purpose", "dpv:ServiceProvision"];

#[test]
fn rows_look_the_same_for_ever() {
    let world = World::new();
    write_rows(
        &world,
        "rows.parquet",
        &[
            ("row-a", "Two bags\nof peas", "so # 2", true),
            ("row-b", "Nevermore", "Nevermore", false),
            ("row-c", "नम", "é", true),
        ],
    );
    let shown = ok(&world, &[&["data", "show", "rows.parquet"], &LOOSE[..]].concat());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data_show.txt");
    assert_eq!(shown, fs_err::read_to_string(golden).unwrap());
}

#[test]
fn refused_rows_are_never_shown() {
    let world = World::new();
    // Whoever wrote a row that may not be used is called Nevermore.
    for format in ["text", "json"] {
        let all =
            ok(&world, &["data", "show", "recipe.yaml", "--first", "9999", "--format", format]);
        assert!(all.contains("Thornmere") || all.len() > 100_000);
        let joined = all.replace(['¦', '"', ','], "");
        assert!(!joined.contains("Nevermore"), "{format}");
    }
    let all = ok(&world, &["data", "show", "recipe.yaml", "--first", "9999"]);
    let summary = "2,600 rows shown; of 2,840 rows looked at, the consent gate refused 240: ";
    assert!(all.lines().last().unwrap().starts_with(summary), "{all}");

    write_rows(&world, "rows.parquet", &[("gone", "Nevermore", "Nevermore", false)]);
    let show = [&["data", "show", "rows.parquet"], &LOOSE[..]].concat();
    for chosen in
        [&["--record", "gone"][..], &["--rows", "0"], &["--first", "1"], &["--random", "1"]]
    {
        let shown = ok(&world, &[&show[..], chosen].concat());
        assert!(!shown.contains("ever"), "{shown}");
    }
    let why = ok(&world, &[&show[..], &["--record", "gone"]].concat());
    assert!(why.contains("gone (row 0 of rows.parquet)\n  the consent gate refuses it: withdrawn"));
    let none = ok(&world, &show);
    assert_eq!(none, "0 rows shown; of 1 row looked at, the consent gate refused 1: 1 withdrawn\n");
}

#[test]
fn a_file_of_rows_is_denied_without_a_purpose() {
    let world = World::new();
    world.refuses(
        &["data", "show", "data/test.parquet", "--model", "base"],
        "error: nothing says for what purpose `data/test.parquet` may be read\n\n\
         hint: add `--purpose` with a DPV term, such as `--purpose dpv:ServiceProvision`, or give \
         a recipe\n",
    );
    world.refuses(
        &["data", "show", "data/test.parquet", "--purpose", "dpv:ServiceProvision"],
        "error: nothing says by which model `data/test.parquet` is read\n\n\
         hint: add `--model` with a model folder, such as `--model data/seedling`, or give a \
         recipe\n",
    );
    world.refuses(
        &["data", "show", "recipe.yaml", "--purpose", "dpv:Advertising"],
        "error: `--purpose` is for a file of rows; `recipe.yaml` is a recipe\n\n\
         hint: leave it out, or change `data.purpose` of the recipe\n",
    );
    world.refuses(
        &["data", "show", "recipe.yaml", "--ledger", "withdrawals.jsonl"],
        "error: `--ledger` is for a file of rows; `recipe.yaml` is a recipe\n\n\
         hint: leave it out, or change `data.consent.ledgers` of the recipe\n",
    );
    world.refuses(
        &["data", "show", "data/test.parquet", "--set", "data.train_on=all"],
        "error: `--set` changes a recipe; `data/test.parquet` is a file of rows\n\n\
         hint: leave it out, or write a recipe that names the file and give that\n",
    );
    let other = ["data", "show", "data/test.parquet", "--model", "base", "--purpose"];
    let shown = ok(&world, &[&other[..], &["dpv:Advertising"]].concat());
    assert!(shown.starts_with("0 rows shown; of 320 rows looked at"), "{shown}");
}

#[test]
fn hostile_text_drives_no_terminal() {
    let world = World::new();
    let id = format!("id{HOSTILE}");
    write_rows(&world, "rows.parquet", &[(&id, HOSTILE, HOSTILE, true), (&id, "a", "b", false)]);
    let show = [&["data", "show", "rows.parquet"], &LOOSE[..]].concat();
    let recipe = world.read("recipe.yaml");
    world.write("hostile.yaml", recipe.replace("data/train-*.parquet", "rows.parquet"));
    for arguments in [
        show.clone(),
        [&show[..], &["--rows", "0,1"]].concat(),
        [&show[..], &["--format", "json"]].concat(),
        vec!["data", "stats", "hostile.yaml"],
        vec!["data", "stats", "hostile.yaml", "--format", "json"],
    ] {
        let shown = ok(&world, &arguments);
        let hostile: Vec<char> = HOSTILE.chars().filter(|c| !c.is_ascii()).collect();
        let drives = |c: &char| *c != '\n' && (c.is_control() || hostile.contains(c));
        let bad: Vec<char> = shown.chars().filter(|c| !"⟦⟧".contains(*c)).filter(drives).collect();
        assert!(bad.is_empty(), "{arguments:?}: {bad:?}");
    }
    let shown = ok(&world, &show).replace(['¦', '◦'], "");
    assert!(shown.contains(r"\u{0}\u{7}\u{1b}[2J\u{1b}]0;owned\u{7}\r\u{9b}2J\u{202e}"), "{shown}");
    // Nothing that a row says looks as if it were trained.
    assert!(shown.contains(r"\u{27e6}not trained\u{27e7}"), "{shown}");
}

#[test]
fn colour_only_repeats_the_marks() {
    let world = World::new();
    let show = ["data", "show", "recipe.yaml", "--first", "2"];
    let plain = ok(&world, &show);
    assert!(!plain.contains('\x1b') && plain.contains("⟦") && plain.contains("⟪<|end|>⟫⟧"));
    let run = |variable: &str| {
        let output = world.command(&show).env(variable, "1").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let coloured = run("CLICOLOR_FORCE");
    assert!(coloured.contains("\x1b[32;1m⟦"), "{coloured}");
    assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
    assert_eq!(run("NO_COLOR"), plain);
}

#[test]
fn rows_are_chosen_by_number_id_or_chance() {
    let world = World::new();
    let ids = |arguments: &[&str]| -> Vec<String> {
        let answer = json(&world, &[&["data", "show", "recipe.yaml"], arguments].concat());
        let rows = answer["rows"].as_array().unwrap().iter();
        rows.map(|row| row["record_id"].as_str().unwrap().to_owned()).collect()
    };
    let first = ids(&["--first", "5"]);
    assert_eq!(first.len(), 5);
    assert_eq!(ids(&["--record", &first[3], "--record", &first[1]]), [&*first[1], &first[3]]);
    assert_eq!(ids(&[]), first[..3]);
    let (one, other) =
        (ids(&["--random", "4", "--seed", "1"]), ids(&["--random", "4", "--seed", "2"]));
    assert_eq!(one.len(), 4);
    assert!(one != other && one == ids(&["--random", "4", "--seed", "1"]));
    assert_eq!(ids(&["--split", "validation", "--random", "9999"]).len(), 200);
    assert_eq!(ids(&["--split", "catalogue", "--rows", "0,319"]).len(), 2);
    world.refuses(
        &["data", "show", "recipe.yaml", "--record", "no-such"],
        "error: no row of `train` has the record id `no-such`\n\n\
         hint: check the spelling, or look in another split with `--split`\n",
    );
    world.refuses(
        &["data", "show", "recipe.yaml", "--split", "test/catalogue", "--rows", "320"],
        "error: there is no row 320 in `test/catalogue`: it has 320 rows, counted from 0\n\n\
         hint: give smaller numbers\n",
    );
    world.refuses(
        &["data", "show", "recipe.yaml", "--split", "catalog"],
        "error: there are no rows of the split `catalog`\n\n\
         hint: there is `test/catalogue`, `train` and `validation`\n",
    );
}

#[test]
fn programs_get_ids_pieces_and_weights() {
    let world = World::new();
    let arguments =
        ["data", "show", "recipe.yaml", "--first", "1", "--set", "data.sequence_length=64"];
    let answer = json(&world, &arguments);
    assert_eq!(answer["looked_at"]["used"], 1);
    let row = &answer["rows"][0];
    let length = |key: &str| row[key].as_array().unwrap().len() as u64;
    let tokens = row["tokens"].as_u64().unwrap();
    assert!(tokens > 64 && row["overlong"] == "refuse" && row["verdict"] == "used");
    assert_eq!([length("ids"), length("pieces"), length("weights")], [tokens; 3]);
    assert_eq!((&row["pieces"][0], &row["weights"][0]), (&"<|user|>".into(), &0.0.into()));
    let trained = row["weights"].as_array().unwrap().iter().filter(|weight| **weight == 1.0);
    assert_eq!(trained.count() as u64, row["trained_tokens"].as_u64().unwrap());
}

#[test]
fn rows_that_are_too_long_are_cut_where_a_run_cuts_them() {
    let world = World::new();
    for (overlong, words, cuts) in [
        ("refuse", "longer than a window of 32, so that a run is refused", 0),
        ("drop", "longer than a window of 32, so that it is left out", 0),
        ("truncate", "left out: nothing in its first 32 tokens is trained", 1),
        (
            "split",
            "cut into windows of 32: 2 trained on, 2 left out, in which nothing is trained",
            3,
        ),
    ] {
        let set = format!("data.overlong={overlong}");
        let arguments = ["--first", "1", "--set", "data.sequence_length=32", "--set", &set];
        let shown = ok(&world, &[&["data", "show", "recipe.yaml"], &arguments[..]].concat());
        let (legend, row) = shown.split_once('\n').unwrap();
        assert!(row.contains(words), "{row}");
        assert_eq!((legend.matches('✂').count(), row.matches('✂').count()), (1, cuts), "{row}");
    }
}

#[test]
fn stats_of_the_catalogue_are_those_of_check() {
    let world = World::new();
    let stats = json(&world, &["data", "stats", "recipe.yaml"]);
    let plan = json(&world, &["check", "recipe.yaml"]);
    let train = &stats["splits"][0];
    assert_eq!(train["rows"], plan["plan"]["rows"]["train"]);
    for key in ["tokens", "trained_tokens"] {
        assert_eq!(train[key], plan["plan"]["training"][key], "{key}");
    }
    let text = ok(&world, &["data", "stats", "recipe.yaml"]);
    for line in [
        "train\n  rows        2,600 of 2,840 used\n  refused     60 missing, ",
        "  lengths     min 42, median 77, p95 124, p99 135, max 147 tokens\n",
        "                70–79 ████████████████████████████████████████ 570\n",
        "  overlong    none is longer than a window of 512\n",
        "  Latin                    0.56   303,847 characters in ",
        "  exact       0 rows\n",
        "  validation     of 200 rows: 0 the same conversation, 0 the same opening, 0 near-duplicates",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn scripts_that_cost_more_are_said_in_a_sentence() {
    let world = World::new();
    let lines = [
        "I need two bags of peas for March, please. ".repeat(5),
        "मुझे मार्च के लिए मटर के दो थैले चाहिए। ".repeat(5),
        "மார்ச் மாதத்திற்கு எனக்கு இரண்டு பைகள் பட்டாணி தேவை. ".repeat(5),
        "三月份我需要两袋豌豆。".repeat(20),
        "أحتاج إلى كيسين من البازلاء لشهر مارس. ".repeat(5),
    ];
    let ids = ["latin", "hindi", "tamil", "chinese", "arabic"];
    let rows: Vec<Row<'_>> =
        ids.iter().zip(&lines).map(|(id, line)| (*id, line.as_str(), "so", true)).collect();
    write_rows(&world, "rows.parquet", &rows);
    let recipe = world.read("recipe.yaml");
    let recipe = recipe.replace("data/train-*.parquet", "rows.parquet");
    world.write("scripts.yaml", recipe);
    let text = ok(&world, &["data", "stats", "scripts.yaml", "--set", "data.sequence_length=2048"]);
    for script in ["Devanagari", "Tamil", "Han", "Arabic"] {
        let sentence = format!("  {script} takes ");
        let line = text.lines().find(|line| line.starts_with(&sentence)).unwrap_or(&text);
        assert!(line.contains("tokens a character") && line.contains("times Latin"), "{line}");
    }
    assert!(!text.contains("Latin takes"), "{text}");
}

#[test]
fn planted_repeats_and_leaks_are_named_by_id_alone() {
    let world = World::new();
    let train = [
        ("t0", "Two bags of Selwyn peas for March", "so", true),
        ("t1", "Two bags of Selwyn peas for March", "so", true),
        ("t2", "two bags  of SELWYN peas for March", "so", true),
        ("t3", "A question that stands alone", "sq", true),
        ("t4", "Nevermore", "so", false),
    ];
    let held =
        [("v0", "a question that  stands ALONE", "SQ", true), ("v1", "Nevermore", "so", true)];
    write_rows(&world, "train.parquet", &train);
    write_rows(&world, "held.parquet", &held);
    let recipe = world.read("recipe.yaml").replace("data/train-*.parquet", "train.parquet");
    world.write("leaky.yaml", recipe.replace("data/validation.parquet", "held.parquet"));
    let text = ok(&world, &["data", "stats", "leaky.yaml"]);
    for line in [
        "  exact       1 row\n",
        "  normalised  2 rows, when case and white space do not count (2 within a file, 0 across",
        "              t1 repeats t0\n              t2 repeats t0\n",
        "  validation     of 2 rows: 1 the same conversation, 0 the same opening, 0 near-duplicates\n",
        "              v0 says the same as t3\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    for word in ["Selwyn", "question", "Nevermore"] {
        assert!(!text.contains(word), "{text}");
    }
}
