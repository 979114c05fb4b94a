use proptest::prelude::*;
use serde_json::{Value, json};

use super::memory::{MAX_BYTES, MAX_PIECES};
use super::words::{LLAMA_3, O200K, QWEN_2, SEEDLING};
use super::*;

fn fixture() -> Value {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_level/tokenizer.json");
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The byte-level fixture, without the tokens that swallow white space, with another
/// pre-tokenizer and normaliser.
fn tokenizer(pre_tokenizers: &[Value], composes: bool) -> Tokenizer {
    let mut json = fixture();
    let kept =
        |token: &Value| !["lstrip", "rstrip", "single_word"].iter().any(|f| token[f] == true);
    json["added_tokens"].as_array_mut().unwrap().retain(kept);
    json["normalizer"] = if composes { json!({"type": "NFC"}) } else { Value::Null };
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": pre_tokenizers});
    json["post_processor"] = Value::Null;
    Tokenizer::from_bytes(serde_json::to_vec(&json).unwrap()).unwrap()
}

fn tokenizers() -> Vec<Tokenizer> {
    let deepseek =
        [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(LLAMA_3), byte_level(false)];
    vec![
        tokenizer(&[byte_level(true)], false),
        tokenizer(&[split(LLAMA_3), byte_level(false)], false),
        tokenizer(&[split(QWEN_2), byte_level(false)], true),
        tokenizer(&[split(O200K), byte_level(false)], false),
        tokenizer(&[split(SEEDLING), byte_level(false)], false),
        tokenizer(&deepseek, false),
    ]
}

/// Compares what is remembered as well: every text twice.
fn compare(tokenizer: &Tokenizer, pieces: &Pieces, text: &str) -> bool {
    let theirs = by_library(tokenizer, text).unwrap();
    let mut quick = false;
    for _ in 0..2 {
        if let Some(ours) = pieces.tokens(tokenizer, text) {
            assert_eq!(ours, theirs, "{text:?}");
            quick = true;
        }
    }
    quick
}

#[test]
fn nasty_texts_have_the_tokens_and_places_of_the_library() {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_level/ids.json");
    let texts: Vec<Value> = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    for tokenizer in tokenizers() {
        let pieces = Pieces::of(&tokenizer).unwrap();
        let texts = texts.iter().map(|text| text["text"].as_str().unwrap());
        let quick = texts.clone().filter(|text| compare(&tokenizer, &pieces, text)).count();
        assert!(quick * 3 > texts.count() * 2, "{quick}");
    }
}

#[test]
fn every_character_has_the_tokens_and_places_of_the_library() {
    let tokenizer = tokenizer(&[split(QWEN_2), byte_level(false)], true);
    let pieces = Pieces::of(&tokenizer).unwrap();
    for block in 0..0x1100_u32 {
        let characters = (block << 8..(block + 1) << 8).filter_map(char::from_u32);
        let text: String = characters.flat_map(|c| ['a', c, ' ', c, c, '1']).collect();
        compare(&tokenizer, &pieces, &text);
    }
}

#[test]
fn texts_of_composed_characters_are_in_form_c() {
    let tokenizer = tokenizer(&[byte_level(false)], true);
    let normalizer = tokenizer.get_normalizer().unwrap();
    let composed: Vec<char> = ('\0'..=char::MAX).filter(|c| is_composed(*c)).collect();
    for distance in [1, 7, 40, 11_172, 20_000] {
        let text: String = composed
            .iter()
            .zip(composed.iter().skip(distance))
            .flat_map(|(a, b)| [*a, *b])
            .collect();
        let mut normal = tokenizers::NormalizedString::from(text.as_str());
        tokenizers::Normalizer::normalize(normalizer, &mut normal).unwrap();
        assert!(normal.get() == text);
    }
}

#[test]
fn what_is_not_known_goes_through_the_library() {
    let other = |key: &str, value: Value| {
        let mut json = fixture();
        json["added_tokens"] = json!([]);
        json[key] = value;
        Tokenizer::from_bytes(serde_json::to_vec(&json).unwrap()).unwrap()
    };
    assert!(Pieces::of(&other("post_processor", Value::Null)).is_some());
    let lower = json!({"type": "Lowercase"});
    let spaces = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let removed = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false});
    let removed = json!({"type": "Sequence", "pretokenizers": [removed, byte_level(false)]});
    for (key, value) in
        [("normalizer", lower), ("pre_tokenizer", spaces), ("pre_tokenizer", removed)]
    {
        assert!(Pieces::of(&other(key, value)).is_none(), "{key}");
    }
    let whole = Tokenizer::from_bytes(serde_json::to_vec(&fixture()).unwrap()).unwrap();
    assert!(Pieces::of(&whole).is_none(), "tokens that swallow white space");
}

#[test]
fn a_thread_that_remembers_too_much_begins_anew() {
    let tokenizer = tokenizer(&[byte_level(true)], false);
    let pieces = Pieces::of(&tokenizer).unwrap();
    for number in 0..MAX_PIECES / 500 + 9 {
        let text: String = (0..500).map(|at| format!(" {}", number * 500 + at)).collect();
        pieces.tokens(&tokenizer, &text).unwrap();
    }
    let held = MEMORIES.with_borrow(|memories| memories[&pieces.id].pieces());
    assert!((1..MAX_PIECES / 2).contains(&held), "{held}");
    compare(&tokenizer, &pieces, &"x".repeat(MAX_BYTES + 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_texts_have_the_tokens_and_places_of_the_library(
        parts in prop::collection::vec(prop_oneof![
            "[ -~]{0,12}", "\\PC{0,6}", "[ \n\r\t]{1,4}", "[a-zA-Z']{1,8}", "[0-9.,]{1,6}", "[é日本Δн🌱ſ]{1,5}",
            Just("<|user|>".to_owned()), Just("<|us".to_owned()), Just("</think>".to_owned()),
            Just("<s>".to_owned()), Just("\n\n".to_owned()), Just("it'S".to_owned()), Just("Lowered".to_owned()),
        ], 0..14),
    ) {
        thread_local! {
            static ALL: Vec<(Tokenizer, Pieces)> = tokenizers().into_iter().map(|tokenizer| {
                let pieces = Pieces::of(&tokenizer).unwrap();
                (tokenizer, pieces)
            }).collect();
        }
        let text = parts.concat();
        ALL.with(|all| all.iter().for_each(|(tokenizer, pieces)| { compare(tokenizer, pieces, &text); }));
    }
}
