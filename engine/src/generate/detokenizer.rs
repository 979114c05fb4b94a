//! Tokens to text, token by token.
//!
//! Owns printing neither half a character nor a wrong space. As `DecodeStream` of the
//! `tokenizers` library: a short window of tokens is decoded again with each new one, and
//! what its text has grown by is new. The window begins with tokens whose text is out
//! already, since a decoder may treat the first token of a text unlike the others
//! (Metaspace drops its space).

use heirloom::diagnose::Failure;

/// What a decoder gives for bytes that are no whole character.
const REPLACEMENT: char = '\u{fffd}';

/// The window is decoded anew with each token: a model that never completes a character, or
/// repeats a special token, must not make it grow without end.
const MAX_WINDOW: usize = 32;

/// The text of one answer so far.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// The tokens of the window.
    window: Vec<u32>,
    /// How many of them are out.
    out: usize,
}

impl Detokenizer {
    /// Takes one more token; gives the text that is certain now.
    pub fn push(
        &mut self,
        token: u32,
        decode: impl Fn(&[u32]) -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        self.window.push(token);
        let whole = decode(&self.window)?;
        let full = self.window.len() >= MAX_WINDOW;
        if whole.ends_with(REPLACEMENT) && !full {
            return Ok(String::new());
        }
        let text = self.grown(&whole, decode)?;
        if !text.is_empty() {
            self.window.drain(..self.out);
            self.out = self.window.len();
        } else if full {
            self.window.pop();
        }
        Ok(text)
    }

    /// What is left when no token follows: a character that never became whole.
    pub fn finish(
        &mut self,
        decode: impl Fn(&[u32]) -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        let text = self.grown(&decode(&self.window)?, decode)?;
        *self = Self::default();
        Ok(text)
    }

    /// What `whole`, the text of the window, has more than that of the tokens that are out.
    fn grown(
        &self,
        whole: &str,
        decode: impl Fn(&[u32]) -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        let before = decode(self.window.get(..self.out).unwrap_or_default())?;
        // A decoder that rewrites what is out cannot be followed: what is out, is out.
        let same = whole.char_indices().zip(before.chars()).take_while(|((_, a), b)| a == b);
        let start = same.last().map_or(0, |((index, c), _)| index + c.len_utf8());
        Ok(whole.get(start..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
#[path = "detokenizer_tests.rs"]
mod tests;
