use std::sync::Arc;

use arrow::array::{
    Int64Array, LargeStringArray, StringViewArray, TimestampMicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray,
};

use super::*;

#[test]
fn texts_are_taken_however_they_are_encoded() {
    let words = [Some("given"), None, Some("given"), Some("")];
    let plain: ArrayRef = Arc::new(StringArray::from_iter(words));
    let coded = |keys: DataType| {
        cast(&plain, &DataType::Dictionary(keys.into(), DataType::Utf8.into())).unwrap()
    };
    for column in [
        plain.clone(),
        Arc::new(LargeStringArray::from_iter(words)),
        Arc::new(StringViewArray::from_iter(words)),
        coded(DataType::Int8),
        coded(DataType::UInt32),
        coded(DataType::Int64),
    ] {
        let texts = Texts::new(&column).unwrap();
        assert_eq!((0..5).map(|row| texts.get(row)).collect::<Vec<_>>()[..4], words);
        assert_eq!(texts.get(4), None, "beyond the end");
        assert_eq!(texts.ask(1, 9, str::len), [None, Some(5), Some(0)]);
    }
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    assert!(Texts::new(&numbers).is_none());
}

#[test]
fn more_distinct_texts_than_are_remembered_are_answered_alike() {
    let words: Vec<String> = (0..500).map(|n| "x".repeat(n * 7 % 41)).collect();
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(&words));
    let answers = Texts::new(&column).unwrap().ask(0, words.len(), str::len);
    let lengths: Vec<_> = words.iter().map(|word| Some(word.len())).collect();
    assert_eq!(answers, lengths);
}

#[test]
fn instants_compare_as_the_calendar_does_in_every_unit() {
    let limits = [
        Timestamp::MIN,
        Timestamp::from_nanosecond(-1_500_000_001).unwrap(),
        Timestamp::UNIX_EPOCH,
        Timestamp::from_nanosecond(1_500_000_000).unwrap(),
        Timestamp::from_nanosecond(1_500_000_001).unwrap(),
        Timestamp::MAX,
    ];
    let near = [-2_000_000_000, -1_500_000_001, -2, -1, 0, 1, 2, 1500, 1_500_000, 1_500_000_001];
    let values: Vec<i64> = near.into_iter().chain([i64::MIN, i64::MAX]).collect();
    let columns: [ArrayRef; 4] = [
        Arc::new(TimestampSecondArray::from(values.clone()).with_timezone("UTC")),
        Arc::new(TimestampMillisecondArray::from(values.clone()).with_timezone("UTC")),
        Arc::new(TimestampMicrosecondArray::from(values.clone()).with_timezone("+02:00")),
        Arc::new(TimestampNanosecondArray::from(values.clone()).with_timezone("UTC")),
    ];
    for column in columns {
        let instants = Instants::new(&column).unwrap();
        for limit in limits {
            for (row, value) in values.iter().enumerate() {
                let expected = instants.get(row).map(|at| at <= limit);
                let found = instants.is_by(row, &Limit::new(limit));
                assert_eq!(found, expected, "{value} {limit} {:?}", column.data_type());
            }
        }
        assert_eq!(instants.get(values.len()), None);
    }
}

#[test]
fn instants_without_a_zone_are_not_taken() {
    let column: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0]));
    assert!(Instants::new(&column).is_none());
}
