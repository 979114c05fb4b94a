use super::*;
use crate::dataset::consent::Reason;
use crate::dataset::fixture::{self, TEMPLATE, row};
use crate::dataset::gate::Gate;
use crate::dataset::spec::Spec;
use crate::files::sha256_of_bytes;
use crate::recipe::{Recipe, TrainOn};

/// More than any row here needs.
const POSITIONS: usize = 1000;

/// A recipe over a folder with two training files, one for validation and one suite.
fn recipe(folder: &std::path::Path) -> Recipe {
    let source = |name: &str| serde_json::json!({"path": folder.join(name), "format": "chat", "name": "unseen"});
    let plain = |name: &str| serde_json::json!({"path": folder.join(name), "format": "chat"});
    let recipe = serde_json::json!({
        "heirloom": 1, "name": "test", "base": {"model": folder},
        "adapter": {"lora": {"rank": 2, "alpha": 4}},
        "data": {"purpose": ["dpv:ServiceProvision"], "train": [plain("train-*.parquet")],
                 "validation": [plain("validation.parquet")], "test": [source("test.parquet")],
                 "sequence_length": 128},
        "train": {"epochs": 3, "tokens_per_step": 300, "seed": 7, "max_steps": 2,
                  "optimizer": {"adamw": {"lr": 0.001}}}
    });
    serde_json::from_value(recipe).unwrap()
}

fn world() -> (tempfile::TempDir, Arc<ChatEncoder>, Spec) {
    let folder = tempfile::tempdir().unwrap();
    fixture::base_folder(folder.path(), TEMPLATE);
    let mut rows: Vec<_> = (0..20).map(|id| row(id, "question", "answer")).collect();
    rows[1].basis = None;
    rows[2].status = Some("unknown");
    rows[3].withdrawn_at = Some(fixture::NOW);
    rows[4].status = Some("requested");
    rows[5].expires_at = Some(fixture::NOW + fixture::DAY);
    rows[6].purposes = vec![];
    rows[7].processing = vec![];
    let write = |name: &str, rows: &[_]| fixture::write_rows(&folder.path().join(name), rows, 3);
    write("train-1.parquet", &rows[..8]);
    write("train-2.parquet", &rows[8..]);
    write("validation.parquet", &rows[8..10]);
    write("test.parquet", &rows[10..13]);
    let encoder = Arc::new(ChatEncoder::open(folder.path()).unwrap());
    let spec =
        Spec::new(&recipe(folder.path()), Arc::new(Gate::open(fixture::ask(), &[]).unwrap()))
            .unwrap();
    (folder, encoder, spec)
}

#[test]
fn every_file_is_counted_by_every_reason() {
    let (folder, encoder, spec) = world();
    let survey = survey(&spec, &encoder, POSITIONS, &|_| {}).unwrap();
    let splits: Vec<&Split> = survey.files.iter().map(|file| &file.file.split).collect();
    let suite = Split::Test("unseen".to_owned());
    assert_eq!(splits, [&Split::Train, &Split::Train, &Split::Validation, &suite]);
    let of_suite: Vec<_> = spec.files_of(&suite).map(|file| file.path.clone()).collect();
    assert_eq!(of_suite, [folder.path().join("test.parquet")]);
    let first = &survey.files[0];
    assert_eq!((first.rows.seen, first.rows.used), (8, 1));
    let reasons = [
        Reason::Missing,
        Reason::Unknown,
        Reason::Withdrawn,
        Reason::NotGiven,
        Reason::Expired,
        Reason::Purpose,
        Reason::Processing,
    ];
    let every: Vec<(Reason, u64)> = reasons.map(|reason| (reason, 1)).into();
    assert_eq!(first.rows.excluded.clone().into_iter().collect::<Vec<_>>(), every);
    assert_eq!(first.used_sha256, sha256_of_bytes(b"row-0000\n"));
    assert_eq!(survey.files[2].used_sha256, sha256_of_bytes(b"row-0008\nrow-0009\n"));
}

