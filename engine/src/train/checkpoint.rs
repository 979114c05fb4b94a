//! Checkpoints: everything that a step depends on, and nothing else.
//!
//! A checkpoint is a folder that appears by one rename: `state.safetensors` (weights and
//! optimiser) and `state.json` (counters, the position of the stream, what the loop remembers).
//! Randomness needs no state: every step seeds the generator from the recipe's seed and its own
//! number.
//!
//! A checkpoint is written while training goes on, from a copy of what it holds; there is never
//! more than one copy.

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use fs_err as fs;
use heirloom::base::Checkpoint;
use heirloom::dataset::stream::Position;
use heirloom::files::{self, FolderInProgress};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::guard::Seen;
use super::optimizer::Optimizer;
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
    /// Of these, those that moved the weights, as far as these weights have been moved.
    pub updates: u64,
    /// Tokens processed.
    pub tokens: u64,
    /// Tokens that carried loss.
    pub trained_tokens: u64,
    /// Seconds spent training.
    pub seconds: f64,
    /// Finished steps of the current pass.
    pub step_in_epoch: u64,
    /// What the losses were so far.
    pub seen: Seen,
    /// The stream: the next step begins here.
    pub position: Position,
}

/// Writes checkpoints into a folder, and reads them.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    /// Newest ones that are kept.
    keep: usize,
    /// Whether training goes on meanwhile.
    background: bool,
    writing: Option<JoinHandle<Result<()>>>,
}

/// What a checkpoint holds.
struct State {
    progress: Progress,
    tensors: Vec<(String, Tensor)>,
}

impl State {
    fn of(progress: &Progress, parameters: &Parameters, optimizer: &Optimizer) -> Self {
        let tensors = tensors(parameters, optimizer).into_iter();
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        Self { progress: progress.clone(), tensors }
    }

    /// The same in memory of its own, on the CPU.
    fn copied(self) -> Result<Self> {
        let copy = |(name, tensor): (String, Tensor)| -> Result<_> {
            let place = tensor.f_to_device_(tch::Device::Cpu, tensor.kind(), false, true)?;
            Ok((name, place))
        };
        let tensors = self.tensors.into_iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { tensors, ..self })
    }

    /// Makes it a folder, which appears when it is complete.
    fn write(self, target: &Path) -> Result<()> {
        let unfinished = FolderInProgress::beside(target)?;
        let tensors = self.tensors.into_iter();
        let tensors = tensors.map(|(name, tensor)| (name, Lazy::ready(tensor))).collect();
        weights::save(&unfinished.path().join(TENSORS), tensors)?;
        let path = unfinished.path().join(COUNTERS);
        let text = serde_json::to_string_pretty(&self.progress)
            .map_err(|source| EngineError::Json { path: path.clone(), source })?;
        files::write_atomically(&path, text.as_bytes())?;
        Ok(unfinished.finish(false)?)
    }
}

impl Checkpoints {
    /// Those in `folder`; clears away what an interrupted write left behind.
    pub fn open(folder: &Path, keep: usize, background: bool) -> Result<Self> {
        clear_unfinished(folder)?;
        Ok(Self { folder: folder.to_owned(), keep: keep.max(1), background, writing: None })
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:06}"))
    }

    /// Writes a checkpoint, then removes all but the newest and those of the steps `kept`. What
    /// went wrong with writing the one before is said here.
    pub fn save(
        &mut self,
        progress: &Progress,
        parameters: &Parameters,
        optimizer: &Optimizer,
        kept: Vec<u64>,
    ) -> Result<()> {
        self.finish()?;
        let target = self.path(progress.step);
        if target.exists() {
            return Ok(());
        }
        let state = State::of(progress, parameters, optimizer);
        let (folder, keep) = (self.folder.clone(), self.keep);
        if !self.background {
            // A tensor is written from a copy of its bytes.
            memory::give_back();
            state.write(&target)?;
            return prune(&folder, keep, &kept);
        }
        let state = state.copied()?;
        let write = move || {
            state.write(&target)?;
            prune(&folder, keep, &kept)
        };
        let writer = thread::Builder::new().name("checkpoint".to_owned());
        self.writing = Some(writer.spawn(write)?);
        Ok(())
    }

    /// Says at once what went wrong with a checkpoint that has been written meanwhile.
    pub fn look(&mut self) -> Result<()> {
        match &self.writing {
            Some(writing) if writing.is_finished() => self.finish(),
            _ => Ok(()),
        }
    }

    /// Waits until nothing is being written any more.
    pub fn finish(&mut self) -> Result<()> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let panicked = |_| EngineError::Defect("writing a checkpoint panicked".to_owned());
        writing.join().map_err(panicked)?
    }

    /// Restores the newest checkpoint, if there is one.
    pub fn restore(
        &mut self,
        parameters: &mut Parameters,
        optimizer: &mut Optimizer,
    ) -> Result<Option<Progress>> {
        let newest = list(&self.folder)?.pop();
        newest.map(|(step, _)| self.load(step, parameters, Some(optimizer))).transpose()
    }

    /// Weights, and the optimiser if that is wanted, of the checkpoint of a step.
    pub fn load(
        &mut self,
        step: u64,
        parameters: &mut Parameters,
        optimizer: Option<&mut Optimizer>,
    ) -> Result<Progress> {
        self.finish()?;
        let path = self.path(step).join(COUNTERS);
        let text = fs::read_to_string(&path)?;
        let progress: Progress =
            serde_json::from_str(&text).map_err(|source| EngineError::Json { path, source })?;
        let path = self.path(step).join(TENSORS);
        let file = Checkpoint::open_file(&path)?;
        let tensors = match &optimizer {
            Some(optimizer) => tensors(parameters, optimizer),
            None => vec![weights_of(parameters)],
        };
        // Codes of an optimiser are no tensors that a model could have.
        let is_code = |(_, tensor): &&(&str, Tensor)| tensor.kind() == Kind::Uint8;
        let numbers = tensors.iter().filter(|tensor| !is_code(tensor));
        let expected = numbers.map(|(name, tensor)| ((*name).to_owned(), vec![tensor.numel()]));
        let code = |name: &str| tensors.iter().filter(is_code).any(|(known, _)| *known == name);
        file.expect(&expected.collect::<Vec<_>>(), |name| optimizer.is_none() || code(name))
            .map_err(|problems| EngineError::Tensors { path, problems })?;
        for (name, mut tensor) in tensors {
            tch::no_grad(|| -> Result<_> { Ok(tensor.f_copy_(&weights::load(&file, name)?)?) })?;
        }
        if let Some(optimizer) = optimizer {
            optimizer.updates = progress.updates;
        }
        Ok(progress)
    }
}

impl Drop for Checkpoints {
    /// A program that ends does not cut a checkpoint off. Where that fails, the run has failed
    /// already, or would have said so.
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// What a step depends on, by name: flat tensors, the same that it changes.
fn tensors(parameters: &Parameters, optimizer: &Optimizer) -> Vec<(&'static str, Tensor)> {
    optimizer.state().into_iter().chain([weights_of(parameters)]).collect()
}

fn weights_of(parameters: &Parameters) -> (&'static str, Tensor) {
    ("weights", parameters.flat.detach())
}

/// Removes all but the newest `keep` and those of some steps.
fn prune(folder: &Path, keep: usize, kept: &[u64]) -> Result<()> {
    let mut old = list(folder)?;
    old.truncate(old.len().saturating_sub(keep));
    for (_, path) in old.iter().filter(|(step, _)| !kept.contains(step)) {
        fs::remove_dir_all(path)?;
    }
    Ok(())
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
