//! The beginning of a run: its lock and its folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::teacher::Taught;
use super::{Plan, PlannedFile};
use crate::dataset::consent::{Ask, Counts};
use crate::dataset::describe;
use crate::dataset::ledger::Head;
use crate::dataset::source::{self, SourceError};
use crate::dataset::spec::Spec;
use crate::diagnose::Failure;
use crate::files::{FolderInProgress, sha256_of_file, write_atomically};
use crate::peft;
use crate::recipe::lock::{Lock, LockedData, LockedFile, Split};
use crate::recipe::{Adapter, Lora, PUBLISHING, WriteError, write};
use crate::run::RunFolder;

impl Plan {
    /// Digests every input.
    pub fn lock(&self) -> Result<Lock, SourceError> {
        let base = self.base_files.iter().map(|name| self.pin_base(name));
        let mut base = base.collect::<Result<Vec<_>, _>>()?;
        if let Some(template) = &self.recipe.base.chat_template
            && !self.base_files.contains(template)
        {
            base.push(pin(template)?);
        }
        if let Adapter::Lora(Lora { from: Some(folder), .. }) = &self.recipe.adapter {
            for name in [peft::CONFIG, peft::WEIGHTS] {
                base.push(pin(&folder.join(name))?);
            }
        }
        let teacher = self.taught.as_ref().map(Taught::pin).transpose()?;
        let mut pinned = BTreeMap::new();
        let mut data = Vec::new();
        for planned in &self.data {
            // A file may serve several splits; once is enough to digest it.
            if !pinned.contains_key(&planned.path) {
                let file = pin(&planned.path)?;
                describe::check_digest(&planned.path, &file.sha256)?;
                pinned.insert(planned.path.clone(), file);
            }
            data.extend(pinned.get(&planned.path).map(|file| LockedData {
                split: planned.split.clone(),
                source: planned.source,
                file: file.clone(),
                rows: planned.rows.clone(),
                used_sha256: planned.used_sha256.clone(),
                tokens: planned.tokens,
                trained_tokens: planned.trained_tokens,
            }));
        }
        Ok(Lock {
            heirloom: crate::VERSION.to_owned(),
            created: self.ask.at,
            recipe_sha256: self.recipe_sha256.clone(),
            hub: self.pinned.as_ref().map(|pinned| pinned.pin.clone()),
            base,
            teacher,
            data,
            ask: self.ask.clone(),
            ledgers: self.spec.gate.heads(),
            training: self.training.clone(),
        })
    }

    fn pin_base(&self, name: &Path) -> Result<LockedFile, SourceError> {
        let inside = name.strip_prefix(&self.recipe.base.model).unwrap_or(name);
        Ok(LockedFile { path: name.to_owned(), ..pin(&self.base_folder.join(inside))? })
    }

    /// Makes the run folder, complete or not at all: resolved recipe, lock, consent report, and
    /// what `more` writes into the folder that it is given.
    pub fn begin(
        &self,
        run: &RunFolder,
        more: impl FnOnce(&Path, &Spec) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let lock = json(&self.lock()?)?;
        let report = json(&ConsentReport::new(self))?;
        let recipe = write(&self.recipe)?;
        let folder = FolderInProgress::beside(run.path())?;
        let beginning = RunFolder::new(folder.path());
        write_atomically(&beginning.recipe(), recipe.as_bytes())?;
        write_atomically(&beginning.lock(), lock.as_bytes())?;
        write_atomically(&beginning.consent_report(), report.as_bytes())?;
        more(folder.path(), &self.spec)?;
        Ok(folder.finish(false)?)
    }
}

pub(super) fn pin(path: &Path) -> Result<LockedFile, SourceError> {
    let path = path.to_owned();
    if let Some(pin) = source::pin(&path)? {
        let (bytes, sha256) = (pin.bytes, pin.footer_sha256.clone());
        return Ok(LockedFile { path, bytes, sha256, remote: Some(pin) });
    }
    let bytes = fs_err::metadata(&path)?.len();
    Ok(LockedFile { bytes, sha256: sha256_of_file(&path)?, path, remote: None })
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(WriteError::Json)?;
    Ok(text + "\n")
}

/// Contents of `consent_report.json`: which rows may be used, and why not the others.
#[derive(Debug, Serialize)]
struct ConsentReport<'a> {
    heirloom: &'static str,
    ask: &'a Ask,
    /// Whether the rows allow that the result is published.
    publishable: bool,
    /// How far the ledgers of withdrawals had grown.
    ledgers: Vec<Head>,
    /// Over all files.
    #[serde(flatten)]
    rows: Counts,
    files: Vec<ReportedFile<'a>>,
}

#[derive(Debug, Serialize)]
struct ReportedFile<'a> {
    split: &'a Split,
    /// Which entry of the split's list in the recipe it belongs to.
    source: usize,
    path: &'a Path,
    /// Of its rows, as they are used; 0 where the rows were not tokenised.
    tokens: u64,
    trained_tokens: u64,
    #[serde(flatten)]
    rows: &'a Counts,
}

impl<'a> ConsentReport<'a> {
    fn new(plan: &'a Plan) -> Self {
        let file = |file: &'a PlannedFile| ReportedFile {
            split: &file.split,
            source: file.source,
            path: &file.path,
            tokens: file.tokens,
            trained_tokens: file.trained_tokens,
            rows: &file.rows,
        };
        Self {
            heirloom: crate::VERSION,
            ask: &plan.ask,
            publishable: plan.ask.processing.iter().any(|term| term == PUBLISHING),
            ledgers: plan.spec.gate.heads(),
            rows: plan.rows(|_| true),
            files: plan.data.iter().map(file).collect(),
        }
    }
}
