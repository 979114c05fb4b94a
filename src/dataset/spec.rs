//! What the dataset room needs of a recipe.
//!
//! Owns finding the files that a recipe names and turning its words into the stream's
//! numbers. Does not open the files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::chat::LossMask;
use super::gate::Gate;
use super::ledger::LedgerError;
use super::source::{self, SourceError};
use crate::recipe::lock::{Lock, LockedData, Split};
use crate::recipe::{
    DEFAULT_MICRO_BATCH_TOKENS, Format, Overlong, Packing, Recipe, Source, StoppingStrategy, Suite,
    SurveyOf,
};

/// One file of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitFile {
    /// Who reads it.
    pub split: Split,
    /// The file.
    pub path: PathBuf,
    /// Which entry of the split's list in the recipe it belongs to.
    pub source: usize,
    /// Shape of its rows.
    pub format: Format,
    /// Its columns that are called otherwise.
    pub columns: BTreeMap<String, String>,
}

/// Training files whose rows are shuffled together.
#[derive(Clone, Debug, PartialEq)]
pub struct Strand {
    /// The weight of their rows.
    pub weight: f64,
    /// Indices into [`Spec::files`].
    pub files: Vec<usize>,
}

/// What the stream needs of a recipe, with its files found.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Files of all splits, in the order in which they are read.
    pub files: Vec<SplitFile>,
    /// What is asked of every row.
    pub gate: Arc<Gate>,
    /// Tokens of a window.
    pub sequence_length: usize,
    /// Whether a window holds several conversations.
    pub packing: Packing,
    /// What becomes of a conversation longer than a window.
    pub overlong: Overlong,
    /// Which tokens carry loss.
    pub mask: LossMask,
    /// The weight of every entry of `data.train`; none where the sources are not weighed.
    pub weights: Vec<f64>,
    /// When a pass over weighted sources ends.
    pub stopping: StoppingStrategy,
    /// Share of the training rows that is held out as validation rows.
    pub validation_split: f64,
    /// How much is tokenised to plan.
    pub survey: SurveyOf,
    /// Seed of draws.
    pub seed: u64,
    /// Seed of the order of rows; `None` keeps the order of the files.
    pub shuffle_seed: Option<u64>,
    /// Windows of an optimiser step.
    pub windows_per_step: usize,
    /// Most tokens of one forward pass.
    pub micro_batch_tokens: usize,
    /// Passes over the data.
    pub epochs: u32,
    /// Stop after so many optimiser steps. The stream itself goes on to the last epoch.
    pub max_steps: Option<u64>,
    /// Longest answer that is generated to a row of each suite, in tokens.
    pub max_new_tokens: BTreeMap<String, usize>,
}

impl Spec {
    /// Finds the files that the recipe names.
    pub fn new(recipe: &Recipe, gate: Arc<Gate>) -> Result<Self, SourceError> {
        let mut files = Vec::new();
        for entry in entries(recipe) {
            files.extend(entry.files()?);
        }
        Ok(Self::with_files(recipe, gate, files))
    }

    /// The files and the ask of a locked run, so that a file added since changes nothing. The
    /// ledgers count as far as they had grown.
    pub fn locked(recipe: &Recipe, lock: &Lock) -> Result<Self, LedgerError> {
        let ledgers = &recipe.data.consent.ledgers;
        let gate = Gate::as_of(lock.ask.clone(), ledgers, &lock.ledgers)?;
        Ok(Self::with_files(recipe, Arc::new(gate), locked_files(recipe, lock)))
    }

    /// As [`Spec::locked`], with another gate.
    pub fn judged_by(recipe: &Recipe, lock: &Lock, gate: Arc<Gate>) -> Self {
        Self::with_files(recipe, gate, locked_files(recipe, lock))
    }

