use arrow::record_batch::RecordBatch;

use super::columns::REQUIRED;
use super::*;
use crate::dataset::consent::Reason;
use crate::dataset::error::DatasetError;
use crate::dataset::fixture::{self, Row, row};
use crate::dataset::sample::Sample;
use crate::diagnose::Diagnose;

fn rows(count: usize) -> Vec<Row> {
    (0..count).map(|id| row(id, "question", "answer")).collect()
}

/// A folder with one file `rows.parquet` of ten rows in groups of four.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    fixture::write_rows(&path, &rows(10), 4);
    (folder, path)
}

#[test]
fn row_groups_are_read_one_by_one() {
    let (_folder, path) = folder();
    let file = SourceFile::open(&path).unwrap();
    assert_eq!(file.group_rows(), [4, 4, 2]);
    let group = fixture::read(&path, 2);
    assert_eq!((group.len(), group.row_in_file(1)), (2, 9));
    assert_eq!(group.record_id(1), "row-0009");
    let Sample::Conversation(chat) = group.sample(1).unwrap() else { panic!("no chat") };
    let said = |key: &str| chat.messages[1].get(key).and_then(serde_json::Value::as_str);
    assert_eq!((said("role"), said("content")), (Some("assistant"), Some("answer")));
    let consent = group.consent().row(1);
    assert_eq!(consent.purposes, Some(vec!["dpv:ServiceProvision"]));
    assert_eq!(group.verdict(1), Ok(()));
}

#[test]
fn every_codec_of_parquet_but_lzo_is_read() {
    use parquet::basic::Compression;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let many = "again and again ".repeat(40);
    let batch = fixture::batch(&[row(7, &many, "answer")]);
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ] {
        let group = fixture::read(&fixture::write_coded(&path, &batch, codec), 0);
        let Sample::Conversation(chat) = group.sample(0).unwrap() else { panic!("no chat") };
        let asked = chat.messages[0].get("content").and_then(serde_json::Value::as_str);
        assert_eq!(asked, Some(many.as_str()), "{codec}");
    }
}

#[test]
fn a_key_that_stands_twice_in_a_footer_stops_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let batch = fixture::batch(&rows(1));
    for (footer, key) in [
        (r#"{"schema":"consent/v1","ledger":"w.jsonl","ledger":null}"#, "ledger"),
        (r#"{"schema":"consent/v1","defaults":{"expiry":"P1D","expiry":"endless"}}"#, "expiry"),
    ] {
        fixture::write_batch(&path, &batch, 4, Some(footer));
        let error = SourceFile::open(&path).unwrap_err();
        let told = format!("the footer of `{}` has the key `{key}` twice", path.display());
        assert!(error.to_string().starts_with(&told) && error.hint().is_some(), "{error}");
    }
    fixture::write_batch(&path, &batch, 4, Some("no JSON at all"));
    assert!(!SourceFile::open(&path).unwrap().defaults().is_known());
}

#[test]
fn globs_are_sorted_and_name_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.parquet", "a.parquet", "x[1].parquet"] {
        fixture::write(&folder.path().join(name), b"");
    }
    fs::create_dir(folder.path().join("c.parquet")).unwrap();
    let names = |pattern: &str| -> Vec<String> {
        let files = resolve(folder.path().join(pattern).to_str().unwrap()).unwrap();
        files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names("*.parquet"), ["a.parquet", "b.parquet", "x[1].parquet"]);
    assert_eq!(names("x[1].parquet"), ["x[1].parquet"]);
    assert!(matches!(resolve("/nowhere/*.parquet"), Err(SourceError::NoMatch { .. })));
    assert!(matches!(resolve("a/***"), Err(SourceError::Pattern { .. })));
}

#[test]
fn a_missing_consent_column_leaves_every_row_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    for column in consent::COLUMNS {
        let mut batch = fixture::batch(&rows(2));
        batch.remove_column(batch.schema().index_of(column).unwrap());
        fixture::write_batch(&path, &batch, 4, Some(fixture::FOOTER));
        let group = fixture::read(&path, 0);
        let verdict = group.verdict(0);
        assert_eq!(verdict, Err(Reason::Missing), "{column}");
    }
}

#[test]
fn a_row_about_nobody_that_names_somebody_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let mut rows = rows(2);
    for row in &mut rows {
        (row.basis, row.status) = (Some("not_personal_data"), Some("not_applicable"));
    }
    let batch = fixture::batch(&rows);
    let subjects = [Some([7; 32]), None].into_iter();
    let subjects =
        arrow::array::FixedSizeBinaryArray::try_from_sparse_iter_with_size(subjects, 32).unwrap();
    let mut columns: Vec<(String, arrow::array::ArrayRef)> = batch
        .schema()
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, values)| (field.name().clone(), values.clone()))
        .filter(|(name, _)| name != "subject_ref")
        .collect();
    columns.push(("subject_ref".to_owned(), std::sync::Arc::new(subjects)));
    let source = arrow::array::StringArray::from(vec!["letters"; 2]);
    columns.push(("source_id".to_owned(), std::sync::Arc::new(source)));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let footer = r#"{"schema":"consent/v1","sources":{"letters":{"justification":"by a rule"}}}"#;
    fixture::write_batch(&path, &batch, 4, Some(footer));
    let group = fixture::read(&path, 0);
    let verdict = |row| group.verdict(row);
    assert_eq!((verdict(0), verdict(1)), (Err(Reason::Unknown), Ok(())));
}

