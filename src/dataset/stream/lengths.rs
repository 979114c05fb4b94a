//! The rows of a strand as lengths that were found before.
//!
//! Owns a temporary file of them, 4 bytes a row and 8 a piece, so that counting the steps of
//! every pass needs no memory that grows with the rows. Reads them in the stream's own order.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::super::error::DatasetError;
use super::super::rows::Fate;
use super::steps::Piece;
use super::strand::{Group, Rows};

#[expect(clippy::disallowed_types, reason = "a temporary file has no path to name")]
type Unnamed = std::fs::File;

/// Bytes that are read of a row group's lengths at a time.
const BUFFER_BYTES: usize = 16 << 10;

/// How long a piece is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::dataset) struct Extent {
    /// Its tokens.
    pub(in crate::dataset) tokens: u32,
    /// Of these, tokens that carry loss.
    pub(in crate::dataset) trained: u32,
}

impl Piece for Extent {
    fn tokens(&self) -> usize {
        self.tokens as usize
    }
}

/// Writes the lengths of all pieces of all rows of row groups, in any order of row groups.
pub(in crate::dataset) struct Recorder {
    file: BufWriter<Unnamed>,
    written: u64,
    groups: BTreeMap<(usize, usize), u64>,
}

impl Recorder {
    /// An empty one, in the system's folder for temporary files.
    pub(in crate::dataset) fn new() -> io::Result<Self> {
        let file = BufWriter::new(tempfile::tempfile()?);
        Ok(Self { file, written: 0, groups: BTreeMap::new() })
    }

    /// The rows that follow are those of this row group of this file.
    pub(in crate::dataset) fn begin(&mut self, file: usize, group: usize) {
        self.groups.insert((file, group), self.written);
    }

    /// The pieces of the next row; none if it is not in the stream.
    pub(in crate::dataset) fn row(&mut self, pieces: &[Extent]) -> io::Result<()> {
        self.number(pieces.len() as u32)?;
        for piece in pieces {
            self.number(piece.tokens)?;
            self.number(piece.trained)?;
        }
        Ok(())
    }

    fn number(&mut self, number: u32) -> io::Result<()> {
        self.written += 4;
        self.file.write_all(&number.to_le_bytes())
    }

    /// What was written, to be read.
    pub(in crate::dataset) fn finish(self) -> io::Result<Recorded> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Recorded { file: Arc::new(file), groups: Arc::new(self.groups) })
    }
}

/// The lengths of all rows.
#[derive(Clone, Debug)]
pub(in crate::dataset) struct Recorded {
    file: Arc<Unnamed>,
    groups: Arc<BTreeMap<(usize, usize), u64>>,
}

/// The rows of one strand, whose files have these numbers.
pub(in crate::dataset) struct Lengths {
    /// Of all files.
    pub(in crate::dataset) recorded: Recorded,
    /// The strand's.
    pub(in crate::dataset) files: Vec<usize>,
}

/// A row group's lengths from some row on.
pub(in crate::dataset) struct Reading {
    file: Arc<Unnamed>,
    offset: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl Rows for Lengths {
    type Item = Extent;
    type Open = Reading;
    type Round = Vec<Vec<Vec<Extent>>>;

    fn open(&self, group: Group, skip: u64, _slice: u64) -> Reading {
        let file = self.files.get(group.file).copied().unwrap_or_default();
        let offset = self.recorded.groups.get(&(file, group.number)).copied();
        let file = Arc::clone(&self.recorded.file);
        let offset = offset.unwrap_or_default();
        let mut reading = Reading { file, offset, buffer: Vec::new(), at: 0 };
        for _ in 0..skip {
            // A failure shows again when the row is asked for.
            if reading.row().is_err() {
                break;
            }
        }
        reading
    }

    fn read(&self, open: &mut [Reading], taken: &[usize]) -> Result<Self::Round, DatasetError> {
        let rows = |(reading, rows): (&mut Reading, &usize)| {
            (0..*rows).map(|_| reading.row()).collect::<io::Result<Vec<_>>>()
        };
        let round: io::Result<Vec<_>> = open.iter_mut().zip(taken).map(rows).collect();
        round.map_err(DatasetError::Lengths)
    }

    fn fates(
        &self,
        round: &Self::Round,
        rows: &[(usize, usize)],
    ) -> Vec<Result<Fate<Extent>, DatasetError>> {
        let fate = |(member, row): &(usize, usize)| {
            let pieces = round.get(*member).and_then(|rows| rows.get(*row));
            Ok(match pieces.cloned().unwrap_or_default() {
                none if none.is_empty() => Fate::HeldOut,
                pieces => Fate::Used { pieces, cut: false },
            })
        };
        rows.iter().map(fate).collect()
    }
}

impl Reading {
    fn row(&mut self) -> io::Result<Vec<Extent>> {
        let pieces = self.number()?;
        let piece = |_| Ok(Extent { tokens: self.number()?, trained: self.number()? });
        (0..pieces).map(piece).collect()
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

impl Read for Reading {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() {
            self.buffer.resize(BUFFER_BYTES, 0);
            let read = self.file.read_at(&mut self.buffer, self.offset)?;
            self.buffer.truncate(read);
            (self.offset, self.at) = (self.offset + read as u64, 0);
        }
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let bytes = rest.len().min(into.len());
        if let (Some(into), Some(rest)) = (into.get_mut(..bytes), rest.get(..bytes)) {
            into.copy_from_slice(rest);
        }
        self.at += bytes;
        Ok(bytes)
    }
}
