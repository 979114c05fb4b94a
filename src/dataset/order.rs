//! The order in which rows are visited, and how they fill windows.
//!
//! Owns the pseudo-random permutations (their numbers may never change: a shared recipe
//! must give the shared result for ever) and next-fit packing, both over plain numbers, so
//! that the survey can count steps with the very code that makes them.
//!
//! References: SplitMix64 (Steele, Lea, Flood 2014); Lemire's bounded integers (2019).

use std::ops::Range;

/// Consecutive row groups (in shuffled order) whose rows are shuffled together: enough to
/// mix, few enough to hold in memory.
const BLOCK_GROUPS: usize = 16;

/// SplitMix64.
struct Random(u64);

impl Random {
    /// A generator for one purpose: the words are mixed in one after the other.
    fn new(words: [u64; 4]) -> Self {
        let mixed = words.into_iter().fold(0, |state, word| Self(state ^ word).next());
        Self(mixed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            // The low word is biased below 2^64 mod bound only.
            if product as u64 >= bound.wrapping_neg() % bound {
                return (product >> 64) as u64;
            }
        }
    }

    /// Fisher and Yates, from the end.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// What a permutation is for; part of its seed.
const OF_GROUPS: u64 = 1;
const OF_ROWS: u64 = 2;

/// The order of one pass.
pub(super) struct EpochOrder {
    seed: Option<u64>,
    epoch: u32,
    groups: Vec<usize>,
}

impl EpochOrder {
    /// The order in which `epoch` visits so many row groups; without a seed, the order in
    /// which they are.
    pub(super) fn new(groups: usize, seed: Option<u64>, epoch: u32) -> Self {
        let mut groups: Vec<usize> = (0..groups).collect();
        if let Some(seed) = seed {
            Random::new([seed, OF_GROUPS, epoch.into(), 0]).shuffle(&mut groups);
        }
        Self { seed, epoch, groups }
    }

    /// Blocks of the pass.
    pub(super) fn blocks(&self) -> u64 {
        self.groups.len().div_ceil(BLOCK_GROUPS) as u64
    }

    /// The row groups of a block.
    pub(super) fn groups(&self, block: u64) -> &[usize] {
        let start = usize::try_from(block).ok().and_then(|block| block.checked_mul(BLOCK_GROUPS));
        let start = start.unwrap_or(usize::MAX).min(self.groups.len());
        let end = start.saturating_add(BLOCK_GROUPS).min(self.groups.len());
        self.groups.get(start..end).unwrap_or_default()
    }

    /// The rows of a block, each as (place of its group in [`Self::groups`], row of the
    /// group), given how many rows each of its groups has.
    pub(super) fn rows(&self, block: u64, group_rows: &[usize]) -> Vec<(usize, usize)> {
        let groups = group_rows.iter().enumerate();
        let mut rows: Vec<_> =
            groups.flat_map(|(group, rows)| (0..*rows).map(move |row| (group, row))).collect();
        if let Some(seed) = self.seed {
            Random::new([seed, OF_ROWS, self.epoch.into(), block]).shuffle(&mut rows);
        }
        rows
    }
}

/// Where the next document goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Into the open window.
    Here,
    /// Into a new window of the same step.
    NewWindow,
    /// Into the first window of the next step.
    NewStep,
}

/// Next-fit packing: a window closes when the next document does not fit into it.
///
/// Nothing stays open across a step except the document that did not fit, so the place of
/// that document is all that resuming needs.
#[derive(Debug)]
pub(super) struct NextFit {
    window: usize,
    packing: bool,
    windows_per_step: usize,
    windows: usize,
    used: usize,
}

impl NextFit {
    /// For windows of so many tokens, so many to a step; without packing, every document has
    /// a window of its own.
    pub(super) fn new(window: usize, packing: bool, windows_per_step: usize) -> Self {
        Self { window, packing, windows_per_step, windows: 0, used: 0 }
    }

