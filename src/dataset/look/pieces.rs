//! What each token of a vocabulary stands for, byte by byte.
//!
//! Owns reading the spelling of a token back: byte-level vocabularies write bytes as printable
//! letters, byte fallback writes them `<0xE0>`, SentencePiece writes a space as `▁`. A
//! character may be spread over several tokens, and a token may end in the middle of one.
//!
//! Reference: the decoders of the tokenizers library; GPT-2's `bytes_to_unicode`.

use std::collections::BTreeMap;

use tokenizers::{DecoderWrapper, Tokenizer};

/// Something that a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A special token, whole.
    Special(&'a str),
    /// A character that ends in this token.
    Char(char),
    /// Bytes of a character that ends in a later token.
    Begun,
    /// A byte that belongs to no character.
    Byte(u8),
}

/// What the tokens of a vocabulary stand for.
#[derive(Debug)]
pub struct Pieces {
    /// By id; what no token has is empty.
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, Default)]
struct Piece {
    spelling: String,
    special: bool,
    bytes: Vec<u8>,
}

/// How a vocabulary spells bytes.
#[derive(Debug, Default)]
struct Spelling {
    byte_level: Option<BTreeMap<char, u8>>,
    byte_fallback: bool,
    metaspace: bool,
}

/// SentencePiece's space.
const METASPACE: char = '▁';

impl Pieces {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let mut spelling = Spelling::default();
        if let Some(decoder) = tokenizer.get_decoder() {
            spelling.learn(decoder);
        }
        let added = tokenizer.get_added_tokens_decoder();
        let vocabulary = tokenizer.get_vocab(true);
        let most = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        let mut pieces = vec![Piece::default(); most];
        for (word, id) in vocabulary {
            let bytes = match added.get(&id) {
                Some(_) => word.clone().into_bytes(),
                None => spelling.bytes(&word),
            };
            let special = added.get(&id).is_some_and(|token| token.special);
            if let Some(piece) = pieces.get_mut(id as usize) {
                *piece = Piece { spelling: word, special, bytes };
            }
        }
        Self { pieces }
    }

    /// How the vocabulary spells a token, as Transformers' `convert_ids_to_tokens`.
    pub fn spelling(&self, id: u32) -> &str {
        self.pieces.get(id as usize).map_or("", |piece| &piece.spelling)
    }

    /// Whether it is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.get(id as usize).is_some_and(|piece| piece.special)
    }

    /// How the vocabulary spells its special tokens.
    pub fn special(&self) -> impl Iterator<Item = &str> {
        let special = self.pieces.iter().filter(|piece| piece.special);
        special.map(|piece| piece.spelling.as_str())
    }

    /// Tells of each token, by its place in `ids`, what it stands for.
    pub fn visit<'a>(&'a self, ids: &[u32], mut see: impl FnMut(usize, Part<'a>)) {
        let mut bytes = Vec::new();
        // The token of each byte.
        let mut owners = Vec::new();
        for (token, id) in ids.iter().enumerate() {
            let Some(piece) = self.pieces.get(*id as usize) else { continue };
            if piece.special {
                flush(&mut bytes, &mut owners, &mut see);
                see(token, Part::Special(&piece.spelling));
            } else {
                bytes.extend_from_slice(&piece.bytes);
                owners.resize(bytes.len(), token);
            }
        }
        flush(&mut bytes, &mut owners, &mut see);
    }
}

/// Tells what the bytes between two special tokens are.
fn flush<'a>(bytes: &mut Vec<u8>, owners: &mut Vec<usize>, see: &mut impl FnMut(usize, Part<'a>)) {
    let mut owner = owners.iter().copied();
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            let mut last = None;
            for token in owner.by_ref().take(letter.len_utf8()) {
                if let Some(earlier) = last.filter(|earlier| *earlier != token) {
                    see(earlier, Part::Begun);
                }
                last = Some(token);
            }
            last.into_iter().for_each(|token| see(token, Part::Char(letter)));
        }
        for byte in chunk.invalid() {
            owner.next().into_iter().for_each(|token| see(token, Part::Byte(*byte)));
        }
    }
    bytes.clear();
    owners.clear();
}

impl Spelling {
    fn learn(&mut self, decoder: &DecoderWrapper) {
        match decoder {
            DecoderWrapper::ByteLevel(_) => self.byte_level = Some(byte_letters()),
            DecoderWrapper::ByteFallback(_) => self.byte_fallback = true,
            // `Replace` is how newer SentencePiece models turn `▁` into a space.
            DecoderWrapper::Metaspace(_) | DecoderWrapper::Replace(_) => self.metaspace = true,
            DecoderWrapper::Sequence(all) => {
                all.get_decoders().iter().for_each(|decoder| self.learn(decoder));
            }
            _ => {}
        }
    }

    fn bytes(&self, word: &str) -> Vec<u8> {
        if let Some(letters) = &self.byte_level {
            // A letter that spells no byte stands for itself.
            let spelt: Option<Vec<u8>> = word.chars().map(|c| letters.get(&c).copied()).collect();
            return spelt.unwrap_or_else(|| word.as_bytes().to_vec());
        }
        if self.byte_fallback
            && let Some(byte) = word.strip_prefix("<0x").and_then(|word| word.strip_suffix('>'))
            && byte.len() == 2
            && let Ok(byte) = u8::from_str_radix(byte, 16)
        {
            return vec![byte];
        }
        if self.metaspace { word.replace(METASPACE, " ").into_bytes() } else { word.into() }
    }
}

/// The letter with which a byte-level vocabulary spells each byte.
fn byte_letters() -> BTreeMap<char, u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..);
    let (own, others): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(|byte| printable(*byte));
    // Bytes that are no printable letter take the letters from U+0100 on.
    let others = ('\u{100}'..).zip(others);
    own.into_iter().map(|byte| (char::from(byte), byte)).chain(others).collect()
}
