//! Text to tokens with their places, sooner than the tokenizers library and equal to it.
//!
//! Byte-level BPE takes a text apart in three steps: added tokens, the pre-tokenizer's
//! expressions, merges within a piece. The same few thousand pieces make up most of any text,
//! so a thread remembers what became of them. The expressions are run by the library's own
//! engine and unknown pieces are merged by its own model; what is left out is its bookkeeping
//! for every byte, which takes most of its time. A tokenizer with anything else in it (another
//! model, a normaliser that may change the text at hand, added tokens that swallow white
//! space) goes through the library, as does every text of such a tokenizer. Development
//! builds compare both for every text.
//!
//! Reference: `TokenizerImpl::encode` of tokenizers 0.23.2.

mod memory;
mod words;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::utils::SysRegex;
use tokenizers::{
    Model as _, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    Tokenizer,
};

use self::memory::Memory;
use self::words::Words;

/// Tokenizers of which a thread remembers pieces at the same time.
const MAX_TOKENIZERS: usize = 4;

/// A text in tokens, with the bytes of the text that each stands for. The tokens of a
/// character that is split over several all have the bytes of the character.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::dataset) struct Tokens {
    pub(in crate::dataset) ids: Vec<u32>,
    pub(in crate::dataset) offsets: Vec<(usize, usize)>,
}

/// What is known of a tokenizer whose texts need not go through the library.
pub(in crate::dataset) struct Pieces {
    /// Tells the threads' memories of several tokenizers apart.
    id: u64,
    /// Added tokens that are found in the text, and those found in what is left.
    added: [Added; 2],
    /// Expressions that take apart what those before them left, every match a piece.
    expressions: Vec<SysRegex>,
    /// What is known of the only expression.
    words: Option<Words>,
    /// Whether texts are brought into Unicode's form C first.
    composes: bool,
    /// The character that stands for each byte in the vocabulary.
    spelt: [char; 256],
}

/// Added tokens by their first byte, the longest first.
type Added = BTreeMap<u8, Vec<(String, u32)>>;

thread_local! {
    static MEMORIES: RefCell<BTreeMap<u64, Memory>> = const { RefCell::new(BTreeMap::new()) };
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Appends tokens of the text from `start` on, each with its number of bytes.
    fn append(&mut self, text: &str, mut start: usize, tokens: &[(u32, u32)]) {
        for (id, bytes) in tokens {
            let end = start + *bytes as usize;
            self.ids.push(*id);
            self.offsets.push(whole_characters(text, start, end));
            start = end;
        }
    }
}

/// Tokenises without the post-processor's tokens.
pub(in crate::dataset) fn tokens(
    tokenizer: &Tokenizer,
    pieces: Option<&Pieces>,
    text: &str,
) -> tokenizers::Result<Tokens> {
    let Some(found) = pieces.and_then(|pieces| pieces.tokens(tokenizer, text)) else {
        return by_library(tokenizer, text);
    };
    #[cfg(debug_assertions)]
    assert!(found == by_library(tokenizer, text)?, "the library has other tokens");
    Ok(found)
}

