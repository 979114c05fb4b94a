//! Stop strings: the texts before which an answer ends.
//!
//! Owns finding them in text that comes in pieces, also where one begins in a piece and
//! ends in another. The answer ends before the stop string, as llama.cpp, vLLM and most
//! services have it; Transformers' `stop_strings` ends at the same token but leaves it in.

/// Looks for stop strings in one answer.
#[derive(Debug)]
pub struct StopStrings<'s> {
    strings: &'s [String],
    /// The end of the text so far that a stop string may begin with.
    held: String,
}

/// What may be shown after one more piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// Text that is certain not to belong to a stop string.
    pub text: String,
    /// Whether the answer ends here.
    pub stopped: bool,
}

impl<'s> StopStrings<'s> {
    /// None of `strings` is empty.
    pub fn new(strings: &'s [String]) -> Self {
        Self { strings, held: String::new() }
    }

    /// Takes one more piece.
    pub fn push(&mut self, piece: &str) -> Checked {
        if self.strings.is_empty() {
            return Checked { text: piece.to_owned(), stopped: false };
        }
        self.held.push_str(piece);
        // The earliest end decides: that is the one that a model would have reached first.
        let found = self.strings.iter().filter_map(|string| {
            let start = self.held.find(string.as_str())?;
            Some((start + string.len(), start))
        });
        if let Some((_, start)) = found.min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Checked { text, stopped: true };
        }
        let rest = self.held.split_off(self.held.len() - self.beginning());
        Checked { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back when no text follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of what is held that some stop string begins with.
    fn beginning(&self) -> usize {
        let of = |string: &String| {
            let starts = self.held.char_indices().map(|(start, _)| self.held.len() - start);
            let mut lengths = starts.filter(|length| *length < string.len());
            let held = &self.held;
            lengths.find(|length| held.ends_with(string.get(..*length).unwrap_or("\0\0")))
        };
        self.strings.iter().filter_map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that is shown, piece by piece, and whether it stopped.
    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut strings = StopStrings::new(&stops);
        let mut shown = Vec::new();
        for piece in pieces {
            let checked = strings.push(piece);
            shown.push(checked.text);
            if checked.stopped {
                return (shown, true);
            }
        }
        shown.push(strings.finish());
        (shown, false)
    }

    #[test]
    fn found_inside_a_piece_and_across_pieces() {
        assert_eq!(shown(&["END"], &["one END two"]), (vec!["one ".into()], true));
        let across = shown(&["END"], &["one E", "N", "D two"]);
        assert_eq!(across, (vec!["one ".into(), "".into(), "".into()], true));
    }

    #[test]
    fn what_only_began_like_one_is_shown_in_the_end() {
        let (pieces, stopped) = shown(&["END"], &["aE", "NE", "N", "x"]);
        assert_eq!((pieces.concat().as_str(), stopped), ("aENENx", false));
        assert_eq!(pieces, ["a", "EN", "", "ENx", ""]);
        assert_eq!(shown(&["END"], &["EN"]).0, ["", "EN"]);
    }

    #[test]
    fn overlapping_strings_end_at_the_first_that_is_complete() {
        assert_eq!(shown(&["abcd", "bc"], &["xabcd"]), (vec!["xa".into()], true));
        assert_eq!(shown(&["aab"], &["aaab"]), (vec!["a".into()], true));
        assert_eq!(shown(&["aab"], &["aa", "ab"]), (vec!["".into(), "a".into()], true));
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        let (pieces, stopped) = shown(&["é日"], &["aé", "b", "é", "日"]);
        assert_eq!((pieces, stopped), (vec!["a".into(), "éb".into(), "".into(), "".into()], true));
        // The last bytes of `é` and of `ĩ` are the same.
        assert_eq!(shown(&["ĩ!"], &["é", "!"]).0.concat(), "é!");
    }
}
