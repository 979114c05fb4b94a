//! Against the `tokenizers` library's own decoding of the whole text.

use std::path::Path;

use heirloom::generation::input::Request;
use heirloom::generation::text::Text;

use super::*;

/// Byte-level BPE, byte fallback with Metaspace (Llama 2), plain Metaspace.
const TOKENIZERS: [&str; 3] = ["byte-level", "byte-fallback", "metaspace"];

fn open(name: &str) -> Text {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampling");
    Text::open(&fixtures.join(name), true).unwrap()
}

/// The pieces of these tokens, the last one being what was held back.
fn pieces(text: &Text, tokens: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::default();
    let decode = |tokens: &[u32]| text.decode(tokens);
    let mut pieces: Vec<String> =
        tokens.iter().map(|token| detokenizer.push(*token, decode).unwrap()).collect();
    pieces.push(detokenizer.finish(decode).unwrap());
    pieces
}

#[test]
fn pieces_together_are_the_whole_text_and_hold_whole_characters() {
    for name in TOKENIZERS {
        let text = open(name);
        for said in [
            "Hello world, how  are you?",
            "  two spaces first",
            "a 👩‍👩‍👧 family and a 🌱 seed",
            "日本語のテキスト, ε, é, e\u{301}",
            "\n\n line\n\tfeeds \u{fffd} and one that is meant",
        ] {
            let tokens = text.prompt(&Request::single(said.to_owned()), None).unwrap();
            let pieces = pieces(&text, &tokens);
            assert_eq!(pieces.concat(), text.decode(&tokens).unwrap(), "{name}");
            // Nothing waits for the end but what might have become another character.
            assert_eq!(pieces.last().map(String::as_str), Some(""), "{name}: {pieces:?}");
            let broken = pieces.iter().filter(|piece| piece.contains(REPLACEMENT)).count();
            assert_eq!(broken, said.matches(REPLACEMENT).count(), "{name}: {pieces:?}");
        }
    }
}

#[test]
fn a_character_is_shown_with_its_last_token() {
    for name in ["byte-level", "byte-fallback"] {
        let text = open(name);
        let tokens = text.prompt(&Request::single("🌱".to_owned()), None).unwrap();
        assert!(tokens.len() >= 4, "one token a byte");
        let pieces = pieces(&text, &tokens);
        let shown = pieces.iter().position(|piece| !piece.is_empty());
        assert_eq!((shown, pieces.concat().as_str()), (Some(tokens.len() - 1), "🌱"), "{name}");
    }
}

#[test]
fn a_character_that_never_becomes_whole_comes_in_the_end() {
    let text = open("byte-level");
    let mut tokens = text.prompt(&Request::single("a🌱".to_owned()), None).unwrap();
    tokens.pop();
    let pieces = pieces(&text, &tokens);
    assert_eq!(pieces.concat(), "a\u{fffd}");
    assert_eq!(pieces.last().map(String::as_str), Some("\u{fffd}"));
}

/// Its decoding must not take longer with each token.
#[test]
fn a_model_that_writes_halves_of_characters_for_ever_is_shown_to() {
    let text = open("byte-level");
    let half = text.prompt(&Request::single("🌱".to_owned()), None).unwrap()[0];
    let mut detokenizer = Detokenizer::default();
    let mut shown = String::new();
    for _ in 0..1000 {
        shown += &detokenizer.push(half, |tokens| text.decode(tokens)).unwrap();
        assert!(detokenizer.window.len() <= 2 * MAX_WINDOW);
    }
    assert!(shown.chars().all(|c| c == REPLACEMENT) && shown.chars().count() > 900, "{shown}");
}
