use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array};
use parquet::data_type::ByteArray;
use parquet::file::statistics::ValueStatistics;

use super::super::plain::Random;
use super::*;
use crate::dataset::consent::{ConsentColumns, Dataset, judge_rows};
use crate::dataset::fixture::{self, DAY, NOW, Row, row};
use crate::dataset::source::{Columns, SourceFile};

const BASES: [Option<&str>; 5] =
    [Some("consent"), Some("contract"), Some("not_personal_data"), Some("guess"), None];
const STATUSES: [Option<&str>; 8] = [
    Some("given"),
    Some("renewed"),
    Some("requested"),
    Some("withdrawn"),
    Some("expired"),
    Some("not_applicable"),
    Some("perhaps"),
    None,
];
const PURPOSES: [&[&str]; 4] = [
    &["dpv:ServiceProvision"],
    &["dpv:ServiceManagement", "dpv:CustomerCare"],
    &["dpv:Advertising"],
    &[],
];
const PROCESSING: [&[&str]; 3] = [&["ai:ModelFineTuning"], &["dpv:MakeAvailable"], &[]];
const ENDS: [Option<i64>; 4] = [Some(NOW + 365 * DAY), Some(NOW + DAY), Some(NOW - DAY), None];
const WITHDRAWN: [Option<i64>; 3] = [None, Some(NOW), Some(NOW + 2 * DAY)];

const NOTHING: [InLedger; 1] = [InLedger::Nothing];
const OF_RECORDS: [InLedger; 2] = [InLedger::Nothing, InLedger::Withdrawn];
const OF_SUBJECTS: [InLedger; 2] = [InLedger::Subjects, InLedger::Withdrawn];

/// Mostly one value, and mostly the first, which lets rows through.
fn values<T: Copy>(random: &mut Random, of: &[T]) -> Vec<T> {
    let count = if random.below(4) == 0 { 2 } else { 1 };
    (0..count).map(|_| if random.below(2) == 0 { of[0] } else { random.one_of(of) }).collect()
}

/// Rows whose columns have few values within a group.
fn group(random: &mut Random, rows: usize) -> Vec<Row> {
    let (bases, statuses) = (values(random, &BASES), values(random, &STATUSES));
    let (purposes, processing) = (values(random, &PURPOSES), values(random, &PROCESSING));
    let (ends, withdrawn) = (values(random, &ENDS), values(random, &WITHDRAWN));
    (0..rows)
        .map(|id| Row {
            basis: random.one_of(&bases),
            status: random.one_of(&statuses),
            purposes: random.one_of(&purposes).to_vec(),
            processing: random.one_of(&processing).to_vec(),
            expires_at: random.one_of(&ends),
            withdrawn_at: random.one_of(&withdrawn),
            ..row(id, "q", "a")
        })
        .collect()
}

#[test]
fn a_group_is_skipped_only_for_the_reason_of_all_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let mut random = Random(11);
    let footers = [
        Some(fixture::FOOTER),
        Some(r#"{"schema":"consent/v1","defaults":{"expiry":"endless"}}"#),
        None,
    ];
    let (mut skipped, mut could) = (0, 0);
    for _ in 0..60 {
        let rows: Vec<Row> = (0..8).flat_map(|_| group(&mut random, 6)).collect();
        fixture::write_batch(&path, &fixture::batch(&rows), 6, random.one_of(&footers));
        let file = SourceFile::open(&path).unwrap();
        let ask = if random.below(4) == 0 {
            Ask { purpose: vec![], ..fixture::ask() }
        } else {
            fixture::ask()
        };
        for number in 0..file.group_rows().len() {
            let batch = file.slices(number, 0, 100, Columns::Consent).next().unwrap().unwrap();
            let columns = ConsentColumns::new(&batch).unwrap();
            let metadata = &file.row_group(number).unwrap();
            for ledger in [&NOTHING[..], &OF_RECORDS, &OF_SUBJECTS] {
                let proved = prune(metadata, file.fields(), &ask, file.defaults(), ledger);
                // The last answer for some rows, the first for the others.
                let gone = |record: &str, _: Option<&_>| {
                    let says = if record.ends_with('3') { ledger.last() } else { ledger.first() };
                    *says.unwrap()
                };
                let verdicts = judge_rows(&columns, &ask, file.defaults(), gone);
                let all = verdicts.iter().all(|verdict| *verdict == verdicts[0]);
                could += usize::from(all && verdicts[0].is_err());
                if let Some(reason) = proved {
                    skipped += 1;
                    assert_eq!(verdicts, [Err(reason); 6], "{metadata:?}");
                }
            }
        }
    }
    // Not much is left unproved that could be skipped.
    assert!(skipped > 200 && skipped * 2 > could, "{skipped} of {could}");
}

/// A file of one group, after a change of its rows.
fn one(change: impl Fn(&mut Row)) -> (tempfile::TempDir, SourceFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let mut rows: Vec<Row> = (0..4).map(|id| row(id, "q", "a")).collect();
    rows.iter_mut().for_each(change);
    fixture::write_rows(&path, &rows, 10);
    (folder, SourceFile::open(&path).unwrap())
}

fn proved(file: &SourceFile, ledger: &[InLedger]) -> Option<Reason> {
    let group = &file.row_group(0).unwrap();
    prune(group, file.fields(), &fixture::ask(), file.defaults(), ledger)
}

