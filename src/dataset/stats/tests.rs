//! What was planted is found, and nothing else is.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::dataset::consent::Reason;
use crate::dataset::fixture::{Row, row};
use crate::dataset::look::tests::look;

fn counted(splits: &[(&str, &[Row])], data: serde_json::Value) -> Stats {
    let folder = tempfile::tempdir().unwrap();
    counted_in(folder.path(), splits, data)
}

fn counted_in(folder: &Path, splits: &[(&str, &[Row])], data: serde_json::Value) -> Stats {
    let mut read = 0;
    let (look, data) = look(folder, splits, data);
    let stats = stats(&look, &data, || read += 1).unwrap();
    let seen: u64 = stats.splits.iter().map(|split| split.rows.seen).sum();
    assert_eq!(read, seen);
    stats
}

/// A row with turns of its own.
fn said(id: usize, turns: &[(&'static str, &str)]) -> Row {
    let mut row = row(id, "", "");
    row.messages = turns.iter().map(|(role, text)| (*role, (*text).to_owned())).collect();
    row
}

/// A text of a few dozen words, another for each number.
fn letter(number: usize) -> String {
    let word = |index: usize| {
        let word = (number * 7919 + index * 104_729) % 99_991;
        format!("word{word}")
    };
    (0..40).map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn verdicts_lengths_and_sources_add_up() {
    let mut rows: Vec<Row> =
        (0..10).map(|id| row(id, &"q".repeat(id * 10), &"a".repeat(10))).collect();
    rows[4].status = Some("withdrawn");
    rows[5].messages.truncate(1);
    let stats =
        counted(&[("train", &rows)], json!({ "sequence_length": 64, "overlong": "truncate" }));
    let train = &stats.splits[0];
    assert_eq!((train.rows.seen, train.rows.used), (10, 9));
    assert_eq!(train.rows.excluded, [(Reason::Withdrawn, 1)].into());
    assert_eq!(train.broken, Found { rows: 1, examples: vec!["row-0005".to_owned()] });
    // Eight tokens of the template besides ten letters of the answer.
    let fixed = train.lengths.min as usize;
    let expected = [0, 10, 20, 30, 60, 70, 80, 90].map(|question| question + fixed);
    assert_eq!(train.tokens, expected.iter().sum::<usize>() as u64);
    assert_eq!(train.trained_tokens, 8 * 11);
    assert_eq!(train.lengths.max as usize, 90 + fixed);
    assert_eq!((train.overlong.rows, train.sources[0].rows), (4, 8));
    assert_eq!(train.sources[0].tokens, train.tokens);
    // The answer comes last: of the longest rows nothing trained is within the window.
    assert!(train.trained_tokens_lost > 3 * 11 && train.trained_tokens_lost <= 4 * 11);
    // A run leaves out those of which nothing is.
    assert!((3..=4).contains(&train.overlong_left_out), "{}", train.overlong_left_out);
}

#[test]
fn turns_that_look_wrong_are_found() {
    let rows = [
        said(0, &[("user", "a"), ("assistant", "b")]),
        said(1, &[("user", " \n"), ("assistant", "b")]),
        said(2, &[("user", "a"), ("user", "a"), ("assistant", "b")]),
        said(3, &[("user", "stop <|end|> here"), ("assistant", "b")]),
        said(4, &[("user", "not <|ended|> here"), ("assistant", "b")]),
    ];
    let stats = counted(&[("train", &rows)], json!({}));
    let train = &stats.splits[0];
    let found = |found: &Found| (found.rows, found.examples.join(" "));
    assert_eq!(found(&train.empty_turns), (1, "row-0001".to_owned()));
    assert_eq!(found(&train.not_alternating), (1, "row-0002".to_owned()));
    assert_eq!(found(&train.special_tokens), (1, "row-0003".to_owned()));
    assert_eq!(train.special_tokens_said, [("<|end|>".to_owned(), 1)].into());
}

#[test]
fn duplicates_are_found_within_and_across_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows: Vec<Row> = (0..6).map(|id| row(id, &letter(id), "yes")).collect();
    rows[3] = row(3, &letter(0), "yes");
    rows[4] = row(4, &letter(1).to_uppercase().replace(' ', "\n\n"), "Yes ");
    // One that may not be used repeats nothing.
    rows[5] = row(5, &letter(0), "yes");
    rows[5].purposes.clear();
    let other = [row(6, &letter(2), "yes")];
    let second = folder.path().join("other.parquet");
    crate::dataset::fixture::write_rows(&second, &other, 1);
    let first = folder.path().join("train.parquet");
    let sources = [first, second].map(|path| json!({ "path": path, "format": "chat" }));
    let stats = counted_in(folder.path(), &[("train", &rows)], json!({ "train": sources }));
    let found = stats.duplicates;
    assert_eq!((found.exact, found.normalised), (2, 3));
    assert_eq!((found.within_files, found.across_files, found.sampled_one_in), (2, 1, 1));
    let pairs: Vec<_> = found
        .examples
        .iter()
        .map(|repeat| (repeat.record_id.as_str(), repeat.repeats.as_str(), repeat.exact))
        .collect();
    assert_eq!(
        pairs,
        [
            ("row-0003", "row-0000", true),
            ("row-0004", "row-0001", false),
            ("row-0006", "row-0002", true)
        ]
    );
}

#[test]
fn leakage_is_found_by_its_worst_way() {
    let train: Vec<Row> = (0..20).map(|id| row(id, &letter(id), "the answer is yes")).collect();
    let held = [
        row(100, &letter(3).to_uppercase(), "The answer  is yes"),
        row(101, &letter(4), "the answer is no"),
        row(102, &letter(5).replacen("word", "ward", 2), "the answer is yes"),
        row(103, &letter(77), "the answer is yes"),
    ];
    let mut refused = [row(104, &letter(6), "the answer is yes"), row(105, &letter(78), "yes")];
    refused[0].status = Some("refused");
    let stats =
        counted(&[("train", &train), ("validation", &held), ("suite", &refused)], json!({}));
    let leaks = &stats.leakage.splits;
    let numbers =
        |leak: &Leak| (leak.rows, leak.same_conversation, leak.same_opening, leak.near_duplicate);
    assert_eq!((leaks[0].split.as_str(), numbers(&leaks[0])), ("validation", (4, 1, 1, 1)));
    assert_eq!((leaks[1].split.as_str(), numbers(&leaks[1])), ("test/suite", (1, 0, 0, 0)));
    let examples: Vec<_> = leaks[0]
        .examples
        .iter()
        .map(|leaked| (leaked.record_id.as_str(), leaked.train.as_str(), leaked.overlap))
        .collect();
    assert_eq!(
        examples,
        [
            ("row-0100", "row-0003", Overlap::SameConversation),
            ("row-0101", "row-0004", Overlap::SameOpening),
            ("row-0102", "row-0005", Overlap::NearDuplicate),
        ]
    );
}

#[test]
fn rows_that_all_look_alike_do_not_take_for_ever() {
    let train: Vec<Row> = (0..300).map(|id| row(id, &letter(1), &format!("{id}"))).collect();
    let held: Vec<Row> = (0..300).map(|id| row(id, &letter(1), &format!("no {id}"))).collect();
    let stats = counted(&[("train", &train), ("validation", &held)], json!({}));
    assert_eq!(stats.leakage.splits[0].same_opening, 300);
}

#[test]
fn scripts_cost_what_their_bytes_cost() {
    let lines = [
        ("Latin", "two bags", 1.0),
        ("Devanagari", "नमस्ते", 3.0),
        ("Tamil", "தமிழ்", 3.0),
        ("Han", "你好", 3.0),
        ("Arabic", "مرحبا", 2.0),
        ("Common", "😀", 4.0),
    ];
    for (script, text, cost) in lines {
        let stats = counted(&[("train", &[row(0, text, text)])], json!({}));
        let found = stats.scripts.iter().find(|found| found.script == script).unwrap();
        let letters = |text: &str| text.chars().filter(|c| *c != ' ').count() as u64;
        match script {
            // Digits, spaces and line feeds of the template are common as well.
            "Common" => assert_eq!((found.characters, found.tokens), (2 + 4, 2 * 4 + 4)),
            // Marks that are shared by scripts are of the script before them.
            _ => assert_eq!(found.characters, 2 * letters(text), "{script}"),
        }
        if script != "Common" {
            assert_eq!(found.tokens_per_character, cost, "{script}");
        }
    }
}

#[test]
fn numbers_are_the_same_with_any_number_of_threads() {
    let mut rows: Vec<Row> = (0..50).map(|id| row(id, &letter(id % 20), "yes")).collect();
    rows[7].status = None;
    let folder = tempfile::tempdir().unwrap();
    let splits: [(&str, &[Row]); 2] = [("train", &rows), ("validation", &rows[..10])];
    let (look, data) = look(folder.path(), &splits, json!({}));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let stats = pool.install(|| stats(&look, &data, || ()).unwrap());
        serde_json::to_string(&stats).unwrap()
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn no_text_is_in_what_comes_out() {
    let secret = "Marla Quist owes 40718";
    let train = [row(0, secret, secret), row(1, secret, secret)];
    let stats = counted(&[("train", &train), ("validation", &train)], json!({}));
    let text = serde_json::to_string(&stats).unwrap() + &format!("{stats:?}");
    for word in secret.split(' ') {
        assert!(!text.contains(word), "{text}");
    }
}
