//! The order in which rows are visited.
//!
//! Owns the pseudo-random permutations and draws, over plain numbers. Their numbers may never
//! change: a shared recipe must give the shared result for ever.
//!
//! References: SplitMix64 (Steele, Lea, Flood 2014); Lemire's bounded integers (2019).

/// Row groups (consecutive in their shuffled order) that are open together, and whose rows
/// are shuffled together a slice at a time: enough to mix, few enough to hold in memory.
pub(super) const BLOCK_GROUPS: usize = 16;

/// SplitMix64.
pub(super) struct Random(u64);

impl Random {
    /// A generator for one purpose: the words are mixed in one after the other.
    pub(super) fn new(words: [u64; 4]) -> Self {
        let mixed = words.into_iter().fold(0, |state, word| Self(state ^ word).next());
        Self(mixed)
    }

    pub(super) fn next(&mut self) -> u64 {
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
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// What a permutation or a draw is for; part of its seed.
const OF_GROUPS: u64 = 1;
const OF_ROWS: u64 = 2;
const OF_STRANDS: u64 = 3;
const OF_DRAWS: u64 = 4;
const OF_WINDOWS: u64 = 5;

/// The seed of one strand's order when it is gone through for the `turn`-th time in a pass.
/// The first strand keeps the recipe's.
pub(super) fn strand_seed(seed: u64, strand: usize, turn: u32) -> u64 {
    if strand == 0 && turn == 0 {
        return seed;
    }
    Random::new([seed, OF_STRANDS, strand as u64, turn.into()]).next()
}

/// The generator that chooses the strand of the `draw`-th row of a pass.
pub(super) fn draw(seed: u64, epoch: u32, draw: u64) -> Random {
    Random::new([seed, OF_DRAWS, epoch.into(), draw])
}

/// Shuffles the windows of a pool, since packing has sorted them by what they hold.
pub(super) fn shuffle_windows<T>(seed: u64, epoch: u32, pool: u64, windows: &mut [T]) {
    Random::new([seed, OF_WINDOWS, epoch.into(), pool]).shuffle(windows);
}

/// The order of one pass over the row groups of a strand.
pub(in crate::dataset) struct EpochOrder {
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
        self.groups.len().div_ceil(self.block_groups()) as u64
    }

    /// Rows that are not shuffled come one row group after the other.
    fn block_groups(&self) -> usize {
        if self.seed.is_some() { BLOCK_GROUPS } else { 1 }
    }

    /// The row groups of a block.
    pub(super) fn groups(&self, block: u64) -> &[usize] {
        let start =
            usize::try_from(block).ok().and_then(|block| block.checked_mul(self.block_groups()));
        let start = start.unwrap_or(usize::MAX).min(self.groups.len());
        let end = start.saturating_add(self.block_groups()).min(self.groups.len());
        self.groups.get(start..end).unwrap_or_default()
    }

    /// The rows of a round of a block, each as (place of its group in [`Self::groups`], row
    /// of the group's slice), given how many rows each of its groups has in the round.
    pub(super) fn rows(&self, block: u64, round: u64, taken: &[usize]) -> Vec<(usize, usize)> {
        let groups = taken.iter().enumerate();
        let mut rows: Vec<_> =
            groups.flat_map(|(group, rows)| (0..*rows).map(move |row| (group, row))).collect();
        if let Some(seed) = self.seed {
            let place = block ^ (round << 40);
            Random::new([seed, OF_ROWS, self.epoch.into(), place]).shuffle(&mut rows);
        }
        rows
    }
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
        assert_eq!(order.rows(0, 0, &[3, 2]), ORDER_OF_ROWS);
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
        assert_eq!(EpochOrder::new(3, None, 9).groups(2), [2]);
        assert!(EpochOrder::new(3, None, 0).groups(u64::MAX).is_empty());
    }

    #[test]
    fn every_order_is_about_as_likely() {
        let mut counts = [0; 24];
        for seed in 0..24_000 {
            let rows = EpochOrder::new(1, Some(seed), 0).rows(0, 0, &[4]);
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

    const ORDER_OF_GROUPS: [usize; 5] = [1, 0, 3, 4, 2];
    const ORDER_OF_ROWS: [(usize, usize); 5] = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1)];
}
