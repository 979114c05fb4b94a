//! What all rows of a recipe add up to, for people who want to know their data.
//!
//! Owns one pass over the rows of every split and what is counted in it: lengths, scripts,
//! turns that look wrong, repeats, and held-out rows that training sees as well. Of a row only
//! numbers and hashes are kept, and of those a bounded number. Rows that the gate refuses are
//! counted and nothing else; no text is in what comes out, only record ids.
//!
//! Does not own the steps that training takes (`survey` counts those) nor how it is printed.

mod lengths;
mod minhash;
mod overlap;
mod repeats;
mod row;
mod scripts;
mod tally;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::error::DatasetError;
use super::look::Look;
use crate::recipe::lock::Split;
use crate::recipe::{Data, Overlong, Source};

pub use lengths::{Bar, Lengths};
pub use overlap::{Leak, Leakage, Leaked, MAX_HELD_OUT, Overlap};
pub use repeats::{Duplicates, MAX_HASHED, Repeat};
pub use scripts::Script;
pub use tally::{Found, SourceStats, SplitStats};

use overlap::HeldOut;
use repeats::{Pair, Repeats};
use row::{Reader, Verdict};
use scripts::Scripts;
use tally::Tally;

/// Record ids that stand for all rows of which something is true.
pub const MAX_EXAMPLES: usize = 3;

/// What all rows add up to.
#[derive(Debug, Serialize)]
pub struct Stats {
    /// Tokens of a window.
    pub sequence_length: usize,
    /// What becomes of a longer row.
    pub overlong: Overlong,
    /// The splits, `train` first.
    pub splits: Vec<SplitStats>,
    /// What the scripts of all used rows cost, the most frequent first.
    pub scripts: Vec<Script>,
    /// Training rows that say the same again.
    pub duplicates: Duplicates,
    /// Held-out rows that training sees as well.
    pub leakage: Leakage,
}

/// `train`, `validation` or `test/SUITE`.
pub fn split_name(split: &Split) -> String {
    match split {
        Split::Train => "train".to_owned(),
        Split::Validation => "validation".to_owned(),
        Split::Test(suite) => format!("test/{suite}"),
    }
}

/// Reads every row of every split of a recipe's `data` once. `read` is called after each.
pub fn stats(look: &Look, data: &Data, mut read: impl FnMut()) -> Result<Stats, DatasetError> {
    let mut splits = look.splits();
    // Training rows come last: they are compared with those held out, which are few.
    splits.sort_by_key(|split| *split == Split::Train);
    let reader = Reader::new(look);
    let mut scripts = Scripts::default();
    let mut repeats = Repeats::default();
    let mut held_out = HeldOut::default();
    // Number of the first training row of each file.
    let mut first_rows: Vec<u64> = Vec::new();
    let mut done = Vec::new();
    for split in splits {
        let of_train = split == Split::Train;
        if of_train {
            held_out.close();
        } else {
            held_out.begin(&split_name(&split));
        }
        let signed = !of_train || !held_out.is_empty();
        let mut tally = Tally::new(&split, &look.files(&split), &paths(data, &split));
        look.walk(
            &split,
            |place| reader.read(&place, signed),
            |facts| {
                read();
                tally.add(&facts);
                if of_train && first_rows.len() <= facts.file {
                    first_rows.resize(facts.file + 1, facts.number);
                }
                if let Verdict::Used(used) = facts.verdict {
                    scripts.add(&used.scripts);
                    if of_train {
                        let file_of = |row| first_rows.partition_point(|first| *first <= row);
                        repeats.add(facts.number, used.compared.identity, file_of);
                        held_out.compare(&facts.record_id, &used.compared);
                    } else {
                        held_out.add(&facts.record_id, used.compared);
                    }
                }
            },
        )?;
        done.push(tally.finish());
    }
    // For people, what is trained on comes first.
    done.sort_by_key(|split| split.split != "train");
    let (mut duplicates, pairs) =
        repeats.finish(|row| first_rows.partition_point(|first| *first <= row));
    duplicates.examples = named(look, &pairs)?;
    Ok(Stats {
        sequence_length: look.spec().sequence_length,
        overlong: look.spec().overlong,
        splits: done,
        scripts: scripts.finish(),
        duplicates,
        leakage: held_out.finish(),
    })
}

/// The paths of a split's entries in the recipe.
fn paths(data: &Data, split: &Split) -> Vec<String> {
    let of = |sources: &[Source]| sources.iter().map(|source| source.path.clone()).collect();
    match split {
        Split::Validation if data.validation_split == 0.0 => of(&data.validation),
        Split::Train | Split::Validation => of(&data.train),
        Split::Test(name) => {
            let suites = data.test.iter().filter(|suite| suite.name == *name);
            suites.map(|suite| suite.path.clone()).collect()
        }
    }
}

/// The ids of some training rows.
fn named(look: &Look, pairs: &[Pair]) -> Result<Vec<Repeat>, DatasetError> {
    let numbers: BTreeSet<u64> = pairs.iter().flat_map(|pair| [pair.later, pair.earlier]).collect();
    let mut ids = BTreeMap::new();
    look.some(&Split::Train, &numbers, |place| {
        ids.insert(place.number, place.record_id().to_owned());
        Ok(())
    })?;
    let id = |row| ids.get(&row).cloned().unwrap_or_default();
    let repeat = |pair: &Pair| Repeat {
        record_id: id(pair.later),
        repeats: id(pair.earlier),
        exact: pair.exact,
    };
    Ok(pairs.iter().map(repeat).collect())
}

#[cfg(test)]
mod tests;
