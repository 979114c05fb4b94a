//! What becomes of one row: out by the gate, too long, held out, or documents.
//!
//! Owns the step that the survey, the stream and evaluation share, so that they can never
//! disagree about a row.

use sha2::{Digest as _, Sha256};

use super::batch::Batch;
use super::chat::{ChatEncoder, Document, LossMask};
use super::consent::Reason;
use super::conversation::Json;
use super::error::DatasetError;
use super::sample::Sample;
use super::spec::Spec;
use crate::recipe::Overlong;

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

impl<I> Fate<I> {
    /// The same, of other pieces.
    pub(super) fn map<J>(self, piece: impl FnMut(I) -> J) -> Fate<J> {
        match self {
            Self::Excluded(reason) => Fate::Excluded(reason),
            Self::Dropped => Fate::Dropped,
            Self::HeldOut => Fate::HeldOut,
            Self::Used { pieces, cut } => {
                Fate::Used { pieces: pieces.into_iter().map(piece).collect(), cut }
            }
        }
    }
}

/// Tokenises a row of `data.train` that may be used.
pub(super) fn training_row(
    spec: &Spec,
    encoder: &ChatEncoder,
    batch: &Batch,
    row: usize,
) -> Result<Fate<Document>, DatasetError> {
    if let Err(reason) = batch.verdict(row) {
        return Ok(Fate::Excluded(reason));
    }
    let sample = batch.sample(row)?;
    if spec.holds_out(&sample) {
        return Ok(Fate::HeldOut);
    }
    let document = tokenised(encoder, &sample, spec.mask, batch, row)?;
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
                path: batch.path().to_owned(),
                row: batch.row_in_file(row),
                record_id: batch.record_id(row).to_owned(),
                tokens,
                sequence_length,
            });
        }
    };
    // A piece in which nothing is learned would only cost time.
    let pieces = document.split(sequence_length).into_iter().take(most);
    let pieces: Vec<Document> = pieces.filter(|piece| piece.trained_tokens() > 0).collect();
    Ok(if pieces.is_empty() { Fate::Dropped } else { Fate::Used { pieces, cut: true } })
}

/// Tokenises a row that is measured on, however long, unless the gate leaves it out.
pub(super) fn measured_row(
    mask: LossMask,
    encoder: &ChatEncoder,
    batch: &Batch,
    row: usize,
) -> Result<Result<(Sample, Document), Reason>, DatasetError> {
    if let Err(reason) = batch.verdict(row) {
        return Ok(Err(reason));
    }
    let sample = batch.sample(row)?;
    let document = tokenised(encoder, &sample, mask, batch, row)?;
    Ok(Ok((sample, document)))
}

fn tokenised(
    encoder: &ChatEncoder,
    sample: &Sample,
    mask: LossMask,
    batch: &Batch,
    row: usize,
) -> Result<Document, DatasetError> {
    encoder.encode_sample(sample, mask).map_err(|source| DatasetError::Row {
        path: batch.path().to_owned(),
        row: batch.row_in_file(row),
        record_id: batch.record_id(row).to_owned(),
        source,
    })
}

impl Spec {
    /// Whether a row of `data.train` is a validation row: by how it begins, so that
    /// conversations that begin alike are on one side.
    pub fn holds_out(&self, sample: &Sample) -> bool {
        if self.validation_split == 0.0 {
            return false;
        }
        let mut digest = Sha256::new();
        digest.update(self.seed.to_le_bytes());
        match sample {
            Sample::Conversation(conversation) | Sample::Labelled { conversation, .. } => {
                opening(&conversation.messages, &mut digest);
            }
            Sample::Preference { chosen, .. } => opening(&chosen.messages, &mut digest),
            Sample::Text(text) | Sample::Completion { prompt: text, .. } => {
                digest.update(text.as_bytes());
            }
        }
        let digest: [u8; 32] = digest.finalize().into();
        let first = digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        (first >> 11) as f64 / ((1_u64 << 53) as f64) < self.validation_split
    }
}

/// What comes before the assistant's first turn.
fn opening(messages: &[Json], digest: &mut Sha256) {
    let said = |message: &&Json| message.get("role").is_none_or(|role| role != "assistant");
    for message in messages.iter().take_while(said) {
        for key in ["role", "content"] {
            let text = message.get(key).map(ToString::to_string).unwrap_or_default();
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text.as_bytes());
        }
    }
}
