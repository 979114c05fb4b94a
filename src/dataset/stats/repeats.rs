//! Rows that say the same again.
//!
//! Of a row 16 bytes are kept: 64 bits of a SHA-256 of what is said in lower case and with
//! single spaces, 24 bits of one of what is said exactly, and its number. When there are more
//! than [`MAX_HASHED`], repeats are counted and forgotten; when that is not enough, only rows
//! whose hash is in one half of all hashes are kept on, then in a quarter, and so on: rows
//! that say the same stay or go together, so what is found is a fair sample of all repeats.

use serde::Serialize;

use super::MAX_EXAMPLES;

/// Rows of which hashes are kept: 128 MiB.
pub const MAX_HASHED: usize = 8 << 20;

/// Ways of writing one and the same text that are told apart.
const MAX_WAYS: usize = 8;

/// Bits of the exact hash.
const EXACT_BITS: u32 = 24;

/// Training rows that say the same as an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Rows that say exactly the same.
    pub exact: u64,
    /// Rows that say the same but for upper case and white space, those above too.
    pub normalised: u64,
    /// Of these, rows whose like is in the same file.
    pub within_files: u64,
    /// Of these, rows whose like is in an earlier file only.
    pub across_files: u64,
    /// 1: every row was compared. More: one row in so many, and the counts are estimates.
    pub sampled_one_in: u64,
    /// The first of them.
    pub examples: Vec<Repeat>,
}

/// A row and the one that it repeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repeat {
    /// The later row.
    pub record_id: String,
    /// The earlier row.
    pub repeats: String,
    /// Whether it says exactly the same.
    pub exact: bool,
}

/// The hashes of what a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Of what is said, in lower case and with single spaces.
    pub(super) normalised: u64,
    /// Of what is said exactly.
    pub(super) exact: u64,
}

/// What is kept of a row. Sorted by what is said, then by the row's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    normalised: u64,
    /// The number, then bits of the exact hash.
    row: u64,
}

impl Entry {
    fn number(self) -> u64 {
        self.row >> EXACT_BITS
    }

    fn exact(self) -> u64 {
        self.row & ((1 << EXACT_BITS) - 1)
    }
}

/// Two rows by their numbers, the later one first.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) later: u64,
    pub(super) earlier: u64,
    pub(super) exact: bool,
}

/// The hashes of all rows so far.
#[derive(Debug)]
pub(super) struct Repeats {
    entries: Vec<Entry>,
    most: usize,
    /// Only hashes that end in so many zero bits are kept.
    zeros: u32,
    /// Repeats among the rows below this number are counted already.
    settled: u64,
    /// Number of the next row.
    next: u64,
    found: Duplicates,
    pairs: Vec<Pair>,
}

impl Default for Repeats {
    fn default() -> Self {
        Self::with_room_for(MAX_HASHED)
    }
}

impl Repeats {
    fn with_room_for(most: usize) -> Self {
        Self {
            entries: Vec::new(),
            most,
            zeros: 0,
            settled: 0,
            next: 0,
            found: Duplicates::default(),
            pairs: Vec::new(),
        }
    }

    /// Adds a row. Numbers rise. `file_of` says in which file a row is, for rows so far.
    pub(super) fn add(&mut self, number: u64, identity: Identity, file_of: impl Fn(u64) -> usize) {
        self.next = number + 1;
        if identity.normalised.trailing_zeros() < self.zeros {
            return;
        }
        let row = number << EXACT_BITS | identity.exact >> (u64::BITS - EXACT_BITS);
        self.entries.push(Entry { normalised: identity.normalised, row });
        if self.entries.len() < self.most {
            return;
        }
        self.settle(file_of);
        // Well below the limit, so that it is not reached again at once.
        while self.entries.len() > self.most / 2 && self.zeros < u64::BITS {
            self.zeros += 1;
            let zeros = self.zeros;
            self.entries.retain(|entry| entry.normalised.trailing_zeros() >= zeros);
        }
    }

    /// What was found, and the rows of the first examples.
    pub(super) fn finish(mut self, file_of: impl Fn(u64) -> usize) -> (Duplicates, Vec<Pair>) {
        self.settle(file_of);
        self.found.sampled_one_in = 1u64.checked_shl(self.zeros).unwrap_or(u64::MAX);
        (self.found, self.pairs)
    }