fn by_library(tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<Tokens> {
    let encoding = tokenizer.encode(text, false)?;
    Ok(Tokens { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
}

impl Pieces {
    /// `None` where the tokenizer has anything that is not known here.
    pub(in crate::dataset) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let composes = match tokenizer.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        let spelt = spelling();
        let model = byte_pairs(tokenizer)?;
        let whole = model.dropout.is_none_or(|dropout| dropout == 0.0)
            && model.get_continuing_subword_prefix().is_none()
            && model.end_of_word_suffix.is_none()
            && spelt.iter().all(|byte| model.token_to_id(byte.encode_utf8(&mut [0; 4])).is_some());
        let expressions = expressions(tokenizer.get_pre_tokenizer()?)?;
        let words = match expressions.as_slice() {
            [only] => Words::of(only),
            _ => None,
        };
        let expressions = expressions.iter().map(|regex| SysRegex::new(regex).ok());
        let expressions = expressions.collect::<Option<Vec<_>>>()?;
        if !whole || tokenizer.get_truncation().is_some() || tokenizer.get_padding().is_some() {
            return None;
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Some(Self { id, added: added(tokenizer)?, expressions, words, composes, spelt })
    }

    /// `None` where the text has to go through the library.
    fn tokens(&self, tokenizer: &Tokenizer, text: &str) -> Option<Tokens> {
        if self.composes && !text.chars().all(is_composed) {
            return None;
        }
        let model = byte_pairs(tokenizer)?;
        MEMORIES.with_borrow_mut(|memories| {
            if memories.len() >= MAX_TOKENIZERS && !memories.contains_key(&self.id) {
                memories.clear();
            }
            let memory = memories.entry(self.id).or_default();
            // Four bytes a token is what languages come to.
            let some = text.len() / 4;
            let out = Tokens { ids: Vec::with_capacity(some), offsets: Vec::with_capacity(some) };
            let mut work = Work { pieces: self, model, text, memory, out };
            work.part(0..text.len(), &self.added)?;
            Some(work.out)
        })
    }
}

/// One text on its way.
struct Work<'a> {
    pieces: &'a Pieces,
    model: &'a BPE,
    text: &'a str,
    memory: &'a mut Memory,
    out: Tokens,
}

impl Work<'_> {
    /// Takes added tokens out, first those of the first set.
    fn part(&mut self, part: Range<usize>, added: &[Added]) -> Option<()> {
        let Some((tokens, others)) = added.split_first() else {
            return self.split(part, 0);
        };
        if tokens.is_empty() {
            return self.part(part, others);
        }
        let bytes = self.text.as_bytes();
        let (mut from, mut at) = (part.start, part.start);
        while at < part.end {
            let rest = bytes.get(at..part.end)?;
            let candidates = rest.first().and_then(|byte| tokens.get(byte));
            let found = candidates.into_iter().flatten();
            match found.into_iter().find(|(token, _)| rest.starts_with(token.as_bytes())) {
                Some((token, id)) => {
                    self.part(from..at, others)?;
                    self.out.ids.push(*id);
                    self.out.offsets.push((at, at + token.len()));
                    at += token.len();
                    from = at;
                }
                None => at += 1,
            }
        }
        self.part(from..part.end, others)
    }

    /// Takes a part apart by the expressions from this one on.
    fn split(&mut self, part: Range<usize>, expression: usize) -> Option<()> {
        if part.is_empty() {
            return Some(());
        }
        let pieces = self.pieces;
        let Some(regex) = pieces.expressions.get(expression) else { return self.piece(part) };
        if let Some(words) = pieces.words {
            return self.split_words(part, words, regex);
        }
        let inside = self.text.get(part.clone())?;
        let mut from = 0;
        for (start, end) in regex.find_iter(inside) {
            self.split(part.start + from..part.start + start, expression + 1)?;
            self.split(part.start + start..part.start + end, expression + 1)?;
            from = end;
        }
        self.split(part.start + from..part.end, expression + 1)
    }

    /// The same by an expression of which the plainest pieces are known.
    fn split_words(&mut self, part: Range<usize>, words: Words, regex: &SysRegex) -> Option<()> {
        let mut from = part.start;
        while from < part.end {
            let rest = self.text.get(from..part.end)?;
            let plainest = words.first(rest.as_bytes());
            // These expressions match every text, from its start on and at least a character.
            let first = plainest.or_else(|| Some(regex.find_iter(rest).next()?.1));
            let end = from + first.filter(|length| *length > 0)?;
            self.piece(from..end)?;
            from = end;
        }
        Some(())
    }

    /// Appends the tokens of a piece.
    fn piece(&mut self, piece: Range<usize>) -> Option<()> {
        let words = self.text.get(piece.clone())?;
        match self.memory.tokens(words) {
            Some(tokens) => self.out.append(self.text, piece.start, tokens),
            None => {
                let tokens = self.merged(words)?;
                self.out.append(self.text, piece.start, &tokens);
                self.memory.remember(words, &tokens);
            }
        }
        Some(())
    }

    /// Merges a piece that is not remembered: tokens, each with its number of bytes.
    fn merged(&self, words: &str) -> Option<Vec<(u32, u32)>> {
        let spelt: String =
            words.bytes().map(|byte| self.pieces.spelt[usize::from(byte)]).collect();
        let tokens = self.model.tokenize(&spelt).ok()?.into_iter();
        let lengths = tokens.map(|token| {
            let bytes = spelt.get(token.offsets.0..token.offsets.1)?.chars().count();
            Some((token.id, u32::try_from(bytes).ok()?))
        });
        lengths.collect()
    }
}

/// The bytes of all characters that these are part of.
fn whole_characters(text: &str, mut start: usize, mut end: usize) -> (usize, usize) {
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    while !text.is_char_boundary(end) {
        end += 1;
    }
    (start, end)
}

fn byte_pairs(tokenizer: &Tokenizer) -> Option<&BPE> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) => Some(model),
        _ => None,
    }
}

