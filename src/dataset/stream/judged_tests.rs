//! Answers that are judged, on their way from files to steps.

use arrow::array::{ArrayRef, BooleanArray, StringArray};
use arrow::datatypes::Field;
use arrow::record_batch::RecordBatch;
use tempfile::TempDir;

use super::super::fixture::{self, TEMPLATE, row};
use super::super::survey::survey;
use super::*;
use crate::recipe::lock::Split;
use crate::recipe::{Format, Overlong, TrainOn};

const ROWS: usize = 60;

struct World {
    folder: TempDir,
    encoder: Arc<ChatEncoder>,
}

fn texts(of: impl Fn(usize) -> String) -> ArrayRef {
    Arc::new((0..ROWS).map(|row| Some(of(row))).collect::<StringArray>())
}

fn chosen(row: usize) -> String {
    format!("c{row:03}{}", "x".repeat(row % 7))
}

fn rejected(row: usize) -> String {
    format!("r{row:03}{}", "y".repeat(row % 5))
}

impl World {
    /// Every tenth row may not be used.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fixture::base_folder(folder.path(), TEMPLATE);
        let encoder = Arc::new(ChatEncoder::open(folder.path()).unwrap());
        let rows = (0..ROWS).map(|id| {
            let mut row = row(id, "", "");
            if id % 10 == 9 {
                row.status = Some("withdrawn");
            }
            row
        });
        let batch = fixture::batch(&rows.collect::<Vec<_>>());
        let labels: BooleanArray = (0..ROWS).map(|row| Some(row % 3 == 0)).collect();
        let more: [(&str, ArrayRef); 5] = [
            ("prompt", texts(|row| format!("q{row:03}"))),
            ("chosen", texts(chosen)),
            ("rejected", texts(rejected)),
            ("completion", texts(chosen)),
            ("label", Arc::new(labels)),
        ];
        let mut fields: Vec<Field> =
            batch.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
        let mut columns = batch.columns().to_vec();
        for (name, column) in more {
            fields.push(Field::new(name, column.data_type().clone(), true));
            columns.push(column);
        }
        let schema = Arc::new(arrow::datatypes::Schema::new(fields));
        let batch = RecordBatch::try_new(schema, columns).unwrap();
        let path = folder.path().join("rows.parquet");
        fixture::write_batch(&path, &batch, 7, Some(fixture::FOOTER));
        Self { folder, encoder }
    }

    fn spec(&self, format: Format) -> Spec {
        let path = self.folder.path().join("rows.parquet");
        let file = SplitFile { format, ..fixture::split_file(Split::Train, path) };
        Spec {
            sequence_length: 128,
            mask: TrainOn::Completion.into(),
            ..fixture::training(vec![file])
        }
    }

    fn steps(&self, spec: &Spec, from: Position) -> Vec<Step> {
        let stream = Stream::open(spec.clone(), self.encoder.clone(), from).unwrap();
        stream.map(|step| step.unwrap()).collect()
    }

    /// What each document asks, and what it answers.
    fn said(&self, batch: &MicroBatch) -> Vec<(String, String)> {
        let mut start = 0;
        let document = |length: &u32| {
            let range = start..start + *length as usize;
            start = range.end;
            let (tokens, weights) = (&batch.tokens[range.clone()], &batch.weights[range]);
            let answered = weights.iter().take_while(|weight| **weight == 0.0).count();
            let text = |tokens: &[u32]| self.encoder.decode(tokens).unwrap();
            let asked = text(&tokens[..answered]);
            let asked = asked.split('\n').nth(1).unwrap().to_owned();
            (asked, text(&tokens[answered..]).trim().to_owned())
        };
        batch.lengths.iter().map(document).collect()
    }
}

/// The row that a question is of.
fn number(asked: &str) -> usize {
    asked[1..].parse().unwrap()
}

#[test]
fn the_answers_of_a_preference_share_a_micro_batch() {
    let world = World::new();
    let spec = world.spec(Format::Preference);
    let steps = world.steps(&spec, Position::default());
    let mut seen = Vec::new();
    for batch in steps.iter().filter(|step| step.epoch == 0).flat_map(|step| &step.micro_batches) {
        assert!(batch.tokens.len() <= spec.micro_batch_tokens && batch.mismatched.is_empty());
        let said = world.said(batch);
        assert_eq!(batch.verdicts.len(), said.len());
        for (pair, verdicts) in said.chunks(2).zip(batch.verdicts.chunks(2)) {
            assert_eq!(verdicts, [Verdict::Chosen, Verdict::Rejected]);
            let row = number(&pair[0].0);
            assert_eq!((pair[0].0.as_str(), &pair[0].1), (pair[1].0.as_str(), &chosen(row)));
            assert_eq!(pair[1].1, rejected(row));
            seen.push(row);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..ROWS).filter(|row| row % 10 != 9).collect::<Vec<_>>());
}

#[test]
fn a_label_goes_with_its_row_and_the_answer_before_it() {
    let world = World::new();
    let spec = world.spec(Format::Kto);
    let steps = world.steps(&spec, Position::default());
    assert!(steps.iter().any(|step| step.micro_batches.len() > 1));
    for step in &steps {
        let said: Vec<_> = step.micro_batches.iter().flat_map(|batch| world.said(batch)).collect();
        let verdicts: Vec<_> =
            step.micro_batches.iter().flat_map(|batch| batch.verdicts.clone()).collect();
        for ((asked, answered), verdict) in said.iter().zip(verdicts) {
            let row = number(asked);
            let expected = if row.is_multiple_of(3) { Verdict::Chosen } else { Verdict::Rejected };
            assert_eq!((answered, verdict), (&chosen(row), expected));
        }
        // Over the whole step, however it is cut.
        let others = step.micro_batches.iter().flat_map(|batch| &batch.mismatched);
        let others: Vec<_> = others.flat_map(|batch| world.said(batch)).collect();
        assert_eq!(others.len(), said.len());
        for (place, (asked, answered)) in others.iter().enumerate() {
            let before = (place + said.len() - 1) % said.len();
            assert_eq!((asked, answered), (&said[place].0, &said[before].1));
        }
    }
}

#[test]
fn judged_rows_resume_at_every_step_and_are_counted_exactly() {
    let world = World::new();
    for format in [Format::Preference, Format::Kto] {
        let spec = world.spec(format);
        let steps = world.steps(&spec, Position::default());
        for (done, step) in steps.iter().enumerate() {
            assert_eq!(world.steps(&spec, step.position.clone()), steps[done + 1..]);
        }
        let size = survey(&spec, &world.encoder, 128, &|_| {}).unwrap().size;
        assert_eq!(size.steps, steps.len() as u64);
        let first = steps.iter().filter(|step| step.epoch == 0);
        let tokens = first.flat_map(|step| &step.micro_batches).map(|batch| batch.tokens.len());
        assert_eq!(size.tokens, tokens.sum::<usize>() as u64);
    }
}

#[test]
fn a_preference_that_no_window_holds_is_refused_or_left_out() {
    let world = World::new();
    let narrow = Spec { sequence_length: 30, ..world.spec(Format::Preference) };
    let refused = survey(&narrow, &world.encoder, 128, &|_| {}).unwrap_err();
    assert!(matches!(refused, DatasetError::Overlong { .. }), "{refused}");
    let dropped = Spec { overlong: Overlong::Drop, sequence_length: 36, ..narrow };
    let size = survey(&dropped, &world.encoder, 128, &|_| {}).unwrap().size;
    assert!(size.dropped_overlong > 0 && size.windows > 0, "{size:?}");
}
