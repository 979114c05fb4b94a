//! Safetensors files as they lie on disk: memory-mapped, checked, not copied.
//!
//! Follows the safetensors format and the `model.safetensors.index.json` of Transformers'
//! sharded checkpoints. Headers are checked by the `safetensors` crate (offsets inside the
//! file, no gaps, no overlaps); this file adds that the names and shapes are those which
//! the architecture expects, and that an index stays inside its folder.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err as fs;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;

use super::{BaseError, Mismatch};

/// Largest index that is read: about a million tensor names.
const MAX_INDEX_BYTES: u64 = 128 << 20;

/// File name of an unsharded checkpoint.
const SINGLE: &str = "model.safetensors";
/// File name of the index of a sharded one.
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of one file or of several shards.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
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
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the shards named by `model.safetensors.index.json`.
    pub fn open_folder(folder: &Path) -> Result<Self, BaseError> {
        let index = folder.join(INDEX);
        if !index.exists() {
            let single = folder.join(SINGLE);
            if !single.exists() {
                return Err(no_weights(folder));
            }
            return Self::open_files(vec![single]);
        }
        let bytes = fs::metadata(&index).map_err(BaseError::read(&index))?.len();
        if bytes > MAX_INDEX_BYTES {
            return Err(BaseError::TooLarge { path: index, bytes, limit: MAX_INDEX_BYTES });
        }
        let text = fs::read_to_string(&index).map_err(BaseError::read(&index))?;
        let Index { weight_map } = serde_json::from_str(&text)
            .map_err(|source| BaseError::Json { path: index.clone(), source })?;
        let mut shards = BTreeSet::new();
        for (tensor, shard) in &weight_map {
            if shard.contains(['/', '\\']) || shard == ".." || shard.is_empty() {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                return Err(BaseError::ShardOutside { path: index, tensor, shard });
            }
            shards.insert(folder.join(shard));
        }
        Self::open_files(shards.into_iter().collect())
    }

    /// Maps one safetensors file of any name.
    pub fn open_file(path: &Path) -> Result<Self, BaseError> {
        Self::open_files(vec![path.to_owned()])
    }

    fn open_files(paths: Vec<PathBuf>) -> Result<Self, BaseError> {
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            checkpoint.add_file(path)?;
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), BaseError> {
        let file = fs::File::open(&path).map_err(BaseError::read(&path))?;
        #[expect(
            unsafe_code,
            reason = "mapping a file is unsafe because another process could change it under us; \
                      the mapping is read-only and nothing but numbers is read through it"
        )]
        // SAFETY: see above.
        let map = unsafe { Mmap::map(file.file()) }.map_err(BaseError::read(&path))?;
        let parsed = SafeTensors::deserialize(&map)
            .map_err(|source| BaseError::Safetensors { path: path.clone(), source })?;
        let start = map.as_ptr() as usize;
        for (name, view) in parsed.iter() {
            let offset = view.data().as_ptr() as usize - start;
            let entry = Entry {
                file: self.files.len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: offset..offset + view.data().len(),
            };
            if self.tensors.insert(name.to_owned(), entry).is_some() {
                return Err(BaseError::Twice { path, tensor: name.to_owned() });
            }
        }
        drop(parsed);
        self.files.push((path, map));
        Ok(())
    }

    /// The files that hold the tensors, sorted.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// One tensor, if it is there.
    pub fn get(&self, name: &str) -> Option<View<'_>> {
        let entry = self.tensors.get(name)?;
        let (_, map) = self.files.get(entry.file)?;
        let bytes = map.get(entry.bytes.clone())?;
        Some(View { dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// Compares names, shapes and dtypes with what is expected; all differences at once.
    ///
    /// `optional` names may be present without being expected (old checkpoints carry
    /// rotary frequencies, tied ones a copy of the embedding).
    pub fn expect(
        &self,
        expected: &[(String, Vec<usize>)],
        optional: impl Fn(&str) -> bool,
    ) -> Result<(), Vec<Mismatch>> {
        let mut problems = Vec::new();
        let names: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        for (name, shape) in expected {
            match self.tensors.get(name) {
                None => problems.push(Mismatch::Missing { tensor: name.clone() }),
                Some(entry) if entry.shape != *shape => problems.push(Mismatch::Shape {
                    tensor: name.clone(),
                    expected: shape.clone(),
                    found: entry.shape.clone(),
                }),
                Some(entry) if !matches!(entry.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) => {
                    let dtype = format!("{:?}", entry.dtype);
                    problems.push(Mismatch::Dtype { tensor: name.clone(), dtype });
                }
                Some(_) => {}
            }
        }
        for name in self.names().filter(|name| !names.contains(name) && !optional(name)) {
            let nearest = names
                .iter()
                .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)))
                .map(|nearest| (*nearest).to_owned());
            problems.push(Mismatch::Unexpected { tensor: name.to_owned(), nearest });
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

/// Says why a folder has no weights: nothing there, or only pickle files.
fn no_weights(folder: &Path) -> BaseError {
    let folder = folder.to_owned();
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"];
    match pickles.into_iter().find(|name| folder.join(name).exists()) {
        Some(name) => BaseError::Pickle { path: folder.join(name) },
        None => BaseError::NoWeights { folder },
    }
}
