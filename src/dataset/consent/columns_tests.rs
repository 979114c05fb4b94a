//! What a column can do to get a row past the gate, or the gate to its knees.

use std::sync::Arc;

use arrow::array::{
    Int32Array, Int64Array, LargeListBuilder, LargeStringBuilder, ListBuilder, NullArray,
    StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema};

use super::*;
use crate::dataset::fixture::{self, Row, row};

const GOOD: Result<(), Reason> = Ok(());

fn rows() -> Vec<Row> {
    (0..3).map(|id| row(id, "question", "answer")).collect()
}

/// The columns of three rows that may be used, one of them replaced or added.
fn with(name: &str, values: ArrayRef) -> RecordBatch {
    let batch = fixture::batch(&rows());
    let schema = batch.schema();
    let fields = schema.fields().iter().map(|field| field.name().clone());
    let mut columns: Vec<(String, ArrayRef)> =
        fields.zip(batch.columns().iter().cloned()).filter(|(known, _)| known != name).collect();
    columns.push((name.to_owned(), values));
    RecordBatch::try_from_iter(columns).unwrap()
}

fn verdicts(batch: &RecordBatch) -> Result<Vec<Result<(), Reason>>, ColumnError> {
    let (ask, dataset) = (fixture::ask(), Dataset::parse(Some(fixture::FOOTER)));
    let columns = ConsentColumns::new(batch)?;
    let verdicts = judge_rows(&columns, &ask, &dataset, |_, _| InLedger::Nothing);
    for (index, verdict) in verdicts.iter().enumerate() {
        assert_eq!(
            super::super::judge(&columns.row(index), &ask, &dataset, InLedger::Nothing),
            *verdict
        );
    }
    Ok(verdicts)
}

/// The message for a column that is replaced.
fn refused(name: &str, values: ArrayRef) -> String {
    let error = verdicts(&with(name, values)).unwrap_err();
    assert!(matches!(error, ColumnError::WrongType { .. }) && error.hint().is_some());
    error.to_string()
}

fn lists(rows: [Option<Vec<Option<&str>>>; 3]) -> ArrayRef {
    let mut builder = ListBuilder::new(StringBuilder::new());
    rows.into_iter().for_each(|row| builder.append_option(row));
    Arc::new(builder.finish())
}

#[test]
fn good_columns_are_good() {
    assert_eq!(verdicts(&fixture::batch(&rows())), Ok(vec![GOOD; 3]));
}

#[test]
fn numbers_for_words_are_refused_in_every_column() {
    for name in COLUMNS.into_iter().chain([RECORD_ID, SOURCE]) {
        let told = refused(name, Arc::new(Int32Array::from(vec![1; 3])));
        assert!(told.contains(name) && told.contains("Int32"), "{told}");
        let told = refused(name, Arc::new(NullArray::new(3)));
        assert!(told.contains("Null"), "{told}");
    }
}

#[test]
fn a_list_where_a_word_should_be_is_refused() {
    let given = || lists([Some(vec![Some("given")]), Some(vec![]), None]);
    for name in ["consent_basis", "consent_status", "consent_record_id", "record_id", SOURCE] {
        let told = refused(name, given());
        assert!(told.contains("List") && told.ends_with("not STRING"), "{told}");
    }
}

#[test]
fn a_word_where_a_list_should_be_is_refused() {
    let words = StringArray::from(vec!["dpv:ServiceProvision"; 3]);
    for name in ["consent_purposes", "consent_processing"] {
        let told = refused(name, Arc::new(words.clone()));
        assert!(told.ends_with("is Utf8, not LIST<STRING>"), "{told}");
    }
    // Nor is a list of lists one of words.
    let mut nested = ListBuilder::new(ListBuilder::new(StringBuilder::new()));
    (0..3).for_each(|_| nested.append_value([Some([Some("dpv:ServiceProvision")])]));
    refused("consent_purposes", Arc::new(nested.finish()));
}

