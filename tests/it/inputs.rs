//! Recipes that are right, naming inputs that are not.

use std::process::Command;
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, ListArray, RecordBatch, StringArray, StructArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;

use crate::world::{RECIPE, World};

/// Writes the rows of the bundled validation data again, changed, with their footer.
fn rewrite_validation(world: &World, change: impl Fn(RecordBatch) -> RecordBatch) {
    let path = world.path("data/validation.parquet");
    let file = fs_err::File::open(&path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.into_file()).unwrap();
    let footer = reader.metadata().file_metadata().key_value_metadata().cloned();
    let batches: Vec<_> = reader.build().unwrap().map(|batch| change(batch.unwrap())).collect();
    let properties = WriterProperties::builder().set_key_value_metadata(footer).build();
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, batches[0].schema(), Some(properties)).unwrap();
    for batch in &batches {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
    world.write("data/validation.parquet", bytes);
}

/// The same conversations, with every turn said by the user.
fn without_assistant(batch: RecordBatch) -> RecordBatch {
    let (position, _) = batch.schema().column_with_name("messages").unwrap();
    let messages: &ListArray = batch.column(position).as_list();
    let turns: &StructArray = messages.values().as_struct();
    let roles = StringArray::from(vec!["user"; turns.len()]);
    let content = turns.column_by_name("content").unwrap().clone();
    let content = arrow::compute::cast(&content, &arrow::datatypes::DataType::Utf8).unwrap();
    let turns = StructArray::try_from(vec![
        ("role", Arc::new(roles) as arrow::array::ArrayRef),
        ("content", content),
    ])
    .unwrap();
    let item = Arc::new(arrow::datatypes::Field::new_list_field(turns.data_type().clone(), true));
    let messages = ListArray::new(
        item,
        messages.offsets().clone(),
        Arc::new(turns),
        messages.nulls().cloned(),
    );
    let schema = batch.schema();
    let columns = schema.fields().iter().enumerate().map(|(index, field)| {
        let column = if index == position {
            Arc::new(messages.clone()) as arrow::array::ArrayRef
        } else {
            batch.column(index).clone()
        };
        (field.name().clone(), column)
    });
    RecordBatch::try_from_iter(columns).unwrap()
}

/// The recipe with an adapter over the base's weights.
fn with_adapter() -> String {
    let text = RECIPE.replace(", from_scratch: true", "");
    text.replace("adapter: full", "adapter: { lora: { rank: 4, alpha: 8 } }")
}

#[test]
fn a_missing_file() {
    let world = World::new();
    world.refuses(
        &["train", "recipe.yaml", "--set", "data.test.0.path=data/held-out.parquet"],
        "error: --set data.test.0.path=data/held-out.parquet: no file matches \
         `data/held-out.parquet`\n\n\
         hint: paths are relative to the current directory; check where you are and the spelling\n",
    );
}

#[test]
fn a_missing_base() {
    let world = World::new();
    world.write("recipe.yaml", RECIPE.replace("model: base", "model: bas"));
    world.refuses(
        &["train", "recipe.yaml"],
        "error: recipe.yaml:3:16: there is no folder `bas`\n\n\
         hint: `base.model` is a folder in Hugging Face format, relative to the current directory\n",
    );
}

#[test]
fn problems_of_every_input_are_found_together() {
    let world = World::new();
    world.write("data/train-00001.parquet", "not Parquet at all");
    world.write("data/test.parquet", "");
    let ran = world.heirloom(&[
        "check",
        "recipe.yaml",
        "--set",
        "data.sequence_length=65536",
        "--set",
        "train.tokens_per_step=65536",
    ]);
    assert_eq!(ran.status, Some(1));
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines[0], "error: the recipe `recipe.yaml` has 3 problems");
    assert!(lines[1].starts_with("  recipe.yaml:7:19: "), "{}", ran.stderr);
    assert!(lines[1].contains("data/train-00001.parquet"), "{}", ran.stderr);
    assert!(lines[3].starts_with("  recipe.yaml:9:35: "), "{}", ran.stderr);
    assert!(lines[5].contains("65536, more than the 2048 positions of the base"), "{}", ran.stderr);
}

#[test]
fn truncated_safetensors() {
    let world = World::new();
    world.write("recipe.yaml", with_adapter());
    // The header promises more than there is.
    world.write("base/model.safetensors", b"\xff\x00\x00\x00\x00\x00\x00\x00{\"a\"");
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(1));
    let expected =
        "error: recipe.yaml:3:16: `base/model.safetensors` is not a complete safetensors file";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
    assert!(!world.path("runs").exists());
}

