//! One look at every row before anything is trained.
//!
//! Owns the numbers that the plan and the lock hold of the data: verdicts of the gate, the
//! digest of the rows that may be used, tokens, and the optimiser steps of every pass,
//! counted with the order and the packing of the stream itself. Memory does not grow with the
//! rows: their lengths go to a temporary file.

mod sample;

use std::sync::Arc;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use sha2::{Digest, Sha256};

use super::batch::{Batch, Read, RowFile};
use super::chat::{ChatEncoder, Document, LossMask};
use super::consent::{Counts, Reason};
use super::error::{DatasetError, split_name};
use super::evaluation::question;
use super::rows::{Fate, measured_row, training_row};
use super::spec::{Spec, SplitFile};
use super::stream::{Extent, Groups, Lengths, Position, Recorded, Recorder, Shape, Steps, opener};
use crate::files::hex;
use crate::recipe::SurveyOf;
use crate::recipe::lock::{Size, Split};

/// Rows that are decoded and tokenised together.
pub(super) const SLICE_ROWS: usize = 2048;

/// Rows that are judged together, where nothing else is read of them.
const JUDGED_ROWS: usize = 8192;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedFile {
    /// The file, and who reads it.
    pub file: SplitFile,
    /// The gate's verdict on its rows.
    pub rows: Counts,
    /// As `used_sha256` of [`crate::recipe::lock::LockedData`].
    pub used_sha256: String,
    /// Tokens of its rows, as they are used.
    pub tokens: u64,
    /// Of these, tokens that carry loss.
    pub trained_tokens: u64,
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
/// sequences of so many `positions`. `tick` is told of rows that are done.
///
/// A row that cannot be tokenised, a training row that is too long (unless the recipe says
/// what becomes of those), a held-out row for which the base has too few positions and a
/// split of which no row is left are errors here, before any training. Where the recipe asks
/// for a sample, training rows are judged all and tokenised in part.
pub fn survey(
    spec: &Spec,
    encoder: &Arc<ChatEncoder>,
    positions: usize,
    tick: &(dyn Fn(u64) + Sync),
) -> Result<Survey, DatasetError> {
    let look = Look { spec, encoder, positions, tick };
    let lengths = Recorder::new().map_err(DatasetError::Lengths)?;
    let mut training = Training { lengths, pieces: 0, size: Size::default() };
    let mut files = Vec::with_capacity(spec.files.len());
    for (index, file) in spec.files.iter().enumerate() {
        files.push(match (&file.split, spec.survey) {
            (Split::Train, SurveyOf::Sample) => judged(spec, file, tick)?,
            (Split::Train, SurveyOf::All) => look.training(file, index, &mut training)?,
            _ => look.measured(file)?,
        });
    }
    refuse_empty_splits(spec, &files, &training.size)?;
    refuse_empty_sources(spec, &files)?;
    let size = match spec.survey {
        SurveyOf::Sample => sample::estimate(spec, encoder, &files)?,
        SurveyOf::All => training.finish(spec)?,
    };
    Ok(Survey { files, size })
}

/// Judges every row of every split again, by what it records of its consent alone.
pub fn judge_again(
    spec: &Spec,
    tick: &(dyn Fn(u64) + Sync),
) -> Result<Vec<SurveyedFile>, DatasetError> {
    spec.files.iter().map(|file| judged(spec, file, tick)).collect()
}

struct Look<'a> {
    spec: &'a Spec,
    encoder: &'a ChatEncoder,
    positions: usize,
    tick: &'a (dyn Fn(u64) + Sync),
}

/// What the training rows add up to.
struct Training {
    lengths: Recorder,
    pieces: u64,
    size: Size,
}

/// A file's numbers while they are added up.
#[derive(Default)]
struct Sums {
    rows: Counts,
    used: Sha256,
    tokens: u64,
    trained_tokens: u64,
}

impl Sums {
    fn verdict(&mut self, batch: &Batch, row: usize, verdict: Result<(), Reason>) {
        self.rows.count(verdict);
        if verdict.is_ok() {
            self.used.update(batch.record_id(row));
            self.used.update(b"\n");
        }
    }

    /// Rows of which none may be used.
    fn refuse(&mut self, rows: u64, reason: Reason) {
        self.rows.add(&Counts { seen: rows, used: 0, excluded: [(reason, rows)].into() });
    }

    fn document(&mut self, document: &Document) {
        self.tokens += document.tokens.len() as u64;
        self.trained_tokens += document.trained_tokens();
    }