    /// Counts repeats and forgets rows that later ones need not be compared with.
    fn settle(&mut self, file_of: impl Fn(u64) -> usize) {
        self.entries.sort_unstable();
        let stands_for = 1u64.checked_shl(self.zeros).unwrap_or(u64::MAX);
        let mut kept = Vec::new();
        for same in self.entries.chunk_by(|one, other| one.normalised == other.normalised) {
            let mut ways: Vec<Entry> = Vec::new();
            let mut nearest: Option<Entry> = None;
            for row in same {
                let alike = ways.iter().find(|way| way.exact() == row.exact()).copied();
                if let Some((nearest, first)) = nearest.zip(ways.first())
                    && row.number() >= self.settled
                {
                    let within = file_of(nearest.number()) == file_of(row.number());
                    self.found.count(alike.is_some(), within, stands_for);
                    let earlier = alike.unwrap_or(*first).number();
                    self.pairs.push(Pair { later: row.number(), earlier, exact: alike.is_some() });
                }
                if alike.is_none() && ways.len() < MAX_WAYS {
                    ways.push(*row);
                }
                nearest = Some(*row);
            }
            kept.extend(nearest.filter(|row| !ways.contains(row)));
            kept.extend(ways);
            if self.pairs.len() > 2 * MAX_EXAMPLES {
                keep_first(&mut self.pairs);
            }
        }
        keep_first(&mut self.pairs);
        self.entries = kept;
        self.settled = self.next;
    }
}

impl Duplicates {
    fn count(&mut self, exact: bool, within: bool, rows: u64) {
        let add = |to: &mut u64, yes: bool| *to = to.saturating_add(if yes { rows } else { 0 });
        add(&mut self.exact, exact);
        add(&mut self.normalised, true);
        add(&mut self.within_files, within);
        add(&mut self.across_files, !within);
    }
}

fn keep_first(pairs: &mut Vec<Pair>) {
    pairs.sort_by_key(|pair| pair.later);
    pairs.truncate(MAX_EXAMPLES);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(normalised: u64, exact: u64) -> Identity {
        Identity { normalised, exact: exact << 40 }
    }

    #[test]
    fn repeats_are_told_apart_by_how_and_where() {
        for settled_after in 0..6 {
            let mut repeats = Repeats::default();
            let rows = [(8, 1), (16, 1), (8, 1), (8, 2), (16, 2), (8, 2)];
            // Rows 0 to 3 are in the first file.
            let file_of = |row| usize::from(row > 3);
            for (number, (normalised, exact)) in rows.into_iter().enumerate() {
                repeats.add(number as u64, identity(normalised, exact), file_of);
                if number == settled_after {
                    repeats.settle(file_of);
                }
            }
            let (found, pairs) = repeats.finish(file_of);
            assert_eq!((found.exact, found.normalised), (2, 4));
            assert_eq!((found.within_files, found.across_files), (2, 2));
            let pairs: Vec<_> =
                pairs.iter().map(|pair| (pair.later, pair.earlier, pair.exact)).collect();
            assert_eq!(pairs, [(2, 0, true), (3, 0, false), (4, 1, false)]);
        }
    }

    #[test]
    fn beyond_the_limit_a_fair_sample_is_kept() {
        let mut repeats = Repeats::with_room_for(4096);
        let mut hash: u64 = 1;
        for row in 0..200_000 {
            // Every text comes twice.
            if row % 2 == 0 {
                hash = hash.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            }
            let normalised = hash ^ (hash >> 32);
            repeats.add(row, Identity { normalised, exact: normalised }, |_| 0);
            assert!(repeats.entries.len() <= 4096);
        }
        let (found, pairs) = repeats.finish(|_| 0);
        assert!((32..=128).contains(&found.sampled_one_in), "{}", found.sampled_one_in);
        assert!((90_000..110_000).contains(&found.exact), "{}", found.exact);
        assert_eq!(pairs.len(), MAX_EXAMPLES);
    }

    #[test]
    fn one_text_without_end_takes_bounded_memory_and_is_counted() {
        let mut repeats = Repeats::with_room_for(1000);
        for row in 0..10_000 {
            repeats.add(row, identity(7, row % 20), |_| 0);
            assert!(repeats.entries.len() <= 1000);
        }
        let (found, _) = repeats.finish(|_| 0);
        assert_eq!((found.normalised, found.sampled_one_in), (9_999, 1));
    }
}
