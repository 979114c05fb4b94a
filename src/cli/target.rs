//! What the words `TARGET` and `RUN` of the command line stand for.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::printer::Printer;
use crate::diagnose::{Diagnose, Failure};
use crate::hub::{self, Address, HubError, Need};
use crate::job::Target;
use crate::recipe::lock::Lock;
use crate::recipe::problem::RecipeError;
use crate::recipe::{self, Adapter, Dtype, Literal, Recipe, Storage};
use crate::run::RunFolder;

/// Largest `adapter_config.json` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A path that is not what a command needs.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetError {
    #[error("there is no folder `{}`", path.display())]
    NoFolder { path: PathBuf },
    #[error("`{}` is neither a model, nor a run, nor an adapter", path.display())]
    Unknown { path: PathBuf },
    #[error("`{}` is not a run", path.display())]
    NotARun { path: PathBuf },
    #[error("the run `{}` is not finished", path.display())]
    Unfinished { path: PathBuf },
    #[error("`{}` is not the configuration of an adapter", path.display())]
    AdapterConfig { path: PathBuf, source: io::Error },
    #[error("the adapter `{}` is for the base `{}`, which is not here", path.display(), base.display())]
    NoBase { path: PathBuf, base: PathBuf },
}

impl Diagnose for TargetError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoFolder { .. } => "check the path for a typing mistake".to_owned(),
            Self::Unknown { .. } => "give a folder with `config.json` (a model), `recipe.lock` \
                (a run) or `adapter_config.json` (an adapter)"
                .to_owned(),
            Self::NotARun { .. } => "give the folder that `heirloom train` wrote, such as \
                `runs/quickstart`"
                .to_owned(),
            Self::Unfinished { .. } => "finish it with `heirloom train RECIPE --resume`".to_owned(),
            Self::AdapterConfig { .. } => "export the adapter again".to_owned(),
            Self::NoBase { base, .. } if matches!(Address::of(base), Some(Ok(_))) => format!(
                "download it by naming it, for example with `heirloom generate {} --prompt Hello`",
                base.display()
            ),
            Self::NoBase { base, .. } => {
                format!("run the command where `{}` lies, or put the base there", base.display())
            }
        })
    }
}

/// What a folder holds.
#[derive(Debug)]
pub(super) enum Resolved {
    Base(PathBuf),
    Adapter { base: PathBuf, adapter: PathBuf },
    Run(Box<Run>),
}

/// A run folder with its papers.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) folder: RunFolder,
    pub(super) recipe: Recipe,
    pub(super) lock: Lock,
    /// The folder of its base.
    pub(super) base: PathBuf,
}

impl Resolved {
    /// The model to run, in `dtype` or in its own precision.
    pub(super) fn target(&self, dtype: Option<Dtype>) -> Target {
        // A run with an adapter is what was trained: quantised, if its base was.
        let mut storage = match self {
            Self::Run(run) => run.recipe.base.storage(),
            _ => Storage::default(),
        };
        storage.dtype = dtype.unwrap_or(storage.dtype);
        let (base, adapter) = match self {
            Self::Base(base) => (base.clone(), None),
            Self::Adapter { base, adapter } => (base.clone(), Some(adapter.clone())),
            Self::Run(run) => match run.recipe.adapter {
                Adapter::Lora(_) => (run.base.clone(), Some(run.folder.adapter())),
                Adapter::Full(_) => (run.folder.model(), None),
            },
        };
        Target { base, adapter, storage }
    }
}

/// Finds out what `path` is. A run must be finished, and its base must be the one that it
/// was trained on. What an address means is downloaded where the cache lacks it.
pub(super) fn resolve(path: &Path, printer: Printer) -> Result<Resolved, Failure> {
    if let Some(address) = Address::of(path) {
        return Ok(Resolved::Base(hub::fetch(&address?, Need::Model, printer.into())?.folder));
    }
    if !path.is_dir() {
        return Err(TargetError::NoFolder { path: path.to_owned() }.into());
    }
    if RunFolder::new(path).lock().is_file() {
        return Ok(Resolved::Run(Box::new(finished(path, printer)?)));
    }
    let config = path.join("adapter_config.json");
    if config.is_file() {
        return Ok(adapter(path, &config)?);
    }
    if path.join("config.json").is_file() {
        return Ok(Resolved::Base(path.to_owned()));
    }
    Err(TargetError::Unknown { path: path.to_owned() }.into())
}

