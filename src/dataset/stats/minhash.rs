//! How alike two texts are, from a few numbers of each.
//!
//! The share of the runs of [`SHINGLE`] characters that two texts have in common (Jaccard's
//! index) is about the share of [`HASHES`] hash functions whose least value over its runs is the
//! same in both. Texts that are alike agree in some band of [`BAND`] values; only those are
//! compared.
//!
//! References: Broder, "On the resemblance and containment of documents" (1997); Leskovec,
//! Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.

/// Characters of a run. Words would do for Latin and not for scripts that write none.
const SHINGLE: usize = 8;

/// Hash functions.
const HASHES: usize = 64;

/// Values of a band: texts with an index of 0.8 have a band in common 99.98 times in 100,
/// those with 0.4 one time in three.
const BAND: usize = 4;

/// What is kept of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signature(Box<[u32; HASHES]>);

/// Constants of the hash functions: a multiplier of the low half, which is odd, and one of the
/// high half.
const FUNCTIONS: [(u32, u32); HASHES] = functions();

const fn functions() -> [(u32, u32); HASHES] {
    let mut functions = [(0, 0); HASHES];
    let mut index = 0;
    while index < HASHES {
        let mixed = mix(index as u64 + 1);
        functions[index] = (mixed as u32 | 1, (mixed >> 32) as u32 | 1);
        index += 1;
    }
    functions
}

/// The finaliser of SplitMix64.
const fn mix(word: u64) -> u64 {
    let mixed = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Signature {
    /// The signature of a text; `None` where it is shorter than one run.
    pub(super) fn new(text: &str) -> Option<Self> {
        let letters: Vec<u32> = text.chars().map(u32::from).collect();
        let mut least = Box::new([u32::MAX; HASHES]);
        if letters.len() < SHINGLE {
            return None;
        }
        for run in letters.windows(SHINGLE) {
            let hash = run.iter().fold(0, |hash, letter| mix(hash ^ u64::from(*letter)));
            let (low, high) = (hash as u32, (hash >> 32) as u32);
            for (least, (of_low, of_high)) in least.iter_mut().zip(FUNCTIONS) {
                let value = low.wrapping_mul(of_low).wrapping_add(high.wrapping_mul(of_high));
                *least = value.min(*least);
            }
        }
        Some(Self(least))
    }

    /// About Jaccard's index.
    pub(super) fn likeness(&self, other: &Self) -> f64 {
        let same = self.0.iter().zip(other.0.iter()).filter(|(one, other)| one == other);
        same.count() as f64 / HASHES as f64
    }

    /// A number for each band; the same number means, almost surely, the same band.
    pub(super) fn bands(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.chunks(BAND).enumerate().map(|(index, values)| {
            values.iter().fold(index as u64, |band, value| mix(band ^ u64::from(*value)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn index(one: &str, other: &str) -> f64 {
        let runs = |text: &str| -> BTreeSet<Vec<char>> {
            let letters: Vec<char> = text.chars().collect();
            letters.windows(SHINGLE).map(<[char]>::to_vec).collect()
        };
        let (one, other) = (runs(one), runs(other));
        one.intersection(&other).count() as f64 / one.union(&other).count() as f64
    }

    /// A text of so many words that never come twice.
    fn words(from: usize, to: usize) -> String {
        (from..to).map(|word| format!("w{} ", mix(word as u64) % 1_000_000)).collect()
    }

    #[test]
    fn likeness_is_about_the_share_of_runs_in_common() {
        for shared in [0, 30, 60, 90, 100] {
            let (one, other) = (words(0, 100), words(0, shared) + &words(200, 300 - shared));
            let (is, should) = (
                Signature::new(&one).unwrap().likeness(&Signature::new(&other).unwrap()),
                index(&one, &other),
            );
            // Three standard deviations.
            let error = 3.0 * (should * (1.0 - should) / HASHES as f64).sqrt();
            assert!((is - should).abs() <= error + 1e-9, "{shared}: {is}, {should}");
        }
    }

    #[test]
    fn texts_that_are_alike_have_a_band_in_common() {
        let signature = |text: &str| Signature::new(text).unwrap();
        let bands = |text: &str| signature(text).bands().collect::<BTreeSet<_>>();
        let one = bands(&words(0, 100));
        assert!(!one.is_disjoint(&bands(&(words(0, 95) + &words(200, 205)))));
        assert!(one.is_disjoint(&bands(&words(500, 600))));
        assert_eq!(Signature::new("seven c"), None);
    }
}
