//! What each script costs in tokens.
//!
//! A token belongs to the script of its first character that has one of its own; digits,
//! punctuation, spaces and emoji are `Common`, and a token of those alone belongs there. The
//! pieces of a character that is spread over several tokens belong to its script. Special
//! tokens belong to nobody.
//!
//! Reference: the property Script of Unicode (UAX #24), as `unicode-script` has it.

use std::collections::BTreeMap;

use serde::Serialize;
use unicode_script::UnicodeScript as _;

use super::super::look::{Part, Pieces};

/// What a script costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Script {
    /// Its name in Unicode.
    pub script: &'static str,
    /// Characters.
    pub characters: u64,
    /// Tokens that they take.
    pub tokens: u64,
    /// Tokens a character.
    pub tokens_per_character: f64,
}

/// Characters and tokens by script.
#[derive(Debug, Default)]
pub(super) struct Scripts(BTreeMap<&'static str, Cost>);

#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    characters: u64,
    tokens: u64,
}

const COMMON: &str = "Common";

/// Written above or below the character before it, and of its script.
const INHERITED: &str = "Inherited";

impl Scripts {
    /// The cost of a document.
    pub(super) fn of(pieces: &Pieces, tokens: &[u32]) -> Self {
        let mut counting = Counting::default();
        pieces.visit(tokens, |token, part| counting.see(token, part));
        counting.close();
        counting.scripts
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (script, Cost { characters, tokens }) in &other.0 {
            let cost = self.0.entry(script).or_default();
            cost.characters += characters;
            cost.tokens += tokens;
        }
    }

    /// The most frequent first.
    pub(super) fn finish(&self) -> Vec<Script> {
        let script = |(script, cost): (&&'static str, &Cost)| Script {
            script,
            characters: cost.characters,
            tokens: cost.tokens,
            tokens_per_character: cost.tokens as f64 / cost.characters.max(1) as f64,
        };
        let mut scripts: Vec<Script> = self.0.iter().map(script).collect();
        scripts.sort_by_key(|script| std::cmp::Reverse(script.characters));
        scripts
    }

    fn cost(&mut self, script: &'static str) -> &mut Cost {
        self.0.entry(script).or_default()
    }
}

/// The count of one document, token after token.
#[derive(Default)]
struct Counting {
    scripts: Scripts,
    /// The token that is looked at.
    token: Option<usize>,
    /// Its script so far.
    of_token: Option<&'static str>,
    /// Tokens whose character has not ended yet.
    begun: u64,
    /// Script of the character before.
    before: Option<&'static str>,
}

impl Counting {
    fn see(&mut self, token: usize, part: Part<'_>) {
        if self.token != Some(token) {
            self.close();
            self.token = Some(token);
        }
        match part {
            Part::Char(letter) => self.letter(letter),
            Part::Begun => {}
            Part::Byte(_) | Part::Special(_) => {
                (self.token, self.before, self.begun) = (None, None, 0);
            }
        }
    }

    fn letter(&mut self, letter: char) {
        let script = match (letter.script().full_name(), self.before) {
            (INHERITED, Some(before)) => before,
            (INHERITED, None) => COMMON,
            (script, _) => script,
        };
        self.before = Some(script);
        self.scripts.cost(script).characters += 1;
        self.scripts.cost(script).tokens += std::mem::take(&mut self.begun);
        if self.of_token.is_none_or(|of| of == COMMON) {
            self.of_token = Some(script);
        }
    }

    /// Counts the token that ends.
    fn close(&mut self) {
        match (self.token.take(), self.of_token.take()) {
            (Some(_), Some(script)) => self.scripts.cost(script).tokens += 1,
            (Some(_), None) => self.begun += 1,
            (None, _) => {}
        }
    }
}
