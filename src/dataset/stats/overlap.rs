//! Held-out rows that training sees as well.
//!
//! Held-out rows are few and come first: of each the id, two hashes and a signature are kept,
//! and training rows are compared with them as they pass.

use serde::Serialize;

use super::MAX_EXAMPLES;
use super::minhash::Signature;
use super::repeats::Identity;

/// Held-out rows that are compared; each takes about 700 bytes. Later ones are not.
pub const MAX_HELD_OUT: usize = 200_000;

/// Share of runs of characters in common from which two rows are alike.
const NEAR: f64 = 0.8;

/// Held-out rows that are compared, run by run, with one training row. Hostile or generated
/// rows may all look alike; comparing all with all would never end.
const MAX_CANDIDATES: usize = 64;

/// How a held-out row is in the training rows, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// All that is said is said there, but for upper case and white space.
    SameConversation,
    /// All before the assistant's first turn is said there: only the answer differs.
    SameOpening,
    /// Much of what is said is said there.
    NearDuplicate,
}

/// What of the held-out rows is in the training rows as well. Each row counts once, by the
/// worst way in which it is.
#[derive(Debug, Default, Serialize)]
pub struct Leakage {
    /// By split.
    pub splits: Vec<Leak>,
    /// Held-out rows that were not compared, see [`MAX_HELD_OUT`].
    pub not_compared: u64,
}

/// What of a held-out split is in the training rows as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// The split.
    pub split: String,
    /// Rows that were compared.
    pub rows: u64,
    /// See [`Overlap::SameConversation`].
    pub same_conversation: u64,
    /// See [`Overlap::SameOpening`].
    pub same_opening: u64,
    /// See [`Overlap::NearDuplicate`].
    pub near_duplicate: u64,
    /// The first of the worst.
    pub examples: Vec<Leaked>,
}

/// A held-out row and a training row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leaked {
    /// The held-out row.
    pub record_id: String,
    /// The training row.
    pub train: String,
    /// In which way.
    pub overlap: Overlap,
}

/// What is compared of a row.
#[derive(Debug)]
pub(super) struct Compared {
    pub(super) identity: Identity,
    pub(super) opening: Option<u64>,
    pub(super) signature: Option<Signature>,
}

/// The rows that are held out.
#[derive(Debug, Default)]
pub(super) struct HeldOut {
    splits: Vec<String>,
    rows: Vec<Row>,
    not_compared: u64,
    by_conversation: Index,
    by_opening: Index,
    by_band: Index,
}

#[derive(Debug)]
struct Row {
    split: usize,
    record_id: String,
    signature: Option<Signature>,
    /// The worst overlap so far, and with which training row.
    found: Option<(Overlap, String)>,
}

/// Rows by a hash.
#[derive(Debug, Default)]
struct Index(Vec<(u64, u32)>);

impl Index {
    fn rows(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let first = self.0.partition_point(|(other, _)| *other < hash);
        let rest = self.0.get(first..).unwrap_or_default().iter();
        rest.take_while(move |(other, _)| *other == hash).map(|(_, row)| *row as usize)
    }
}

impl HeldOut {
    /// The next rows are of this split.
    pub(super) fn begin(&mut self, split: &str) {
        self.splits.push(split.to_owned());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn add(&mut self, record_id: &str, row: Compared) {
        if self.rows.len() >= MAX_HELD_OUT {
            self.not_compared += 1;
            return;
        }
        let index = self.rows.len() as u32;
        self.by_conversation.0.push((row.identity.normalised, index));
        self.by_opening.0.extend(row.opening.map(|opening| (opening, index)));
        let bands = row.signature.iter().flat_map(Signature::bands);
        self.by_band.0.extend(bands.map(|band| (band, index)));
        self.rows.push(Row {
            split: self.splits.len().saturating_sub(1),
            record_id: record_id.to_owned(),
            signature: row.signature,
            found: None,
        });
    }

    /// There are no more rows: training rows come now.
    pub(super) fn close(&mut self) {
        for index in [&mut self.by_conversation, &mut self.by_opening, &mut self.by_band] {
            index.0.sort_unstable();
        }
    }

    /// Compares a training row with all of them.
    pub(super) fn compare(&mut self, record_id: &str, row: &Compared) {
        for index in self.by_conversation.rows(row.identity.normalised) {
            note(&mut self.rows, index, Overlap::SameConversation, record_id);
        }
        for index in row.opening.into_iter().flat_map(|opening| self.by_opening.rows(opening)) {
            note(&mut self.rows, index, Overlap::SameOpening, record_id);
        }
        let Some(signature) = &row.signature else { return };
        let candidates = signature.bands().flat_map(|band| self.by_band.rows(band));
        let rows = &mut self.rows;
        let mut compared = 0;
        for index in candidates {
            let Some(other) = rows.get(index).filter(|row| row.found.is_none()) else { continue };
            let other = other.signature.as_ref();
            if other.is_some_and(|other| other.likeness(signature) >= NEAR) {
                note(rows, index, Overlap::NearDuplicate, record_id);
            }
            compared += 1;
            if compared == MAX_CANDIDATES {
                break;
            }
        }
    }

    pub(super) fn finish(self) -> Leakage {
        let named = |split: String| Leak { split, ..Leak::default() };
        let mut splits: Vec<Leak> = self.splits.into_iter().map(named).collect();
        for row in self.rows {
            let Some(leak) = splits.get_mut(row.split) else { continue };
            leak.rows += 1;
            let Some((overlap, train)) = row.found else { continue };
            *match overlap {
                Overlap::SameConversation => &mut leak.same_conversation,
                Overlap::SameOpening => &mut leak.same_opening,
                Overlap::NearDuplicate => &mut leak.near_duplicate,
            } += 1;
            leak.examples.push(Leaked { record_id: row.record_id, train, overlap });
            if leak.examples.len() > MAX_EXAMPLES {
                // Stable: of those as bad, the first stay.
                leak.examples.sort_by_key(|leaked| leaked.overlap);
                leak.examples.truncate(MAX_EXAMPLES);
            }
        }
        splits.iter_mut().for_each(|leak| leak.examples.sort_by_key(|leaked| leaked.overlap));
        Leakage { splits, not_compared: self.not_compared }
    }
}

/// Notes an overlap unless a worse one is known.
fn note(rows: &mut [Row], index: usize, overlap: Overlap, train: &str) {
    let Some(row) = rows.get_mut(index) else { return };
    if row.found.as_ref().is_none_or(|(known, _)| overlap < *known) {
        row.found = Some((overlap, train.to_owned()));
    }
}