/// GPT-2's printable character for each byte, as [`ByteLevel::alphabet`] has them.
fn spelling() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            return byte as u8 as char;
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or_default()
    })
}

fn expressions(pre_tokenizer: &PreTokenizerWrapper) -> Option<Vec<&str>> {
    let one = std::slice::from_ref(pre_tokenizer);
    let steps = match pre_tokenizer {
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref(),
        _ => one,
    };
    let (PreTokenizerWrapper::ByteLevel(last), splits) = steps.split_last()? else { return None };
    let ByteLevel { add_prefix_space: false, use_regex, .. } = last else { return None };
    let mut expressions = Vec::new();
    for step in splits {
        expressions.push(expression(step)?);
    }
    if *use_regex {
        expressions.push(words::GPT_2);
    }
    Some(expressions)
}

fn expression(step: &PreTokenizerWrapper) -> Option<&str> {
    use tokenizers::pre_tokenizers::split::SplitPattern;
    let PreTokenizerWrapper::Split(split) = step else { return None };
    match &split.pattern {
        SplitPattern::Regex(regex)
            if !split.invert && split.behavior == SplitDelimiterBehavior::Isolated =>
        {
            Some(regex)
        }
        _ => None,
    }
}

/// Those that are found in the text itself, and those found after normalising what is left.
fn added(tokenizer: &Tokenizer) -> Option<[Added; 2]> {
    let mut sets = [Added::new(), Added::new()];
    if tokenizer.get_encode_special_tokens() {
        return None;
    }
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        let plain = !token.lstrip && !token.rstrip && !token.single_word;
        // Normalising changes no ASCII.
        let same = !token.normalized || tokenizer.get_normalizer().is_none();
        if !plain || !(same || token.content.is_ascii()) {
            return None;
        }
        let first = *token.content.as_bytes().first()?;
        let set = &mut sets[usize::from(token.normalized)];
        set.entry(first).or_default().push((token.content, id));
    }
    for tokens in sets.iter_mut().flat_map(BTreeMap::values_mut) {
        tokens.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then(a.cmp(b)));
    }
    Some(sets)
}

/// Whether a text of such characters alone is in form C. There are more of them; those of
/// other scripts go through the library.
fn is_composed(character: char) -> bool {
    matches!(character,
        '\0'..='\u{2ff}' | '\u{400}'..='\u{482}' | '\u{48a}'..='\u{52f}' | '\u{2010}'..='\u{2027}'
        | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{4e00}'..='\u{9fff}'
        | '\u{ac00}'..='\u{d7a3}' | '\u{1f300}'..='\u{1faff}')
}

#[cfg(test)]
mod tests;