#[test]
fn a_missing_column_is_named_with_those_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    for column in REQUIRED {
        let mut batch = fixture::batch(&rows(2));
        batch.remove_column(batch.schema().index_of(column).unwrap());
        fixture::write_batch(&path, &batch, 4, None);
        let error = SourceFile::open(&path).unwrap_err();
        assert!(error.to_string().contains(column), "{error}");
        assert!(error.hint().unwrap().contains("`consent_basis`"), "{error:?}");
    }
}

#[test]
fn a_column_of_another_type_is_named_with_both_types() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    for column in REQUIRED.into_iter().chain(consent::COLUMNS) {
        let batch = fixture::batch(&rows(1));
        let numbers = arrow::array::Int32Array::from(vec![1]);
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).map(|(field, values)| {
            let replaced = field.name() == column;
            let values =
                if replaced { std::sync::Arc::new(numbers.clone()) } else { values.clone() };
            (field.name().clone(), values)
        });
        let columns: Vec<(String, arrow::array::ArrayRef)> = columns.collect();
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        fixture::write_batch(&path, &batch, 4, None);
        let error = SourceFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(column) && error.contains("Int32"), "{error}");
    }
}

#[test]
fn null_messages_are_an_error_only_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let mut rows = rows(3);
    rows[2].messages.clear();
    fixture::write_rows(&path, &rows, 2);
    let group = fixture::read(&path, 1);
    assert_eq!(group.consent().row(0).status, Some("given"));
    let error = group.sample(0).unwrap_err();
    assert!(matches!(error, DatasetError::Format { row: 2, .. }), "{error:?}");
}

#[test]
fn instants_beyond_the_calendar_keep_their_side() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let mut rows = rows(2);
    (rows[0].expires_at, rows[1].withdrawn_at) = (Some(i64::MIN), Some(i64::MIN));
    fixture::write_rows(&path, &rows, 2);
    let group = fixture::read(&path, 0);
    let verdict = |row| group.verdict(row);
    assert_eq!(verdict(0), Err(Reason::Expired));
    assert_eq!(verdict(1), Err(Reason::Withdrawn));
}

#[test]
fn a_file_that_is_not_parquet_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for bytes in [&b""[..], b"PAR1", b"{\"messages\": []}\n", &[0; 4096]] {
        let path = fixture::write(&folder.path().join("rows.parquet"), bytes);
        let error = SourceFile::open(&path).unwrap_err();
        assert!(matches!(&error, SourceError::NotParquet { .. }), "{error:?}");
        assert!(error.to_string().contains("rows.parquet"), "{error}");
    }
    let absent = SourceFile::open(&folder.path().join("absent.parquet")).unwrap_err();
    assert!(matches!(&absent, SourceError::Read(error) if error.to_string().contains("absent")));
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    let (_folder, path) = folder();
    let bytes = fs_err::read(&path).unwrap();
    for length in (0..bytes.len()).step_by(97) {
        fixture::write(&path, &bytes[..length]);
        assert!(SourceFile::open(&path).is_err(), "{length}");
    }
}

#[test]
fn a_damaged_file_never_panics() {
    let (_folder, path) = folder();
    let bytes = fs_err::read(&path).unwrap();
    for place in (0..bytes.len()).step_by(11) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0xff;
        fixture::write(&path, &damaged);
        let Ok(file) = SourceFile::open(&path) else { continue };
        for group in 0..file.group_rows().len() {
            let Ok(group) = fixture::try_read(&path, group) else { continue };
            for row in 0..group.len() {
                let _ = group.verdict(row);
                let _ = group.sample(row);
            }
        }
    }
}

#[test]
fn a_folder_and_a_pipe_are_no_files_and_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.parquet");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    for (path, what) in [(folder.path(), "a folder"), (&pipe, "a pipe or a device")] {
        let opened = SourceFile::open(path).unwrap_err();
        let resolved = resolve(path.to_str().unwrap()).unwrap_err();
        for error in [opened, resolved] {
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.hint().unwrap().contains("*.parquet"), "{error:?}");
        }
    }
    assert!(matches!(
        resolve(folder.path().join("*.parquet").to_str().unwrap()),
        Err(SourceError::NoMatch { .. })
    ));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("loop.parquet");
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let error = SourceFile::open(&path).unwrap_err();
    assert!(matches!(&error, SourceError::Read(error) if error.to_string().contains("loop")));
}
