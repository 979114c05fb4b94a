//! A recipe and a look at everything it names: what a run will do, or all that stops it.
//!
//! Reads the base folder, the tokenizer and every row, and computes no tensor. Every problem
//! of every input is collected and placed at the key that names the input.

mod adapter;
mod again;
mod begin;
mod teacher;
mod words;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::lock::{Size, Split};
use super::memory::limit::Limit;
use super::memory::{self, Asked, Memory, MemoryError};
use super::problem::{Fault, Problem, RecipeError, listed, most_alike};
use super::read::Pinned;
use super::{Adapter, Data, Literal, Module, Recipe, Suite, is_part, optimizer};
use crate::base::{Architecture, BaseFolder, Layer, Linear};
use crate::dataset::batch::RowFile;
use crate::dataset::chat::ChatEncoder;
use crate::dataset::consent::{Ask, Counts};
use crate::dataset::error::DatasetError;
use crate::dataset::gate::Gate;
use crate::dataset::spec::{Spec, SplitFile, entries};
use crate::dataset::survey::{Survey, survey};
use crate::diagnose::Failure;
use crate::hub;
pub use again::Again;
use teacher::Taught;
pub use words::Warning;

/// Is told how many more rows have been looked at.
pub type Tick<'a> = &'a (dyn Fn(u64) + Sync);

/// Everything that is known about a run before it begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The recipe with its defaults.
    pub recipe: Recipe,
    /// SHA-256 of the recipe file as the user wrote it.
    pub recipe_sha256: String,
    /// Weights of base and adapter.
    pub parameters: Parameters,
    /// Predicted memory of the training process.
    pub memory: Memory,
    /// What is asked of every row.
    pub ask: Ask,
    /// Files of rows, in the order in which they are read.
    pub data: Vec<PlannedFile>,
    /// What training takes.
    pub training: Size,
    /// Tokens that the base does not have yet.
    pub added_tokens: usize,
    /// What does not stop a run and may yet be a mistake.
    pub warnings: Vec<Warning>,
    /// The base on the hub, where it lies there.
    pub pinned: Option<Pinned>,
    spec: Spec,
    architecture: Architecture,
    /// Who teaches, where somebody does.
    taught: Option<Taught>,
    /// Tokens of rows that are measured and not trained.
    held_out: u64,
    /// How large the suites are that are answered after training.
    suites: Vec<Asked>,
    base_folder: PathBuf,
    base_files: Vec<PathBuf>,
}

/// Numbers of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Weights that move.
    pub trainable: u64,
    /// Weights that stay.
    pub frozen: u64,
}

/// A file of rows and the gate's verdict on it.
#[derive(Clone, Debug)]
pub struct PlannedFile {
    /// Who reads it.
    pub split: Split,
    /// Which entry of the split's list in the recipe it belongs to.
    pub source: usize,
    /// The file.
    pub path: PathBuf,
    /// Rows seen, used and left out.
    pub rows: Counts,
    /// See [`LockedData::used_sha256`].
    pub used_sha256: String,
    /// Tokens of its rows, as they are used.
    pub tokens: u64,
    /// Of these, tokens that carry loss.
    pub trained_tokens: u64,
}

/// What `recipe` asks of rows when a run starts at `now`.
pub fn ask(data: &Data, now: Timestamp) -> Ask {
    Ask {
        purpose: data.purpose.clone(),
        processing: data.processing.clone(),
        at: now,
        until: hours_after(now, data.max_hours),
    }
}

/// An instant so many hours later, or the last instant there is.
pub fn hours_after(now: Timestamp, hours: u32) -> Timestamp {
    now.saturating_add(SignedDuration::from_hours(i64::from(hours))).unwrap_or(Timestamp::MAX)
}

