//! The plainest pieces of the best-known expressions, without running them.
//!
//! Most of a text in ASCII is words with a space before them. Every expression here takes
//! such a word as one piece; that follows from its first alternatives, and is checked against
//! the expression itself. All else is left to the expression.

/// GPT-2's, which the tokenizers library has under `ByteLevel`.
pub(super) const GPT_2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// That of Llama 3 and its descendants.
pub(super) const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// That of Qwen 2 and 3.
pub(super) const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// That of gpt-oss and Phi-4-mini.
pub(super) const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The seedling's.
pub(super) const SEEDLING: &str = r" ?\p{Ll}+|\p{Lu}?\p{Ll}+|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s";

/// Which letters make a word that is one piece, with a space before it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// All of ASCII.
    Letters,
    /// Small ones; an apostrophe after them may belong to the piece.
    SmallLetters,
}

impl Words {
    /// What is known of an expression.
    pub(super) fn of(expression: &str) -> Option<Self> {
        match expression {
            GPT_2 | LLAMA_3 | QWEN_2 => Some(Self::Letters),
            O200K | SEEDLING => Some(Self::SmallLetters),
            _ => None,
        }
    }

    /// Length of the piece at the start of a text, where it is one of the plainest: a word, or
    /// a mark before a space.
    pub(super) fn first(self, text: &[u8]) -> Option<usize> {
        let first = *text.first()?;
        if first.is_ascii_punctuation() {
            return (text.get(1) == Some(&b' ')).then_some(1);
        }
        let space = usize::from(first == b' ');
        let is_inside: fn(&u8) -> bool = match self {
            Self::Letters => u8::is_ascii_alphabetic,
            Self::SmallLetters => u8::is_ascii_lowercase,
        };
        let letters = text.get(space..)?.iter().take_while(|byte| is_inside(byte)).count();
        // Other letters may follow beyond ASCII.
        let ends = text
            .get(space + letters)
            .is_none_or(|next| next.is_ascii() && !next.is_ascii_alphabetic() && *next != b'\'');
        (letters > 0 && ends).then_some(space + letters)
    }
}
