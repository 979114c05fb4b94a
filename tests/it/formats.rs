//! Recipes over every format of rows: what is told of a run before it begins is what the
//! stream gives, the same conversation is the same tokens in whatever columns it lies, and
//! what cannot be learned from is refused before anything is begun.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, ListBuilder, StringArray, StringBuilder, StructBuilder,
};
use arrow::datatypes::{DataType, Field, Fields};
use arrow::record_batch::RecordBatch;
use fs_err as fs;
use heirloom::dataset::gate::Gate;
use heirloom::dataset::spec::Spec;
use heirloom::dataset::stream::{MicroBatch, Position, Step, Stream};
use heirloom::dataset::vocabulary::Vocabulary;
use heirloom::recipe::{self, plan};
use jiff::Timestamp;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

use crate::interrupts::DECLARATION;
use crate::world::World;

const ROWS: usize = 40;

/// A recipe with this in `data`.
fn recipe(data: &str) -> String {
    format!(
        "heirloom: 1
name: small
base: {{ model: base, from_scratch: true }}
adapter: full
data:
  purpose: [dpv:ServiceProvision]
{data}
train:
  epochs: 2
  tokens_per_step: 512
  optimizer: {{ adamw: {{ lr: 1.0e-3 }} }}
  seed: 17
"
    )
}

/// Rows of one source in a window of 128 tokens.
fn one(source: &str, more: &str) -> String {
    recipe(&format!("  train: [{{ {source} }}]\n  sequence_length: 128\n{more}"))
}

/// What is asked and answered in a row, of lengths that differ.
fn said(row: usize) -> (String, String) {
    (
        format!("Bags of marigolds, order {row}?"),
        format!("{}packed for order {row}.", "Sown, grown, ".repeat(row * 7 % 9)),
    )
}

fn texts(of: impl Fn(usize) -> String) -> ArrayRef {
    Arc::new((0..ROWS).map(|row| Some(of(row))).collect::<StringArray>())
}

