//! What becomes of one row: out by the gate, too long, or a document.
//!
//! Owns the step that the survey, the stream and evaluation share, so that they can never
//! disagree about a row.

use super::chat::{ChatEncoder, Document};
use super::consent::{Ask, Dataset, Reason, judge};
use super::error::DatasetError;
use super::group::RowGroup;
use super::spec::Spec;
use crate::recipe::{Overlong, TrainOn};

/// What became of a row.
#[derive(Debug)]
pub(super) enum Fate {
    /// The gate left it out.
    Excluded(Reason),
    /// It is longer than a window and was left out.
    Dropped,
    /// It is used.
    Used(Document),
}

/// Judges and tokenises a row of `data.train`.
pub(super) fn training_row(
    spec: &Spec,
    encoder: &ChatEncoder,
    defaults: &Dataset,
    group: &RowGroup,
    row: usize,
) -> Result<Fate, DatasetError> {
    let fate = any_row(&spec.ask, spec.train_on, encoder, defaults, group, row)?;
    let Fate::Used(document) = &fate else { return Ok(fate) };
    let (tokens, sequence_length) = (document.tokens.len(), spec.sequence_length);
    if tokens <= sequence_length {
        return Ok(fate);
    }
    match spec.overlong {
        Overlong::Drop => Ok(Fate::Dropped),
        Overlong::Refuse | Overlong::Truncate | Overlong::Split => Err(DatasetError::Overlong {
            path: group.path().to_owned(),
            row: group.row_in_file(row),
            record_id: group.record_id(row).to_owned(),
            tokens,
            sequence_length,
        }),
    }
}

/// Judges and tokenises a row, however long.
pub(super) fn any_row(
    ask: &Ask,
    train_on: TrainOn,
    encoder: &ChatEncoder,
    defaults: &Dataset,
    group: &RowGroup,
    row: usize,
) -> Result<Fate, DatasetError> {
    // The text of a row that may not be used is never even assembled.
    if let Err(reason) = judge(&group.consent(row), ask, defaults, false) {
        return Ok(Fate::Excluded(reason));
    }
    let messages = group.messages(row)?;
    match encoder.encode(&messages, train_on) {
        Ok(document) => Ok(Fate::Used(document)),
        Err(source) => Err(DatasetError::Row {
            path: group.path().to_owned(),
            row: group.row_in_file(row),
            record_id: group.record_id(row).to_owned(),
            source,
        }),
    }
}
