//! `heirloom data import`: what goes in comes out, with its consent, or is set aside by line.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array as _, ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use fs_err as fs;
use heirloom::dataset::conversation::Json;
use heirloom::dataset::format::Layout;
use heirloom::dataset::sample::Sample;
use heirloom::recipe::Format;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::world::{RECIPE, Ran, World};

mod strict;

/// Rows about nobody, which every run for the shop may use.
const DECLARATION: &str = "\
dataset_id: urn:uuid:f47ac10b-58cc-4372-a567-0e02b2c3d479
controller: Example Org
jurisdictions: [IE]
license: CC-BY-4.0
expiry: endless
snapshot_at: 2026-06-01T00:00:00Z
sources:
  rules: { origin: written by rule }
default:
  basis: not_personal_data
  justification: there is nobody in them
  purposes: [dpv:ServiceProvision]
  processing: [ai:ModelFineTuning]
  source: rules
";

fn world() -> World {
    let world = World::new();
    world.write("consent.yaml", DECLARATION);
    world
}

fn import(world: &World, sources: &[&str], more: &[&str]) -> Ran {
    let mut arguments = vec!["data", "import"];
    arguments.extend(sources);
    arguments.extend(["-o", "out.parquet", "--consent", "consent.yaml", "--output-format", "json"]);
    arguments.extend(more);
    world.heirloom(&arguments)
}