impl Plan {
    /// Looks at everything that a recipe names, for a run that starts at `now`.
    ///
    /// `tick` is told of rows that are done.
    pub fn make(literal: &Literal, now: Timestamp, tick: Tick<'_>) -> Result<Self, RecipeError> {
        let mut looking = Looking { literal, tick, problems: Vec::new() };
        let mut base = looking.base();
        let vocabulary = looking.vocabulary(base.as_mut());
        let trainable = base.as_ref().and_then(|base| looking.trainable(base, vocabulary.as_ref()));
        if let Some(base) = &base {
            looking.param_groups(base);
        }
        let words = base.as_ref().zip(vocabulary.as_ref());
        let taught = words.and_then(|(base, words)| looking.taught(base, words));
        let added_tokens = vocabulary.as_ref().map_or(0, |vocabulary| vocabulary.added.len());
        let warnings = vocabulary.as_ref().map(words::warnings).unwrap_or_default();
        let ask = ask(&literal.recipe.data, now);
        let encoder = vocabulary.map(|vocabulary| vocabulary.encoder.with_clock(now));
        let gate = looking.gate(&ask);
        let survey = looking.rows(base.as_ref().zip(encoder), gate.as_ref());
        if let Some((_, survey)) = &survey {
            looking.heard(taught.as_ref(), &survey.files);
        }
        let (Some(base), Some(trainable), Some((spec, survey)), true) =
            (base, trainable, survey, looking.problems.is_empty())
        else {
            let mut problems = looking.problems;
            problems.sort_by(|one, other| one.place.cmp(&other.place));
            return Err(RecipeError::Problems { path: literal.path().to_owned(), problems });
        };
        let recipe = literal.recipe.clone();
        let total = base.architecture.parameter_count();
        let frozen = match recipe.adapter {
            Adapter::Lora(_) => total,
            Adapter::Full(_) => total.saturating_sub(trainable),
        };
        // Rows of training that are held out are at most as long as a window.
        let window = recipe.data.sequence_length as u64;
        let beside = survey.files.iter().filter(|file| file.file.split != Split::Train);
        let held_out = beside.map(|file| file.tokens).sum::<u64>()
            + survey.size.held_out.saturating_mul(window);
        let suites = asked(&recipe, &survey);
        let memory = Memory::predict(&memory::Run {
            recipe: &recipe,
            architecture: &base.architecture,
            trained: trainable,
            size: &survey.size,
            held_out,
            suites: &suites,
            teacher: taught.as_ref().and_then(Taught::architecture),
        });
        let files = survey.files.into_iter();
        Ok(Self {
            recipe,
            recipe_sha256: literal.sha256.clone(),
            parameters: Parameters { trainable, frozen },
            memory,
            ask,
            spec,
            data: files
                .map(|file| PlannedFile {
                    split: file.file.split,
                    source: file.file.source,
                    path: file.file.path,
                    rows: file.rows,
                    used_sha256: file.used_sha256,
                    tokens: file.tokens,
                    trained_tokens: file.trained_tokens,
                })
                .collect(),
            training: survey.size,
            added_tokens,
            warnings,
            pinned: literal.pinned.clone(),
            base_files: named(&base, &literal.recipe.base.model),
            base_folder: base.folder().to_owned(),
            architecture: base.architecture,
            taught,
            held_out,
            suites,
        })
    }

    /// Refuses a run that takes more memory than there is, and names settings that take less.
    pub fn fits(&self, limit: Limit) -> Result<(), MemoryError> {
        self.memory_run().fit(&self.memory, limit)
    }

    /// As [`Plan::fits`], of steps alone: nothing is measured between them or written.
    pub fn steps_fit(&self, limit: Limit) -> Result<(), MemoryError> {
        let mut recipe = self.recipe.clone();
        recipe.train.checkpoint_in_background = Some(false);
        let run = memory::Run { recipe: &recipe, held_out: 0, suites: &[], ..self.memory_run() };
        run.fit(&Memory::predict(&run), limit)
    }

    fn memory_run(&self) -> memory::Run<'_> {
        memory::Run {
            recipe: &self.recipe,
            architecture: &self.architecture,
            trained: self.parameters.trainable,
            size: &self.training,
            held_out: self.held_out,
            suites: &self.suites,
            teacher: self.taught.as_ref().and_then(Taught::architecture),
        }
    }

    /// Rows of one kind of split, added up.
    pub fn rows(&self, belongs: impl Fn(&Split) -> bool) -> Counts {
        let mut sum = Counts::default();
        for file in self.data.iter().filter(|file| belongs(&file.split)) {
            sum.add(&file.rows);
        }
        sum
    }

    /// Files of the base that are read, sorted, below what the recipe calls the base.
    pub fn base_files(&self) -> &[PathBuf] {
        &self.base_files
    }
}

/// How large the suites are that the recipe asks.
fn asked(recipe: &Recipe, survey: &Survey) -> Vec<Asked> {
    let suites = recipe.data.test.iter().filter(|suite| recipe.eval.suites.contains(&suite.name));
    let asked = |suite: &Suite| {
        let split = Split::Test(suite.name.clone());
        let files = survey.files.iter().filter(|file| file.file.split == split);
        let max_new_tokens = suite.max_new_tokens as u64;
        files.fold(Asked { max_new_tokens, ..Asked::default() }, |asked, file| Asked {
            rows: asked.rows + file.rows.used,
            tokens: asked.tokens + file.tokens,
            ..asked
        })
    };
    suites.map(asked).collect()
}