#[test]
fn weights_of_another_model_are_told_in_full() {
    let world = World::new();
    world.write("recipe.yaml", with_adapter());
    let header = r#"{"model.norm.weights":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    let file = [&length[..], header.as_bytes(), &[0; 4]].concat();
    world.write("base/model.safetensors", file);
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(1));
    let expected = "error: recipe.yaml:3:16: the weights in `base` do not fit its `config.json`: ";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
    for line in [
        "  `model.layers.{0..3}.self_attn.q_proj.weight` is missing (nearest: \
         `model.norm.weights`)\n",
        "  `model.norm.weights` is unexpected (nearest: `model.norm.weight`)\n",
    ] {
        assert!(ran.stderr.contains(line), "{}", ran.stderr);
    }
}

#[test]
fn a_tokenizer_larger_than_the_embedding() {
    let world = World::new();
    let config = world.read("base/config.json");
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let tokens = config["vocab_size"].as_u64().unwrap();
    let text = world.read("base/config.json");
    world.write(
        "base/config.json",
        text.replace(&format!("\"vocab_size\": {tokens}"), "\"vocab_size\": 100"),
    );
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(1));
    let expected = "error: recipe.yaml:3:16: the tokenizer of `base` has ";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
    assert!(ran.stderr.contains("but the embedding only 100 rows"), "{}", ran.stderr);
}

#[test]
fn no_row_is_left_after_the_consent_gate() {
    let world = World::new();
    world.write("recipe.yaml", RECIPE.replace("ServiceProvision", "PersonalisedAdvertising"));
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(1));
    let expected =
        "error: recipe.yaml:7:3: no row of `data.train` is left after the consent gate: ";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
    assert!(!world.path("runs").exists());
}

#[test]
fn a_missing_column() {
    let world = World::new();
    rewrite_validation(&world, |batch| {
        let (messages, _) = batch.schema().column_with_name("messages").unwrap();
        let kept: Vec<usize> = (0..batch.num_columns()).filter(|at| *at != messages).collect();
        batch.project(&kept).unwrap()
    });
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(1));
    let expected = "error: recipe.yaml:8:24: `data/validation.parquet` has no column `messages`\n\n\
                    hint: say with `columns: {messages: NAME}` which it is; it has `consent_basis`, ";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
    assert!(!world.path("runs").exists());
}

#[test]
fn a_chat_with_no_assistant_turn() {
    let world = World::new();
    rewrite_validation(&world, without_assistant);
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.starts_with("error: recipe.yaml:8:24: row 0 "), "{}", ran.stderr);
    assert!(ran.stderr.contains("assistant"), "{}", ran.stderr);
    assert!(!world.path("runs").exists());
}

#[test]
fn held_out_rows_too_long_for_the_base() {
    let world = World::new();
    world.write(
        "recipe.yaml",
        RECIPE.replace("test.parquet,", "test.parquet, max_new_tokens: 2048,"),
    );
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(1));
    let (first, second) = ran.stderr.split_once("\n\n").unwrap();
    assert!(first.starts_with("error: recipe.yaml:9:35: row "), "{first}");
    assert!(first.contains(") of `data/test.parquet` has "), "{first}");
    let expected = " tokens and an answer of up to 2048, more than the 2048 positions of the base";
    assert!(first.ends_with(expected), "{first}");
    assert_eq!(second, "hint: lower the suite's `max_new_tokens`, or shorten or remove the row\n");
    assert!(!world.path("runs").exists());
}

#[test]
fn a_disk_without_room_leaves_no_half_written_run() {
    let world = World::new();
    // A limit on the size of files stands in for the disk: writing fails, and with the
    // signal ignored the program is told so.
    let program = world.command(&["train", "recipe.yaml"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" train recipe.yaml"]);
    shell.arg(program.get_program()).current_dir(world.path(""));
    for (key, value) in program.get_envs() {
        value.map(|value| shell.env(key, value));
    }
    let before = world.files();
    let output = shell.output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    let expected = "the lengths of the rows cannot be kept in a temporary file";
    assert!(words.contains(expected) && words.contains("`TMPDIR`"), "{words}");
    let after: Vec<String> = world.files().into_iter().filter(|name| name != "runs").collect();
    assert_eq!(after, before);
}

#[test]
fn a_full_device_behind_the_output_is_told() {
    let world = World::new();
    let full = fs_err::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = world.command(&["check", "recipe.yaml"]);
    let output = command.stdout(full.into_file()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.starts_with("error: cannot write to the standard output\n"), "{words}");
}