    /// Places a document, which is no longer than a window.
    pub(super) fn place(&mut self, length: usize) -> Fit {
        if self.packing && self.windows > 0 && self.used + length <= self.window {
            self.used += length;
            return Fit::Here;
        }
        self.used = length;
        if self.windows == self.windows_per_step {
            self.windows = 1;
            Fit::NewStep
        } else {
            self.windows += 1;
            Fit::NewWindow
        }
    }

    /// Ends the pass; true if there was a step to end.
    pub(super) fn end_epoch(&mut self) -> bool {
        let open = self.windows > 0;
        (self.windows, self.used) = (0, 0);
        open
    }
}

/// Splits windows, given their lengths, into micro-batches of at most `most` tokens; a
/// window that is longer gets one of its own.
pub(super) fn micro_batches(windows: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, window) in windows.iter().enumerate() {
        if index > start && tokens + window > most {
            batches.push(start..index);
            (start, tokens) = (index, 0);
        }
        tokens += window;
    }
    if start < windows.len() {
        batches.push(start..windows.len());
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_splitmix64_for_ever() {
        // First outputs for the seed 1234567, as in the reference implementation's tests.
        let mut random = Random(1_234_567);
        let first = [random.next(), random.next(), random.next()];
        assert_eq!(first, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn the_order_of_a_recipe_never_changes() {
        let order = EpochOrder::new(5, Some(17), 1);
        assert_eq!(order.groups(0), ORDER_OF_GROUPS);
        assert_eq!(order.rows(0, &[3, 2]), ORDER_OF_ROWS);
    }

    #[test]
    fn an_order_visits_everything_once_and_differs_by_epoch_and_seed() {
        let all = |seed, epoch| {
            let order = EpochOrder::new(100, Some(seed), epoch);
            let groups = (0..order.blocks()).flat_map(|block| order.groups(block).to_vec());
            groups.collect::<Vec<_>>()
        };
        let mut sorted = all(1, 0);
        assert!(sorted != all(1, 1) && sorted != all(2, 0));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(EpochOrder::new(3, None, 9).groups(0), [0, 1, 2]);
        assert!(EpochOrder::new(3, None, 0).groups(u64::MAX).is_empty());
    }

    #[test]
    fn every_order_is_about_as_likely() {
        let mut counts = [0; 24];
        for seed in 0..24_000 {
            let rows = EpochOrder::new(1, Some(seed), 0).rows(0, &[4]);
            let mut left = vec![0, 1, 2, 3];
            let rank = rows.iter().fold(0, |rank, (_, row)| {
                let place = left.iter().position(|other| other == row).unwrap();
                left.remove(place);
                rank * (left.len() + 1) + place
            });
            counts[rank] += 1;
        }
        // Each is 1000 on average, with a standard deviation of 31.
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn windows_close_when_the_next_document_does_not_fit() {
        let mut fit = NextFit::new(10, true, 2);
        let placed: Vec<Fit> = [4, 6, 1, 10, 10, 5, 5, 5].map(|length| fit.place(length)).into();
        use Fit::{Here, NewStep, NewWindow};
        let expected = [NewWindow, Here, NewWindow, NewStep, NewWindow, NewStep, Here, NewWindow];
        assert_eq!(placed, expected);
        assert!(fit.end_epoch() && !fit.end_epoch());
        let mut alone = NextFit::new(10, false, 2);
        assert_eq!([1, 1, 1].map(|length| alone.place(length)), [NewWindow, NewWindow, NewStep]);
    }

    #[test]
    fn micro_batches_hold_as_many_windows_as_they_may() {
        assert_eq!(micro_batches(&[4, 4, 4, 9, 1], 8), [0..2, 2..3, 3..4, 4..5]);
        assert!(micro_batches(&[], 8).is_empty());
    }

    const ORDER_OF_GROUPS: [usize; 5] = [1, 0, 3, 4, 2];
    const ORDER_OF_ROWS: [(usize, usize); 5] = [(0, 0); 5];
}
