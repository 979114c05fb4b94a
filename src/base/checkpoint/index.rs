//! Which files of a folder hold its weights.
//!
//! Owns the choice between one file and shards, reading `model.safetensors.index.json` as
//! Transformers writes it, and the refusal of pickle files. Of an index only the map from
//! tensor to shard is read; its `metadata.total_size` is wrong in many published
//! checkpoints, and nothing here needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::error::WeightsError;
use super::header::shown;
use crate::base::BaseError;

/// Largest index that is read: about a million tensor names.
const MAX_INDEX_BYTES: u64 = 128 << 20;

/// File name of an unsharded checkpoint.
pub(super) const SINGLE: &str = "model.safetensors";
/// File name of the index of a sharded one.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Endings of files that Python's `pickle` reads.
const PICKLES: [&str; 5] = ["bin", "ckpt", "pkl", "pt", "pth"];
/// Beginnings of such files that are not the weights of a model.
const NOT_WEIGHTS: [&str; 4] = ["optimizer", "rng_state", "scheduler", "training_args"];

/// The files of a checkpoint.
#[derive(Debug)]
pub(super) enum Files {
    /// One file.
    Single(PathBuf),
    /// Shards, with the tensors that each must hold.
    Sharded { index: PathBuf, shards: BTreeMap<String, BTreeSet<String>> },
}

/// Finds the weights of a folder.
pub(super) fn find(folder: &Path) -> Result<Files, BaseError> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    match (present(&single), present(&index)) {
        (true, false) => Ok(Files::Single(single)),
        (false, false) => Err(none(folder)?),
        (has_single, true) => {
            let shards = read(&index)?;
            // Transformers would read the one, vLLM the other.
            if has_single && !shards.contains_key(SINGLE) {
                return Err(WeightsError::Ambiguous { single, index }.into());
            }
            present_all(folder, &index, &shards)?;
            Ok(Files::Sharded { index, shards })
        }
    }
}

/// Whether there is anything by this name, a link into nothing included.
fn present(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Opens a file that is one: a pipe would be waited on for ever, a folder has no bytes.
pub(super) fn open(path: &Path) -> Result<fs::File, BaseError> {
    let metadata = fs::metadata(path).map_err(BaseError::read(path))?;
    if !metadata.is_file() {
        return Err(WeightsError::NotAFile { path: path.to_owned() }.into());
    }
    fs::File::open(path).map_err(BaseError::read(path))
}

/// The bytes of a regular file, unless they are more than `limit`.
pub(in crate::base) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, BaseError> {
    let bytes = open(path)?.metadata().map_err(BaseError::read(path))?.len();
    if bytes > limit {
        return Err(BaseError::TooLarge { path: path.to_owned(), bytes, limit });
    }
    fs::read(path).map_err(BaseError::read(path))
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The shards that an index names, each with its tensors.
fn read(index: &Path) -> Result<BTreeMap<String, BTreeSet<String>>, BaseError> {
    let text = read_bounded(index, MAX_INDEX_BYTES)?;
    let Index { weight_map: WeightMap(weight_map) } = serde_json::from_slice(&text)
        .map_err(|source| BaseError::Json { path: index.to_owned(), source })?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, shard) in weight_map {
        if !is_file_name(&shard) {
            let (path, tensor, shard) = (index.to_owned(), shown(&tensor), shown(&shard));
            return Err(WeightsError::ShardOutside { path, tensor, shard }.into());
        }
        shards.entry(shard).or_default().insert(tensor);
    }
    if let Some(pickle) = shards.keys().find(|shard| is_pickle(Path::new(shard))) {
        let folder = index.parent().unwrap_or(Path::new(".")).to_owned();
        return Err(WeightsError::Pickle { path: folder.join(pickle), folder }.into());
    }
    if shards.is_empty() {
        return Err(WeightsError::EmptyIndex { path: index.to_owned() }.into());
    }
    Ok(shards)
}

/// Whether a shard's name stays in its folder: one plain part of a path. What lies there
/// may be a link, as everything in the hub's cache is.
fn is_file_name(shard: &str) -> bool {
    !shard.is_empty() && ![".", ".."].contains(&shard) && !shard.contains(['/', '\\', '\0'])
}

/// All shards that are not there, in one error.
fn present_all(
    folder: &Path,
    index: &Path,
    shards: &BTreeMap<String, BTreeSet<String>>,
) -> Result<(), WeightsError> {
    let missing = shards.keys().filter(|shard| !present(&folder.join(shard)));
    let missing: Vec<String> = missing.map(|shard| shown(shard)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(WeightsError::MissingShards { path: index.to_owned(), missing, shards: shards.len() })
}

/// Whether a file is, by its ending, one that Python's `pickle` reads.
fn is_pickle(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    PICKLES.contains(&ending.to_lowercase().as_str())
}

/// Says why a folder has no weights: nothing there, or only pickle files.
fn none(folder: &Path) -> Result<BaseError, BaseError> {
    let mut pickles = Vec::new();
    for entry in fs::read_dir(folder).map_err(BaseError::read(folder))? {
        let path = entry.map_err(BaseError::read(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights = !NOT_WEIGHTS.iter().any(|beginning| name.starts_with(beginning));
        if is_pickle(&path) && weights {
            pickles.push(path);
        }
    }
    pickles.sort();
    let folder = folder.to_owned();
    Ok(match pickles.into_iter().next() {
        Some(path) => WeightsError::Pickle { path, folder }.into(),
        None => BaseError::NoWeights { folder },
    })
}

/// From tensor to shard; a tensor that stands twice is an error.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensor to shard")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let mut weight_map = BTreeMap::new();
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            if weight_map.contains_key(&tensor) {
                return Err(A::Error::custom(format_args!("`{}` stands twice", shown(&tensor))));
            }
            weight_map.insert(tensor, shard);
        }
        Ok(WeightMap(weight_map))
    }
}
