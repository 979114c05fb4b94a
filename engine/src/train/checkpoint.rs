//! Checkpoints: everything that a step depends on, and nothing else.
//!
//! A checkpoint is a folder that appears by one rename: `state.safetensors` (weights and
//! optimiser) and `state.json` (counters and the position of the stream). Randomness needs
//! no state: every step seeds the generator from the recipe's seed and its own number.

use std::path::{Path, PathBuf};

use fs_err as fs;
use heirloom::base::Checkpoint;
use heirloom::dataset::stream::Position;
use heirloom::files::{self, FolderInProgress};
use serde::{Deserialize, Serialize};

use super::optimizer::AdamW;
use super::parameters::Parameters;
use crate::error::{EngineError, Result};
use crate::memory;
use crate::model::weights::{self, Lazy};

const TENSORS: &str = "state.safetensors";
const COUNTERS: &str = "state.json";

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Finished optimiser steps.
    pub step: u64,
    /// Tokens processed.
    pub tokens: u64,
    /// Tokens that carried loss.
    pub trained_tokens: u64,
    /// Seconds spent training.
    pub seconds: f64,
    /// Finished steps of the current pass.
    pub step_in_epoch: u64,
    /// The stream: the next step begins here.
    pub position: Position,
}

/// Writes a checkpoint, then removes all but the newest `keep`.
pub fn save(
    folder: &Path,
    progress: &Progress,
    parameters: &Parameters,
    optimizer: &AdamW,
    keep: usize,
) -> Result<()> {
    let target = folder.join(format!("step-{:06}", progress.step));
    if target.exists() {
        return Ok(());
    }
    // A tensor is written from a copy of its bytes.
    memory::give_back();
    let unfinished = FolderInProgress::beside(&target)?;
    let tensors = [
        ("weights", parameters.flat.detach()),
        ("mean", optimizer.mean.shallow_clone()),
        ("square", optimizer.square.shallow_clone()),
    ];
    let tensors = tensors.map(|(name, tensor)| (name.to_owned(), Lazy::ready(tensor)));
    weights::save(&unfinished.path().join(TENSORS), tensors.into())?;
    let path = unfinished.path().join(COUNTERS);
    let text = serde_json::to_string_pretty(progress)
        .map_err(|source| EngineError::Json { path: path.clone(), source })?;
    files::write_atomically(&path, text.as_bytes())?;
    unfinished.finish(false)?;
    let mut old = list(folder)?;
    old.truncate(old.len().saturating_sub(keep.max(1)));
    for (_, path) in old {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

/// Restores the newest checkpoint, if there is one; clears away what an interrupted write
/// left behind.
pub fn restore(
    folder: &Path,
    parameters: &mut Parameters,
    optimizer: &mut AdamW,
) -> Result<Option<Progress>> {
    clear_unfinished(folder)?;
    let Some((_, newest)) = list(folder)?.pop() else {
        return Ok(None);
    };
    let path = newest.join(COUNTERS);
    let text = fs::read_to_string(&path)?;
    let progress: Progress =
        serde_json::from_str(&text).map_err(|source| EngineError::Json { path, source })?;
    let path = newest.join(TENSORS);
    let file = Checkpoint::open_file(&path)?;
    let shape = vec![parameters.flat.numel()];
    let expected = ["mean", "square", "weights"].map(|name| (name.to_owned(), shape.clone()));
    file.expect(&expected, |_| false)
        .map_err(|problems| EngineError::Tensors { path, problems })?;
    let restored = weights::load(&file, "weights")?;
    tch::no_grad(|| parameters.flat.f_copy_(&restored))?;
    optimizer.mean.f_copy_(&weights::load(&file, "mean")?)?;
    optimizer.square.f_copy_(&weights::load(&file, "square")?)?;
    optimizer.updates = progress.step;
    Ok(Some(progress))
}

/// Complete checkpoints by step, oldest first.
fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
        found.extend(step.map(|step| (step, entry.path())));
    }
    found.sort();
    Ok(found)
}

fn clear_unfinished(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(".heirloom-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