/// The files of a base, below what the recipe calls it: its folder, or its address.
fn named(base: &BaseFolder, model: &Path) -> Vec<PathBuf> {
    let name = |path: PathBuf| match path.strip_prefix(base.folder()) {
        Ok(inside) => model.join(inside),
        Err(_) => path,
    };
    base.files().into_iter().map(name).collect()
}

/// Looks at one input after the other, whatever is wrong with those before.
struct Looking<'a> {
    literal: &'a Literal,
    tick: Tick<'a>,
    problems: Vec<Problem>,
}

impl Looking<'_> {
    /// The value, or a problem at `key`.
    fn take<T>(&mut self, key: &str, result: Result<T, impl Into<Failure>>) -> Option<T> {
        result.map_err(|error| self.report(key, Fault::Input { cause: error.into() })).ok()
    }

    fn report(&mut self, key: &str, fault: Fault) {
        self.problems.push(self.literal.problem(key, fault));
    }

    fn rule(&mut self, key: &str, what: String, hint: String) {
        let key = self.literal.recipe.adapter.key(key);
        self.report(&key, Fault::Rule { key: key.clone(), what, hint });
    }

    fn base(&mut self) -> Option<BaseFolder> {
        let recipe = &self.literal.recipe;
        let folder = self.take("base.model", hub::local(&recipe.base.model))?;
        let lacking = self.literal.pinned.as_ref().is_some_and(|pinned| pinned.lacking > 0);
        let opened = BaseFolder::open(&folder, recipe.base.from_scratch || lacking);
        let base = self.take("base.model", opened)?;
        let (window, positions) =
            (recipe.data.sequence_length, base.architecture.max_position_embeddings);
        if window > positions {
            self.rule(
                "data.sequence_length",
                format!("is {window}, more than the {positions} positions of the base"),
                format!("write {positions} or less"),
            );
        }
        // The two tables are known from Transformers, and are never quantised.
        let is_table = |name: &str| Module::ALL.iter().any(|module| module.name() == name);
        self.layers(
            "base.unquantized",
            &recipe.base.unquantized,
            &base.architecture.quantizable_layers(),
            |layer, name| is_table(name) || is_part(layer, name),
        );
        Some(base)
    }

    /// Every group of weights must name some that are trained.
    fn param_groups(&mut self, base: &BaseFolder) {
        let recipe = &self.literal.recipe;
        let known = trained_names(recipe, base);
        let named = |pattern: &str| known.iter().any(|name| optimizer::matches(pattern, name));
        for (group, words) in recipe.train.param_groups.iter().enumerate() {
            for (index, pattern) in words.params.iter().enumerate().filter(|(_, p)| !named(p)) {
                let parts: BTreeSet<&str> = known.iter().flat_map(|name| name.split('.')).collect();
                let hint = match most_alike(pattern, parts.iter().copied()) {
                    Some(alike) => format!("did you mean `{alike}`?"),
                    None => match known.first() {
                        Some(name) => format!("weights have names such as `{name}`"),
                        None => "leave it out".to_owned(),
                    },
                };
                let key = format!("train.param_groups[{group}].params[{index}]");
                self.rule(&key, format!("names `{pattern}`, which is in no trained weight"), hint);
            }
        }
    }

    /// Every name at `key` must be that of some layer.
    fn layers(
        &mut self,
        key: &str,
        names: &[String],
        layers: &[Linear],
        is_named: impl Fn(&str, &str) -> bool,
    ) {
        for (index, name) in names.iter().enumerate() {
            if layers.iter().any(|layer| is_named(&layer.name, name)) {
                continue;
            }
            let lasts = layers.iter().filter_map(|layer| layer.name.rsplit('.').next());
            let hint = match most_alike(name, lasts.clone()) {
                Some(alike) => format!("did you mean `{alike}`?"),
                None => {
                    let lasts: BTreeSet<&str> = lasts.collect();
                    format!("the base has {}", listed(lasts.into_iter()))
                }
            };
            let what = format!("names `{name}`, which is no linear layer of the base");
            // Entries of a mapping have no number.
            let entry = format!("{key}[{index}]");
            self.rule(if key.ends_with("_pattern") { key } else { &entry }, what, hint);
        }
    }

    /// What is asked of every row, and the ledgers.
    fn gate(&mut self, ask: &Ask) -> Option<Arc<Gate>> {
        let opened = Gate::open(ask.clone(), &self.literal.recipe.data.consent.ledgers);
        self.take("data.consent.ledgers", opened).map(Arc::new)
    }

    /// Every file of every split, and what is in them.
    fn rows(
        &mut self,
        base: Option<(&BaseFolder, ChatEncoder)>,
        gate: Option<&Arc<Gate>>,
    ) -> Option<(Spec, Survey)> {
        let recipe = &self.literal.recipe;
        let before = self.problems.len();
        let found = self.files();
        for (file, key) in &found {
            if let Some(gate) = gate {
                self.take(key, RowFile::open(file, gate));
            }
        }
        if self.problems.len() > before {
            // They would only be found again, and without their keys.
            return None;
        }
        let ((base, encoder), gate) = base.zip(gate)?;
        let files = found.iter().map(|(file, _)| file.clone()).collect();
        let spec = Spec::with_files(recipe, Arc::clone(gate), files);
        let (encoder, positions) = (Arc::new(encoder), base.architecture.max_position_embeddings);
        match survey(&spec, &encoder, positions, self.tick) {
            Ok(survey) => Some((spec, survey)),
            Err(error) => {
                let key = key_of(&error, &found);
                self.take(&key, Err(error))
            }
        }
    }

    /// Every file of every split, with the key that names it.
    fn files(&mut self) -> Vec<(SplitFile, String)> {
        let mut files = Vec::new();
        for entry in entries(&self.literal.recipe) {
            let key = entry.key();
            let found = self.take(&key, entry.files()).unwrap_or_default();
            files.extend(found.into_iter().map(|file| (file, key.clone())));
        }
        files
    }
}

