//! No row that may not be used reaches a batch, and no other is lost on the way: random rows,
//! files and ledgers against the rules written plainly (`consent::plain`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow::array::{ArrayRef, StringArray};
use arrow::record_batch::RecordBatch;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::consent::plain::{Random, Row, Run, ask, batch, footer, plainly, word};
use super::super::fixture::{self, TEMPLATE};
use super::super::gate::Gate;
use super::super::survey::survey;
use super::*;
use crate::files::sha256_of_bytes;
use crate::recipe::lock::Split;
use crate::recipe::{Overlong, Packing, StoppingStrategy, SurveyOf, TrainOn};

/// How many data sets are drawn; [`CASES_VARIABLE`] asks for more.
const CASES: u64 = 400;
const CASES_VARIABLE: &str = "HEIRLOOM_STREAM_CASES";

/// Two files of rows, and the ledgers of their withdrawals.
struct Case {
    run: Run,
    /// Rows of each file, with the numbers that their texts spell.
    files: [Vec<(usize, Row)>; 2],
    paths: [PathBuf; 2],
    ledgers: Vec<PathBuf>,
}

impl Case {
    fn draw(random: &mut Random, folder: &Path) -> Self {
        let run = random.run();
        let mut rows: Vec<Row> = (0..2 + random.below(40)).map(|_| random.row(&run)).collect();
        // All of somebody's rows are withdrawn by one event.
        let subject = run.by_subject;
        for row in &mut rows {
            row.in_ledger |= subject && row.subject;
        }
        if random.percent(50) {
            // Alike beside alike, so that statistics prove something of whole row groups.
            rows.sort_by_key(|row| plainly(row, &run));
        }
        let numbered: Vec<(usize, Row)> = rows.into_iter().enumerate().collect();
        let (first, second) = numbered.split_at(random.below(numbered.len() + 1));
        let files = [first.to_vec(), second.to_vec()];
        let paths = ["a.parquet", "b.parquet"].map(|name| folder.join(name));
        for (rows, path) in files.iter().zip(&paths) {
            let coded = random.percent(50);
            let group_rows = 1 + random.below(9);
            write(path, rows, &run, coded, group_rows);
        }
        let mut case = Self { run, files, paths, ledgers: Vec::new() };
        case.write_ledgers(random, folder, subject);
        case
    }

    fn rows(&self) -> impl Iterator<Item = &(usize, Row)> {
        self.files.iter().flatten()
    }

    /// What each row is worth, by the plain rules.
    fn verdicts(&self) -> BTreeMap<usize, &'static str> {
        self.rows().map(|(number, row)| (*number, plainly(row, &self.run))).collect()
    }

    /// Events on the rows that are withdrawn, among others that concern none of these.
    fn write_ledgers(&mut self, random: &mut Random, folder: &Path, subject: bool) {
        let at = |micros| Timestamp::from_microsecond(micros).unwrap().to_string();
        let (end, later) = (at(self.run.end), at(self.run.end + 1));
        let of = |record: Value, subject: Value, from: &str| (record, subject, from.to_owned());
        let mut events = vec![of(json!("somebody else's"), Value::Null, &end)];
        if subject {
            events.push(of(Value::Null, json!("07".repeat(32)), &end));
        }
        for (number, row) in self.files.iter().flatten() {
            if row.in_ledger && !(subject && row.subject) {
                events.push(of(json!(id(*number)), Value::Null, &end));
            } else if !row.in_ledger && random.percent(5) {
                // It binds only after the run.
                events.push(of(json!(id(*number)), Value::Null, &later));
            }
        }
        // As docs/concepts/withdrawal.md says that they are written.
        let mut ledgers = [Vec::<String>::new(), Vec::new()];
        while !events.is_empty() {
            let (record, subject, from) = events.swap_remove(random.below(events.len()));
            let lines = &mut ledgers[random.below(2)];
            let before = lines.last().map(|line| sha256_of_bytes(line.as_bytes()));
            let line = json!({
                "seq": lines.len() + 1, "event_id": uuid::Uuid::from_u128(1).urn().to_string(),
                "record_id": record, "subject_ref": subject, "event": "withdrawn",
                "scope": {"purposes": ["*"], "processing": ["*"]}, "effective_at": from,
                "recorded_at": end, "evidence_sha256": null,
                "prev_sha256": before.unwrap_or_else(|| "0".repeat(64)),
            });
            lines.push(line.to_string());
        }
        for (name, lines) in ["one.jsonl", "two.jsonl"].iter().zip(ledgers) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            self.ledgers.push(fixture::write(&folder.join(name), text.as_bytes()));
        }
    }

    fn spec(&self, random: &mut Random) -> Spec {
        let gate = Gate::open(ask(&self.run), &self.ledgers).unwrap();
        let file = |(source, path): (usize, &PathBuf)| SplitFile {
            source,
            ..fixture::split_file(Split::Train, path.clone())
        };
        let packing = [Packing::BestFit, Packing::FirstFitDecreasing, Packing::None];
        Spec {
            files: self.paths.iter().enumerate().map(file).collect(),
            gate: Arc::new(gate),
            sequence_length: 64,
            packing: random.one_of(&packing),
            overlong: Overlong::Refuse,
            mask: TrainOn::Assistant.into(),
            weights: Vec::new(),
            stopping: StoppingStrategy::AllExhausted,
            validation_split: 0.0,
            survey: SurveyOf::All,
            seed: 1,
            shuffle_seed: random.percent(75).then(|| random.next()),
            windows_per_step: 1 + random.below(4),
            micro_batch_tokens: 1 + random.below(200),
            epochs: 2,
            max_steps: None,
            max_new_tokens: BTreeMap::new(),
        }
    }
}