    fn finish(self, file: &SplitFile) -> SurveyedFile {
        let Self { rows, used, tokens, trained_tokens } = self;
        let used_sha256 = hex(&used.finalize());
        SurveyedFile { file: file.clone(), rows, used_sha256, tokens, trained_tokens }
    }
}

impl Look<'_> {
    /// A file of training rows, and how long they are.
    fn training(
        &self,
        file: &SplitFile,
        index: usize,
        training: &mut Training,
    ) -> Result<SurveyedFile, DatasetError> {
        let rows = RowFile::open(file, &self.spec.gate)?;
        let mut sums = Sums::default();
        for (number, of_group) in rows.source().group_rows().iter().enumerate() {
            training.lengths.begin(index, number);
            if let Some(reason) = rows.pruned(number) {
                sums.refuse(*of_group, reason);
                training.pass_over(*of_group)?;
                (self.tick)(*of_group);
                continue;
            }
            for batch in rows.batches(number, 0, SLICE_ROWS, Read::Content) {
                let batch = batch?;
                let fate = |row| training_row(self.spec, self.encoder, &batch, row);
                for (row, fate) in in_order(&batch, fate)?.into_iter().enumerate() {
                    sums.verdict(&batch, row, batch.verdict(row));
                    training.add(&fate, &mut sums)?;
                }
                (self.tick)(batch.len() as u64);
            }
        }
        Ok(sums.finish(file))
    }

    /// A file of rows that are measured on.
    fn measured(&self, file: &SplitFile) -> Result<SurveyedFile, DatasetError> {
        let (spec, rows) = (self.spec, RowFile::open(file, &self.spec.gate)?);
        let (mask, answer) = match &file.split {
            // Suites are about what the assistant says, whatever was trained on.
            Split::Test(suite) => {
                (LossMask::default(), spec.max_new_tokens.get(suite).copied().unwrap_or(0))
            }
            _ => (spec.mask, 0),
        };
        let mut sums = Sums::default();
        for batch in rows.all(SLICE_ROWS, Read::Content) {
            let batch = batch?;
            let measured = |row| {
                if matches!(file.split, Split::Test(_)) && batch.verdict(row).is_ok() {
                    question(batch.sample(row)?, &batch, row)?;
                }
                let row_of = measured_row(mask, self.encoder, &batch, row)?;
                if let Ok((_, document)) = &row_of {
                    self.refuse_beyond(document, answer, &batch, row)?;
                }
                Ok(row_of.map(|(_, document)| document))
            };
            for (row, measured) in in_order(&batch, measured)?.into_iter().enumerate() {
                sums.verdict(&batch, row, batch.verdict(row));
                if let Ok(document) = &measured {
                    sums.document(document);
                }
            }
            (self.tick)(batch.len() as u64);
        }
        Ok(sums.finish(file))
    }

    /// Refuses a row that needs more positions than the base has, with an answer of so many
    /// tokens after it.
    fn refuse_beyond(
        &self,
        document: &Document,
        answer: usize,
        batch: &Batch,
        row: usize,
    ) -> Result<(), DatasetError> {
        let (tokens, positions) = (document.longest(), self.positions);
        if tokens.saturating_add(answer) <= positions {
            return Ok(());
        }
        Err(DatasetError::BeyondPositions {
            path: batch.path().to_owned(),
            row: batch.row_in_file(row),
            record_id: batch.record_id(row).to_owned(),
            tokens,
            answer,
            positions,
        })
    }
}

/// A file by what its rows record of their consent alone.
fn judged(
    spec: &Spec,
    file: &SplitFile,
    tick: &(dyn Fn(u64) + Sync),
) -> Result<SurveyedFile, DatasetError> {
    let rows = RowFile::open(file, &spec.gate)?;
    let mut sums = Sums::default();
    for (number, of_group) in rows.source().group_rows().iter().enumerate() {
        if let Some(reason) = rows.pruned(number) {
            sums.refuse(*of_group, reason);
            tick(*of_group);
            continue;
        }
        for batch in rows.batches(number, 0, JUDGED_ROWS, Read::Consent) {
            let batch = batch?;
            (0..batch.len()).for_each(|row| sums.verdict(&batch, row, batch.verdict(row)));
            tick(batch.len() as u64);
        }
    }
    Ok(sums.finish(file))
}

/// Makes something of every row on all cores. Collected in order first, so that of several
/// bad rows the first is always named.
pub(super) fn in_order<T: Send>(
    batch: &Batch,
    make: impl Fn(usize) -> Result<T, DatasetError> + Send + Sync,
) -> Result<Vec<T>, DatasetError> {
    let made: Vec<Result<T, _>> = (0..batch.len()).into_par_iter().map(make).collect();
    made.into_iter().collect()
}