#[test]
fn the_size_is_that_of_the_training_rows() {
    let (_folder, encoder, spec) = world();
    let size = survey(&spec, &encoder, POSITIONS, &|_| {}).unwrap().size;
    // `<|begin|><|user|>⏎question<|end|>⏎<|assistant|>⏎answer<|end|>⏎`: 23 tokens.
    assert_eq!((size.tokens, size.trained_tokens), (13 * 23, 13 * 7));
    // Five to a window of 128, two windows to a step of 300.
    assert_eq!((size.steps_by_epoch, size.steps), (vec![2], 2), "`max_steps`");
    let size = |max_steps, epochs| {
        let spec = Spec { max_steps, epochs, ..spec.clone() };
        let size = survey(&spec, &encoder, POSITIONS, &|_| {}).unwrap().size;
        (size.steps_by_epoch, size.steps)
    };
    assert_eq!(size(None, 3), (vec![2, 2, 2], 6));
    assert_eq!(size(Some(3), 3), (vec![2, 2], 3));
    assert_eq!(size(Some(100), 3), (vec![2, 2, 2], 6));
    // Passes that never begin take no time.
    assert_eq!(size(Some(1), u32::MAX), (vec![2], 1));
}

#[test]
fn held_out_rows_that_the_base_has_no_positions_for_are_refused() {
    let (folder, encoder, spec) = world();
    // 23 tokens each; an answer of up to 128 comes after those of the suite.
    assert!(survey(&spec, &encoder, 23 + 128, &|_| {}).is_ok());
    let error = survey(&spec, &encoder, 23 + 127, &|_| {}).unwrap_err();
    let expected = format!(
        "row 0 (counted from 0, record `row-0010`) of `{}` has 23 tokens and an answer of up to \
         128, more than the 150 positions of the base",
        folder.path().join("test.parquet").display()
    );
    assert_eq!(error.to_string(), expected);
    let mut long = row(9, "question", &"x".repeat(200));
    let path = folder.path().join("validation.parquet");
    fixture::write_rows(&path, &[row(8, "question", "answer"), long.clone()], 3);
    let error = survey(&spec, &encoder, 216, &|_| {}).unwrap_err();
    assert!(
        matches!(
            &error,
            DatasetError::BeyondPositions { row: 1, tokens: 217, answer: 0, positions: 216, .. }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("has 217 tokens, more than the 216"), "{error}");
    assert!(survey(&spec, &encoder, 217, &|_| {}).is_ok());
    // What may not be used is not looked at.
    long.status = Some("withdrawn");
    fixture::write_rows(&path, &[row(8, "question", "answer"), long], 3);
    assert!(survey(&spec, &encoder, 200, &|_| {}).is_ok());
}

#[test]
fn suites_are_surveyed_as_they_are_measured() {
    // Drops what the assistant said in all turns but the last: the loss of single turns
    // cannot be told, while learning everything needs no telling.
    let rewriting = "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}\
        {% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}{{ '<|end|>' }}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";
    let (folder, _, spec) = world();
    fixture::base_folder(folder.path(), rewriting);
    let encoder = Arc::new(ChatEncoder::open(folder.path()).unwrap());
    let spec = Spec { mask: TrainOn::All.into(), ..spec };
    assert!(survey(&spec, &encoder, POSITIONS, &|_| {}).is_ok());
    let mut turns = row(0, "question", "answer");
    turns.messages.extend([("user", "more".to_owned()), ("assistant", "yes".to_owned())]);
    fixture::write_rows(&folder.path().join("validation.parquet"), &[turns.clone()], 1);
    assert!(survey(&spec, &encoder, POSITIONS, &|_| {}).is_ok());
    fixture::write_rows(&folder.path().join("test.parquet"), &[turns], 1);
    let error = survey(&spec, &encoder, POSITIONS, &|_| {}).unwrap_err();
    assert!(matches!(&error, DatasetError::Row { row: 0, .. }), "{error:?}");
}

#[test]
fn a_held_out_split_with_no_usable_row_is_refused() {
    let (folder, encoder, spec) = world();
    let mut withdrawn = row(0, "question", "answer");
    withdrawn.status = Some("revoked");
    fixture::write_rows(&folder.path().join("test.parquet"), &[withdrawn], 1);
    let error = survey(&spec, &encoder, POSITIONS, &|_| {}).unwrap_err().to_string();
    assert!(error.starts_with("no row of `data.test`, suite `unseen` is left"), "{error}");
}
