use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::AsArray;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::{ParquetMetaDataReader, ParquetMetaDataWriter};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::reader::Length;

use super::*;
use crate::dataset::fixture::{self, Row, row};
use crate::dataset::source::{Columns, SourceFile};

const ROWS: usize = 1000;

fn rows() -> Vec<Row> {
    (0..ROWS).map(|id| row(id, &format!("question {id} {}", "x".repeat(id % 200)), "yes")).collect()
}

/// Two groups of pages of about 50 rows.
fn write(path: &std::path::Path, version: WriterVersion, index: bool) {
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_max_row_group_row_count(Some(700))
        .set_data_page_row_count_limit(50)
        // Else the dictionary of a column without repetitions is the whole column.
        .set_dictionary_enabled(false)
        .set_write_batch_size(10)
        .set_offset_index_disabled(!index)
        .set_statistics_enabled(if index {
            EnabledStatistics::Page
        } else {
            EnabledStatistics::Chunk
        })
        .build();
    let batch = fixture::batch(&rows());
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    fixture::write(path, &bytes);
}

fn ids(slices: Slices) -> Vec<String> {
    let ids = |slice: RecordBatch| -> Vec<String> {
        let ids = slice.column_by_name("record_id").unwrap().as_string::<i32>().clone();
        ids.iter().map(|id| id.unwrap().to_owned()).collect()
    };
    slices.flat_map(|slice| ids(slice.unwrap())).collect()
}

