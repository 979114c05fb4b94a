//! Rows for measuring: validation loss, and answers to generate and compare.

use std::path::PathBuf;

use super::chat::{ChatEncoder, Document, Message};
use super::consent::{Ask, Counts};
use super::error::{DatasetError, split_name};
use super::rows::{is_held_out, measured_row};
use super::source::{Columns, SourceFile};
use super::spec::Spec;
use super::stream::CONTENT;
use super::survey::{in_order, slices};
use crate::recipe::TrainOn;
use crate::recipe::lock::Split;

/// One row to measure on.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationRow {
    /// Its id.
    pub record_id: String,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The conversation as tokens.
    pub document: Document,
}

impl EvaluationRow {
    /// What the model is given: everything before the assistant's last turn.
    pub fn prompt(&self) -> &[Message] {
        self.messages.get(..self.last_answer()).unwrap_or_default()
    }

    /// What it should answer: the assistant's last turn.
    pub fn reference(&self) -> &str {
        self.messages.get(self.last_answer()).map_or("", |message| &message.content)
    }

    fn last_answer(&self) -> usize {
        let answers = self.messages.iter().rposition(|message| message.role == "assistant");
        answers.unwrap_or(self.messages.len())
    }
}

/// The rows of some files that may be used for `ask`, in file order, with the gate's
/// verdict. Held in memory: held-out rows are few. `split` names them in an error.
pub fn evaluation_rows(
    files: &[PathBuf],
    encoder: &ChatEncoder,
    ask: &Ask,
    train_on: TrainOn,
    split: &str,
) -> Result<(Vec<EvaluationRow>, Counts), DatasetError> {
    rows(files, encoder, ask, train_on, split, |_| true)
}

/// The rows of `data.validation`, or those that `data.validation_split` holds out of
/// `data.train`; none where the recipe has neither.
pub fn validation_rows(
    spec: &Spec,
    encoder: &ChatEncoder,
) -> Result<Vec<EvaluationRow>, DatasetError> {
    let split = if spec.validation_split > 0.0 { Split::Train } else { Split::Validation };
    let files = spec.files_of(&split);
    if split == Split::Validation && files.is_empty() {
        return Ok(Vec::new());
    }
    let belongs = |messages: &[Message]| split == Split::Validation || is_held_out(spec, messages);
    let name = split_name(&Split::Validation);
    Ok(rows(&files, encoder, &spec.ask, spec.train_on, &name, belongs)?.0)
}

fn rows(
    files: &[PathBuf],
    encoder: &ChatEncoder,
    ask: &Ask,
    train_on: TrainOn,
    split: &str,
    belongs: impl Fn(&[Message]) -> bool + Sync,
) -> Result<(Vec<EvaluationRow>, Counts), DatasetError> {
    let (mut rows, mut counts) = (Vec::new(), Counts::default());
    for path in files {
        let source = SourceFile::open(path)?;
        for group in 0..source.group_rows().len() {
            for group in slices(&source, group, Columns::And(&CONTENT)) {
                let group = group?;
                let read = |row| {
                    let defaults = source.defaults();
                    let measured = measured_row(ask, train_on, encoder, defaults, &group, row)?;
                    Ok(measured.map(|(messages, document)| {
                        let record_id = group.record_id(row).to_owned();
                        belongs(&messages).then_some(EvaluationRow {
                            record_id,
                            messages,
                            document,
                        })
                    }))
                };
                for row in in_order(&group, read)? {
                    counts.count(row.as_ref().map(|_| ()).map_err(|reason| *reason));
                    rows.extend(row.ok().flatten());
                }
            }
        }
    }
    if rows.is_empty() {
        return Err(DatasetError::NoRowLeft { split: split.to_owned(), counts });
    }
    Ok((rows, counts))
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let measure = |ask: &Ask| {
            evaluation_rows(
                std::slice::from_ref(&path),
                &encoder,
                ask,
                TrainOn::Assistant,
                "the suite `s`",
            )
        };
        let (rows, counts) = measure(&fixture::ask()).unwrap();
        assert_eq!((counts.seen, counts.used, rows.len()), (3, 2, 2));
        assert_eq!((rows[0].prompt().len(), rows[0].reference()), (1, "b"));
        assert_eq!((rows[1].prompt().len(), rows[1].reference()), (1, "f"));
        assert_eq!(rows[1].record_id, "row-0002");
        let other = Ask { purpose: vec!["dpv:Advertising".to_owned()], ..fixture::ask() };
        let refused = measure(&other).unwrap_err().to_string();
        let expected = "no row of the suite `s` is left after the consent gate: \
                        3 rows seen, 1 withdrawn, 2 not for this purpose";
        assert_eq!(refused, expected);
    }
}