/// Imports, and reads the answer.
fn imported(world: &World, sources: &[&str], more: &[&str]) -> Value {
    let ran = import(world, sources, more);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn rows(path: &Path) -> RecordBatch {
    let file = fs::File::open(path).unwrap().into_parts().0;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let schema = Arc::clone(builder.schema());
    let batches: Vec<RecordBatch> = builder.build().unwrap().map(Result::unwrap).collect();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

/// What the rows of the output hold, by the format that a recipe reads them with.
fn samples(world: &World, format: Format) -> Vec<Sample> {
    let rows = rows(&world.path("out.parquet"));
    let path = world.path("out.parquet");
    let layout = Layout::new(&path, format, &[].into(), rows.schema().fields()).unwrap();
    (0..rows.num_rows()).map(|row| layout.sample(&rows, row).unwrap()).collect()
}

fn turns(messages: &[Json]) -> Value {
    messages.iter().cloned().map(Value::Object).collect()
}

fn chats(world: &World) -> Vec<Value> {
    let chat = |sample| match sample {
        Sample::Conversation(chat) => turns(&chat.messages),
        other => panic!("{other:?}"),
    };
    samples(world, Format::Chat).into_iter().map(chat).collect()
}

fn texts(rows: &RecordBatch, column: &str) -> Vec<Option<String>> {
    let column = rows.column_by_name(column).unwrap().as_string::<i32>().clone();
    column.iter().map(|text| text.map(str::to_owned)).collect()
}

fn lines(values: &[Value]) -> String {
    values.iter().map(|value| format!("{value}\n")).collect()
}

fn set_aside(world: &World) -> Vec<(u64, String)> {
    let text = world.read("out.rejects.jsonl");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| (line["line"].as_u64().unwrap(), line["reason"].as_str().unwrap().to_owned()))
        .collect()
}

const SAID: [&str; 2] = ["Marigolds, please", "How many bags?"];

fn said() -> Value {
    json!([{"role": "user", "content": SAID[0]}, {"role": "assistant", "content": SAID[1]}])
}

#[test]
fn every_format_of_the_hub_is_found_by_its_keys_and_read_back() {
    let chat = said();
    let (user, assistant) = (&chat[0], &chat[1]);
    for (format, row, written) in [
        ("chat", json!({"messages": chat}), "chat"),
        (
            "sharegpt",
            json!({"conversations": [{"from": "human", "value": SAID[0]}, {"from": "gpt", "value": SAID[1]}]}),
            "chat",
        ),
        (
            "sharegpt",
            json!({"messages": [{"from": "human", "value": SAID[0]}, {"from": "gpt", "value": SAID[1]}]}),
            "chat",
        ),
        ("alpaca", json!({"instruction": SAID[0], "input": "", "output": SAID[1]}), "chat"),
        (
            "prompt-completion",
            json!({"prompt": SAID[0], "completion": SAID[1]}),
            "prompt-completion",
        ),
        (
            "prompt-completion",
            json!({"prompt": [user], "completion": [assistant]}),
            "prompt-completion",
        ),
        ("text", json!({"text": SAID[0]}), "text"),
        (
            "preference",
            json!({"chosen": chat, "rejected": [user, {"role": "assistant", "content": "No"}]}),
            "preference",
        ),
        (
            "preference",
            json!({"prompt": SAID[0], "chosen": SAID[1], "rejected": "No"}),
            "preference",
        ),
        ("kto", json!({"prompt": SAID[0], "completion": SAID[1], "label": true}), "kto"),
    ] {
        let world = world();
        world.write("in.jsonl", lines(std::slice::from_ref(&row)));
        let answer = imported(&world, &["in.jsonl"], &[]);
        assert_eq!(
            (&answer["source_format"], &answer["format"]),
            (&json!(format), &json!(written))
        );
        assert_eq!(answer["rows"], 1);
        let format = match written {
            "chat" => Format::Chat,
            "text" => Format::Text,
            "preference" => Format::Preference,
            "kto" => Format::Kto,
            _ => Format::PromptCompletion,
        };
        let sample = samples(&world, format).remove(0);
        match sample {
            Sample::Conversation(read) => assert_eq!(turns(&read.messages), chat, "{row}"),
            Sample::Text(text) => assert_eq!(text, SAID[0]),
            Sample::Completion { prompt, completion } => assert_eq!([prompt, completion], SAID),
            Sample::Labelled { conversation, desirable } => {
                assert_eq!((turns(&conversation.messages), desirable), (chat.clone(), true));
                assert_eq!(conversation.completion_from, Some(1));
            }
            Sample::Preference { chosen, rejected } => {
                assert_eq!(turns(&chosen.messages), chat);
                assert_eq!(turns(&rejected.messages)[1]["content"], "No");
                assert_eq!(chosen.completion_from, Some(1));
            }
        }
    }
}

#[test]
fn tools_reasoning_and_weights_go_through_and_plain_rows_have_no_columns_for_them() {
    let world = world();
    world.write("plain.jsonl", lines(&[json!({"messages": said()})]));
    imported(&world, &["plain.jsonl"], &[]);
    let plain = rows(&world.path("out.parquet"));
    let kind = plain.column_by_name("messages").unwrap().data_type().to_string();
    assert!(
        kind.contains("role") && kind.contains("content") && !kind.contains("weight"),
        "{kind}"
    );
    assert!(plain.column_by_name("tools").is_none());
    let call = json!({"type": "function", "function": {"name": "stock", "arguments": {"of": "marigold", "in": null}}});
    let rich = json!([
        {"role": "user", "content": SAID[0], "name": "anna"},
        {"role": "assistant", "reasoning_content": "let me look", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "7"},
        {"role": "assistant", "content": SAID[1], "weight": 0.5},
    ]);
    // An assistant who does nothing but call.
    let bare =
        json!([{"role": "user", "content": SAID[0]}, {"role": "assistant", "tool_calls": [call]}]);
    world.write("bare.jsonl", lines(&[json!({ "messages": bare })]));
    imported(&world, &["bare.jsonl"], &["--force"]);
    assert_eq!(chats(&world), [bare]);
    // The keys show late: what was written until then is written again with room for them.
    let row =
        json!({"messages": rich, "tools": [{"type": "function", "function": {"name": "stock"}}]});
    world.write("rich.jsonl", lines(&[json!({"messages": said()}), row]));
    imported(&world, &["rich.jsonl"], &["--force"]);
    assert_eq!(chats(&world), [said(), rich]);
    let Sample::Conversation(read) = samples(&world, Format::Chat).remove(1) else { panic!() };
    assert_eq!(read.tools.unwrap()[0]["function"]["name"], "stock");
}

#[test]
fn csv_and_parquet_say_the_same_as_json() {
    let world = world();
    let rows_of = |question: &str| json!({"question": question, "context": "", "answer": SAID[1]});
    world.write("in.jsonl", lines(&[rows_of("a\nb"), rows_of("c,\"d\"")]));
    world.write(
        "in.csv",
        format!("question,context,answer\n\"a\nb\",,{0}\n\"c,\"\"d\"\"\",,{0}\n", SAID[1]),
    );
    let column = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let batch = RecordBatch::try_from_iter([
        ("question", column(["a\nb", "c,\"d\""])),
        ("context", column(["", ""])),
        ("answer", column([SAID[1], SAID[1]])),
    ]);
    write_parquet(&world.path("in.parquet"), &batch.unwrap());
    let columns =
        ["--columns", "instruction=question", "input=context", "output=answer", "--force"];
    let mut bytes = Vec::new();
    for source in ["in.jsonl", "in.csv", "in.parquet"] {
        let answer = imported(&world, &[source], &columns);
        assert_eq!((&answer["source_format"], &answer["rows"]), (&json!("alpaca"), &json!(2)));
        bytes.push(fs::read(world.path("out.parquet")).unwrap());
    }
    assert!(bytes.windows(2).all(|pair| pair[0] == pair[1]), "they differ");
}

fn write_parquet(path: &Path, batch: &RecordBatch) {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    heirloom::files::write_atomically(path, &bytes).unwrap();
}

#[test]
fn a_run_uses_what_was_imported_as_the_declaration_says() {
    let world = world();
    let by_columns = DECLARATION.replace(
        "default:\n",
        "  letters: { origin: letters }\nsubject_key: key\ncolumns:\n  subject: user\n  basis: law\n  \
         status: { column: agreed, values: { 'yes': given } }\n  purposes: { column: uses, separator: ',' }\n  \
         processing: { value: [ai:ModelFineTuning] }\n  expires_at: until\n  consent_record_id: form\n  \
         source: from\ndefault:\n",
    );
    world.write("consent.yaml", by_columns);
    world.write("key", "k".repeat(40));
    let row = |agreed: &str, uses: &str, until: Value| {
        json!({"messages": said(), "from": "letters", "user": 7, "law": "consent", "agreed": agreed,
               "uses": uses, "until": until, "form": "urn:x:1"})
    };
    let allowed = "dpv:Marketing, dpv:ServiceProvision";
    world.write(
        "in.jsonl",
        lines(&[
            row("yes", allowed, json!(null)),
            row("withdrawn", allowed, json!(null)),
            row("yes", "dpv:Marketing", json!(null)),
            row("yes", allowed, json!("2020-01-01T00:00:00Z")),
            row("unknown", allowed, json!(null)),
            row("perhaps", allowed, json!(null)),
            json!({"messages": said()}),
        ]),
    );
    let answer = imported(&world, &["in.jsonl"], &[]);
    assert_eq!(answer["rejected"], json!({"undefined-value": 1}));
    assert_eq!(
        answer["statuses"],
        json!({"given": 3, "not_applicable": 1, "unknown": 1, "withdrawn": 1})
    );
    assert_eq!(answer["without_end"], 0);
    let recipe = RECIPE.replace("data/train-*.parquet", "out.parquet");
    world.write("recipe.yaml", recipe);
    let ran = world.heirloom(&["check", "recipe.yaml", "--format", "json"]);
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        answer["plan"]["rows"]["train"],
        json!({"seen": 6, "used": 2, "excluded": {"unknown": 1, "withdrawn": 1, "expired": 1, "purpose": 1}}),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
}

#[test]
fn the_columns_have_the_types_of_consent_bearing_data() {
    let world = world();
    world.write("in.jsonl", lines(&[json!({"messages": said()})]));
    imported(&world, &["in.jsonl"], &[]);
    let rows = rows(&world.path("out.parquet"));
    let texts = [
        "record_id",
        "consent_basis",
        "consent_status",
        "consent_record_id",
        "consent_notice_id",
        "special_category",
        "source_id",
        "license",
        "model_generated",
    ];
    let kind = |name: &str| rows.column_by_name(name).unwrap().data_type().clone();
    assert!(texts.iter().all(|name| kind(name) == DataType::Utf8));
    for name in ["consent_given_at", "consent_expires_at", "consent_withdrawn_at"] {
        assert_eq!(kind(name).to_string(), "Timestamp(µs, \"UTC\")");
    }
    for name in ["subject_ref", "consent_record_digest", "record_salt"] {
        assert_eq!(kind(name), DataType::FixedSizeBinary(32));
        assert_eq!(rows.column_by_name(name).unwrap().null_count(), 1);
    }
    let given = rows.column_by_name("consent_given_at").unwrap();
    assert!(given.as_primitive::<TimestampMicrosecondType>().is_null(0));
    let file = fs::File::open(world.path("out.parquet")).unwrap().into_parts().0;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let pairs = reader.metadata().file_metadata().key_value_metadata().unwrap();
    let footer =
        pairs.iter().find(|pair| pair.key == "consent.v1").unwrap().value.as_ref().unwrap();
    let read: Value = serde_json::from_str(footer).unwrap();
    assert_eq!(read["defaults"], json!({"expiry": "endless", "license": "CC-BY-4.0"}));
    assert_eq!(read["sources"]["rules"]["justification"], "there is nobody in them");
    assert!(
        footer.starts_with("{\"consent_default\":{\"basis\":"),
        "not in canonical form: {footer}"
    );
    assert!(reader.metadata().row_group(0).column(0).offset_index_offset().is_some());
}

#[test]
fn ids_hold_still_when_other_rows_come_and_go() {
    let world = world();
    let text = |text: &str| json!({ "text": text });
    let ids = |rows_in: &[Value]| {
        world.write("in.jsonl", lines(rows_in));
        imported(&world, &["in.jsonl"], &["--force"]);
        texts(&rows(&world.path("out.parquet")), "record_id")
    };
    let before = ids(&[text("a"), text("b"), text("a")]);
    assert_ne!(before[0], before[2]);
    let after = ids(&[text("b"), text("x"), text("a"), text("a")]);
    assert_eq!([&after[0], &after[2], &after[3]], [&before[1], &before[0], &before[2]]);
    world.write("consent.yaml", DECLARATION.replace("f47ac10b", "00000000"));
    assert_ne!(ids(&[text("a")])[0], before[0]);
    world.write("consent.yaml", format!("{DECLARATION}columns: {{ record_id: id }}\n"));
    let named = ids(&[
        json!({"text": "a", "id": "one"}),
        json!({"text": "b", "id": 2}),
        json!({"text": "c", "id": "one"}),
        json!({"text": "d", "id": null}),
    ]);
    assert_eq!(named, [Some("one".to_owned()), Some("2".to_owned())]);
    let reasons = [(3, "duplicate-record-id".to_owned()), (4, "no-record-id".to_owned())];
    assert_eq!(set_aside(&world), reasons);
}

#[test]
fn the_same_again_gives_the_same_bytes() {
    let world = world();
    let rows: Vec<Value> = (0..500).map(|n| json!({"text": format!("row {}", n % 400)})).collect();
    world.write("in.jsonl", lines(&rows));
    let bytes = [0, 1].map(|_| {
        imported(&world, &["in.jsonl"], &["--force"]);
        fs::read(world.path("out.parquet")).unwrap()
    });
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn sidecars_say_of_the_file_what_its_footer_says_and_no_other_data_set_moves_in() {
    let world = world();
    world.write("in.jsonl", lines(&[json!({"messages": said()})]));
    imported(&world, &["in.jsonl"], &[]);
    let croissant: Value = serde_json::from_str(&world.read("croissant.json")).unwrap();
    assert_eq!(croissant["name"], "out");
    let digest = heirloom::files::sha256_of_file(&world.path("out.parquet")).unwrap();
    assert!(croissant["distribution"].to_string().contains(&digest), "{croissant}");
    let consent: Value = serde_json::from_str(&world.read("consent.json")).unwrap();
    assert_eq!(consent["sources"]["rules"]["origin"], "written by rule");
    world.write("consent.yaml", DECLARATION.replace("f47ac10b", "00000000"));
    let before = world.files();
    let ran = world.heirloom(&[
        "data",
        "import",
        "in.jsonl",
        "-o",
        "more.parquet",
        "--consent",
        "consent.yaml",
    ]);
    assert_eq!((ran.status, world.files()), (Some(1), before), "{}", ran.stderr);
}

#[test]
fn row_groups_are_bounded_in_rows_and_in_bytes() {
    let world = world();
    let short = (0..9000).map(|n| json!({"text": format!("{n}")}));
    let long = (0..40).map(|n| json!({"text": format!("{n}").repeat(600_000)}));
    let all: Vec<Value> = short.chain(long).collect();
    world.write("in.jsonl", lines(&all));
    imported(&world, &["in.jsonl"], &[]);
    let file = fs::File::open(world.path("out.parquet")).unwrap().into_parts().0;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let groups = reader.metadata().row_groups();
    assert!(groups.len() >= 3, "{}", groups.len());
    for group in groups {
        assert!(group.num_rows() <= heirloom::dataset::import::GROUP_ROWS as i64);
        assert!(group.total_byte_size() < 2 * heirloom::dataset::import::GROUP_BYTES as i64);
    }
}

#[test]
fn bad_rows_are_named_by_line_and_never_repeated() {
    let world = world();
    let good = json!({"messages": said()}).to_string();
    let bad = [
        "{\"messages\": [{\"role\": \"user\", \"content\": \"SECRET\"}".to_owned(),
        "{\"messages\": \"SECRET\"}".to_owned(),
        "{\"messages\": [{\"role\": \"SECRET\", \"content\": \"x\"}]}".to_owned(),
        "{\"messages\": []}".to_owned(),
        "{\"messages\": [{\"role\": \"user\", \"content\": [\"SECRET\"]}]}".to_owned(),
        "[\"SECRET\"]".to_owned(),
        format!("{}1{}", "{\"a\":".repeat(5000), "}".repeat(5000)),
        "{\"SECRET words\": 1}".to_owned(),
    ];
    let mut bytes = format!("{good}\n{}\n{good}\n", bad.join("\n")).into_bytes();
    bytes.extend(b"{\"messages\": \"\xff\xfeSECRET\"}\n");
    world.write("in.jsonl", bytes);
    let ran = world.heirloom(&[
        "data",
        "import",
        "in.jsonl",
        "-o",
        "out.parquet",
        "--consent",
        "consent.yaml",
    ]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let reasons = [
        "not-json",
        "not-json",
        "unknown-role",
        "empty",
        "content-not-text",
        "row-not-an-object",
        "too-deep",
        "absent",
    ];
    let mut expected: Vec<(u64, String)> = reasons
        .iter()
        .enumerate()
        .map(|(n, reason)| (n as u64 + 2, (*reason).to_owned()))
        .collect();
    expected.push((11, "not-utf8".to_owned()));
    assert_eq!(set_aside(&world), expected);
    assert!(ran.stderr.contains("warning: 9 of 11 rows were not imported"), "{}", ran.stderr);
    assert!(ran.stdout.contains("unknown-role"), "{}", ran.stdout);
    let said = format!("{}{}{}", ran.stdout, ran.stderr, world.read("out.rejects.jsonl"));
    assert!(!said.contains("SECRET"), "{said}");
    assert_eq!(chats(&world).len(), 2);
}

#[test]
fn where_nothing_can_be_imported_nothing_is_written_but_why() {
    let world = world();
    world.write("in.jsonl", "{\"text\": 1}\n{\n{\"text\": null}\n");
    let ran = import(&world, &["in.jsonl"], &["--format", "text"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
    let told = "error: none of the 3 rows could be imported; `out.rejects.jsonl` says why of each\n  \
                1 absent\n  1 not-json\n  1 not-text\n";
    assert!(ran.stderr.starts_with(told), "{}", ran.stderr);
    assert!(!world.path("out.parquet").exists());
    assert_eq!(set_aside(&world).len(), 3);
}

#[test]
fn parquet_of_the_wrong_types_is_set_aside_row_by_row() {
    let world = world();
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    write_parquet(
        &world.path("in.parquet"),
        &RecordBatch::try_from_iter([("text", numbers)]).unwrap(),
    );
    let ran = import(&world, &["in.parquet"], &[]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("  2 not-text\n"), "{}", ran.stderr);
    // A timestamp that does not say where it is noon.
    world.write("consent.yaml", format!("{DECLARATION}columns: {{ given_at: at }}\n"));
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let at: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0]));
    let batch = RecordBatch::try_from_iter([("text", text), ("at", at)]).unwrap();
    write_parquet(&world.path("in.parquet"), &batch);
    let ran = import(&world, &["in.parquet"], &["--force"]);
    assert!(ran.stderr.contains("  1 undefined-value\n"), "{}", ran.stderr);
}

#[test]
fn a_truncated_parquet_file_is_an_error_and_leaves_nothing() {
    let world = world();
    let bytes = fs::read(world.path("data/test.parquet")).unwrap();
    world.write("in.parquet", &bytes[..bytes.len() / 2]);
    let before = world.files();
    let ran = import(&world, &["in.parquet"], &[]);
    assert_eq!(ran.status, Some(1));
    assert!(
        ran.stderr.starts_with("error: `in.parquet` is not readable as Parquet: "),
        "{}",
        ran.stderr
    );
    assert_eq!(world.files(), before);
    // Pages that are not what the footer says.
    let mut damaged = bytes;
    damaged[8..2000].fill(0xa5);
    world.write("in.parquet", damaged);
    let ran = import(&world, &["in.parquet"], &["--format", "chat"]);
    assert_eq!(ran.status, Some(1));
    assert!(
        !world.path("out.parquet").exists() && !ran.stderr.contains("panicked"),
        "{}",
        ran.stderr
    );
}

#[test]
fn what_is_there_is_not_replaced_unless_asked_and_a_source_never() {
    let world = world();
    world.write("in.jsonl", lines(&[json!({"text": "a"})]));
    world.write("out.parquet", "old");
    let refusal = |arguments: &[&str]| {
        let before = world.files();
        let ran =
            world.heirloom(&[&["data", "import", "--consent", "consent.yaml"], arguments].concat());
        assert_eq!((ran.status, ran.stdout.as_str(), world.files()), (Some(1), "", before));
        ran.stderr
    };
    let told = refusal(&["in.jsonl", "-o", "out.parquet"]);
    assert!(
        told.starts_with("error: `out.parquet` is there already\n\nhint: name another file"),
        "{told}"
    );
    assert_eq!(world.read("out.parquet"), "old");
    for output in ["in.jsonl", "consent.yaml"] {
        let told = refusal(&["in.jsonl", "-o", output, "--force"]);
        assert!(told.contains("is also read or written by this import"), "{told}");
    }
    let told = refusal(&["in.jsonl", "-o", "new.parquet", "--rejects", "new.parquet"]);
    assert!(told.contains("is also read or written by this import"), "{told}");
    let told = refusal(&["nothing-*.jsonl", "-o", "new.parquet"]);
    assert!(told.starts_with("error: no file matches `nothing-*.jsonl`"), "{told}");
    world.write("empty.jsonl", "\n");
    let told = refusal(&["empty.jsonl", "-o", "new.parquet"]);
    assert!(told.starts_with("error: there is no row in `empty.jsonl`"), "{told}");
    world.write("odd.jsonl", "{\"q\": 1, \"a\": 2}\n");
    let told = refusal(&["odd.jsonl", "-o", "new.parquet"]);
    assert!(told.contains("the rows have `a` and `q`"), "{told}");
    let told = refusal(&["in.jsonl", "-o", "new.parquet", "--columns", "txt=a"]);
    assert!(told.starts_with("error: `txt` is no field of the format"), "{told}");
}