#[test]
fn slices_are_the_rows_from_any_row_on_with_and_without_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for index in [true, false] {
            write(&path, version, index);
            let file = SourceFile::open(&path).unwrap();
            assert_eq!((file.group_rows(), file.first_row(1)), (&[700, 300][..], 700));
            for group in 0..2 {
                let first = file.first_row(group) as usize;
                let count = file.group_rows()[group] as usize;
                for skip in [0, 1, 49, 50, 51, 299, 300, 650, 699, 700, 5000] {
                    let expected: Vec<String> =
                        (skip.min(count)..count).map(|r| format!("row-{:04}", first + r)).collect();
                    for size in [1, 64, 10_000] {
                        let columns = Columns::And(&["messages"]);
                        let slices = file.slices(group, skip as u64, size, columns);
                        assert_eq!(ids(slices), expected, "{version:?} {index} {skip} {size}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_slice_is_never_larger_than_asked_and_zero_rows_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write(&path, WriterVersion::PARQUET_1_0, true);
    let file = SourceFile::open(&path).unwrap();
    let sizes = |rows| -> Vec<usize> {
        file.slices(0, 0, rows, Columns::Consent).map(|slice| slice.unwrap().num_rows()).collect()
    };
    assert_eq!(sizes(300), [300, 300, 100]);
    assert_eq!(sizes(0), [1; 700]);
}

#[test]
fn only_the_columns_that_are_asked_for_are_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write(&path, WriterVersion::PARQUET_1_0, true);
    let file = SourceFile::open(&path).unwrap();
    let names = |columns| -> Vec<String> {
        let schema = file.slices(0, 0, 10, columns).schema().unwrap();
        schema.fields().iter().map(|field| field.name().clone()).collect()
    };
    let consent = names(Columns::Consent);
    assert!(!consent.contains(&"messages".to_owned()) && consent.len() == 10, "{consent:?}");
    assert_eq!(names(Columns::And(&["messages", "absent"])).len(), 11);
    let (some, all) =
        (file.group_bytes(0, Columns::Consent), file.group_bytes(0, Columns::And(&["messages"])));
    assert!(0 < some.0 && some.0 < all.0 && some.1 < all.1, "{some:?} {all:?}");
    assert!(all.0 <= file.bytes());
    assert_eq!(file.group_bytes(9, Columns::Consent), (0, 0));
}

/// A file that counts what is read of it.
#[derive(Clone)]
struct Counted(Bytes, Arc<AtomicU64>);

impl Length for Counted {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

impl ChunkReader for Counted {
    type T = CountedRead;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(CountedRead(io::Cursor::new(self.0.slice(start as usize..)), self.1.clone()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.1.fetch_add(length as u64, Ordering::Relaxed);
        self.0.get_bytes(start, length)
    }
}

struct CountedRead(io::Cursor<Bytes>, Arc<AtomicU64>);

impl Read for CountedRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[test]
fn seeking_by_the_index_does_not_read_the_past() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let mut read = Vec::new();
    for index in [true, false] {
        write(&path, WriterVersion::PARQUET_1_0, index);
        let file = SourceFile::open(&path).unwrap();
        let bytes = Bytes::from(fs_err::read(&path).unwrap());
        let counter = Arc::new(AtomicU64::new(0));
        let input = Counted(bytes, counter.clone());
        let mask = Columns::And(&["messages"]).mask(file.footer.file.parquet_schema());
        let want = Want { group: 0, rows: 700, skip: 690, rows_per_slice: 10, mask };
        let alone = file.footer.alone(0);
        let slices = Slices::new(path.clone(), Ok(input), alone, want, Stash::default());
        assert_eq!(ids(slices).len(), 10);
        read.push(counter.load(Ordering::Relaxed));
    }
    assert!(read[0] * 3 < read[1], "{read:?}");
}

/// Writes the footer again, changed.
fn with_footer(path: &std::path::Path, change: impl Fn(ParquetMetaData) -> ParquetMetaData) {
    let bytes = Bytes::from(fs_err::read(path).unwrap());
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
    let length = u32::from_le_bytes(bytes[bytes.len() - 8..][..4].try_into().unwrap()) as usize;
    let mut changed = bytes[..bytes.len() - 8 - length].to_vec();
    ParquetMetaDataWriter::new(&mut changed, &change(metadata)).finish().unwrap();
    fs_err::write(path, changed).unwrap();
}

/// Leaves only the first row group, changed.
fn with_group(
    path: &std::path::Path,
    change: impl Fn(RowGroupMetaData) -> RowGroupMetaData,
) -> SourceFile {
    with_footer(path, |metadata| {
        let group = change(metadata.row_group(0).clone());
        metadata.into_builder().set_row_groups(vec![group]).build()
    });
    SourceFile::open(path).unwrap()
}

/// Reads the first group from a row on; the rows, and the error at the end.
fn read_rows(file: &SourceFile, skip: u64) -> (usize, Option<SourceError>) {
    let mut rows = 0;
    for slice in file.slices(0, skip, 64, Columns::And(&["messages"])) {
        match slice {
            Ok(slice) => rows += slice.num_rows(),
            Err(error) => return (rows, Some(error)),
        }
    }
    (rows, None)
}

#[test]
fn a_row_group_that_lies_about_its_rows_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    for claim in [0, 1, 699, 701, 1_000_000, i64::MAX] {
        write(&path, WriterVersion::PARQUET_1_0, true);
        let claimed =
            |group: RowGroupMetaData| group.into_builder().set_num_rows(claim).build().unwrap();
        let file = with_group(&path, claimed);
        let (rows, error) = read_rows(&file, 0);
        if claim == 0 {
            // Rows that a footer denies are never seen.
            assert!(rows == 0 && error.is_none(), "{error:?}");
            continue;
        }
        let error = error.unwrap_or_else(|| panic!("{claim}"));
        assert!(rows <= 700 && error.to_string().contains("rows.parquet"), "{claim} {error}");
        assert!(matches!(error, SourceError::RowCount { group: 0, .. }), "{claim} {error:?}");
        assert!(read_rows(&file, 100).0 <= 600, "{claim}");
    }
    write(&path, WriterVersion::PARQUET_1_0, true);
    with_footer(&path, |metadata| {
        let group = metadata.row_group(0).clone();
        let group = group.into_builder().set_num_rows(-1).build().unwrap();
        metadata.into_builder().set_row_groups(vec![group]).build()
    });
    assert!(matches!(SourceFile::open(&path), Err(SourceError::NotParquet { .. })));
}

#[test]
fn a_row_group_that_lies_about_its_size_is_an_error_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    for claim in [-1, 0, 1, 100, i64::from(i32::MAX), i64::MAX / 2] {
        for index in [true, false] {
            write(&path, WriterVersion::PARQUET_1_0, index);
            let file = with_group(&path, |group| {
                let mut columns = group.columns().to_vec();
                let lie = columns[0].clone().into_builder().set_total_compressed_size(claim);
                columns[0] = lie.build().unwrap();
                group.into_builder().set_column_metadata(columns).build().unwrap()
            });
            for skip in [0, 300] {
                let (rows, error) = read_rows(&file, skip);
                assert!(
                    error.is_some() || rows as u64 == 700 - skip,
                    "{claim} {index} {skip}: {rows}"
                );
            }
            let (compressed, _) = file.group_bytes(0, Columns::And(&["messages"]));
            assert!(compressed <= file.bytes());
        }
    }
}

#[test]
fn an_offset_index_that_lies_is_done_without() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    for step in [1, 5, 11] {
        write(&path, WriterVersion::PARQUET_1_0, true);
        let bytes = fs_err::read(&path).unwrap();
        let file = SourceFile::open(&path).unwrap();
        let group = file.row_group(0).unwrap();
        let column = group.column(0);
        let start = column.offset_index_offset().unwrap() as usize;
        let length = column.offset_index_length().unwrap() as usize;
        for place in (start..start + length).step_by(step) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x55;
            fs_err::write(&path, damaged).unwrap();
            // Whatever becomes of it: no panic, and never more rows than there are.
            assert!(read_rows(&file, 300).0 <= 400);
        }
    }
    write(&path, WriterVersion::PARQUET_1_0, true);
    let file = with_group(&path, |group| {
        let lie = |column: &ColumnChunkMetaData| {
            let column = column.clone().into_builder();
            column.set_offset_index_offset(Some(i64::MAX)).build().unwrap()
        };
        let columns = group.columns().iter().map(lie).collect();
        group.into_builder().set_column_metadata(columns).build().unwrap()
    });
    let (rows, error) = read_rows(&file, 300);
    assert!(rows == 400 && error.is_none(), "{error:?}");
}

#[test]
fn invalid_utf8_is_an_error_with_the_file_and_without_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let mut some = rows();
    some[500].messages[0].1 = "private MARKED text".to_owned();
    fixture::write_rows(&path, &some, 700);
    let mut bytes = fs_err::read(&path).unwrap();
    let marks: Vec<usize> =
        (0..bytes.len() - 6).filter(|place| &bytes[*place..place + 6] == b"MARKED").collect();
    assert!(!marks.is_empty());
    for mark in marks {
        bytes[mark..mark + 6].fill(0xff);
    }
    fs_err::write(&path, bytes).unwrap();
    let error = read_rows(&SourceFile::open(&path).unwrap(), 0).1.unwrap().to_string();
    assert!(error.contains("rows.parquet") && !error.contains("private"), "{error}");
    assert!(error.to_lowercase().contains("utf"), "{error}");
}
