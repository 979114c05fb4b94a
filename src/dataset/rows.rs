//! What becomes of one row: out by the gate, too long, held out, or documents.
//!
//! Owns the step that the survey, the stream and evaluation share, so that they can never
//! disagree about a row.

use sha2::{Digest as _, Sha256};

use super::chat::{ChatEncoder, Document, Message};
use super::consent::{Ask, Defaults, Reason, judge};
use super::error::DatasetError;
use super::group::RowGroup;
use super::spec::Spec;
use crate::recipe::{Overlong, TrainOn};

/// What became of a row.
#[derive(Debug)]
pub(super) enum Fate<I> {
    /// The gate left it out.
    Excluded(Reason),
    /// Nothing of it that fits a window is learned from.
    Dropped,
    /// It is a validation row.
    HeldOut,
    /// It is used, in one piece or several.
    Used {
        /// The pieces, each no longer than a window.
        pieces: Vec<I>,
        /// Whether it was longer than a window.
        cut: bool,
    },
}

/// Judges and tokenises a row of `data.train`.
pub(super) fn training_row(
    spec: &Spec,
    encoder: &ChatEncoder,
    defaults: &Defaults,
    group: &RowGroup,
    row: usize,
) -> Result<Fate<Document>, DatasetError> {
    if let Err(reason) = judge(&group.consent(row), &spec.ask, defaults) {
        return Ok(Fate::Excluded(reason));
    }
    let messages = group.messages(row)?;
    if is_held_out(spec, &messages) {
        return Ok(Fate::HeldOut);
    }
    let document = tokenised(encoder, &messages, spec.train_on, group, row)?;
    let (tokens, sequence_length) = (document.tokens.len(), spec.sequence_length);
    if tokens <= sequence_length {
        return Ok(Fate::Used { pieces: vec![document], cut: false });
    }
    let most = match spec.overlong {
        Overlong::Drop => 0,
        Overlong::Truncate => 1,
        Overlong::Split => usize::MAX,
        Overlong::Refuse => {
            return Err(DatasetError::Overlong {
                path: group.path().to_owned(),
                row: group.row_in_file(row),
                record_id: group.record_id(row).to_owned(),
                tokens,
                sequence_length,
            });
        }
    };
    // A piece in which nothing is learned would only cost time.
    let pieces = document.split(sequence_length).take(most);
    let pieces: Vec<Document> = pieces.filter(|piece| piece.trained_tokens() > 0).collect();
    Ok(if pieces.is_empty() { Fate::Dropped } else { Fate::Used { pieces, cut: true } })
}

/// Judges and tokenises a row that is measured on, however long.
pub(super) fn measured_row(
    ask: &Ask,
    train_on: TrainOn,
    encoder: &ChatEncoder,
    defaults: &Defaults,
    group: &RowGroup,
    row: usize,
) -> Result<Result<(Vec<Message>, Document), Reason>, DatasetError> {
    // The text of a row that may not be used is never even assembled.
    if let Err(reason) = judge(&group.consent(row), ask, defaults) {
        return Ok(Err(reason));
    }
    let messages = group.messages(row)?;
    let document = tokenised(encoder, &messages, train_on, group, row)?;
    Ok(Ok((messages, document)))
}

fn tokenised(
    encoder: &ChatEncoder,
    messages: &[Message],
    train_on: TrainOn,
    group: &RowGroup,
    row: usize,
) -> Result<Document, DatasetError> {
    encoder.encode(messages, train_on).map_err(|source| DatasetError::Row {
        path: group.path().to_owned(),
        row: group.row_in_file(row),
        record_id: group.record_id(row).to_owned(),
        source,
    })
}

/// Whether a row of `data.train` is a validation row: by what comes before the assistant's
/// first turn, so that conversations that begin alike are on one side.
pub(super) fn is_held_out(spec: &Spec, messages: &[Message]) -> bool {
    if spec.validation_split == 0.0 {
        return false;
    }
    let mut digest = Sha256::new();
    digest.update(spec.seed.to_le_bytes());
    for message in messages.iter().take_while(|message| message.role != "assistant") {
        for part in [&message.role, &message.content] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
    }
    let digest: [u8; 32] = digest.finalize().into();
    let first = digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    (first >> 11) as f64 / ((1_u64 << 53) as f64) < spec.validation_split
}