/// The finished run at `path`, with its base verified against its lock.
pub(super) fn finished(path: &Path, printer: Printer) -> Result<Run, Failure> {
    let mut run = open(path)?;
    if !run.is_trained() {
        return Err(TargetError::Unfinished { path: path.to_owned() }.into());
    }
    run.fetch_base(printer)?;
    run.lock.verify_base()?;
    Ok(run)
}

/// The run at `path`, finished or not.
pub(super) fn open(path: &Path) -> Result<Run, Failure> {
    let folder = RunFolder::new(path);
    if !folder.lock().is_file() || !folder.recipe().is_file() {
        return Err(TargetError::NotARun { path: path.to_owned() }.into());
    }
    let lock = Lock::read(&folder.lock())?;
    let recipe = recipe::read(&folder.recipe(), &[])?.recipe;
    let base = recipe.base.model.clone();
    Ok(Run { folder, recipe, lock, base })
}

impl Run {
    /// Sees to it that a base on the hub is in the cache, from which others may remove it.
    pub(super) fn fetch_base(&mut self, printer: Printer) -> Result<(), HubError> {
        if let Some(address) = Address::of(&self.recipe.base.model) {
            let need = needed(&self.recipe, Need::Model);
            self.base = hub::fetch(&address?, need, printer.into())?.folder;
        }
        Ok(())
    }

    /// Whether training is complete.
    pub(super) fn is_trained(&self) -> bool {
        self.folder.summary().is_file()
    }

    /// Whether nothing is left to do: trained, and every suite measured.
    pub(super) fn is_finished(&self) -> bool {
        let mut suites = self.recipe.eval.suites.iter();
        self.is_trained() && suites.all(|suite| self.folder.eval(suite).is_file())
    }
}

/// Sees to it that a base on the hub is in the cache, as far as `need` goes, and pins it.
pub(super) fn pin(
    mut literal: Literal,
    need: Need,
    printer: Printer,
) -> Result<Literal, RecipeError> {
    let Some(address) = literal.hub_base() else { return Ok(literal) };
    let need = needed(&literal.recipe, need);
    let fetched = address
        .and_then(|asked| hub::fetch(&asked, need, printer.into()).map(|fetched| (asked, fetched)));
    match fetched {
        Ok((asked, fetched)) => {
            literal.pin(&asked, &fetched.pinned.revision, fetched.lacking);
            Ok(literal)
        }
        Err(error) => Err(literal.hub_problem(error)),
    }
}

/// What draws its own weights needs none.
fn needed(recipe: &Recipe, need: Need) -> Need {
    if recipe.base.from_scratch { Need::Description } else { need }
}

/// What is read of `adapter_config.json`; the engine reads the rest.
#[derive(Deserialize)]
struct AdapterConfig {
    base_model_name_or_path: PathBuf,
    revision: Option<String>,
}

fn adapter(path: &Path, config: &Path) -> Result<Resolved, TargetError> {
    let refuse = |source| TargetError::AdapterConfig { path: config.to_owned(), source };
    let bytes = fs_err::metadata(config).map_err(refuse)?.len();
    if bytes > MAX_CONFIG_BYTES {
        return Err(refuse(io::Error::other(format!("it has {bytes} bytes"))));
    }
    let text = fs_err::read_to_string(config).map_err(refuse)?;
    let config: AdapterConfig =
        serde_json::from_str(&text).map_err(|error| refuse(error.into()))?;
    let mut base = config.base_model_name_or_path;
    // Only the cache is looked into: an adapter does not make this program ask a hub.
    if !base.is_dir()
        && let Some(revision) = config.revision
        && let Ok(address) = Address::parse(&format!("hf://{}@{revision}", base.display()))
    {
        base = PathBuf::from(address.to_string());
        base = hub::local(&base).unwrap_or(base);
    }
    if !base.is_dir() {
        return Err(TargetError::NoBase { path: path.to_owned(), base });
    }
    Ok(Resolved::Adapter { base, adapter: path.to_owned() })
}

/// A count on the command line.
pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("it must be a whole number, at least 1".to_owned()),
    }
}