#[test]
fn instants_without_a_zone_are_refused() {
    let naive = TimestampMicrosecondArray::from(vec![fixture::NOW + 365 * fixture::DAY; 3]);
    for name in ["consent_given_at", "consent_expires_at", "consent_withdrawn_at"] {
        let error = verdicts(&with(name, Arc::new(naive.clone()))).unwrap_err();
        assert!(error.to_string().ends_with("not TIMESTAMP(MICROS, UTC)"), "{error}");
        assert!(error.hint().unwrap().contains("without a zone"), "{error:?}");
        let text = StringArray::from(vec!["2099-01-01T00:00:00Z"; 3]);
        refused(name, Arc::new(text));
        refused(name, Arc::new(Int64Array::from(vec![i64::MAX; 3])));
    }
}

#[test]
fn a_consent_value_nobody_defined_is_counted_as_unknown() {
    let words = StringArray::from(vec!["given", "of course", "g\u{0131}ven"]);
    let found = verdicts(&with("consent_status", Arc::new(words))).unwrap();
    assert_eq!(found, [GOOD, Err(Reason::Unknown), Err(Reason::Unknown)]);
    let words = StringArray::from(vec!["consent", "CONSENT", "consent\0"]);
    let found = verdicts(&with("consent_basis", Arc::new(words))).unwrap();
    assert_eq!(found, [GOOD, Err(Reason::Unknown), Err(Reason::Unknown)]);
}

#[test]
fn a_null_list_is_missing_and_a_null_in_a_list_allows_nothing() {
    let purposes =
        lists([None, Some(vec![None, None]), Some(vec![None, Some("dpv:ServiceProvision")])]);
    let found = verdicts(&with("consent_purposes", purposes)).unwrap();
    assert_eq!(found, [Err(Reason::Missing), Err(Reason::Purpose), GOOD]);
}

#[test]
fn large_lists_and_slices_of_batches_are_judged_by_their_own_rows() {
    let mut builder = LargeListBuilder::new(LargeStringBuilder::new());
    builder.append_value([Some("dpv:CustomerCare")]);
    builder.append_value([Some("dpv:ServiceManagement")]);
    builder.append_value([Some("dpv:Purpose")]);
    let batch = with("consent_purposes", Arc::new(builder.finish()));
    let expected = [Err(Reason::Purpose), GOOD, Err(Reason::Purpose)];
    assert_eq!(verdicts(&batch).unwrap(), expected);
    for first in 0..3 {
        assert_eq!(verdicts(&batch.slice(first, 3 - first)).unwrap(), expected[first..]);
    }
    assert_eq!(verdicts(&batch.slice(3, 0)).unwrap(), []);
}

#[test]
fn an_absent_column_leaves_every_row_missing() {
    for name in COLUMNS {
        let mut batch = fixture::batch(&rows());
        batch.remove_column(batch.schema().index_of(name).unwrap());
        assert_eq!(verdicts(&batch).unwrap(), [Err(Reason::Missing); 3], "{name}");
    }
}

#[test]
fn a_second_column_of_the_same_name_is_refused() {
    for name in COLUMNS.into_iter().chain([RECORD_ID]) {
        let batch = fixture::batch(&rows());
        let again = batch.column_by_name(name).unwrap().clone();
        let field = Field::new(name, again.data_type().clone(), true);
        let schema = batch.schema();
        let fields = schema.fields().iter().cloned().chain([Arc::new(field)]);
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let columns = batch.columns().iter().cloned().chain([again]).collect();
        let batch = RecordBatch::try_new(schema, columns).unwrap();
        assert_eq!(verdicts(&batch), Err(ColumnError::Twice { column: name }));
    }
}

#[test]
fn a_row_without_a_name_is_refused_for_it_could_not_be_withdrawn() {
    let ids = StringArray::from(vec![Some("a"), None, Some("c")]);
    let error = verdicts(&with(RECORD_ID, Arc::new(ids))).unwrap_err();
    assert_eq!(error, ColumnError::NullRecordId { row: 1 });
    let mut batch = fixture::batch(&rows());
    batch.remove_column(batch.schema().index_of(RECORD_ID).unwrap());
    assert_eq!(verdicts(&batch), Err(ColumnError::NoRecordId));
}

