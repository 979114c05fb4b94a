//! What a teacher said, from Parquet: the places of all documents at once, the numbers of one
//! when it is asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::{Float32Type, Int32Type};
use fs_err as fs;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use parquet::file::metadata::PageIndexPolicy;

use super::super::contain::contain;
use super::{FOOTER_KEY, Header, Key, LogitsError};

/// Rows that are read at a time while documents are looked for.
const SCANNED_ROWS: usize = 1 << 16;

/// How far the probabilities of a position may be from one together: they are rounded to f32.
const WHOLE: f64 = 1e-2;

/// Said of a file whose decoder gives up without a word.
const DAMAGED: &str = "it is damaged";

/// What is said to the trained tokens of some documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Places of the tokens in their document.
    pub positions: Vec<i32>,
    /// The most likely tokens, the same number for each.
    pub ids: Vec<i32>,
    /// Their log-probabilities.
    pub logprobs: Vec<f32>,
    /// That of all other tokens together, one for each position.
    pub rest: Vec<f32>,
}

impl Said {
    /// Adds what is said to another.
    pub fn extend(&mut self, other: &Self) {
        self.positions.extend(&other.positions);
        self.ids.extend(&other.ids);
        self.logprobs.extend(&other.logprobs);
        self.rest.extend(&other.rest);
    }
}

/// Where a document lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    group: usize,
    /// Its first row in the group.
    first: usize,
    rows: usize,
}

/// A file of what a teacher said.
#[derive(Debug)]
pub struct Stored {
    path: PathBuf,
    file: fs::File,
    metadata: ArrowReaderMetadata,
    header: Header,
    places: BTreeMap<Key, Place>,
}

impl Header {
    /// What the footer of a file says.
    pub fn read(path: &Path) -> Result<Self, LogitsError> {
        Ok(opened(path)?.2)
    }
}

fn opened(path: &Path) -> Result<(fs::File, ArrowReaderMetadata, Header), LogitsError> {
    let unreadable = |source| LogitsError::Read { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(unreadable(std::io::Error::other("it is not a file")));
    }
    let file = fs::File::open(path).map_err(unreadable)?;
    let options = ArrowReaderOptions::new()
        .with_skip_arrow_metadata(true)
        .with_page_index_policy(PageIndexPolicy::Optional);
    let metadata = contain(|| ArrowReaderMetadata::load(file.file(), options));
    let metadata = decoded(path, metadata)?;
    let pairs = metadata.metadata().file_metadata().key_value_metadata();
    let text = pairs.into_iter().flatten().find(|pair| pair.key == FOOTER_KEY);
    let text = text.and_then(|pair| pair.value.as_deref());
    let text = text.ok_or_else(|| LogitsError::NoHeader { path: path.to_owned() })?;
    let wrong = |source| LogitsError::Header { path: path.to_owned(), source };
    let header: Header = serde_json::from_str(text).map_err(wrong)?;
    if header.version != Header::version() || header.top_k == 0 {
        return Err(wrong(serde::de::Error::custom("it has another version, or no tokens")));
    }
    Ok((file, metadata, header))
}

fn decoded<T, E: ToString>(path: &Path, result: Option<Result<T, E>>) -> Result<T, LogitsError> {
    let reason = match result {
        Some(Ok(value)) => return Ok(value),
        Some(Err(error)) => error.to_string(),
        None => DAMAGED.to_owned(),
    };
    Err(LogitsError::NotParquet { path: path.to_owned(), reason })
}

impl Stored {
    /// Opens a file, and finds the places of its documents.
    pub fn open(path: &Path) -> Result<Self, LogitsError> {
        let (file, metadata, header) = opened(path)?;
        let mut stored =
            Self { path: path.to_owned(), file, metadata, header, places: BTreeMap::new() };
        for group in 0..stored.metadata.metadata().num_row_groups() {
            stored.scan(group)?;
        }
        Ok(stored)
    }

    /// What is said of it as a whole.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is said to a document.
    pub fn said(&self, key: &Key) -> Result<Said, LogitsError> {
        let none = || LogitsError::NoDocument { path: self.path.clone() };
        let place = self.places.get(key).ok_or_else(none)?;
        let select = RowSelection::from(vec![
            RowSelector::skip(place.first),
            RowSelector::select(place.rows),
        ]);
        let columns = ["position", "ids", "logprobs", "rest"];
        let mut said = Said::default();
        for batch in self.rows(place.group, &columns, place.rows, Some(select))? {
            self.take(&batch, place, &mut said)?;
        }
        Ok(said)
    }

