//! The words of strangers, so that a terminal shows them and nothing more.
//!
//! A row may hold control characters that move the cursor, bidirectional controls that turn
//! words round and characters that nobody sees. They are written as escapes, in Rust's way; so
//! is the backslash, and every sign that is used here for something else: what is shown can
//! be read back without doubt.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// What is trained stands between these.
pub(super) const TRAINED: [char; 2] = ['⟦', '⟧'];

/// A special token stands between these.
pub(super) const SPECIAL: [char; 2] = ['⟪', '⟫'];

/// Between two tokens.
pub(super) const BETWEEN: char = '¦';

/// A token that is a part of the character that follows.
pub(super) const PART: char = '◦';

/// A line feed.
pub(super) const LINE_FEED: char = '⏎';

/// Where a window ends.
pub(super) const CUT: char = '✂';

/// Signs with a meaning of their own.
const SIGNS: [char; 9] =
    [TRAINED[0], TRAINED[1], SPECIAL[0], SPECIAL[1], BETWEEN, PART, LINE_FEED, CUT, '\\'];

/// Carries a mark that would otherwise sit on a sign of ours.
const CARRIER: char = '◌';

/// Letters of Unicode's `Default_Ignorable_Code_Point` that the standard library counts as
/// printable: they are invisible, and variation selectors can carry hidden text.
fn is_invisible(letter: char) -> bool {
    matches!(letter, '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{2065}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{e0000}'..='\u{e0fff}')
}

/// Whether a terminal shows a letter, and nothing but it.
fn is_plain(letter: char) -> bool {
    if letter.is_ascii() {
        return letter == ' ' || letter.is_ascii_graphic();
    }
    // Within a text, the standard library escapes what cannot be printed.
    let mut within = "a".to_owned();
    within.push(letter);
    let escaped = within.escape_debug().skip(1).count() > 1;
    !escaped && !is_invisible(letter)
}

/// A mark that sits on the letter before it.
fn is_mark(letter: char) -> bool {
    !letter.is_ascii() && is_plain(letter) && letter.escape_debug().count() > 1
}

/// A letter as it is shown; `first` where a sign of ours comes before it.
pub(super) fn push(text: &mut String, letter: char, first: bool) {
    if !is_plain(letter) || SIGNS.contains(&letter) {
        text.extend(escape(letter));
        return;
    }
    if first && is_mark(letter) {
        text.push(CARRIER);
    }
    text.push(letter);
}

/// Whether [`push`] writes an escape.
pub(super) fn is_escaped(letter: char) -> bool {
    !is_plain(letter) || SIGNS.contains(&letter)
}

fn escape(letter: char) -> Vec<char> {
    match letter {
        '\\' | '\t' | '\r' | '\n' => letter.escape_default().collect(),
        _ => letter.escape_unicode().collect(),
    }
}

/// A text of strangers within a line of ours: an id, a path, what a template says.
pub(super) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_plain(letter) { shown.push(letter) } else { shown.extend(escape(letter)) }
    }
    shown
}

/// JSON in which every letter that is not plain is an escape: the same value, and nothing that
/// drives a terminal.
pub(super) fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, Safe))?;
    // Only text was written.
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

struct Safe;

impl Formatter for Safe {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for letter in fragment.chars() {
            if is_plain(letter) {
                write!(writer, "{letter}")?;
            } else {
                let mut units = [0; 2];
                for unit in letter.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What hides, turns round, moves or rings.
    const HOSTILE: &str = "\0\x07\x08\x1b[31m\x1b]0;title\x07\r\x7f\u{85}\u{9b}2J\u{ad}\u{34f}\u{61c}\
        \u{115f}\u{180e}\u{200b}\u{200d}\u{200e}\u{2028}\u{202e}\u{2066}\u{2069}\u{3164}\u{e000}\
        \u{fe0f}\u{feff}\u{fff9}\u{ffff}\u{1d173}\u{e0041}\u{e0100}\u{f0000}\u{10ffff}";

    fn shown(text: &str) -> String {
        let mut shown = String::new();
        text.chars().for_each(|letter| push(&mut shown, letter, false));
        shown
    }

    #[test]
    fn nothing_that_drives_a_terminal_or_hides_is_left() {
        for text in [shown(HOSTILE), visible(HOSTILE), json(&HOSTILE).unwrap()] {
            assert!(text.chars().all(|c| c.is_ascii_graphic()), "{text}");
        }
        assert_eq!(shown("\x1b[2J\u{202e}"), r"\u{1b}[2J\u{202e}");
        assert_eq!(shown("\t\\n⟦a⟧¦◦⏎✂"), r"\t\\n\u{27e6}a\u{27e7}\u{a6}\u{25e6}\u{23ce}\u{2702}");
    }

    #[test]
    fn what_people_write_is_left_as_it_is() {
        for text in ["It's \"so\" — naïve", "नमस्ते", "தமிழ்", "你好。", "مرحبا", "שלום", "😀"]
        {
            assert_eq!(shown(text), text);
            assert_eq!(visible(text), text);
        }
    }

    #[test]
    fn a_mark_does_not_sit_on_a_sign() {
        let mut text = "¦".to_owned();
        push(&mut text, '\u{941}', true);
        assert_eq!(text, "¦◌\u{941}");
    }

    #[test]
    fn json_says_the_same() {
        let text = format!("{HOSTILE} \"quoted\" \\ नमस्ते\n");
        let read: String = serde_json::from_str(&json(&text).unwrap()).unwrap();
        assert_eq!(read, text);
    }
}
