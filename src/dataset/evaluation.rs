//! Rows for measuring: validation loss, and answers to generate and compare.

use std::path::PathBuf;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::chat::{ChatEncoder, Document, Message};
use super::consent::{Ask, Counts};
use super::error::DatasetError;
use super::rows::{Fate, any_row};
use super::source::SourceFile;
use crate::recipe::TrainOn;

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
    let (mut rows, mut counts) = (Vec::new(), Counts::default());
    for path in files {
        let source = SourceFile::open(path)?;
        for group in 0..source.group_rows().len() {
            let group = source.read_group(group)?;
            let read = |row| {
                let defaults = source.defaults();
                match any_row(ask, train_on, encoder, defaults, &group, row)? {
                    Fate::Used(document) => Ok(Ok(EvaluationRow {
                        record_id: group.record_id(row).to_owned(),
                        messages: group.messages(row)?,
                        document,
                    })),
                    Fate::Excluded(reason) => Ok(Err(reason)),
                    // Only training rows are dropped.
                    Fate::Dropped => Err(DatasetError::Worker),
                }
            };
            let read: Vec<Result<_, DatasetError>> =
                (0..group.len()).into_par_iter().map(read).collect();
            for row in read {
                match row? {
                    Ok(row) => {
                        counts.count(Ok(()));
                        rows.push(row);
                    }
                    Err(reason) => counts.count(Err(reason)),
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
