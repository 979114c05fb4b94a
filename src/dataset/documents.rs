//! Every document that a run may learn from or be validated on, in the order of the files.

use super::batch::{Read, RowFile};
use super::chat::{ChatEncoder, Document};
use super::error::DatasetError;
use super::rows::{Fate, measured_row, training_row};
use super::spec::Spec;
use super::survey::{SLICE_ROWS, in_order};
use crate::recipe::lock::Split;

/// Gives `work` each document of `data.train` and `data.validation` that may be used, as the
/// stream and the validation make it, with the id of its row.
pub fn each<E: From<DatasetError>>(
    spec: &Spec,
    encoder: &ChatEncoder,
    mut work: impl FnMut(&str, Document) -> Result<(), E>,
) -> Result<(), E> {
    for split in [Split::Train, Split::Validation] {
        for file in spec.files_of(&split) {
            let rows = RowFile::open(file, &spec.gate).map_err(DatasetError::from)?;
            for batch in rows.all(SLICE_ROWS, Read::Content) {
                let batch = batch.map_err(DatasetError::from)?;
                let documents = |row| match split {
                    Split::Train => match training_row(spec, encoder, &batch, row)? {
                        Fate::Used { pieces, .. } => Ok(pieces),
                        Fate::HeldOut => measured(spec, encoder, &batch, row),
                        Fate::Excluded(_) | Fate::Dropped => Ok(Vec::new()),
                    },
                    _ => measured(spec, encoder, &batch, row),
                };
                for (row, documents) in in_order(&batch, documents)?.into_iter().enumerate() {
                    for document in documents {
                        work(batch.record_id(row), document)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn measured(
    spec: &Spec,
    encoder: &ChatEncoder,
    batch: &super::batch::Batch,
    row: usize,
) -> Result<Vec<Document>, DatasetError> {
    let measured = measured_row(spec.mask, encoder, batch, row)?;
    Ok(measured.map(|(_, document)| document).into_iter().collect())
}