    /// Notes where the documents of a row group begin and end.
    fn scan(&mut self, group: usize) -> Result<(), LogitsError> {
        let (mut row, mut current): (usize, Option<(Key, Place)>) = (0, None);
        for batch in self.rows(group, &["document"], SCANNED_ROWS, None)? {
            let keys = batch.column_by_name("document");
            let keys = keys.and_then(|keys| keys.as_fixed_size_binary_opt());
            let keys =
                keys.ok_or_else(|| self.wrong(group, row, "has no `document` of 32 bytes"))?;
            for index in 0..keys.len() {
                let key: Key = keys
                    .value(index)
                    .try_into()
                    .map_err(|_| self.wrong(group, row, "has no `document` of 32 bytes"))?;
                match &mut current {
                    Some((before, place)) if *before == key => place.rows += 1,
                    _ => {
                        let next = (key, Place { group, first: row, rows: 1 });
                        self.places.extend(current.replace(next));
                    }
                }
                row += 1;
            }
        }
        self.places.extend(current);
        Ok(())
    }

    /// Some columns of a row group.
    fn rows(
        &self,
        group: usize,
        columns: &[&str],
        at_a_time: usize,
        select: Option<RowSelection>,
    ) -> Result<Vec<RecordBatch>, LogitsError> {
        let unreadable = |source| LogitsError::Read { path: self.path.clone(), source };
        let file = self.file.try_clone().map_err(unreadable)?.into_file();
        let read = || -> Result<Vec<RecordBatch>, Box<dyn std::error::Error>> {
            let mask = ProjectionMask::columns(self.metadata.parquet_schema(), columns.to_vec());
            let builder =
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
                    .with_row_groups(vec![group])
                    .with_projection(mask)
                    .with_batch_size(at_a_time.max(1));
            let builder = match select {
                Some(select) => builder.with_row_selection(select),
                None => builder,
            };
            Ok(builder.build()?.collect::<Result<_, _>>()?)
        };
        decoded(&self.path, contain(read))
    }

    /// Adds rows of a document, if they are what the footer promises.
    fn take(&self, batch: &RecordBatch, place: &Place, said: &mut Said) -> Result<(), LogitsError> {
        let wrong = |what| self.wrong(place.group, place.first, what);
        let (top_k, vocabulary) = (self.header.top_k, self.header.vocabulary);
        let column = |name| batch.column_by_name(name).filter(|column| column.null_count() == 0);
        let ints = |name| column(name)?.as_primitive_opt::<Int32Type>();
        let floats = |name| column(name)?.as_primitive_opt::<Float32Type>();
        let lists = |name| column(name)?.as_list_opt::<i32>();
        let types = || wrong("has columns of other types");
        let positions = ints("position").ok_or_else(types)?;
        let rest = floats("rest").ok_or_else(types)?;
        let (ids, logprobs) = lists("ids").zip(lists("logprobs")).ok_or_else(types)?;
        for list in [ids, logprobs] {
            let whole = (0..list.len()).all(|row| list.value_length(row) as usize == top_k);
            if !whole {
                return Err(wrong("has not as many tokens as the footer says"));
            }
        }
        for row in 0..batch.num_rows() {
            let (ids, logprobs) = (ids.value(row), logprobs.value(row));
            let ids = ids.as_primitive_opt::<Int32Type>().ok_or_else(types)?;
            let logprobs = logprobs.as_primitive_opt::<Float32Type>().ok_or_else(types)?;
            let inside = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < vocabulary);
            if ids.null_count() > 0 || !ids.values().iter().all(inside) {
                return Err(wrong("names a token that there is none of"));
            }
            let numbers = logprobs.values().iter().chain(rest.values().get(row));
            if logprobs.null_count() > 0 || !numbers.into_iter().all(|number| number.is_finite()) {
                return Err(wrong("has a log-probability that is no number"));
            }
            let mut known: Vec<i32> = ids.values().to_vec();
            known.sort_unstable();
            if known.windows(2).any(|two| matches!(two, [one, other] if one == other)) {
                return Err(wrong("names a token twice"));
            }
            let sum = |logs: &[f32]| logs.iter().map(|log| f64::from(*log).exp()).sum::<f64>();
            let all =
                sum(logprobs.values()) + rest.values().get(row).map_or(0.0, |log| sum(&[*log]));
            if (all - 1.0).abs() > WHOLE {
                return Err(wrong("has probabilities that do not add up to one"));
            }
            said.ids.extend(ids.values().iter());
            said.logprobs.extend(logprobs.values().iter());
        }
        said.positions.extend(positions.values().iter());
        said.rest.extend(rest.values().iter());
        Ok(())
    }

    fn wrong(&self, group: usize, row: usize, what: &'static str) -> LogitsError {
        let groups = self.metadata.metadata().row_groups().iter().take(group);
        let before: i64 = groups.map(|group| group.num_rows().max(0)).sum();
        LogitsError::Row { path: self.path.clone(), row: before as u64 + row as u64, what }
    }
}