/// Lists of turns, under these keys.
fn turns(keys: [&str; 2], of: impl Fn(usize) -> Vec<(&'static str, String)>) -> ArrayRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let fields = Fields::from(keys.map(text).to_vec());
    let mut lists = ListBuilder::new(StructBuilder::from_fields(fields, 0));
    for row in 0..ROWS {
        for (who, what) in of(row) {
            let turn = lists.values();
            turn.field_builder::<StringBuilder>(0).unwrap().append_value(who);
            turn.field_builder::<StringBuilder>(1).unwrap().append_value(what);
            turn.append(true);
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}

fn chat(row: usize) -> Vec<(&'static str, String)> {
    let (question, answer) = said(row);
    vec![("user", question), ("assistant", answer)]
}

/// A world, and the columns of consent that its rows have in common.
struct Place {
    world: World,
    consent: RecordBatch,
    footer: Vec<KeyValue>,
    now: Timestamp,
}

impl Place {
    fn new() -> Self {
        let world = World::new();
        world.write("consent.yaml", DECLARATION);
        let rows: String =
            (0..ROWS).map(|row| format!("{}\n", json!({"text": row.to_string()}))).collect();
        world.write("rows.jsonl", rows);
        let import = ["data", "import", "rows.jsonl", "-o", "imported/rows.parquet"];
        fs::create_dir(world.path("imported")).unwrap();
        let ran = world.heirloom(&[import.as_slice(), &["--consent", "consent.yaml"]].concat());
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        let file = fs::File::open(world.path("imported/rows.parquet")).unwrap().into_parts().0;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let footer = builder.metadata().file_metadata().key_value_metadata().unwrap().iter();
        let footer = footer.filter(|pair| pair.key != "ARROW:schema").cloned().collect();
        let consent = builder.build().unwrap().next().unwrap().unwrap();
        Self { world, consent, footer, now: Timestamp::now() }
    }

    /// Writes rows with these columns and everybody's consent.
    fn write(&self, name: &str, columns: &[(&str, ArrayRef)]) {
        let schema = self.consent.schema();
        let names = schema.fields().iter().map(|field| field.name().as_str());
        let consent = names.zip(self.consent.columns().iter().cloned());
        let consent = consent.filter(|(name, _)| *name != "text");
        let all = consent.chain(columns.iter().map(|(name, column)| (*name, column.clone())));
        let all = all.map(|(name, column)| (name, column, name != "record_id"));
        let rows = RecordBatch::try_from_iter_with_nullable(all).unwrap();
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(16))
            .set_key_value_metadata(Some(self.footer.clone()))
            .build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), Some(properties)).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        self.world.write(name, bytes);
    }

    /// The steps of a recipe, which must be those that `check` tells of.
    fn steps(&self, text: &str) -> Vec<Step> {
        self.world.write("recipe.yaml", text);
        let ran = self.world.heirloom(&["check", "recipe.yaml", "--format", "json"]);
        let plan = &serde_json::from_str::<Value>(&ran.stdout).unwrap()["plan"];
        assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
        let read = recipe::read(&self.world.path("recipe.yaml"), &[]).unwrap().recipe;
        let gate = Gate::open(plan::ask(&read.data, self.now), &[]).unwrap();
        // Paths of a recipe begin in the current folder, which is another one for this process.
        let mut read = read;
        for source in &mut read.data.train {
            source.path = self.world.path(&source.path).to_str().unwrap().to_owned();
        }
        let vocabulary = Vocabulary::open(&self.world.path("base"), &read.base).unwrap();
        let spec = Spec::new(&read, Arc::new(gate)).unwrap();
        let encoder = Arc::new(vocabulary.encoder.with_clock(self.now));
        let stream = Stream::open(spec, encoder, Position::default()).unwrap();
        let steps: Vec<Step> = stream.map(Result::unwrap).collect();
        let told = |key: &str| plan["training"][key].as_u64().unwrap();
        let first = || steps.iter().filter(|step| step.epoch == 0).flat_map(|s| &s.micro_batches);
        assert_eq!(told("steps"), steps.len() as u64, "{text}");
        assert_eq!(told("tokens"), first().map(|batch| batch.tokens.len() as u64).sum::<u64>());
        assert_eq!(told("trained_tokens"), first().map(MicroBatch::trained_tokens).sum::<u64>());
        steps
    }

    /// What a recipe is refused with.
    fn refusal(&self, text: &str) -> String {
        self.world.write("recipe.yaml", text);
        let before = self.world.files();
        let checked = self.world.heirloom(&["check", "recipe.yaml"]);
        assert_eq!(checked.status, Some(1), "{text}{}", checked.stdout);
        let trained = self.world.heirloom(&["train", "recipe.yaml"]);
        assert_eq!((trained.status, trained.stdout.as_str()), (Some(1), ""));
        assert_eq!(self.world.files(), before, "something was begun");
        trained.stderr
    }
}

/// What the trained tokens of a step's documents say, and those that are not trained.
fn spoken(place: &Place, steps: &[Step]) -> Vec<(String, String)> {
    let base = place.world.path("base");
    let encoder = heirloom::dataset::chat::ChatEncoder::open(&base).unwrap();
    let mut spoken = Vec::new();
    for batch in steps.iter().flat_map(|step| &step.micro_batches) {
        let mut start = 0;
        for length in &batch.lengths {
            let document = start..start + *length as usize;
            start = document.end;
            assert_eq!(batch.weights[document.start], 0.0, "nothing predicts the first token");
            let of = |trained: bool| -> String {
                let tokens = document.clone().filter(|i| (batch.weights[*i] > 0.0) == trained);
                let tokens: Vec<u32> = tokens.map(|i| batch.tokens[i]).collect();
                encoder.decode(&tokens).unwrap()
            };
            spoken.push((of(true), of(false)));
        }
    }
    spoken.sort();
    spoken
}

