//! What became of pieces: a table of one thread and one tokenizer.
//!
//! Owns finding a piece's tokens with one look into memory where it is short, as nearly all
//! are: its bytes are the key. Nothing is kept in small blocks of its own: hundreds of
//! thousands of them that live long, between texts that do not, would leave the heap in holes.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// Short pieces that are remembered, of at most 15 bytes; with so many the tables begin anew.
/// As many as the standard library's table holds before it doubles: it is made for all of them
/// at once, and memory is the same for little text and for much.
pub(super) const MAX_PIECES: usize = 7 << 14;

/// The same of long ones.
const MAX_LONG: usize = 7 << 12;

/// Longest piece that is remembered, in bytes: longer ones hardly come again.
pub(super) const MAX_BYTES: usize = LONG_KEY - 1;

/// Bytes of the key of a short piece.
const SHORT_KEY: usize = 16;

/// Bytes of the key of a long one.
const LONG_KEY: usize = 48;

/// Where tokens stand in [`Memory::tokens`].
type Place = (u32, u32);

/// What became of pieces.
pub(super) struct Memory {
    short: HashMap<u128, Place, Seed>,
    long: HashMap<[u8; LONG_KEY], Place>,
    /// Tokens, each with its number of bytes.
    tokens: Vec<(u32, u32)>,
}

impl Default for Memory {
    fn default() -> Self {
        let short = HashMap::with_capacity_and_hasher(MAX_PIECES, Seed::default());
        Self { short, long: HashMap::with_capacity(MAX_LONG), tokens: Vec::new() }
    }
}

impl Memory {
    #[cfg(test)]
    pub(super) fn pieces(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// The tokens of a piece, each with its number of bytes.
    pub(super) fn tokens(&self, piece: &str) -> Option<&[(u32, u32)]> {
        let place = match short_key(piece) {
            Some(key) => self.short.get(&key),
            None => self.long.get(&key(piece)?),
        };
        let (first, after) = place?;
        self.tokens.get(*first as usize..*after as usize)
    }

    /// Keeps the tokens of a piece, unless it is longer than long ones.
    pub(super) fn remember(&mut self, piece: &str, tokens: &[(u32, u32)]) {
        if piece.len() > MAX_BYTES {
            return;
        }
        if self.short.len() >= MAX_PIECES || self.long.len() >= MAX_LONG {
            self.short.clear();
            self.long.clear();
            self.tokens.clear();
        }
        let ends =
            (u32::try_from(self.tokens.len()), u32::try_from(self.tokens.len() + tokens.len()));
        let (Ok(first), Ok(after)) = ends else { return };
        self.tokens.extend_from_slice(tokens);
        if let Some(key) = short_key(piece) {
            self.short.insert(key, (first, after));
        } else if let Some(key) = key(piece) {
            self.long.insert(key, (first, after));
        }
    }
}

fn short_key(piece: &str) -> Option<u128> {
    key::<SHORT_KEY>(piece).map(u128::from_le_bytes)
}

/// A piece, zeros, and how many bytes it has; `None` for what is too long.
fn key<const BYTES: usize>(piece: &str) -> Option<[u8; BYTES]> {
    let mut key = [0; BYTES];
    let (length, room) = key.split_last_mut()?;
    room.get_mut(..piece.len())?.copy_from_slice(piece.as_bytes());
    *length = u8::try_from(piece.len()).ok()?;
    Some(key)
}

/// Hashes short keys by one wide product; nobody outside knows the seed.
#[derive(Clone)]
struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for Seed {
    type Hasher = Product;

    fn build_hasher(&self) -> Product {
        Product(self.0)
    }
}

struct Product(u64);

impl Hasher for Product {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u128(u128::from(*byte));
        }
    }

    fn write_u128(&mut self, key: u128) {
        let (low, high) = (key as u64 ^ self.0, (key >> 64) as u64 ^ self.0.rotate_left(32));
        let product =
            u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xd1b5_4a32_d192_ed03);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
