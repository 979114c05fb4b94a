//! What became of pieces: a table of one thread and one tokenizer.
//!
//! Owns finding a piece's tokens with one look into memory where it is short, as nearly all
//! are: its bytes are the key, and a single token stands beside it.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// Pieces that are remembered; with so many the table begins anew.
pub(super) const MAX_PIECES: usize = 1 << 17;

/// Longest piece that is remembered, in bytes: longer ones hardly come again.
pub(super) const MAX_BYTES: usize = 48;

/// Longest piece whose bytes are the key; the key's last byte is their number.
const MAX_SHORT: usize = 15;

/// Where tokens stand in [`Memory::tokens`].
type Place = (u32, u32);

/// What became of pieces.
#[derive(Default)]
pub(super) struct Memory {
    short: HashMap<u128, Place, Seed>,
    long: HashMap<Box<str>, Place>,
    /// Tokens, each with its number of bytes.
    tokens: Vec<(u32, u32)>,
}

impl Memory {
    /// Bounds what a thread holds.
    pub(super) fn begin_anew_where_full(&mut self) {
        if self.pieces() >= MAX_PIECES {
            *self = Self::default();
        }
    }

    pub(super) fn pieces(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// The tokens of a piece, each with its number of bytes.
    pub(super) fn tokens(&self, piece: &str) -> Option<&[(u32, u32)]> {
        let place = match short_key(piece.as_bytes()) {
            Some(key) => self.short.get(&key),
            None => self.long.get(piece),
        };
        let (first, after) = place?;
        self.tokens.get(*first as usize..*after as usize)
    }

    /// Keeps the tokens of a piece, unless it is a long one.
    pub(super) fn remember(&mut self, piece: &str, tokens: &[(u32, u32)]) {
        let ends =
            (u32::try_from(self.tokens.len()), u32::try_from(self.tokens.len() + tokens.len()));
        let (Ok(first), Ok(after)) = ends else { return };
        if piece.len() > MAX_BYTES {
            return;
        }
        self.tokens.extend_from_slice(tokens);
        match short_key(piece.as_bytes()) {
            Some(key) => self.short.insert(key, (first, after)),
            None => self.long.insert(piece.into(), (first, after)),
        };
    }
}

fn short_key(piece: &[u8]) -> Option<u128> {
    let mut key = [0; MAX_SHORT + 1];
    key.get_mut(..piece.len()).filter(|_| piece.len() <= MAX_SHORT)?.copy_from_slice(piece);
    key[MAX_SHORT] = piece.len() as u8;
    Some(u128::from_le_bytes(key))
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
