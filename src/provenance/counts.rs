//! Row counts as they may be published.
//!
//! Owns the suppression of small counts: a release says `< 5` where fewer than five (but
//! some) rows were used or left out, because a count of one or two can point at a person.
//! Every sum is made of published counts, so that no sum gives a suppressed count away.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::dataset::consent::{Counts, Reason};

/// Counts below this are not published, except zero.
pub const SMALLEST_PUBLISHED: u64 = 5;

/// A count as published: exact, or only known to lie between two numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    low: u64,
    high: u64,
}

impl Published {
    /// What may be said of `count`.
    pub fn of(count: u64) -> Self {
        match count {
            1..SMALLEST_PUBLISHED => Self { low: 1, high: SMALLEST_PUBLISHED - 1 },
            _ => Self { low: count, high: count },
        }
    }

    /// A count that is no secret to who reads it.
    pub fn exactly(count: u64) -> Self {
        Self { low: count, high: count }
    }

    /// What may be said of a `count` of at most this many: exact only where this is, so that
    /// it does not give away what this one hides.
    pub fn bound(self, count: u64) -> Self {
        match self.exact() {
            Some(_) => Self::of(count),
            None => Self { low: 1, high: self.high },
        }
    }

    /// Whether the count is certainly zero.
    pub fn is_zero(&self) -> bool {
        self.high == 0
    }

    /// Whether the count may be this one.
    pub fn may_be(self, count: u64) -> bool {
        (self.low..=self.high).contains(&count)
    }

    fn exact(self) -> Option<u64> {
        (self.low == self.high).then_some(self.low)
    }
}

impl AddAssign for Published {
    fn add_assign(&mut self, other: Self) {
        // Saturating: the terms may come from a manifest that someone made up.
        self.low = self.low.saturating_add(other.low);
        self.high = self.high.saturating_add(other.high);
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { low, high } if low == high => write!(f, "{low}"),
            Self { low: 1, high } if high == SMALLEST_PUBLISHED - 1 => {
                write!(f, "< {SMALLEST_PUBLISHED}")
            }
            Self { low, high } => write!(f, "{low} to {high}"),
        }
    }
}

impl FromStr for Published {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let below = format!("< {SMALLEST_PUBLISHED}");
        let range = text.split_once(" to ").and_then(|(low, high)| {
            Some(Self { low: low.parse().ok()?, high: high.parse().ok()? })
        });
        match range {
            Some(range) if range.low < range.high => Ok(range),
            None if text == below => Ok(Self::of(1)),
            _ => Err(format!("expected a number, `{below}` or `LOW to HIGH`")),
        }
    }
}

impl Serialize for Published {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.exact() {
            Some(count) => serializer.serialize_u64(count),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Published {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Exact(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Exact(count) => Ok(Self { low: count, high: count }),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// What may be said of the rows of a file, or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows that were used.
    pub used: Published,
    /// Rows that were left out, by reason.
    pub excluded: BTreeMap<Reason, Published>,
}

impl Rows {
    /// What may be said of `counts`.
    pub fn of(counts: &Counts) -> Self {
        let excluded = counts.excluded.iter().map(|(reason, rows)| (*reason, Published::of(*rows)));
        Self { used: Published::of(counts.used), excluded: excluded.collect() }
    }

    /// Adds the rows of another file.
    pub fn add(&mut self, other: &Rows) {
        self.used += other.used;
        for (reason, rows) in &other.excluded {
            *self.excluded.entry(*reason).or_default() += *rows;
        }
    }

    /// Rows left out for any reason.
    pub fn left_out(&self) -> Published {
        let mut sum = Published::default();
        self.excluded.values().for_each(|rows| sum += *rows);
        sum
    }

    /// Rows read: the sum of what is published, never the number read itself, from which
    /// the suppressed one would follow.
    pub fn seen(&self) -> Published {
        let mut sum = self.left_out();
        sum += self.used;
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_counts_are_suppressed_and_zero_is_not() {
        let shown: Vec<_> = (0..7).map(|n| Published::of(n).to_string()).collect();
        assert_eq!(shown, ["0", "< 5", "< 5", "< 5", "< 5", "5", "6"]);
    }

    #[test]
    fn a_suppressed_count_does_not_follow_from_the_sums() {
        // The same manifest for every value that is suppressed: nothing to subtract from.
        let published = |withdrawn| {
            let excluded = [(Reason::Withdrawn, withdrawn), (Reason::Expired, 7)];
            let counts = Counts { seen: 107 + withdrawn, used: 100, excluded: excluded.into() };
            let rows = Rows::of(&counts);
            (rows.seen().to_string(), rows)
        };
        for withdrawn in 2..5 {
            assert_eq!(published(1), published(withdrawn));
        }
        assert_eq!(published(1).0, "108 to 111");
        assert_eq!(published(9).0, "116");
    }

    #[test]
    fn a_bounded_count_says_no_more_than_its_bound() {
        let mut used = Published::of(900);
        assert_eq!(used.bound(898), Published::of(898));
        assert_eq!(used.bound(3).to_string(), "< 5");
        used += Published::of(3);
        for hidden in 1..5 {
            assert_eq!(used.bound(900 + hidden).to_string(), "1 to 904");
        }
        assert!(used.bound(903).may_be(903) && !used.bound(903).may_be(905));
    }

    #[test]
    fn published_counts_survive_json() {
        let mut sum = Published::of(12);
        sum += Published::of(3);
        for count in [Published::of(0), Published::of(2), Published::of(9), sum] {
            let text = serde_json::to_string(&count).unwrap();
            assert_eq!(serde_json::from_str::<Published>(&text).unwrap(), count, "{text}");
        }
        for bad in ["-1", "1.5", "\"< 6\"", "\"7 to 3\"", "\"5\"", "null", "\"1 to 2 to 3\""] {
            assert!(serde_json::from_str::<Published>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hostile_sums_do_not_overflow() {
        let mut sum = Published::of(u64::MAX);
        sum += Published::of(u64::MAX);
        assert_eq!(sum, Published::of(u64::MAX));
    }
}