#[test]
fn what_all_rows_share_is_proved() {
    type Change = fn(&mut Row);
    for (change, reason) in [
        ((|row| row.status = None) as Change, Reason::Missing),
        (|row| row.expires_at = None, Reason::Missing),
        (|row| row.status = Some("perhaps"), Reason::Unknown),
        (|row| row.status = Some("revoked"), Reason::Withdrawn),
        (|row| row.withdrawn_at = Some(NOW), Reason::Withdrawn),
        (|row| row.status = Some("deferred"), Reason::NotGiven),
        (|row| row.expires_at = Some(NOW), Reason::Expired),
        (|row| row.purposes = vec!["dpv:Advertising", "dpv:Marketing"], Reason::Purpose),
        (|row| row.processing = vec!["dpv:MakeAvailable"], Reason::Processing),
    ] {
        let (_folder, file) = one(change);
        assert_eq!(proved(&file, &NOTHING), Some(reason));
        // Which rows a ledger is about is not in the statistics: only what it says itself is.
        let certain = (reason == Reason::Withdrawn).then_some(reason);
        assert_eq!(proved(&file, &OF_RECORDS), certain);
    }
    let (_folder, file) = one(|_| ());
    assert_eq!(proved(&file, &NOTHING), None);
}

#[test]
fn a_group_without_a_consent_column_is_skipped_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let batch = fixture::batch(&[row(0, "q", "a")]);
    for column in COLUMNS {
        let mut batch = batch.clone();
        batch.remove_column(batch.schema().index_of(column).unwrap());
        fixture::write_batch(&path, &batch, 4, Some(fixture::FOOTER));
        let file = SourceFile::open(&path).unwrap();
        assert_eq!(proved(&file, &NOTHING), Some(Reason::Missing), "{column}");
    }
}

/// The group of `file` with other statistics of a column of texts.
fn lying(file: &SourceFile, column: &str, says: Statistics) -> RowGroupMetaData {
    let group = file.row_group(0).unwrap();
    let columns = group.columns().iter().map(|chunk| {
        let named = chunk.column_path().parts()[0] == column;
        let builder = chunk.clone().into_builder();
        if named { builder.set_statistics(says.clone()) } else { builder }.build().unwrap()
    });
    let columns = columns.collect();
    group.into_builder().set_column_metadata(columns).build().unwrap()
}

fn texts(min: &str, max: &str, nulls: Option<u64>, deprecated: bool) -> Statistics {
    let text = |text: &str| Some(ByteArray::from(text));
    Statistics::ByteArray(ValueStatistics::new(text(min), text(max), None, nulls, deprecated))
}

#[test]
fn statistics_that_lie_cannot_let_a_denied_row_in() {
    let (_folder, file) = one(|row| row.status = Some("withdrawn"));
    for says in [
        texts("given", "given", Some(0), false),
        texts("zzz", "aaa", Some(u64::MAX), false),
        texts("", "", None, true),
        Statistics::ByteArray(ValueStatistics::new(None, None, None, None, false)),
        Statistics::Boolean(ValueStatistics::new(Some(true), Some(true), None, Some(0), false)),
    ] {
        let group = lying(&file, "consent_status", says);
        let (ask, dataset) = (fixture::ask(), file.defaults());
        // It can be skipped or not; either way nobody is used.
        let skipped = prune(&group, file.fields(), &ask, dataset, &NOTHING).is_some();
        let rows = file.slices(0, 0, 100, Columns::Consent).next().unwrap().unwrap();
        let columns = ConsentColumns::new(&rows).unwrap();
        let judged = judge_rows(&columns, &ask, dataset, |_, _| InLedger::Nothing);
        assert!(skipped || judged.iter().all(Result::is_err));
    }
}

#[test]
fn statistics_that_leave_anything_open_prove_nothing() {
    let (_folder, file) = one(|row| row.status = Some("withdrawn"));
    for says in [
        texts("withdrawn", "withdrawn", None, false),
        texts("withdrawn", "withdrawn", Some(1), false),
        texts("given", "withdrawn", Some(0), false),
        texts("withdrawm", "withdrawo", Some(0), false),
        texts("withdrawn", "withdrawn", Some(0), true),
        Statistics::ByteArray(ValueStatistics::new(
            Some(ByteArray::from("withdrawn")),
            None,
            None,
            Some(0),
            false,
        )),
    ] {
        let group = lying(&file, "consent_status", says.clone());
        let proved = prune(&group, file.fields(), &fixture::ask(), file.defaults(), &NOTHING);
        assert_eq!(proved, None, "{says}");
    }
}

#[test]
fn a_column_of_another_type_proves_nothing_about_instants() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let batch = fixture::batch(&[row(0, "q", "a")]);
    fixture::write_batch(&path, &batch, 4, Some(fixture::FOOTER));
    let file = SourceFile::open(&path).unwrap();
    let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let fields: Vec<_> = file
        .fields()
        .iter()
        .map(|field| match field.name().as_str() {
            "consent_expires_at" => {
                Arc::new(field.as_ref().clone().with_data_type(numbers.data_type().clone()))
            }
            _ => field.clone(),
        })
        .collect();
    let group = &file.row_group(0).unwrap();
    let proved = prune(group, &fields.into(), &fixture::ask(), file.defaults(), &NOTHING);
    assert_eq!(proved, None);
    assert!(Dataset::default() != *file.defaults());
}
