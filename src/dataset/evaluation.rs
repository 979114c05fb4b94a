//! Rows for measuring: validation loss, and answers to generate and compare.

use std::sync::Arc;

use serde_json::Value;

use super::batch::{Batch, Read, RowFile};
use super::chat::{ChatEncoder, Document, LossMask};
use super::consent::Counts;
use super::conversation::{Conversation, Json};
use super::error::{DatasetError, split_name};
use super::gate::Gate;
use super::rows::measured_row;
use super::sample::Sample;
use super::spec::{Spec, SplitFile};
use super::survey::{SLICE_ROWS, in_order};
use crate::recipe::lock::Split;

/// One row to measure on.
#[derive(Clone, Debug)]
pub struct EvaluationRow {
    /// Its id.
    pub record_id: String,
    /// The conversation through its last message before the answer: what the model is given.
    pub prompt: Conversation,
    /// What it should answer: the assistant's last turn.
    pub reference: String,
    /// The row as tokens.
    pub document: Document,
}

impl EvaluationRow {
    /// The text of the last message before the answer.
    pub fn asked(&self) -> String {
        let last = self.prompt.messages.last().and_then(|message| message.get("content"));
        last.and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

/// The rows of some files that may be used, in file order, with the gate's verdict. Held in
/// memory: the rows of a suite are few.
pub fn evaluation_rows(
    files: &[SplitFile],
    encoder: &ChatEncoder,
    gate: &Arc<Gate>,
) -> Result<(Vec<EvaluationRow>, Counts), DatasetError> {
    let (mut rows, mut counts) = (Vec::new(), Counts::default());
    for file in files {
        for batch in RowFile::open(file, gate)?.all(SLICE_ROWS, Read::Content) {
            let batch = batch?;
            let read = |row| {
                let measured = measured_row(LossMask::default(), encoder, &batch, row)?;
                let Ok((sample, document)) = measured else { return Ok(None) };
                let record_id = batch.record_id(row).to_owned();
                let (prompt, reference) = question(sample, &batch, row)?;
                Ok(Some(EvaluationRow { record_id, prompt, reference, document }))
            };
            for (row, read) in in_order(&batch, read)?.into_iter().enumerate() {
                counts.count(batch.verdict(row));
                rows.extend(read);
            }
        }
    }
    if rows.is_empty() {
        let split = files.first().map_or_else(String::new, |file| split_name(&file.split));
        return Err(DatasetError::NoRowLeft { split, counts });
    }
    Ok((rows, counts))
}

/// What a row of a suite asks, and what it should be answered: a conversation before the
/// assistant's last turn, and that turn.
pub(super) fn question(
    sample: Sample,
    batch: &Batch,
    row: usize,
) -> Result<(Conversation, String), DatasetError> {
    let conversation = match sample {
        Sample::Conversation(conversation) => Some(conversation),
        _ => None,
    };
    conversation.and_then(asked_and_answered).ok_or_else(|| DatasetError::NoAnswer {
        path: batch.path().to_owned(),
        row: batch.row_in_file(row),
        record_id: batch.record_id(row).to_owned(),
    })
}

fn asked_and_answered(mut conversation: Conversation) -> Option<(Conversation, String)> {
    let messages = &mut conversation.messages;
    let is_answer =
        |message: &Json| message.get("role").and_then(Value::as_str) == Some("assistant");
    let last = messages.iter().rposition(is_answer)?;
    let answer = messages.get(last)?.get("content").and_then(Value::as_str).unwrap_or_default();
    let answer = answer.to_owned();
    messages.truncate(last);
    Some((conversation, answer))
}

/// The rows of `data.validation` as tokens, or those that `data.validation_split` holds out of
/// `data.train`; none where the recipe has neither. Held in memory, as tokens.
pub fn validation_rows(spec: &Spec, encoder: &ChatEncoder) -> Result<Vec<Document>, DatasetError> {
    let held_out = spec.validation_split > 0.0;
    let split = if held_out { Split::Train } else { Split::Validation };
    let (mut documents, mut counts, mut files) = (Vec::new(), Counts::default(), 0);
    for file in spec.files_of(&split) {
        files += 1;
        for batch in RowFile::open(file, &spec.gate)?.all(SLICE_ROWS, Read::Content) {
            let batch = batch?;
            let read = |row| {
                // A training row is no validation row; that is known before it is tokenised.
                if held_out && batch.verdict(row).is_ok() && !spec.holds_out(&batch.sample(row)?) {
                    return Ok(None);
                }
                let measured = measured_row(spec.mask, encoder, &batch, row)?;
                Ok(measured.ok().map(|(_, document)| document))
            };
            for (row, read) in in_order(&batch, read)?.into_iter().enumerate() {
                counts.count(batch.verdict(row));
                documents.extend(read);
            }
        }
    }
    if files > 0 && documents.is_empty() {
        return Err(DatasetError::NoRowLeft { split: split_name(&Split::Validation), counts });
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::consent::Ask;
    use crate::dataset::fixture::{self, TEMPLATE, row};

    #[test]
    fn only_rows_that_may_be_used_are_measured() {
        let folder = tempfile::tempdir().unwrap();
        fixture::base_folder(folder.path(), TEMPLATE);
        let encoder = ChatEncoder::open(folder.path()).unwrap();
        let mut rows = vec![row(0, "a", "b"), row(1, "c", "d"), row(2, "e", "f")];
        rows[1].status = Some("withdrawn");
        rows[2].messages.push(("user", "g".to_owned()));
        let path = folder.path().join("test.parquet");
        fixture::write_rows(&path, &rows, 2);
        let suite = Split::Test("s".to_owned());
        let files = [fixture::split_file(suite, path)];
        let measure = |ask: Ask| {
            let gate = Arc::new(Gate::open(ask, &[]).unwrap());
            evaluation_rows(&files, &encoder, &gate)
        };
        let (rows, counts) = measure(fixture::ask()).unwrap();
        assert_eq!((counts.seen, counts.used, rows.len()), (3, 2, 2));
        assert_eq!((rows[0].prompt.messages.len(), rows[0].reference.as_str()), (1, "b"));
        assert_eq!((rows[1].prompt.messages.len(), rows[1].reference.as_str()), (1, "f"));
        assert_eq!(rows[1].record_id, "row-0002");
        let other = Ask { purpose: vec!["dpv:Advertising".to_owned()], ..fixture::ask() };
        let refused = measure(other).unwrap_err().to_string();
        let expected = "no row of `data.test`, suite `s` is left after the consent gate: \
                        3 rows seen, 1 withdrawn, 2 not for this purpose";
        assert_eq!(refused, expected);
    }
}
