//! Rows are seen as a run sees them, and refused ones not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::dataset::fixture::{self, Row, TEMPLATE, row};
use crate::dataset::gate::Gate;
use crate::dataset::tokenizer;
use crate::recipe::{Data, Recipe};

/// A look at rows in groups of two, through windows of so many tokens.
pub(crate) fn look(
    folder: &Path,
    splits: &[(&str, &[Row])],
    data: serde_json::Value,
) -> (Look, Data) {
    fixture::base_folder(folder, TEMPLATE);
    let mut words = json!({ "purpose": ["dpv:ServiceProvision"], "sequence_length": 4096 });
    for (split, rows) in splits {
        let path = folder.join(format!("{split}.parquet"));
        fixture::write_rows(&path, rows, 2);
        let mut source = json!({ "path": path, "format": "chat" });
        let list = match *split {
            "train" | "validation" => *split,
            suite => {
                source["name"] = suite.into();
                "test"
            }
        };
        match words[list].as_array_mut() {
            Some(sources) => sources.push(source),
            None => words[list] = json!([source]),
        }
    }
    data.as_object().into_iter().flatten().for_each(|(key, value)| words[key] = value.clone());
    let recipe: Recipe = serde_json::from_value(json!({
        "heirloom": 1, "name": "look", "base": { "model": folder }, "adapter": "full",
        "data": words,
        "train": { "epochs": 1, "tokens_per_step": 4096, "seed": 1,
                   "optimizer": { "adamw": { "lr": 0.1 } } },
    }))
    .unwrap();
    let gate = Gate::open(fixture::ask(), &[]).unwrap();
    let spec = Spec::new(&recipe, Arc::new(gate)).unwrap();
    (Look::new(spec, ChatEncoder::open(folder).unwrap()), recipe.data)
}

#[test]
fn rows_are_seen_as_the_gate_and_the_encoder_leave_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows: Vec<Row> = (0..5).map(|id| row(id, "question", "answer")).collect();
    rows[1].status = Some("withdrawn");
    rows[3].messages = vec![("user", "nobody answers".to_owned())];
    let (look, _) = look(folder.path(), &[("train", &rows)], json!({}));
    let mut seen = Vec::new();
    look.each(&Split::Train, |place| {
        assert_eq!(place.number, place.row_in_file());
        seen.push(match place.see()? {
            Seen::Refused(reason) => reason.to_string(),
            Seen::Broken(error) => error.to_string(),
            Seen::Elsewhere => "elsewhere".to_owned(),
            Seen::Used(_, document) => format!("{} trained", document.trained_tokens()),
        });
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!([&seen[0], &seen[1], &seen[2]], ["7 trained", "withdrawn", "7 trained"]);
    assert!(seen[3].contains("cannot be tokenised") && seen[4] == "7 trained", "{seen:?}");
}

#[test]
fn only_groups_with_wanted_rows_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Row> = (0..9).map(|id| row(id, "question", "answer")).collect();
    let (look, _) = look(folder.path(), &[("train", &rows)], json!({}));
    assert_eq!(look.rows(&Split::Train).unwrap(), 9);
    let mut ids = Vec::new();
    look.some(&Split::Train, &[2, 3, 8].into(), |place| {
        ids.push(place.record_id().to_owned());
        Ok(())
    })
    .unwrap();
    assert_eq!(ids, ["row-0002", "row-0003", "row-0008"]);
    let mut walked = Vec::new();
    let number = |place: Place<'_>| Ok(place.number);
    look.walk(&Split::Train, number, |number| walked.push(number)).unwrap();
    assert_eq!(walked, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let found = look.find(&Split::Train, &["row-0005", "row-0009"].into()).unwrap();
    assert_eq!(found, [("row-0005".to_owned(), 5)].into());
}

#[test]
fn rows_held_out_of_training_are_validation_rows() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Row> = (0..40).map(|id| row(id, &format!("question {id}"), "answer")).collect();
    let (look, _) = look(folder.path(), &[("train", &rows)], json!({ "validation_split": 0.3 }));
    assert_eq!(look.splits(), [Split::Train, Split::Validation]);
    let used = |split: &Split| {
        let mut used = BTreeSet::new();
        look.each(split, |place| {
            if matches!(place.see()?, Seen::Used(..)) {
                used.insert(place.number);
            }
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        used
    };
    let (train, validation) = (used(&Split::Train), used(&Split::Validation));
    assert!(train.is_disjoint(&validation) && train.len() + validation.len() == 40);
    assert!((3..25).contains(&validation.len()), "{}", validation.len());
}

#[derive(serde::Deserialize)]
struct Text {
    ids: Vec<u32>,
}

/// What the tokens of a text stand for, special tokens whole.
fn visited(pieces: &Pieces, ids: &[u32]) -> String {
    let mut text = String::new();
    pieces.visit(ids, |_, part| match part {
        Part::Special(word) => text.push_str(word),
        Part::Char(letter) => text.push(letter),
        Part::Begun => {}
        Part::Byte(_) => text.push('\u{fffd}'),
    });
    text
}

#[test]
fn pieces_put_together_are_what_the_tokenizers_library_decodes() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
    for kind in ["byte_level", "byte_fallback_bpe", "unigram"] {
        let tokenizer = tokenizer::open(&fixtures.join(kind)).unwrap();
        let pieces = Pieces::new(&tokenizer);
        let texts = fs_err::read(fixtures.join(kind).join("ids.json")).unwrap();
        let texts: Vec<Text> = serde_json::from_slice(&texts).unwrap();
        assert!(texts.len() > 30);
        for Text { ids } in &texts {
            let (ours, theirs) = (visited(&pieces, ids), tokenizer.decode(ids, false).unwrap());
            // SentencePiece puts a space before a text, which decoding takes away.
            let begins = |text: &str| text.strip_prefix(' ').unwrap_or(text).to_owned();
            // These swallow the spaces around them.
            if theirs.contains("[left]") {
                continue;
            }
            let same = ours == theirs || (kind != "byte_level" && begins(&ours) == theirs);
            assert!(same, "{kind}: {ours:?}, {theirs:?}");
        }
    }
}

#[test]
fn a_character_belongs_to_the_token_in_which_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (look, _) = look(folder.path(), &[("train", &[row(0, "a", "b")])], json!({}));
    // Ids are bytes: `न` is e0 a4 a8; c3 begins a character that never ends.
    let ids = [0x61, 0xe0, 0xa4, 0xa8, 0xc3, fixture::special("<|end|>"), 0xff, 9999];
    let mut parts = Vec::new();
    look.pieces().visit(&ids, |token, part| parts.push((token, part)));
    assert_eq!(
        parts,
        [
            (0, Part::Char('a')),
            (1, Part::Begun),
            (2, Part::Begun),
            (3, Part::Char('न')),
            (4, Part::Byte(0xc3)),
            (5, Part::Special("<|end|>")),
            (6, Part::Byte(0xff)),
        ]
    );
}