#[test]
fn a_conversation_is_the_same_tokens_in_whatever_columns_it_lies() {
    let place = Place::new();
    let (question, answer) = (texts(|row| said(row).0), texts(|row| said(row).1));
    place.write("chat.parquet", &[("messages", turns(["role", "content"], chat))]);
    place.write("talk.parquet", &[("talk", turns(["role", "content"], chat))]);
    let gpt = |row| {
        let (question, answer) = said(row);
        vec![("human", question), ("gpt", answer)]
    };
    place.write("gpt.parquet", &[("conversations", turns(["from", "value"], gpt))]);
    place.write("alpaca.parquet", &[("instruction", question.clone()), ("output", answer.clone())]);
    place.write("faq.parquet", &[("question", question), ("answer", answer)]);
    let part = |of: usize| move |row: usize| vec![chat(row).swap_remove(of)];
    place.write(
        "pairs.parquet",
        &[
            ("prompt", turns(["role", "content"], part(0))),
            ("completion", turns(["role", "content"], part(1))),
        ],
    );
    let expected = place.steps(&one("path: chat.parquet, format: chat", ""));
    for source in [
        "path: talk.parquet, format: chat, columns: { messages: talk }",
        "path: gpt.parquet, format: sharegpt",
        "path: alpaca.parquet, format: alpaca",
        "path: faq.parquet, format: alpaca, columns: { instruction: question, output: answer }",
        "path: pairs.parquet, format: prompt-completion",
    ] {
        assert!(place.steps(&one(source, "")) == expected, "{source}");
    }
    let completion = "  train_on: completion\n";
    let source = "path: pairs.parquet, format: prompt-completion";
    assert!(place.steps(&one(source, completion)) == expected);
    let first: Vec<Step> = expected.into_iter().filter(|step| step.epoch == 0).collect();
    let mut answers: Vec<String> = (0..ROWS).map(|row| said(row).1).collect();
    answers.sort();
    let trained: Vec<String> = spoken(&place, &first).into_iter().map(|(said, _)| said).collect();
    let trained: Vec<&str> = trained.iter().map(|said| said.trim_end()).collect();
    assert_eq!(trained, answers);
}

#[test]
fn texts_are_trained_whole_and_completions_after_their_prompts() {
    let place = Place::new();
    let (question, answer) = (texts(|row| said(row).0), texts(|row| format!(" {}", said(row).1)));
    place.write("text.parquet", &[("text", answer.clone())]);
    place.write("pairs.parquet", &[("prompt", question), ("completion", answer)]);
    let steps = place.steps(&one("path: text.parquet, format: text", "  train_on: all\n"));
    for batch in steps.iter().flat_map(|step| &step.micro_batches) {
        assert_eq!(batch.trained_tokens() as usize, batch.tokens.len() - batch.lengths.len());
    }
    let steps = place
        .steps(&one("path: pairs.parquet, format: prompt-completion", "  train_on: completion\n"));
    let first: Vec<Step> = steps.into_iter().filter(|step| step.epoch == 0).collect();
    let mut expected: Vec<(String, String)> = (0..ROWS)
        .map(|row| {
            let (question, answer) = said(row);
            (format!(" {answer}"), question)
        })
        .collect();
    expected.sort();
    assert_eq!(spoken(&place, &first), expected);
}