/// Names of the weights that are trained, as groups of weights name them.
fn trained_names(recipe: &Recipe, base: &BaseFolder) -> Vec<String> {
    let adapter = &recipe.adapter;
    let Adapter::Lora(lora) = adapter else {
        let names = base.architecture.tensors().into_iter().map(|(name, _)| name);
        return names.filter(|name| adapter.trains(name)).collect();
    };
    let layer = |layer: Linear| {
        let pair = match lora.vera {
            Some(_) => ["vera_lambda_d", "vera_lambda_b"],
            None => ["lora_A.weight", "lora_B.weight"],
        };
        let pair = pair.into_iter();
        let lengths = lora.use_dora.then_some("lora_magnitude_vector");
        let parts = pair.chain(lengths).filter(|_| lora.chooses(&layer.name));
        let bias = (layer.bias && lora.trains_bias(&layer.name)).then_some("bias");
        let named = |part: &str| format!("base_model.model.{}.{part}", layer.name);
        parts.chain(bias).map(named).collect::<Vec<_>>()
    };
    let parameters = base.architecture.layers.iter().filter_map(Layer::expert_parameters);
    let parameters = parameters.flat_map(|parameters| lora.parameter_keys(&parameters));
    let tables = Module::ALL.into_iter().filter(|module| {
        lora.modules_to_save.contains(module)
            || !recipe.base.added_tokens.is_empty()
            || !lora.trainable_token_indices.of(*module).is_empty()
    });
    let tables = tables.map(|module| match module {
        Module::EmbedTokens => "base_model.model.model.embed_tokens.weight".to_owned(),
        Module::LmHead => "base_model.model.lm_head.weight".to_owned(),
    });
    let layers = base.architecture.linear_layers().into_iter().flat_map(layer);
    layers.chain(parameters.flatten().flatten()).chain(tables).collect()
}

/// The key to point at for something wrong with the rows.
fn key_of(error: &DatasetError, files: &[(SplitFile, String)]) -> String {
    let found = match error {
        DatasetError::Row { path, .. }
        | DatasetError::Format { path, .. }
        | DatasetError::NoAnswer { path, .. }
        | DatasetError::Overlong { path, .. }
        | DatasetError::BeyondPositions { path, .. } => {
            files.iter().find(|(known, _)| known.path == *path).map(|(_, key)| key.clone())
        }
        DatasetError::AllOverlong { .. } => Some("data.sequence_length".to_owned()),
        // Names the key between backticks.
        DatasetError::NoRowLeft { split, .. } => split.split('`').nth(1).map(str::to_owned),
        _ => None,
    };
    found.unwrap_or_else(|| "data".to_owned())
}