#[test]
fn a_subject_in_another_encoding_cannot_hide_from_the_ledger() {
    let text = StringArray::from(vec!["07".repeat(32); 3]);
    assert!(refused(SUBJECT, Arc::new(text)).ends_with("not FIXED_LEN_BYTE_ARRAY(32)"));
    let short = FixedSizeBinaryArray::try_from_iter([[7_u8; 31]; 3].into_iter()).unwrap();
    refused(SUBJECT, Arc::new(short));
    let subjects = [Some([7_u8; 32]), None, Some([8; 32])].into_iter();
    let subjects = FixedSizeBinaryArray::try_from_sparse_iter_with_size(subjects, 32).unwrap();
    let batch = with(SUBJECT, Arc::new(subjects));
    let columns = ConsentColumns::new(&batch).unwrap();
    let (ask, dataset) = (fixture::ask(), Dataset::parse(Some(fixture::FOOTER)));
    let of_subject = judge_rows(&columns, &ask, &dataset, |_, subject| {
        if subject == Some(&[8; 32]) { InLedger::Withdrawn } else { InLedger::Nothing }
    });
    assert_eq!(of_subject, [GOOD, GOOD, Err(Reason::Withdrawn)]);
    let of_record = judge_rows(&columns, &ask, &dataset, |record, _| {
        if record == "row-0001" { InLedger::Withdrawn } else { InLedger::Nothing }
    });
    assert_eq!(of_record, [GOOD, Err(Reason::Withdrawn), GOOD]);
}

/// Whoever drops the column, or empties it, must not get the rows of a subject who has
/// withdrawn past the ledger.
#[test]
fn rows_that_do_not_say_whose_they_are_cannot_hide_from_a_withdrawal_by_a_subject() {
    let (ask, dataset) = (fixture::ask(), Dataset::parse(Some(fixture::FOOTER)));
    let judged = |batch: &RecordBatch, ledger| {
        let columns = ConsentColumns::new(batch).unwrap();
        let verdicts = judge_rows(&columns, &ask, &dataset, |_, _| ledger);
        let single = super::super::judge(&columns.row(0), &ask, &dataset, ledger);
        assert_eq!(single, verdicts[0]);
        verdicts
    };
    let mut without = fixture::batch(&rows());
    without.remove_column(without.schema().index_of(SUBJECT).unwrap());
    for ledger in [InLedger::Nothing, InLedger::Subjects] {
        assert_eq!(judged(&without, ledger), [Err(Reason::Missing); 3], "{ledger:?}");
    }
    let subjects = [Some([7_u8; 32]), None, Some([8; 32])].into_iter();
    let subjects = FixedSizeBinaryArray::try_from_sparse_iter_with_size(subjects, 32).unwrap();
    let named = with(SUBJECT, Arc::new(subjects));
    assert_eq!(judged(&named, InLedger::Subjects), [GOOD, Err(Reason::Missing), GOOD]);
    assert_eq!(judged(&named, InLedger::Nothing), [GOOD; 3]);
    assert_eq!(judged(&named, InLedger::Withdrawn), [Err(Reason::Withdrawn); 3]);
}

#[test]
fn an_ask_of_more_terms_than_bits_is_answered_alike() {
    let batch = fixture::batch(&rows());
    let columns = ConsentColumns::new(&batch).unwrap();
    let dataset = Dataset::parse(Some(fixture::FOOTER));
    for terms in [0, 1, 63, 64, 65, 200] {
        let purpose = vec!["dpv:ServiceProvision".to_owned(); terms];
        let mut ask = Ask { purpose, ..fixture::ask() };
        let expected = if terms == 0 { Err(Reason::Purpose) } else { GOOD };
        assert_eq!(
            judge_rows(&columns, &ask, &dataset, |_, _| InLedger::Nothing),
            [expected; 3],
            "{terms}"
        );
        ask.purpose.push("dpv:Marketing".to_owned());
        let refused = [Err(Reason::Purpose); 3];
        assert_eq!(
            judge_rows(&columns, &ask, &dataset, |_, _| InLedger::Nothing),
            refused,
            "{terms}"
        );
    }
}

#[test]
fn other_columns_are_nobodys_business() {
    let other: ArrayRef = Arc::new(Int32Array::from(vec![1; 3]));
    assert_eq!(verdicts(&with("consent_something_else", other)), Ok(vec![GOOD; 3]));
}
