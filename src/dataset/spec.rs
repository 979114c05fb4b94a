//! What the dataset room needs of a recipe.
//!
//! Owns finding the files that a recipe names and turning its words into the stream's
//! numbers. Does not open the files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::consent::Ask;
use super::source::{self, SourceError};
use crate::recipe::lock::{Lock, Split};
use crate::recipe::{
    DEFAULT_MICRO_BATCH_TOKENS, Overlong, Packing, Recipe, StoppingStrategy, SurveyOf, TrainOn,
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
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Files of all splits, in the order in which they are read.
    pub files: Vec<SplitFile>,
    /// What is asked of every row.
    pub ask: Ask,
    /// Tokens of a window.
    pub sequence_length: usize,
    /// Whether a window holds several conversations.
    pub packing: Packing,
    /// What becomes of a conversation longer than a window.
    pub overlong: Overlong,
    /// Which tokens carry loss.
    pub train_on: TrainOn,
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
    pub fn new(recipe: &Recipe, ask: Ask) -> Result<Self, SourceError> {
        let data = &recipe.data;
        let train = data.train.iter().enumerate();
        let train = train.map(|(index, source)| (Split::Train, index, &source.path));
        let validation = data.validation.iter().enumerate();
        let validation = validation.map(|(index, source)| (Split::Validation, index, &source.path));
        let test = data.test.iter();
        let test = test.map(|suite| (Split::Test(suite.name.clone()), 0, &suite.path));
        let mut files = Vec::new();
        for (split, source, pattern) in train.chain(validation).chain(test) {
            let paths = source::resolve(pattern)?.into_iter();
            files.extend(paths.map(|path| SplitFile { split: split.clone(), path, source }));
        }
        Ok(Self::with_files(recipe, ask, files))
    }

    /// The files and the ask of a locked run, so that a file added since changes nothing.
    pub fn locked(recipe: &Recipe, lock: &Lock) -> Self {
        let files = lock.data.iter().map(|data| SplitFile {
            split: data.split.clone(),
            path: data.file.path.clone(),
            source: data.source,
        });
        Self::with_files(recipe, lock.ask.clone(), files.collect())
    }

    fn with_files(recipe: &Recipe, ask: Ask, files: Vec<SplitFile>) -> Self {
        let (data, train) = (&recipe.data, &recipe.train);
        let micro_batch_tokens = train.micro_batch_tokens;
        Self {
            files,
            ask,
            sequence_length: data.sequence_length,
            packing: data.packing,
            overlong: data.overlong,
            train_on: data.train_on,
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
    pub fn files_of(&self, split: &Split) -> Vec<PathBuf> {
        let files = self.files.iter().filter(|file| file.split == *split);
        files.map(|file| file.path.clone()).collect()
    }
}
