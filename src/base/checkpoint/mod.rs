//! Safetensors files as they lie on disk: memory-mapped, checked, not copied.
//!
//! Owns which files those are ([`index`]), their headers ([`header`]), the forms in which a
//! tensor may be stored ([`stored`]), and the comparison with what the architecture expects
//! ([`mismatch`]). Does not own making tensors of the bytes: that is the engine's.
//!
//! References: the safetensors format, and the folders that Transformers writes.

mod error;
mod header;
mod index;
mod mismatch;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use safetensors::tensor::Dtype;

pub use error::WeightsError;
pub use header::HeaderError;
pub(super) use index::read_bounded;
pub use mismatch::Mismatch;
pub use stored::StoredTensor;

use self::header::shown;
use self::index::Files;
use self::mismatch::Nearest;
use self::stored::{FP8_BLOCK, Parts};
use super::BaseError;

/// The tensors of one file or of several shards.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
    fp8_block: [usize; 2],
}

#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// One tensor: little-endian, row-major bytes inside the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: &'a [usize],
    /// The bytes.
    pub bytes: &'a [u8],
    map: &'a Mmap,
    /// Where in the map the bytes begin.
    start: usize,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the shards named by `model.safetensors.index.json`.
    pub fn open_folder(folder: &Path) -> Result<Self, BaseError> {
        match index::find(folder)? {
            Files::Single(path) => Self::open_file(&path),
            Files::Sharded { index, shards } => Self::open_shards(folder, index, &shards),
        }
    }

    /// Maps one safetensors file of any name.
    pub fn open_file(path: &Path) -> Result<Self, BaseError> {
        let mut checkpoint = Self::empty();
        checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    fn empty() -> Self {
        Self { files: Vec::new(), tensors: BTreeMap::new(), fp8_block: FP8_BLOCK }
    }

    /// Maps shards, each of which must hold the tensors that the index places there and no
    /// others.
    fn open_shards(
        folder: &Path,
        index: PathBuf,
        shards: &BTreeMap<String, BTreeSet<String>>,
    ) -> Result<Self, BaseError> {
        let mut checkpoint = Self::empty();
        // For each tensor where the index says that it is, and where it is, unless they agree.
        let mut places: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
        for (shard, placed) in shards {
            let held = checkpoint.add_file(&folder.join(shard))?.into_iter().collect();
            for (tensor, side) in placed
                .difference(&held)
                .map(|tensor| (tensor, 0))
                .chain(held.difference(placed).map(|tensor| (tensor, 1)))
            {
                places.entry(tensor.clone()).or_default()[side] = Some(shown(shard));
            }
        }
        if places.is_empty() {
            return Ok(checkpoint);
        }
        let problems = places
            .into_iter()
            .map(|(tensor, [expected, found])| Mismatch::Place { tensor, expected, found })
            .collect();
        Err(WeightsError::Index { path: index, problems }.into())
    }

    /// Maps a file and gives the names of its tensors. Of a name in two files the first
    /// counts; the index of shards cannot agree with that.
    fn add_file(&mut self, path: &Path) -> Result<Vec<String>, BaseError> {
        let file = index::open(path)?;
        #[expect(
            unsafe_code,
            reason = "mapping a file is unsafe because another process could change it under us; \
                      the mapping is read-only and nothing but numbers is read through it"
        )]
        // SAFETY: see above.
        let map = unsafe { Mmap::map(file.file()) }.map_err(BaseError::read(path))?;
        let header::Header { tensors, start } = header::read(&map)
            .map_err(|source| WeightsError::Safetensors { path: path.to_owned(), source })?;
        let mut names = Vec::with_capacity(tensors.len());
        for (name, info) in tensors {
            let (from, to) = info.data_offsets;
            let entry = Entry {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape,
                bytes: start + from..start + to,
            };
            names.push(name.clone());
            self.tensors.entry(name).or_insert(entry);
        }
        self.files.push((path.to_owned(), map));
        Ok(names)
    }

    /// Sets the rows and columns of an fp8 block: `quantization_config.weight_block_size`.
    pub fn set_fp8_block(&mut self, block: [usize; 2]) {
        self.fp8_block = block.map(|size| size.max(1));
    }

    /// The files that hold the tensors, sorted.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// One tensor of the files as it stands there.
    pub fn get(&self, name: &str) -> Option<View<'_>> {
        self.view(self.tensors.get(name)?)
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> Option<View<'a>> {
        let (_, map) = self.files.get(entry.file)?;
        let bytes = map.get(entry.bytes.clone())?;
        let Entry { dtype, shape, .. } = entry;
        Some(View { dtype: *dtype, shape, bytes, map, start: entry.bytes.start })
    }

    /// Ties two tensors as Transformers' `tie_weights` does, and says whether they are one:
    /// where `source` is missing it becomes `target`; where both are there with other
    /// values, they stay two, whatever the config says.
    pub fn tie(&mut self, source: &str, target: &str) -> bool {
        match (self.get(source), self.get(target)) {
            (Some(a), Some(b)) => a.equals(&b),
            (None, Some(_)) => {
                let entry = self.tensors.remove(target);
                self.tensors.extend(entry.map(|entry| (source.to_owned(), entry)));
                true
            }
            (_, None) => true,
        }
    }

    /// Compares names, shapes and dtypes with what is expected; all differences at once.
    ///
    /// A tensor may be stored in any form of [`StoredTensor`]. `optional` names may be
    /// present without being expected (old checkpoints carry rotary frequencies, tied ones
    /// a copy of the embedding).
    pub fn expect(
        &self,
        expected: &[(String, Vec<usize>)],
        optional: impl Fn(&str) -> bool,
    ) -> Result<(), Vec<Mismatch>> {
        let mut problems = Vec::new();
        let mut used: BTreeSet<String> = BTreeSet::new();
        for (name, shape) in expected {
            match self.parts(name, Some(shape)) {
                Ok(Parts::Plain(_)) => {}
                Ok(Parts::Fp8 { scale_name, .. }) => used.extend([scale_name]),
                Ok(Parts::Mxfp4 { names, .. }) => used.extend(names),
                Err(problem) => {
                    let parts = ["_scale_inv", "_scale", "_blocks", "_scales"];
                    used.extend(parts.map(|part| format!("{name}{part}")));
                    problems.push(problem);
                }
            }
        }
        let names: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let known = |name: &str| names.contains(name) || used.contains(name) || optional(name);
        let unexpected: Vec<&str> = self.names().filter(|name| !known(name)).collect();
        let mut nearest = Nearest::new(unexpected.iter().copied());
        for problem in &mut problems {
            if let Mismatch::Missing { tensor, nearest: like } = problem {
                *like = nearest.to(tensor);
            }
        }
        let mut nearest = Nearest::new(names.iter().copied());
        problems.extend(unexpected.iter().map(|name| Mismatch::Unexpected {
            tensor: (*name).to_owned(),
            nearest: nearest.to(name),
        }));
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

/// Bytes that are compared before their memory is given back.
const COMPARED_BYTES: usize = 16 << 20;

impl View<'_> {
    /// Gives the memory behind a range of the bytes back to the system. Reading them again
    /// reads the file again: without this, all that was ever read would count as ours.
    pub fn release(&self, range: Range<usize>) {
        let end = range.end.min(self.bytes.len());
        let Some(length) = end.checked_sub(range.start).filter(|length| *length > 0) else {
            return;
        };
        #[expect(
            unsafe_code,
            reason = "giving pages back is unsafe for memory that was written to; this mapping of \
                      a file is read-only, so the same bytes come back"
        )]
        // SAFETY: see above; the range lies in the mapping, whose pages are all the file's.
        // Advice that is not taken costs memory and nothing else.
        let _taken = unsafe {
            let offset = self.start + range.start;
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, length)
        };
    }

    /// Whether two tensors are the same in dtype, shape and every bit.
    fn equals(&self, other: &Self) -> bool {
        let same = self.dtype == other.dtype && self.shape == other.shape;
        same && self
            .bytes
            .chunks(COMPARED_BYTES)
            .zip(other.bytes.chunks(COMPARED_BYTES))
            .zip(0..)
            .all(|((a, b), index): (_, usize)| {
                let equal = a == b;
                let start = index * COMPARED_BYTES;
                self.release(start..start + a.len());
                other.release(start..start + b.len());
                equal
            })
    }
}
