//! What is known of one row, in numbers and hashes.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use super::super::consent::Reason;
use super::super::error::DatasetError;
use super::super::look::{Cut, Look, Pieces, Place, Seen, Turn, turns};
use super::minhash::Signature;
use super::overlap::Compared;
use super::repeats::Identity;
use super::scripts::Scripts;

/// What becomes of a row.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) record_id: String,
    pub(super) file: usize,
    pub(super) number: u64,
    pub(super) verdict: Verdict,
}

#[derive(Debug)]
pub(super) enum Verdict {
    Refused(Reason),
    Elsewhere,
    Broken,
    Used(Box<Used>),
}

/// What is counted of a row that is used.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) tokens: usize,
    pub(super) trained: u64,
    /// Where the row is longer than a window.
    pub(super) cut: Option<Cut>,
    pub(super) scripts: Scripts,
    pub(super) compared: Compared,
    pub(super) empty_turn: bool,
    pub(super) alternates: bool,
    pub(super) special: BTreeSet<String>,
}

/// Finds out about rows.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pieces: &'a Pieces,
    /// Special tokens by their first character.
    special: BTreeMap<char, Vec<&'a str>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(look: &'a Look) -> Self {
        let mut special: BTreeMap<char, Vec<&str>> = BTreeMap::new();
        for token in look.pieces().special() {
            if let Some(first) = token.chars().next() {
                special.entry(first).or_default().push(token);
            }
        }
        Self { pieces: look.pieces(), special }
    }

    /// Judges, tokenises and counts a row; its signature only where it is asked for.
    pub(super) fn read(&self, place: &Place<'_>, signed: bool) -> Result<Facts, DatasetError> {
        let verdict = match place.see()? {
            Seen::Refused(reason) => Verdict::Refused(reason),
            Seen::Elsewhere => Verdict::Elsewhere,
            Seen::Broken(_) => Verdict::Broken,
            Seen::Used(sample, document) => {
                let said = turns(&sample);
                Verdict::Used(Box::new(Used {
                    tokens: document.tokens.len(),
                    trained: document.trained_tokens(),
                    cut: place.cut(&document),
                    scripts: Scripts::of(self.pieces, &document.tokens),
                    compared: compared(&said, signed),
                    empty_turn: said.iter().any(Turn::is_empty),
                    alternates: alternates(&said),
                    special: said.iter().flat_map(|turn| self.special_in(&turn.text)).collect(),
                }))
            }
        };
        Ok(Facts {
            record_id: place.record_id().to_owned(),
            file: place.file,
            number: place.number,
            verdict,
        })
    }

    /// Special tokens that a text spells.
    fn special_in(&self, text: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (at, first) in text.char_indices() {
            let Some(tokens) = self.special.get(&first) else { continue };
            let rest = text.get(at..).unwrap_or_default();
            let said = tokens.iter().filter(|token| rest.starts_with(**token));
            found.extend(said.map(|token| (*token).to_owned()));
        }
        found
    }
}

/// The first 64 bits of a SHA-256 of turns, each part ended so that none runs into the next.
fn hash<'t>(parts: impl Iterator<Item = &'t str>) -> u64 {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let digest: [u8; 32] = digest.finalize().into();
    digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// In lower case, with single spaces.
fn normalised(text: &str) -> String {
    let mut words = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !words.is_empty() {
            words.push(' ');
        }
        words.extend(word.chars().flat_map(char::to_lowercase));
    }
    words
}

fn compared(said: &[Turn], signed: bool) -> Compared {
    fn parts<'t>(turn: &'t Turn, text: &'t str) -> [&'t str; 3] {
        [&turn.role, text, turn.calls.as_deref().unwrap_or_default()]
    }
    let plain: Vec<String> = said.iter().map(|turn| normalised(&turn.text)).collect();
    let turns = || said.iter().zip(&plain).map(|(turn, plain)| parts(turn, plain));
    let answer = said.iter().position(|turn| turn.role == "assistant");
    let opening = answer.filter(|before| *before > 0);
    Compared {
        identity: Identity {
            normalised: hash(turns().flatten()),
            exact: hash(said.iter().flat_map(|turn| parts(turn, &turn.text))),
        },
        opening: opening.map(|before| hash(turns().take(before).flatten())),
        signature: signed.then(|| Signature::new(&plain.join(" "))).flatten(),
    }
}

/// Whether the user and the assistant take turns, the user first. What the system and tools
/// say may stand anywhere between.
fn alternates(said: &[Turn]) -> bool {
    let speakers: Vec<&str> = said
        .iter()
        .map(|turn| turn.role.as_str())
        .filter(|role| ["user", "assistant"].contains(role))
        .collect();
    let first = speakers.first().is_none_or(|role| *role == "user");
    let tools = said.iter().any(|turn| turn.calls.is_some() || turn.role == "tool");
    let twice = speakers.windows(2).any(|pair| match pair {
        // An assistant goes on after a tool has answered it.
        [one, other] => one == other && !(tools && *one == "assistant"),
        _ => false,
    });
    first && !twice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(turns: &[(&str, &str)]) -> Vec<Turn> {
        let turn = |(role, text): &(&str, &str)| Turn {
            role: (*role).to_owned(),
            text: (*text).to_owned(),
            calls: None,
        };
        turns.iter().map(turn).collect()
    }

    #[test]
    fn case_and_white_space_do_not_count_but_roles_and_borders_do() {
        let of = |turns: &[(&str, &str)]| compared(&said(turns), true);
        let one = of(&[("user", "Two  bags,\nplease "), ("assistant", "so")]);
        let same = of(&[("user", "two bags, PLEASE"), ("assistant", "so")]);
        assert_eq!(one.identity.normalised, same.identity.normalised);
        assert_ne!(one.identity.exact, same.identity.exact);
        assert_eq!(one.signature, same.signature);
        for other in [
            [("assistant", "two bags, please"), ("assistant", "so")],
            [("user", "two bags, pleases"), ("assistant", "o")],
        ] {
            assert_ne!(of(&other).identity.normalised, one.identity.normalised);
        }
        let other = of(&[("user", "two bags, please"), ("assistant", "sq")]);
        assert_eq!(other.opening, one.opening);
        // Where nothing comes before the answer, everything would share its opening.
        assert_eq!(of(&[("assistant", "so")]).opening, None);
    }

    #[test]
    fn turns_alternate_or_do_not() {
        let of = |roles: &[&str]| {
            let turns: Vec<(&str, &str)> = roles.iter().map(|role| (*role, "a")).collect();
            alternates(&said(&turns))
        };
        assert!(of(&["system", "user", "assistant", "user", "assistant"]));
        assert!(of(&["user", "assistant", "tool", "assistant"]));
        assert!(of(&["text"]) && of(&["user", "assistant", "rejected"]));
        assert!(!of(&["assistant", "user", "assistant"]));
        assert!(!of(&["user", "user", "assistant"]));
        assert!(!of(&["user", "assistant", "assistant"]));
    }
}
