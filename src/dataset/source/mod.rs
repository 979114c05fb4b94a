//! Reading rows out of Parquet.
//!
//! Owns finding the files, checking their columns, and reading row groups in slices with
//! only the columns that are needed. Does not judge or tokenise rows. The embedded Arrow
//! schema is ignored: types are Parquet's own, so that files of every writer look alike.
//! Reference: the Parquet format's logical types, as the `parquet` crate maps them.

mod columns;
mod error;
mod footer;
pub mod remote;
mod slices;

use std::fmt::Display;
use std::fs::Metadata;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::Fields;
use fs_err as fs;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};

pub use self::columns::{Columns, RECORD_ID};
pub use self::error::SourceError;
use self::footer::Footer;
pub use self::remote::Pin;
use self::remote::{Access, Object, Reader, Stash};
pub use self::slices::Slices;
use self::slices::Want;
use super::consent::{self, Dataset};
use super::contain::contain;
use super::describe;

/// The files that a path, glob or address of a recipe names, sorted.
pub fn resolve(pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
    if is_remote(Path::new(pattern)) {
        return Access::of_process().resolve(pattern);
    }
    resolve_local(pattern)
}

/// Like [`resolve`], with stores reached by `access`.
pub fn resolve_by(access: &Access, pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
    if is_remote(Path::new(pattern)) { access.resolve(pattern) } else { resolve_local(pattern) }
}

fn resolve_local(pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
    // A file whose name has brackets is that file, not a glob.
    if let Ok(kind) = fs::metadata(pattern) {
        check_kind(Path::new(pattern), &kind)?;
        return Ok(vec![PathBuf::from(pattern)]);
    }
    let matches = glob::glob(pattern).map_err(|error| SourceError::Pattern {
        pattern: pattern.to_owned(),
        position: error.pos,
        reason: error.msg,
    })?;
    let mut files = Vec::new();
    for path in matches {
        let path = path.map_err(|error| SourceError::Read(error.into()))?;
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(SourceError::NoMatch { pattern: pattern.to_owned() });
    }
    Ok(files)
}

/// Whether a name is an address in a store or on a server, and no path in the file system.
pub fn is_remote(path: &Path) -> bool {
    remote::address_of(path).is_some()
}

/// The version of a remote object; `None` for a path in the file system, whose bytes can be
/// digested.
pub fn pin(path: &Path) -> Result<Option<Pin>, SourceError> {
    if is_remote(path) { pin_by(Access::of_process(), path) } else { Ok(None) }
}

/// Like [`pin`], with stores reached by `access`.
pub fn pin_by(access: &Access, path: &Path) -> Result<Option<Pin>, SourceError> {
    let Some(name) = remote::address_of(path) else { return Ok(None) };
    let pin = access.open(name).and_then(|object| Pin::of(&object));
    pin.map(Some).map_err(|failure| SourceError::Remote { name: name.to_owned(), failure })
}

/// Where the bytes of a file are.
#[derive(Clone, Debug)]
enum Place {
    Local,
    Remote(Arc<Object>),
}

/// A Parquet file of rows whose footer has been read and checked.
#[derive(Clone, Debug)]
pub struct SourceFile {
    path: PathBuf,
    place: Place,
    bytes: u64,
    footer: Footer,
    dataset: Dataset,
    group_rows: Vec<u64>,
    first_rows: Vec<u64>,
}

