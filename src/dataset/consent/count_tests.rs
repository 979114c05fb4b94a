use std::path::{Path, PathBuf};

use super::*;
use crate::dataset::fixture::{self, NOW, Row, row};

/// Groups of four: one that is wholly used, one that is mixed, one that is wholly withdrawn.
fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = (0..12).map(|id| row(id, "question", "answer")).collect();
    rows[4].purposes = vec![];
    rows[5].withdrawn_at = Some(NOW);
    rows[8..].iter_mut().for_each(|row| row.status = Some("withdrawn"));
    rows
}

fn nothing(_: &str, _: Option<&[u8; 32]>) -> InLedger {
    InLedger::Nothing
}

fn write(folder: &Path) -> PathBuf {
    let path = folder.join("rows.parquet");
    fixture::write_rows(&path, &rows(), 4);
    path
}

#[test]
fn a_file_is_counted_with_and_without_a_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let file = SourceFile::open(&write(folder.path())).unwrap();
    let counts = count(&file, &fixture::ask(), &[InLedger::Nothing], &nothing).unwrap();
    assert_eq!((counts.seen, counts.used), (12, 6));
    let excluded: Vec<_> = counts.excluded.into_iter().collect();
    assert_eq!(excluded, [(Reason::Withdrawn, 5), (Reason::Purpose, 1)]);
    let ledger = |record: &str, _: Option<&[u8; 32]>| match record {
        "row-0000" | "row-0004" => InLedger::Withdrawn,
        _ => InLedger::Nothing,
    };
    let may = [InLedger::Nothing, InLedger::Withdrawn];
    let counts = count(&file, &fixture::ask(), &may, &ledger).unwrap();
    assert_eq!((counts.seen, counts.used), (12, 5));
    assert_eq!(counts.excluded, [(Reason::Withdrawn, 7)].into());
}

#[test]
fn a_row_is_found_by_its_id_as_often_as_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let mut rows = rows();
    rows[11].id = "row-0001".to_owned();
    fixture::write_rows(&path, &rows, 4);
    let file = SourceFile::open(&path).unwrap();
    let statuses = |id: &str| find(&file, id, |row, _, _| row.status.map(str::to_owned)).unwrap();
    assert_eq!(statuses("row-0001"), [Some("given".to_owned()), Some("withdrawn".to_owned())]);
    assert!(statuses("row-9999").is_empty());
}

#[test]
fn invalid_utf8_in_a_consent_column_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path());
    let bytes = fs_err::read(&path).unwrap();
    // Every place where the word stands, in dictionaries as in statistics.
    for word in [&b"consent"[..], b"given", b"dpv:ServiceProvision", b"row-0000"] {
        let places: Vec<usize> =
            (0..bytes.len() - word.len()).filter(|at| bytes[*at..].starts_with(word)).collect();
        assert!(!places.is_empty());
        let mut broken = bytes.clone();
        places.iter().for_each(|at| broken[*at + 1] = 0xff);
        fixture::write(&path, &broken);
        let counted = SourceFile::open(&path)
            .and_then(|f| count(&f, &fixture::ask(), &[InLedger::Nothing], &nothing));
        // Refused, or at least nobody used by such a word.
        assert!(counted.is_err(), "{} in {places:?}", String::from_utf8_lossy(word));
    }
}

#[test]
fn damage_anywhere_never_panics_and_never_adds_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path());
    let bytes = fs_err::read(&path).unwrap();
    for place in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x55;
        fixture::write(&path, &damaged);
        let Ok(file) = SourceFile::open(&path) else { continue };
        if let Ok(counts) = count(&file, &fixture::ask(), &[InLedger::Nothing], &nothing) {
            assert_eq!(counts.seen, file.group_rows().iter().sum::<u64>());
            assert_eq!(counts.seen, counts.used + counts.excluded.values().sum::<u64>());
        }
    }
}
