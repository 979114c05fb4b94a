use super::super::fixture::{self, TEMPLATE, row};
use super::*;
use crate::dataset::consent::Reason;
use crate::dataset::spec::Spec;
use crate::files::sha256_of_bytes;
use crate::recipe::Recipe;

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

fn world() -> (tempfile::TempDir, ChatEncoder, Spec) {
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
    let encoder = ChatEncoder::open(folder.path()).unwrap();
    let spec = Spec::new(&recipe(folder.path()), fixture::ask()).unwrap();
    (folder, encoder, spec)
}

#[test]
fn every_file_is_counted_by_every_reason() {
    let (folder, encoder, spec) = world();
    let survey = survey(&spec, &encoder).unwrap();
    let splits: Vec<&Split> = survey.files.iter().map(|file| &file.file.split).collect();
    let suite = Split::Test("unseen".to_owned());
    assert_eq!(splits, [&Split::Train, &Split::Train, &Split::Validation, &suite]);
    assert_eq!(spec.files_of(&suite), [folder.path().join("test.parquet")]);
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
    let size = survey(&spec, &encoder).unwrap().size;
    // `<|begin|><|user|>⏎question<|end|>⏎<|assistant|>⏎answer<|end|>⏎`: 23 tokens.
    assert_eq!((size.tokens, size.trained_tokens), (13 * 23, 13 * 7));
    // Five to a window of 128, two windows to a step of 300.
    assert_eq!(size.steps_by_epoch, [2, 2, 2]);
    assert_eq!(size.steps, 2, "`max_steps`");
}

#[test]
fn a_held_out_split_with_no_usable_row_is_refused() {
    let (folder, encoder, spec) = world();
    let mut withdrawn = row(0, "question", "answer");
    withdrawn.status = Some("revoked");
    fixture::write_rows(&folder.path().join("test.parquet"), &[withdrawn], 1);
    let error = survey(&spec, &encoder).unwrap_err().to_string();
    assert!(error.starts_with("no row of `data.test`, suite `unseen` is left"), "{error}");
}