fn extent(document: &Document) -> Extent {
    let trained = document.trained_tokens() as u32;
    Extent { tokens: document.tokens.len() as u32, trained }
}

fn refuse_empty_splits(
    spec: &Spec,
    files: &[SurveyedFile],
    size: &Size,
) -> Result<(), DatasetError> {
    for surveyed in files {
        let split = &surveyed.file.split;
        let mut counts = Counts::default();
        for other in files.iter().filter(|other| other.file.split == *split) {
            counts.add(&other.rows);
        }
        if counts.used == 0 {
            return Err(DatasetError::NoRowLeft { split: split_name(split), counts });
        }
        let held_out = spec.validation_split > 0.0 && spec.survey == SurveyOf::All;
        if held_out && *split == Split::Train && size.held_out == 0 {
            return Err(DatasetError::NothingHeldOut { rows: counts.used });
        }
    }
    Ok(())
}

/// Refuses a mixture of which a source has nothing that may be used.
fn refuse_empty_sources(spec: &Spec, files: &[SurveyedFile]) -> Result<(), DatasetError> {
    for (source_index, strand) in spec.strands().iter().enumerate() {
        let mut counts = Counts::default();
        let surveyed = strand.files.iter().filter_map(|file| files.get(*file));
        surveyed.for_each(|file| counts.add(&file.rows));
        if counts.used == 0 {
            return Err(DatasetError::EmptySource { source_index, counts });
        }
    }
    Ok(())
}

impl Training {
    /// Rows that are not in the stream.
    fn pass_over(&mut self, rows: u64) -> Result<(), DatasetError> {
        (0..rows).try_for_each(|_| self.lengths.row(&[])).map_err(DatasetError::Lengths)
    }

    /// One row.
    fn add(&mut self, fate: &Fate<Document>, sums: &mut Sums) -> Result<(), DatasetError> {
        let mut extents = Vec::new();
        match fate {
            Fate::Excluded(_) => {}
            Fate::Dropped => self.size.dropped_overlong += 1,
            Fate::HeldOut => self.size.held_out += 1,
            Fate::Used { pieces, cut } => {
                self.size.cut_overlong += u64::from(*cut);
                pieces.iter().for_each(|document| sums.document(document));
                extents.extend(pieces.iter().map(extent));
            }
        }
        self.pieces += extents.len() as u64;
        self.lengths.row(&extents).map_err(DatasetError::Lengths)
    }

    /// Counts the steps of every pass that is begun, and of the run, with the windows and
    /// tokens of the first pass.
    fn finish(self, spec: &Spec) -> Result<Size, DatasetError> {
        let recorded = self.lengths.finish().map_err(DatasetError::Lengths)?;
        let most = spec.max_steps.unwrap_or(u64::MAX);
        let (mut size, mut counted) = (self.size, 0_u64);
        if self.pieces == 0 && size.dropped_overlong > 0 {
            let (dropped, sequence_length) = (size.dropped_overlong, spec.sequence_length);
            return Err(DatasetError::AllOverlong { dropped, sequence_length });
        }
        let mut steps = steps(spec, &recorded)?;
        while let Some(step) = steps.next()? {
            if step.epoch as usize == size.steps_by_epoch.len() {
                if counted >= most {
                    break;
                }
                size.steps_by_epoch.push(0);
            }
            counted += 1;
            if let Some(steps) = size.steps_by_epoch.last_mut() {
                *steps += 1;
            }
            if step.epoch == 0 {
                size.windows += step.windows.len() as u64;
                for piece in step.windows.iter().flatten() {
                    size.tokens += u64::from(piece.tokens);
                    size.trained_tokens += u64::from(piece.trained);
                }
            }
        }
        size.steps = counted.min(most);
        Ok(size)
    }
}

/// The steps of a run, by lengths.
fn steps(spec: &Spec, recorded: &Recorded) -> Result<Steps<Extent>, DatasetError> {
    let shape = Shape::of(spec);
    let mut strands = Vec::new();
    for strand in spec.strands() {
        let files = strand.files.iter().filter_map(|file| spec.files.get(*file));
        let files: Result<Vec<_>, _> = files.map(|file| RowFile::open(file, &spec.gate)).collect();
        let groups = Arc::new(Groups::of(&files?));
        let lengths = Lengths { recorded: recorded.clone(), files: strand.files };
        strands.push((Arc::new(lengths), groups));
    }
    let open = opener(&shape, strands, |walk| Ok(Box::new(walk) as _));
    Steps::new(shape, open, &Position::default())
}

#[cfg(test)]
mod tests;