    /// As [`Spec::new`], with the files found.
    pub fn with_files(recipe: &Recipe, gate: Arc<Gate>, files: Vec<SplitFile>) -> Self {
        let (data, train) = (&recipe.data, &recipe.train);
        let micro_batch_tokens = train.micro_batch_tokens;
        Self {
            files,
            gate,
            sequence_length: data.sequence_length,
            packing: data.packing,
            overlong: data.overlong,
            mask: LossMask { train_on: data.train_on, end_of_turn: data.end_of_turn },
            weights: data.train.iter().filter_map(|source| source.weight).collect(),
            stopping: data.stopping_strategy,
            validation_split: data.validation_split,
            survey: data.survey,
            seed: train.seed,
            shuffle_seed: data.shuffle.then_some(train.seed),
            windows_per_step: train
                .tokens_per_step
                .checked_div(data.sequence_length)
                .unwrap_or_default()
                .max(1),
            micro_batch_tokens: micro_batch_tokens
                .unwrap_or(train.tokens_per_step.min(DEFAULT_MICRO_BATCH_TOKENS)),
            epochs: train.epochs,
            max_steps: train.max_steps,
            max_new_tokens: data
                .test
                .iter()
                .map(|suite| (suite.name.clone(), suite.max_new_tokens))
                .collect(),
        }
    }

    /// The training files by strand: one for each weighted source, or one for all.
    pub fn strands(&self) -> Vec<Strand> {
        let files = |belongs: &dyn Fn(usize) -> bool| {
            let files = self.files.iter().enumerate();
            let files =
                files.filter(|(_, file)| file.split == Split::Train && belongs(file.source));
            files.map(|(index, _)| index).collect()
        };
        if self.weights.is_empty() {
            return vec![Strand { weight: 1.0, files: files(&|_| true) }];
        }
        let weights = self.weights.iter().enumerate();
        weights
            .map(|(source, weight)| Strand {
                weight: *weight,
                files: files(&|other| other == source),
            })
            .collect()
    }

    /// The files of one split, in order.
    pub fn files_of(&self, split: &Split) -> impl Iterator<Item = &SplitFile> {
        self.files.iter().filter(move |file| file.split == *split)
    }
}

/// What a recipe says of some files.
#[derive(Clone, Debug)]
pub struct Entry<'r> {
    /// Who reads them.
    pub split: Split,
    /// Its place in the split's list.
    pub index: usize,
    path: &'r str,
    format: Format,
    columns: &'r BTreeMap<String, String>,
}

impl Entry<'_> {
    /// The key that names them.
    pub fn key(&self) -> String {
        let list = match self.split {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test(_) => "test",
        };
        format!("data.{list}[{}].path", self.index)
    }

    /// Finds them.
    pub fn files(&self) -> Result<Vec<SplitFile>, SourceError> {
        let paths = source::resolve(self.path)?.into_iter();
        Ok(paths.map(|path| self.file(path)).collect())
    }

    fn file(&self, path: PathBuf) -> SplitFile {
        let (split, source, columns) = (self.split.clone(), self.index, self.columns.clone());
        SplitFile { split, path, source, format: self.format, columns }
    }
}

impl<'r> Entry<'r> {
    fn of_source(split: Split, (index, source): (usize, &'r Source)) -> Self {
        let Source { path, format, columns, .. } = source;
        Self { split, index, path, format: *format, columns }
    }

    fn of_suite((index, suite): (usize, &'r Suite)) -> Self {
        let Suite { name, path, format, columns, .. } = suite;
        Self { split: Split::Test(name.clone()), index, path, format: *format, columns }
    }
}

/// Every entry of every list of rows, in the order in which they are read.
pub fn entries(recipe: &Recipe) -> impl Iterator<Item = Entry<'_>> {
    let data = &recipe.data;
    let train = data.train.iter().enumerate();
    let train = train.map(|source| Entry::of_source(Split::Train, source));
    let validation = data.validation.iter().enumerate();
    let validation = validation.map(|source| Entry::of_source(Split::Validation, source));
    train.chain(validation).chain(data.test.iter().enumerate().map(Entry::of_suite))
}

/// The files of a suite that no recipe names.
pub fn suite_files(suite: &Suite) -> Result<Vec<SplitFile>, SourceError> {
    Entry::of_suite((0, suite)).files()
}

/// The files of a lock, as the recipe describes them.
fn locked_files(recipe: &Recipe, lock: &Lock) -> Vec<SplitFile> {
    let file = |data: &LockedData| {
        let mut entries = entries(recipe);
        let is_its = |entry: &Entry<'_>| entry.split == data.split && entry.index == data.source;
        Some(entries.find(is_its)?.file(data.file.path.clone()))
    };
    lock.data.iter().filter_map(file).collect()
}