#[test]
fn what_is_told_of_a_mixture_is_what_the_stream_gives() {
    let place = Place::new();
    place.write("chat.parquet", &[("messages", turns(["role", "content"], chat))]);
    let (question, answer) = (texts(|row| said(row).1), texts(|row| said(row).0));
    place.write("faq.parquet", &[("instruction", question), ("output", answer)]);
    for packing in ["best-fit", "first-fit-decreasing", "none"] {
        for overlong in ["drop", "truncate", "split"] {
            for (weights, rule) in [
                (["", ""], ""),
                ([", weight: 3.0", ", weight: 1.0"], "  stopping_strategy: first-exhausted\n"),
                ([", weight: 1.0", ", weight: 2.5"], "  stopping_strategy: all-exhausted\n"),
            ] {
                for split in ["", "  validation_split: 0.2\n"] {
                    let text = recipe(&format!(
                        "  train:
    - {{ path: chat.parquet, format: chat{} }}
    - {{ path: faq.parquet, format: alpaca{} }}
  sequence_length: 64
  packing: {packing}
  overlong: {overlong}
{rule}{split}",
                        weights[0], weights[1]
                    ));
                    let steps = place.steps(&text);
                    let longest = steps.iter().flat_map(|step| &step.micro_batches);
                    assert!(longest.flat_map(|batch| &batch.lengths).all(|length| *length <= 64));
                    assert!(steps.last().unwrap().ends_epoch && steps.last().unwrap().epoch == 1);
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_learned_from_is_refused_before_anything_is_begun() {
    let place = Place::new();
    let weighted = |weight: f64| -> ArrayRef {
        let fields = vec![
            Field::new("role", DataType::Utf8, true),
            Field::new("content", DataType::Utf8, true),
            Field::new("weight", DataType::Float64, true),
        ];
        let flat: Vec<(&str, String)> = (0..ROWS).flat_map(chat).collect();
        let role: ArrayRef =
            Arc::new(flat.iter().map(|(who, _)| Some(*who)).collect::<StringArray>());
        let content: ArrayRef =
            Arc::new(flat.iter().map(|(_, what)| Some(what.as_str())).collect::<StringArray>());
        let weights: ArrayRef = Arc::new(Float64Array::from(vec![weight; flat.len()]));
        let turns = arrow::array::StructArray::new(
            fields.clone().into(),
            vec![role, content, weights],
            None,
        );
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([2; ROWS]);
        let item = Arc::new(Field::new("item", DataType::Struct(fields.into()), true));
        Arc::new(arrow::array::ListArray::new(item, offsets, Arc::new(turns), None))
    };
    let asking = |row| vec![chat(row).swap_remove(0)];
    place.write("chat.parquet", &[("messages", turns(["role", "content"], chat))]);
    place.write("asking.parquet", &[("messages", turns(["role", "content"], asking))]);
    place.write("zero.parquet", &[("messages", weighted(0.0))]);
    place.write("nan.parquet", &[("messages", weighted(f64::NAN))]);
    place.write("negative.parquet", &[("messages", weighted(-1.0))]);
    place.write("text.parquet", &[("text", texts(|row| said(row).1))]);
    let (good, bad) = (texts(|row| said(row).1), texts(|row| said(row).0));
    place.write("wished.parquet", &[("chosen", good), ("rejected", bad)]);
    for (text, expected) in [
        (one("path: text.parquet, format: text", ""), vec!["train_on"]),
        (one("path: text.parquet, format: text", "  train_on: completion\n"), vec!["train_on"]),
        (one("path: asking.parquet, format: chat", ""), vec!["asking.parquet"]),
        (
            one("path: asking.parquet, format: chat", "  train_on: completion\n"),
            vec!["asking.parquet"],
        ),
        (one("path: zero.parquet, format: chat", ""), vec!["zero.parquet", "row 0"]),
        (one("path: nan.parquet, format: chat", ""), vec!["nan.parquet", "row 0"]),
        (one("path: negative.parquet, format: chat", ""), vec!["negative.parquet", "weight"]),
        (
            one("path: wished.parquet, format: preference", ""),
            vec!["data.train[0].format", "verdicts"],
        ),
        (
            one("path: chat.parquet, format: chat", "")
                .replace("dpv:ServiceProvision", "dpv:ServiceProvison"),
            vec!["dpv:ServiceProvison", "did you mean `dpv:ServiceProvision`?"],
        ),
        (
            one("path: chat.parquet, format: chat", "")
                .replace("dpv:ServiceProvision", "dpv:Advertising"),
            vec!["no row of `data.train` is left", "40 not for this purpose"],
        ),
        (
            one("path: chat.parquet, format: chat, columns: { mesages: talk }", ""),
            vec!["`mesages`", "did you mean `messages`?"],
        ),
        (
            one("path: chat.parquet, format: chat, columns: { messages: talk }", ""),
            vec!["`talk`", "chat.parquet"],
        ),
        (one("path: chat.parquet, format: chat, weight: 0", ""), vec!["weight"]),
        (one("path: chat.parquet, format: chat, weight: .nan", ""), vec!["weight"]),
        (one("path: chat.parquet, format: chats", ""), vec!["did you mean `chat`?"]),
        (
            recipe(
                "  train: [{ path: chat.parquet, format: chat, weight: 1 }, { path: text.parquet, format: chat }]\n  sequence_length: 64",
            ),
            vec!["weight"],
        ),
    ] {
        let said = place.refusal(&text);
        for words in expected {
            assert!(said.contains(words), "`{words}` is not in: {said}\nof {text}");
        }
        assert!(!said.contains("marigolds"), "words of a row: {said}");
    }
}
