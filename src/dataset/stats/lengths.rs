//! Lengths of rows, in tokens.

use std::collections::BTreeMap;

use serde::Serialize;

/// Lengths up to this one are counted each for itself; longer ones a 16th apart, so that a
/// hostile file cannot make the table large.
const EXACT_TO: u32 = 65_536;

/// Bars of the histogram, without the one for the longest rows.
const BARS: u32 = 12;

/// How long the rows are.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: u32,
    /// As long or shorter are half of the rows.
    pub median: u32,
    /// As long or shorter are 95 % of the rows.
    pub p95: u32,
    /// As long or shorter are 99 % of the rows.
    pub p99: u32,
    /// The longest.
    pub max: u32,
    /// On average.
    pub mean: f64,
    /// Rows by length; every length between the first and the last bar belongs to one.
    pub histogram: Vec<Bar>,
}

/// Rows of some lengths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// Shortest length.
    pub from: u32,
    /// Longest length.
    pub to: u32,
    /// How many rows.
    pub rows: u64,
}

/// How many rows have each length.
#[derive(Debug, Default)]
pub(super) struct Counted {
    rows: u64,
    tokens: u64,
    max: u32,
    by_length: BTreeMap<u32, u64>,
}

impl Counted {
    pub(super) fn add(&mut self, length: usize) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.rows += 1;
        self.tokens += u64::from(length);
        self.max = self.max.max(length);
        *self.by_length.entry(rounded(length)).or_default() += 1;
    }

    pub(super) fn finish(&self) -> Lengths {
        Lengths {
            min: self.by_length.keys().next().copied().unwrap_or_default(),
            median: self.quantile(0.5),
            p95: self.quantile(0.95),
            p99: self.quantile(0.99),
            max: self.max,
            mean: if self.rows == 0 { 0.0 } else { self.tokens as f64 / self.rows as f64 },
            histogram: self.histogram(),
        }
    }

    /// The smallest length that this share of the rows does not exceed.
    fn quantile(&self, share: f64) -> u32 {
        let rank = (self.rows as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        for (length, rows) in &self.by_length {
            below += rows;
            if below >= rank {
                return *length;
            }
        }
        0
    }

    /// Bars of one round width up to the 99th percentile, then one for all longer rows.
    fn histogram(&self) -> Vec<Bar> {
        let Some(shortest) = self.by_length.keys().next().copied() else { return Vec::new() };
        let p99 = self.quantile(0.99);
        let width = width(p99 - shortest);
        let first = shortest / width * width;
        let mut bars = Vec::new();
        for start in (first..=p99).step_by(width as usize) {
            let to = start.saturating_add(width - 1);
            bars.push(Bar { from: start, to, rows: self.between(start, to) });
        }
        let end = bars.last().map_or(0, |bar| bar.to);
        if self.max > end {
            bars.push(Bar { from: end + 1, to: self.max, rows: self.between(end + 1, u32::MAX) });
        }
        bars
    }

    fn between(&self, from: u32, to: u32) -> u64 {
        self.by_length.range(from..=to).map(|(_, rows)| rows).sum()
    }
}

/// The length under which a row is counted.
fn rounded(length: u32) -> u32 {
    if length < EXACT_TO {
        return length;
    }
    // The highest five bits.
    let low = u32::BITS - length.leading_zeros() - 5;
    length >> low << low
}

/// 1, 2 or 5 times a power of ten, so that [`BARS`] of it hold `extent`.
fn width(extent: u32) -> u32 {
    let mut power = 1;
    // Twelve times 500 million is more than any length, so the power never overflows.
    loop {
        for factor in [1, 2, 5] {
            let width: u32 = factor * power;
            if u64::from(extent) < u64::from(width) * u64::from(BARS) {
                return width;
            }
        }
        power *= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lengths: impl IntoIterator<Item = usize>) -> Counted {
        let mut counted = Counted::default();
        lengths.into_iter().for_each(|length| counted.add(length));
        counted
    }

    #[test]
    fn quantiles_are_lengths_that_occur() {
        let lengths = counted(1..=100).finish();
        let Lengths { min, median, p95, p99, max, mean, .. } = lengths;
        assert_eq!((min, median, p95, p99, max, mean), (1, 50, 95, 99, 100, 50.5));
        let lengths = counted([7]).finish();
        assert_eq!((lengths.min, lengths.median, lengths.p99, lengths.max), (7, 7, 7, 7));
        assert_eq!(lengths.histogram, [Bar { from: 7, to: 7, rows: 1 }]);
        assert_eq!(counted([]).finish(), Lengths::default());
    }

    #[test]
    fn every_row_is_in_one_bar() {
        for lengths in [vec![0, 1, 2, 500], vec![3; 9], (0..5000).collect(), vec![1, usize::MAX]] {
            let rows = lengths.len() as u64;
            let bars = counted(lengths).finish().histogram;
            assert_eq!(bars.iter().map(|bar| bar.rows).sum::<u64>(), rows, "{bars:?}");
            assert!(bars.len() <= BARS as usize + 2, "{bars:?}");
            assert!(bars.windows(2).all(|pair| pair[0].to + 1 == pair[1].from), "{bars:?}");
        }
    }

    #[test]
    fn lengths_without_end_take_a_bounded_table() {
        let counted = counted((0..4_000_000).step_by(7).chain([usize::MAX, 1 << 40]));
        assert!(counted.by_length.len() < 11_000, "{}", counted.by_length.len());
        assert_eq!(counted.finish().max, u32::MAX);
        assert!((rounded(1_000_000) as f64 / 1e6) > 0.93 && rounded(65_535) == 65_535);
    }
}
