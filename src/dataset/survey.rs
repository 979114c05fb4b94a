//! One look at every row before anything is trained.
//!
//! Owns the numbers that the plan and the lock hold of the data: verdicts of the gate, the
//! digest of the rows that may be used, tokens, and the optimiser steps of every pass,
//! counted with the order and the packing of the stream itself.

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use sha2::{Digest, Sha256};

use super::chat::ChatEncoder;
use super::consent::Counts;
use super::error::{DatasetError, split_name};
use super::group::RowGroup;
use super::order::{EpochOrder, Fit, NextFit};
use super::rows::{Fate, any_row, training_row};
use super::source::SourceFile;
use super::spec::{Spec, SplitFile};
use crate::files::hex;
use crate::recipe::lock::{Size, Split};
use crate::recipe::{Packing, TrainOn};

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedFile {
    /// The file, and who reads it.
    pub file: SplitFile,
    /// The gate's verdict on its rows.
    pub rows: Counts,
    /// As `used_sha256` of [`crate::recipe::lock::LockedData`].
    pub used_sha256: String,
}

/// What all files hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Every file of [`Spec::files`], in order.
    pub files: Vec<SurveyedFile>,
    /// The extent of training.
    pub size: Size,
}

/// Reads, judges and tokenises every row of every split once, for a base that was made for
/// sequences of so many `positions`.
///
/// A row that cannot be tokenised, a training row that is too long (unless such rows are
/// dropped), a held-out row for which the base has too few positions and a split of which no
/// row is left are errors here, before any training.
pub fn survey(
    spec: &Spec,
    encoder: &ChatEncoder,
    positions: usize,
) -> Result<Survey, DatasetError> {
    let mut files = Vec::with_capacity(spec.files.len());
    let mut training = Training::default();
    for file in &spec.files {
        let into = (file.split == Split::Train).then_some(&mut training);
        files.push(survey_file(spec, encoder, positions, file, into)?);
    }
    refuse_empty_splits(&files)?;
    if training.size.tokens == 0 && training.size.dropped_overlong > 0 {
        return Err(DatasetError::AllOverlong {
            dropped: training.size.dropped_overlong,
            sequence_length: spec.sequence_length,
        });
    }
    let (steps_by_epoch, steps) = count_steps(spec, &training.lengths);
    Ok(Survey { files, size: Size { steps_by_epoch, steps, ..training.size } })
}

/// What the training rows add up to.
#[derive(Default)]
struct Training {
    size: Size,
    /// Length of every row of every row group; 0 for a row that is not in the stream.
    lengths: Vec<Vec<u32>>,
}

impl Training {
    fn add(&mut self, fates: &[Fate]) {
        let mut lengths = Vec::with_capacity(fates.len());
        for fate in fates {
            lengths.push(match fate {
                Fate::Excluded(_) => 0,
                Fate::Dropped => {
                    self.size.dropped_overlong += 1;
                    0
                }
                Fate::Used(document) => {
                    self.size.tokens += document.tokens.len() as u64;
                    self.size.trained_tokens += document.trained_tokens();
                    document.tokens.len() as u32
                }
            });
        }
        self.lengths.push(lengths);
    }
}

fn survey_file(
    spec: &Spec,
    encoder: &ChatEncoder,
    positions: usize,
    file: &SplitFile,
    mut training: Option<&mut Training>,
) -> Result<SurveyedFile, DatasetError> {
    let source = SourceFile::open(&file.path)?;
    let (mut rows, mut used) = (Counts::default(), Sha256::new());
    for group in 0..source.group_rows().len() {
        let group = source.read_group(group)?;
        let defaults = source.defaults();
        let fate = |row| {
            let (train_on, answer) = match &file.split {
                Split::Train => return training_row(spec, encoder, defaults, &group, row),
                Split::Validation => (spec.train_on, 0),
                // Suites are about what the assistant says, whatever was trained on.
                Split::Test(suite) => {
                    (TrainOn::Assistant, spec.max_new_tokens.get(suite).copied().unwrap_or(0))
                }
            };
            let fate = any_row(&spec.ask, train_on, encoder, defaults, &group, row)?;
            refuse_beyond(positions, &fate, answer, &group, row)?;
            Ok(fate)
        };
        // Collected in order first, so that of several bad rows the first is always named.
        let fates: Vec<Result<Fate, _>> = (0..group.len()).into_par_iter().map(fate).collect();
        let fates = fates.into_iter().collect::<Result<Vec<Fate>, _>>()?;
        for (row, fate) in fates.iter().enumerate() {
            if let Fate::Excluded(reason) = fate {
                rows.count(Err(*reason));
            } else {
                rows.count(Ok(()));
                used.update(group.record_id(row));
                used.update(b"\n");
            }
        }
        if let Some(training) = &mut training {
            training.add(&fates);
        }
    }
    Ok(SurveyedFile { file: file.clone(), rows, used_sha256: hex(&used.finalize()) })
}

/// Refuses a held-out row that needs more than so many positions, with an answer of so many
/// tokens after it.
fn refuse_beyond(
    positions: usize,
    fate: &Fate,
    answer: usize,
    group: &RowGroup,
    row: usize,
) -> Result<(), DatasetError> {
    let Fate::Used(document) = fate else { return Ok(()) };
    let tokens = document.tokens.len();
    if tokens.saturating_add(answer) <= positions {
        return Ok(());
    }
    Err(DatasetError::BeyondPositions {
        path: group.path().to_owned(),
        row: group.row_in_file(row),
        record_id: group.record_id(row).to_owned(),
        tokens,
        answer,
        positions,
    })
}

fn refuse_empty_splits(files: &[SurveyedFile]) -> Result<(), DatasetError> {
    for surveyed in files {
        let split = &surveyed.file.split;
        let mut counts = Counts::default();
        for other in files.iter().filter(|other| other.file.split == *split) {
            counts.add(&other.rows);
        }
        if counts.used == 0 {
            return Err(DatasetError::NoRowLeft { split: split_name(split), counts });
        }
    }
    Ok(())
}

/// Steps of every pass that is begun, and of the run.
fn count_steps(spec: &Spec, lengths: &[Vec<u32>]) -> (Vec<u64>, u64) {
    let most = spec.max_steps.unwrap_or(u64::MAX);
    let (mut by_epoch, mut all) = (Vec::new(), 0);
    for epoch in 0..spec.epochs {
        if all >= most {
            break;
        }
        let steps = steps(spec, lengths, epoch);
        by_epoch.push(steps);
        all += steps;
    }
    (by_epoch, all.min(most))
}

/// Steps of one pass, by placing lengths instead of documents.
fn steps(spec: &Spec, lengths: &[Vec<u32>], epoch: u32) -> u64 {
    let order = EpochOrder::new(lengths.len(), spec.shuffle_seed, epoch);
    let mut packing =
        NextFit::new(spec.sequence_length, spec.packing != Packing::None, spec.windows_per_step);
    let mut steps = 0;
    for block in 0..order.blocks() {
        let members = order.groups(block).iter().filter_map(|group| lengths.get(*group));
        let members: Vec<&Vec<u32>> = members.collect();
        let rows: Vec<usize> = members.iter().map(|lengths| lengths.len()).collect();
        for (member, row) in order.rows(block, &rows) {
            let length = members.get(member).and_then(|lengths| lengths.get(row)).copied();
            let length = length.unwrap_or_default() as usize;
            if length > 0 && packing.place(length) == Fit::NewStep {
                steps += 1;
            }
        }
    }
    steps + u64::from(packing.end_epoch())
}

#[cfg(test)]
#[path = "survey_tests.rs"]
mod tests;
