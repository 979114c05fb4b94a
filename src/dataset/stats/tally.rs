//! What the rows of one split add up to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::consent::Counts;
use super::super::spec::SplitFile;
use super::lengths::{Counted, Lengths};
use super::row::{Facts, Used, Verdict};
use super::{MAX_EXAMPLES, split_name};
use crate::recipe::lock::Split;

/// What the rows of a split add up to.
#[derive(Debug, Default, Serialize)]
pub struct SplitStats {
    /// `train`, `validation` or `test/SUITE`.
    pub split: String,
    /// The gate's verdicts.
    pub rows: Counts,
    /// Rows that may be used and are held out of the training rows, by `data.validation_split`.
    pub held_out: u64,
    /// Rows that may be used and cannot be tokenised.
    pub broken: Found,
    /// Tokens.
    pub tokens: u64,
    /// Tokens that carry loss.
    pub trained_tokens: u64,
    /// Lengths of the rows, in tokens.
    pub lengths: Lengths,
    /// Rows longer than a window; of `train` alone.
    pub overlong: Found,
    /// Of these, rows that are left out: they are to be dropped, or no window of theirs has
    /// a trained token.
    pub overlong_left_out: u64,
    /// Tokens of those that carry no loss after all.
    pub trained_tokens_lost: u64,
    /// Rows with a turn in which nothing is said.
    pub empty_turns: Found,
    /// Rows in which the user and the assistant do not take turns.
    pub not_alternating: Found,
    /// Rows in which somebody says a special token.
    pub special_tokens: Found,
    /// Which, and in how many rows.
    pub special_tokens_said: BTreeMap<String, u64>,
    /// By entry of the recipe.
    pub sources: Vec<SourceStats>,
}

/// What the rows of an entry of the recipe add up to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceStats {
    /// The path or glob that the recipe names.
    pub path: String,
    /// Rows that are used.
    pub rows: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Those that carry loss.
    pub trained_tokens: u64,
}

/// Rows of which something is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// How many.
    pub rows: u64,
    /// Ids of the first of them.
    pub examples: Vec<String>,
}

impl Found {
    pub(super) fn add(&mut self, record_id: &str) {
        self.rows += 1;
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(record_id.to_owned());
        }
    }
}

/// A sum that grows row by row.
#[derive(Debug)]
pub(super) struct Tally {
    stats: SplitStats,
    lengths: Counted,
    /// The entry of each file.
    sources: Vec<usize>,
    /// Whether rows that are elsewhere are held out of this split, rather than not in it.
    of_train: bool,
}

impl Tally {
    /// A sum over the rows of `files`, which belong to entries of the recipe with these
    /// `paths`.
    pub(super) fn new(split: &Split, files: &[&SplitFile], paths: &[String]) -> Self {
        let source = |path: &String| SourceStats { path: path.clone(), ..SourceStats::default() };
        let sources = paths.iter().map(source).collect();
        let stats = SplitStats { split: split_name(split), sources, ..SplitStats::default() };
        Self {
            stats,
            lengths: Counted::default(),
            sources: files.iter().map(|file| file.source).collect(),
            of_train: *split == Split::Train,
        }
    }

    pub(super) fn add(&mut self, facts: &Facts) {
        let Self { stats, lengths, .. } = self;
        match &facts.verdict {
            Verdict::Refused(reason) => stats.rows.count(Err(*reason)),
            Verdict::Elsewhere if self.of_train => {
                stats.rows.count(Ok(()));
                stats.held_out += 1;
            }
            Verdict::Elsewhere => {}
            Verdict::Broken => {
                stats.rows.count(Ok(()));
                stats.broken.add(&facts.record_id);
            }
            Verdict::Used(used) => {
                stats.rows.count(Ok(()));
                lengths.add(used.tokens);
                let source = self.sources.get(facts.file).copied().unwrap_or_default();
                if let Some(source) = stats.sources.get_mut(source) {
                    source.rows += 1;
                    source.tokens += used.tokens as u64;
                    source.trained_tokens += used.trained;
                }
                stats.add(used, &facts.record_id);
            }
        }
    }

    pub(super) fn finish(self) -> SplitStats {
        SplitStats { lengths: self.lengths.finish(), ..self.stats }
    }
}

impl SplitStats {
    fn add(&mut self, used: &Used, record_id: &str) {
        self.tokens += used.tokens as u64;
        self.trained_tokens += used.trained;
        if let Some(cut) = &used.cut {
            self.overlong.add(record_id);
            self.overlong_left_out += u64::from(cut.pieces == 0);
            self.trained_tokens_lost += cut.lost;
        }
        if used.empty_turn {
            self.empty_turns.add(record_id);
        }
        if !used.alternates {
            self.not_alternating.add(record_id);
        }
        if !used.special.is_empty() {
            self.special_tokens.add(record_id);
        }
        for token in &used.special {
            *self.special_tokens_said.entry(token.clone()).or_default() += 1;
        }
    }
}