impl SourceFile {
    /// Reads and checks the footer.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        if is_remote(path) {
            return Self::open_by(Access::of_process(), path);
        }
        Self::open_local(path)
    }

    fn open_local(path: &Path) -> Result<Self, SourceError> {
        let file = open_file(path)?;
        let bytes = file.metadata()?.len();
        let file = file.into_parts().0;
        let metadata = contain(|| ArrowReaderMetadata::load(&file, options()));
        let metadata = read(path, &Stash::default(), metadata)?;
        Self::new(path, Place::Local, bytes, &metadata)
    }

    /// Like [`SourceFile::open`], with stores reached by `access`.
    pub fn open_by(access: &Access, path: &Path) -> Result<Self, SourceError> {
        let Some(name) = remote::address_of(path) else { return Self::open_local(path) };
        let fail = |failure| SourceError::Remote { name: name.to_owned(), failure };
        let object = access.open(name).map_err(fail)?;
        let stash = Stash::default();
        let reader = Reader::new(&object, &[], stash.clone());
        let metadata = contain(|| ArrowReaderMetadata::load(&reader, options()));
        let metadata = read(path, &stash, metadata)?;
        Self::new(path, Place::Remote(Arc::clone(&object)), object.bytes(), &metadata)
    }

    fn new(
        path: &Path,
        place: Place,
        bytes: u64,
        metadata: &ArrowReaderMetadata,
    ) -> Result<Self, SourceError> {
        let wrong = |reason: String| SourceError::NotParquet { path: path.to_owned(), reason };
        columns::check(path, metadata.schema().fields())?;
        let footer = Footer::of(metadata.metadata()).map_err(|error| wrong(error.to_string()))?;
        let (mut group_rows, mut first_rows, mut row) = (Vec::new(), Vec::new(), 0_u64);
        for rows in footer.rows() {
            let rows = u64::try_from(*rows).map_err(|_| wrong("negative row count".to_owned()))?;
            group_rows.push(rows);
            first_rows.push(row);
            row = row.checked_add(rows).ok_or_else(|| wrong("too many rows".to_owned()))?;
        }
        let inside = value(metadata, consent::FOOTER_KEY);
        if let Some(footer) = inside {
            describe::check_footer(path, footer)?;
        }
        let said = match place {
            Place::Local => describe::of_file(path, inside)?,
            // Nothing is fetched that the recipe does not name.
            Place::Remote(_) => inside.map(str::to_owned),
        };
        let dataset = Dataset::parse(said.as_deref());
        let path = path.to_owned();
        Ok(Self { path, place, bytes, footer, dataset, group_rows, first_rows })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is said of all its rows, by its footer or beside it.
    pub fn defaults(&self) -> &Dataset {
        &self.dataset
    }

    /// Its columns.
    pub fn fields(&self) -> &Fields {
        self.footer.file.schema().fields()
    }

    /// A value of the footer; `None` also where the key is there twice, since no more than
    /// one of them can be meant.
    pub fn footer_value(&self, key: &str) -> Option<&str> {
        value(&self.footer.file, key)
    }

    /// A row group, with the statistics of what the gate looks at. Nothing in it is to be
    /// trusted but with what it takes away.
    pub fn row_group(&self, group: usize) -> Option<RowGroupMetaData> {
        self.footer.row_group(group)
    }

    /// Rows of each row group.
    pub fn group_rows(&self) -> &[u64] {
        &self.group_rows
    }

    /// The place in the file of a row group's first row.
    pub fn first_row(&self, group: usize) -> u64 {
        self.first_rows.get(group).copied().unwrap_or_default()
    }

    /// What a row group takes by the footer: bytes to be read, and bytes when decompressed.
    /// An estimate: the footer may lie, though not of more than the file has.
    pub fn group_bytes(&self, group: usize, columns: Columns<'_>) -> (u64, u64) {
        let mask = columns.mask(self.footer.file.parquet_schema());
        let Some(group) = self.row_group(group) else { return (0, 0) };
        let leaves = group.columns().iter().enumerate();
        let leaves = leaves.filter(|(leaf, _)| mask.leaf_included(*leaf));
        let clamp = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
        let (compressed, plain) = leaves.fold((0_u64, 0_u64), |(compressed, plain), (_, leaf)| {
            let more = (clamp(leaf.compressed_size()), clamp(leaf.uncompressed_size()));
            (compressed.saturating_add(more.0), plain.saturating_add(more.1))
        });
        (compressed.min(self.bytes), plain)
    }

    /// The rows of a row group without its first `skip_rows`, in slices of at most so many
    /// rows, decoded page by page as they are asked for.
    pub fn slices(
        &self,
        group: usize,
        skip_rows: u64,
        rows_per_slice: usize,
        columns: Columns<'_>,
    ) -> Slices {
        let rows = self.group_rows.get(group).copied().unwrap_or_default();
        let mask = columns.mask(self.footer.file.parquet_schema());
        let alone = self.footer.alone(group);
        let want = Want { group, rows, skip: skip_rows, rows_per_slice, mask };
        let (path, stash) = (self.path.clone(), Stash::default());
        match &self.place {
            Place::Local => {
                let file = open_file(path.as_path()).map(|file| file.into_parts().0);
                Slices::new(path, file, alone, want, stash)
            }
            Place::Remote(object) => {
                let chunks = chunks(alone.as_ref(), &want.mask);
                let reader = Reader::new(object, &chunks, stash.clone());
                Slices::new(path, Ok(reader), alone, want, stash)
            }
        }
    }
}

/// Where the columns of a row group lie, by the footer.
fn chunks(alone: Option<&ParquetMetaData>, mask: &ProjectionMask) -> Vec<Range<u64>> {
    let Some(group) = alone.and_then(|alone| alone.row_groups().first()) else { return Vec::new() };
    let leaves = group.columns().iter().enumerate();
    let leaves = leaves.filter(|(leaf, _)| mask.leaf_included(*leaf));
    let range = |column: &ColumnChunkMetaData| {
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let start = u64::try_from(start).ok()?;
        Some(start..start.checked_add(u64::try_from(column.compressed_size()).ok()?)?)
    };
    leaves.filter_map(|(_, column)| range(column)).collect()
}

/// What is said of a file at which the decoder gave up.
const DAMAGED: &str = "its contents are damaged";

/// The embedded Arrow schema is ignored: types are Parquet's own.
fn options() -> ArrowReaderOptions {
    ArrowReaderOptions::new().with_skip_arrow_metadata(true)
}

/// Opens a file. To open a pipe would be to wait for whoever writes into it.
fn open_file(path: &Path) -> Result<fs::File, SourceError> {
    check_kind(path, &fs::metadata(path)?)?;
    Ok(fs::File::open(path)?)
}

/// What came of decoding; nothing where it panicked.
fn read<T, E: Display>(
    path: &Path,
    stash: &Stash,
    decoded: Option<Result<T, E>>,
) -> Result<T, SourceError> {
    let reason = match decoded {
        Some(Ok(decoded)) => return Ok(decoded),
        Some(Err(error)) => error.to_string(),
        None => DAMAGED.to_owned(),
    };
    // The decoder says in its own words, and without a type, that reading failed.
    Err(match stash.take() {
        Some(failure) => SourceError::Remote { name: path.display().to_string(), failure },
        None => SourceError::NotParquet { path: path.to_owned(), reason },
    })
}

fn check_kind(path: &Path, kind: &Metadata) -> Result<(), SourceError> {
    if kind.is_file() {
        return Ok(());
    }
    let what = if kind.is_dir() { "a folder" } else { "a pipe or a device" };
    Err(SourceError::NotAFile { path: path.to_owned(), what })
}

fn value<'a>(metadata: &'a ArrowReaderMetadata, key: &str) -> Option<&'a str> {
    let pairs = metadata.metadata().file_metadata().key_value_metadata()?;
    let mut values = pairs.iter().filter(|pair| pair.key == key);
    // Two footers cannot both be meant: no footer at all is the safe reading.
    values.next().filter(|_| values.next().is_none())?.value.as_deref()
}

#[cfg(test)]
mod tests;