fn id(number: usize) -> String {
    format!("row-{number:04}")
}

/// Writes rows with ids and texts that spell their numbers.
fn write(path: &Path, rows: &[(usize, Row)], run: &Run, coded: bool, group_rows: usize) {
    let bare: Vec<Row> = rows.iter().map(|(_, row)| row.clone()).collect();
    let consent = batch(&bare, run, coded);
    let said = |(number, _): &(usize, Row)| {
        fixture::row(*number, "q", &format!("{number:04}{}", "x".repeat(number * 7 % 23)))
    };
    let said: Vec<fixture::Row> = rows.iter().map(said).collect();
    let messages = fixture::batch(&said).column_by_name("messages").unwrap().clone();
    let ids: StringArray = rows.iter().map(|(number, _)| Some(id(*number))).collect();
    let schema = consent.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let columns = names.zip(consent.columns().iter().cloned());
    let columns = columns.filter(|(name, _)| *name != "record_id");
    let ours = [("record_id", Arc::new(ids) as ArrayRef), ("messages", messages)];
    let batch = RecordBatch::try_from_iter(ours.into_iter().chain(columns)).unwrap();
    fixture::write_batch(path, &batch, group_rows, footer(run.said).as_deref());
}

/// The numbers that a pass visits.
fn visited(encoder: &ChatEncoder, steps: &[Step], epoch: u32) -> Vec<usize> {
    let mut numbers = Vec::new();
    for batch in steps.iter().filter(|step| step.epoch == epoch).flat_map(|s| &s.micro_batches) {
        let mut start = 0;
        for length in &batch.lengths {
            let document = start..start + *length as usize;
            start = document.end;
            let text = encoder.decode(&batch.tokens[document]).unwrap();
            // Whole, so that nothing of another row hides in it.
            let (_, answer) = text.split_once("q\n").unwrap_or_else(|| panic!("{text}"));
            numbers.push(answer.trim_start()[..4].parse().unwrap());
        }
    }
    numbers.sort_unstable();
    numbers
}

#[test]
fn no_row_that_may_not_be_used_reaches_a_batch() {
    let cases = std::env::var(CASES_VARIABLE).ok().and_then(|cases| cases.parse().ok());
    let cases: u64 = cases.unwrap_or(CASES);
    let base = tempfile::tempdir().unwrap();
    fixture::base_folder(base.path(), TEMPLATE);
    let encoder = Arc::new(ChatEncoder::open(base.path()).unwrap());
    let mut met = BTreeMap::<&str, usize>::new();
    let mut empty = 0_u64;
    for seed in 0..cases {
        let (folder, mut random) = (tempfile::tempdir().unwrap(), Random(seed));
        let case = Case::draw(&mut random, folder.path());
        let verdicts = case.verdicts();
        verdicts.values().for_each(|verdict| *met.entry(verdict).or_default() += 1);
        let used = verdicts.iter().filter(|(_, verdict)| **verdict == "used");
        let used: Vec<usize> = used.map(|(number, _)| *number).collect();
        let spec = case.spec(&mut random);

        let surveyed = survey(&spec, &encoder, usize::MAX, &|_| {});
        if used.is_empty() {
            let error = surveyed.unwrap_err();
            assert!(matches!(error, DatasetError::NoRowLeft { .. }), "{seed}: {error:?}");
            empty += 1;
        } else {
            let surveyed = surveyed.unwrap();
            for (file, rows) in surveyed.files.iter().zip(&case.files) {
                assert_eq!(file.rows.seen, rows.len() as u64, "{seed}");
                for (number, _) in rows {
                    let verdict = verdicts[number];
                    let alike = rows.iter().filter(|(other, _)| verdicts[other] == verdict);
                    let found = match verdict {
                        "used" => file.rows.used,
                        reason => {
                            let mut excluded = file.rows.excluded.iter();
                            *excluded.find(|(known, _)| word(Err(**known)) == reason).unwrap().1
                        }
                    };
                    assert_eq!(found, alike.count() as u64, "{seed}: {verdict}");
                }
            }
        }

        let stream = Stream::open(spec, encoder.clone(), Position::default()).unwrap();
        let steps: Result<Vec<Step>, DatasetError> = stream.collect();
        match steps {
            Ok(steps) => {
                for epoch in 0..2 {
                    assert_eq!(visited(&encoder, &steps, epoch), used, "{seed}");
                }
            }
            Err(error) => {
                let nothing = matches!(
                    error,
                    DatasetError::NoRowLeft { .. } | DatasetError::EmptySource { .. }
                );
                assert!(used.is_empty() && nothing, "{seed}: {error:?}");
            }
        }
    }
    // Every verdict is met, and not only by the way.
    assert_eq!(met.len(), 8, "{met:?}");
    assert!(met.values().all(|rows| *rows >= 20), "{met:?}");
    assert!(empty * 2 < cases, "{empty} of {cases} data sets were nobody's");
}
