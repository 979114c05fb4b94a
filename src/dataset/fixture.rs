//! Test inputs: a tiny base folder and Parquet files of rows, made when a test runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, ListBuilder, StringArray, StringBuilder, StructBuilder, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::datatypes::{DataType, Field, Fields};
use arrow::record_batch::RecordBatch;
use jiff::Timestamp;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use serde_json::json;

use super::consent::Ask;

/// Opens every turn by its role and closes it by `<|end|>`, as our own seedling does.
pub(crate) const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}\
    {{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

/// Special tokens, with the ids 258 and up.
pub(super) const SPECIAL: [&str; 6] =
    ["<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|other|>"];

/// Id of a special token.
pub(crate) fn special(token: &str) -> u32 {
    258 + SPECIAL.iter().position(|name| *name == token).unwrap() as u32
}

/// GPT-2's printable character for each byte.
fn byte_characters() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut spell = |byte| {
        if printable(byte) {
            return char::from_u32(byte).unwrap();
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    };
    (0..256).map(&mut spell).collect()
}

/// Writes a base folder: byte-level BPE whose ids are the bytes, two merges, six special
/// tokens, and a post-processor that would add `<|begin|>` again.
pub(crate) fn base_folder(folder: &Path, template: &str) {
    let spelt = byte_characters();
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        spelt.iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    for (offset, merged) in ["hi", "ĊĊ"].iter().enumerate() {
        vocab.insert((*merged).to_owned(), json!(256 + offset));
    }
    let added: Vec<_> = SPECIAL
        .iter()
        .map(|token| {
            json!({"id": special(token), "content": token, "single_word": false,
                   "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
                          "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [258],
                                             "tokens": ["<|begin|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["h", "i"], ["Ċ", "Ċ"]]}
    });
    let config = json!({"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"},
                        "chat_template": template, "model_max_length": 512});
    write(&folder.join("tokenizer.json"), tokenizer.to_string().as_bytes());
    write(&folder.join("tokenizer_config.json"), config.to_string().as_bytes());
}

/// Writes a small file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> PathBuf {
    fs_err::write(path, bytes).unwrap();
    path.to_owned()
}

/// A row as a test describes it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(super) id: String,
    pub(super) messages: Vec<(&'static str, String)>,
    pub(super) basis: Option<&'static str>,
    pub(super) status: Option<&'static str>,
    pub(super) purposes: Vec<&'static str>,
    pub(super) processing: Vec<&'static str>,
    /// Microseconds since 1970.
    pub(super) expires_at: Option<i64>,
    pub(super) withdrawn_at: Option<i64>,
}

/// The instant of judgement of [`ask`], in microseconds since 1970.
pub(super) const NOW: i64 = 1_790_000_000_000_000;

/// A day, in microseconds.
pub(super) const DAY: i64 = 86_400_000_000;

/// A question and an answer that may be used for what [`ask`] asks.
pub(crate) fn row(id: usize, question: &str, answer: &str) -> Row {
    Row {
        id: format!("row-{id:04}"),
        messages: vec![("user", question.to_owned()), ("assistant", answer.to_owned())],
        basis: Some("consent"),
        status: Some("given"),
        purposes: vec!["dpv:ServiceProvision"],
        processing: vec!["ai:ModelFineTuning"],
        expires_at: Some(NOW + 365 * DAY),
        withdrawn_at: None,
    }
}

/// What the rows of [`row`] allow.
pub(super) fn ask() -> Ask {
    Ask {
        purpose: vec!["dpv:ServiceProvision".to_owned()],
        processing: vec!["ai:ModelFineTuning".to_owned()],
        at: Timestamp::from_microsecond(NOW).unwrap(),
        until: Timestamp::from_microsecond(NOW + DAY).unwrap(),
    }
}

/// The footer of [`write_rows`].
pub(super) const FOOTER: &str = r#"{"schema":"consent/v1","defaults":{"expiry":"P12M"}}"#;

/// Writes rows in groups of `group_rows`.
pub(crate) fn write_rows(path: &Path, rows: &[Row], group_rows: usize) {
    write_batch(path, &batch(rows), group_rows, Some(FOOTER));
}

/// The columns of rows.
pub(super) fn batch(rows: &[Row]) -> RecordBatch {
    let strings = |of: fn(&Row) -> Option<&str>| -> ArrayRef {
        Arc::new(rows.iter().map(of).collect::<StringArray>())
    };
    let instants = |of: fn(&Row) -> Option<i64>| -> ArrayRef {
        let values: TimestampMicrosecondArray = rows.iter().map(of).collect();
        Arc::new(values.with_timezone("UTC"))
    };
    let lists = |of: fn(&Row) -> &[&'static str]| -> ArrayRef {
        let mut builder = ListBuilder::new(StringBuilder::new());
        for row in rows {
            builder.append_value(of(row).iter().map(Some));
        }
        Arc::new(builder.finish())
    };
    RecordBatch::try_from_iter_with_nullable([
        ("record_id", strings(|row| Some(&row.id)), false),
        ("messages", messages(rows), true),
        ("subject_ref", new_null_array(&DataType::FixedSizeBinary(32), rows.len()), true),
        ("consent_basis", strings(|row| row.basis), true),
        ("consent_status", strings(|row| row.status), true),
        ("consent_purposes", lists(|row| &row.purposes), true),
        ("consent_processing", lists(|row| &row.processing), true),
        ("consent_given_at", instants(|_| Some(NOW - DAY)), true),
        ("consent_expires_at", instants(|row| row.expires_at), true),
        ("consent_withdrawn_at", instants(|row| row.withdrawn_at), true),
        ("consent_record_id", strings(|_| Some("urn:uuid:1")), true),
    ])
    .unwrap()
}

/// No turns at all become null.
fn messages(rows: &[Row]) -> ArrayRef {
    let text = |name| Field::new(name, DataType::Utf8, true);
    let fields = Fields::from(vec![text("role"), text("content")]);
    let mut builder = ListBuilder::new(StructBuilder::from_fields(fields, 0));
    for row in rows {
        for (role, content) in &row.messages {
            let turn = builder.values();
            turn.field_builder::<StringBuilder>(0).unwrap().append_value(role);
            turn.field_builder::<StringBuilder>(1).unwrap().append_value(content);
            turn.append(true);
        }
        builder.append(!row.messages.is_empty());
    }
    Arc::new(builder.finish())
}

/// Writes columns in groups of `group_rows`, dictionary-encoded as our own data is.
pub(super) fn write_batch(
    path: &Path,
    batch: &RecordBatch,
    group_rows: usize,
    footer: Option<&str>,
) {
    let properties = properties(footer).set_max_row_group_row_count(Some(group_rows));
    write_as(path, batch, properties.build());
}

/// Writes one row group in a codec.
pub(super) fn write_coded(path: &Path, batch: &RecordBatch, codec: Compression) -> PathBuf {
    write_as(path, batch, properties(Some(FOOTER)).set_compression(codec).build());
    path.to_owned()
}

fn properties(footer: Option<&str>) -> WriterPropertiesBuilder {
    let pairs =
        footer.map(|footer| vec![KeyValue::new("consent.v1".to_owned(), footer.to_owned())]);
    WriterProperties::builder().set_key_value_metadata(pairs)
}

fn write_as(path: &Path, batch: &RecordBatch, properties: WriterProperties) {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    write(path, &bytes);
}

/// A file of chats.
pub(crate) fn split_file(
    split: crate::recipe::lock::Split,
    path: PathBuf,
) -> super::spec::SplitFile {
    let (source, format) = (0, crate::recipe::Format::Chat);
    super::spec::SplitFile { split, path, source, format, columns: Default::default() }
}

/// The first rows of a row group of chats, judged by [`ask`].
pub(crate) fn try_read(
    path: &Path,
    group: usize,
) -> Result<super::batch::Batch, super::source::SourceError> {
    let gate = std::sync::Arc::new(super::gate::Gate::open(ask(), &[]).unwrap());
    let file = split_file(crate::recipe::lock::Split::Train, path.to_owned());
    let file = super::batch::RowFile::open(&file, &gate)?;
    file.batches(group, 0, 4096, super::batch::Read::Content).next().unwrap()
}

/// As [`try_read`], of a file that can be read.
pub(crate) fn read(path: &Path, group: usize) -> super::batch::Batch {
    try_read(path, group).unwrap()
}

/// Two passes over training rows, three windows of 64 tokens to a step.
pub(crate) fn training(files: Vec<super::spec::SplitFile>) -> super::spec::Spec {
    use crate::recipe::{Overlong, Packing, StoppingStrategy, SurveyOf, TrainOn};
    super::spec::Spec {
        files,
        weights: Vec::new(),
        stopping: StoppingStrategy::FirstExhausted,
        validation_split: 0.0,
        survey: SurveyOf::All,
        seed: 17,
        gate: Arc::new(super::gate::Gate::open(ask(), &[]).unwrap()),
        sequence_length: 64,
        packing: Packing::BestFit,
        overlong: Overlong::Refuse,
        mask: TrainOn::Assistant.into(),
        shuffle_seed: Some(17),
        windows_per_step: 3,
        micro_batch_tokens: 128,
        epochs: 2,
        max_steps: None,
        max_new_tokens: Default::default(),
    }
}
