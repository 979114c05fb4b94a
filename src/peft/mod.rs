//! PEFT's `adapter_config.json`: what an adapter folder says about itself.
//!
//! Owns reading it into a recipe's words ([`describe`]); which settings are accepted at all stands
//! in `settings`. Does not own the weights beside it: the engine reads and writes those.
//!
//! Reference: `LoraConfig` of PEFT 0.21.2, and `VeraConfig` (`vera`).

mod settings;
mod vera;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::diagnose::{Blame, Diagnose};
use crate::files::read_bounded;
use crate::recipe::{Bias, Lora, Module, Pattern, Start, Targets, TokenIndex, TokenIndices};

/// File name of the settings.
pub const CONFIG: &str = "adapter_config.json";
/// File name of the weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Largest file of settings that is read, in bytes: trained tokens are named one by one.
const MAX_BYTES: u64 = 16 << 20;

/// What an adapter folder cannot be used for.
#[derive(Debug, thiserror::Error)]
pub enum PeftError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not one of settings.
    #[error("`{}` is not valid", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// An adapter folder asks for something that would change the computation.
    #[error("`{}` has `{key}` = `{value}`, which is not supported", path.display())]
    Setting {
        /// `adapter_config.json`.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
}

impl Diagnose for PeftError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. } => return source.hint(),
            Self::Json { .. } => format!("name a folder with `{CONFIG}` as PEFT writes it"),
            Self::Setting { key, value, .. } => settings::remedy(key, value).to_owned(),
        })
    }

    fn blame(&self) -> Blame {
        Blame::User
    }
}

/// What is needed of what is found.
#[derive(Debug, Deserialize)]
struct Found {
    base_model_name_or_path: Option<String>,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    peft_type: String,
    r: u32,
    target_modules: Option<Modules>,
    target_parameters: Option<Vec<String>>,
    modules_to_save: Option<Vec<String>>,
    trainable_token_indices: Option<Indices>,
    ensure_weight_tying: Option<bool>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    bias: Option<Bias>,
    exclude_modules: Option<Modules>,
    layers_to_transform: Option<Blocks>,
    layers_pattern: Option<Modules>,
    rank_pattern: Option<Pattern<u32>>,
    alpha_pattern: Option<Pattern<f64>>,
}

/// One block, or some.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Blocks {
    One(u32),
    Some(Vec<u32>),
}

impl Blocks {
    fn all(self) -> Vec<u32> {
        match self {
            Self::One(block) => vec![block],
            Self::Some(blocks) => blocks,
        }
    }
}

/// A list for the embedding, or rows by the name of the module.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Indices {
    List(Vec<u32>),
    ByModule(BTreeMap<String, Vec<u32>>),
}

/// PEFT writes a list, or a word such as `all-linear`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Modules {
    List(Vec<String>),
    Word(String),
}

/// What an adapter folder says about itself.
#[derive(Debug)]
pub struct Described {
    /// Rank, alpha, dropout, targets and trained rows.
    pub lora: Lora,
    /// The base that it was trained on, if it says so.
    pub base: Option<PathBuf>,
    /// Whether a module of `modules_to_save` takes the one that is tied to it along.
    pub ensure_weight_tying: bool,
}

/// Reads `adapter_config.json`.
pub fn describe(folder: &Path) -> Result<Described, PeftError> {
    let path = folder.join(CONFIG);
    let read = |source| PeftError::Read { path: path.clone(), source };
    let text = read_bounded(&path, MAX_BYTES).map_err(read)?;
    let json = |source| PeftError::Json { path: path.clone(), source };
    let value: Value = serde_json::from_slice(&text).map_err(json)?;
    let refuse = |key: &str, value: String| settings::refusal(&path, key, &value);
    if value.get("peft_type").and_then(Value::as_str) == Some("VERA") {
        return vera::describe(&path, value);
    }
    settings::check(&path, &value, &settings::LORA)?;
    let config: Found = serde_json::from_value(value).map_err(json)?;
    if config.peft_type != "LORA" {
        return Err(refuse("peft_type", config.peft_type));
    }
    if config.r == 0 {
        return Err(refuse("r", "0".to_owned()));
    }
    let names = |key: &str, modules: Option<Modules>| match modules {
        None => Ok(Vec::new()),
        Some(Modules::List(names)) => Ok(names),
        Some(Modules::Word(word)) if is_name(&word) => Ok(vec![word]),
        // A regular expression.
        Some(Modules::Word(word)) => Err(refuse(key, word)),
    };
    let layers_pattern = names("layers_pattern", config.layers_pattern)?;
    if let Some(other) = layers_pattern.into_iter().find(|pattern| pattern != "layers") {
        return Err(refuse("layers_pattern", other));
    }
    let rank_pattern = config.rank_pattern.unwrap_or_default();
    let wrong = |(name, rank): &&(String, u32)| *rank == 0 || !is_name(name);
    if let Some((name, rank)) = rank_pattern.0.iter().find(wrong) {
        return Err(refuse("rank_pattern", format!("{name}: {rank}")));
    }
    let alpha_pattern = config.alpha_pattern.unwrap_or_default();
    if let Some((name, alpha)) = alpha_pattern.0.iter().find(|(name, _)| !is_name(name)) {
        return Err(refuse("alpha_pattern", format!("{name}: {alpha}")));
    }
    let exclude_modules = names("exclude_modules", config.exclude_modules)?;
    let (mut parameters, mut target_parameters) = (Vec::new(), Vec::new());
    for parameter in config.target_parameters.unwrap_or_default() {
        match parameter.strip_suffix(".weight") {
            Some(layer) => parameters.push(layer.to_owned()),
            None if is_name(&parameter) => target_parameters.push(parameter),
            None => return Err(refuse("target_parameters", parameter)),
        }
    }
    let targets = match config.target_modules {
        // PEFT takes the family's usual layers, or none beside parameters.
        None if parameters.is_empty() && target_parameters.is_empty() => {
            return Err(refuse("target_modules", "null".to_owned()));
        }
        None => Targets::Modules(parameters),
        Some(Modules::List(modules)) => Targets::Modules([modules, parameters].concat()),
        Some(Modules::Word(word)) if word == "all-linear" => Targets::AllLinear,
        Some(Modules::Word(word)) => return Err(refuse("target_modules", word)),
    };
    let mut modules_to_save = Vec::new();
    for name in config.modules_to_save.unwrap_or_default() {
        modules_to_save.push(module(&name).ok_or_else(|| refuse("modules_to_save", name))?);
    }
    let mut trainable_token_indices = TokenIndices::default();
    let by_module = match config.trainable_token_indices {
        None => BTreeMap::new(),
        Some(Indices::List(ids)) => BTreeMap::from([(Module::EmbedTokens.name().to_owned(), ids)]),
        Some(Indices::ByModule(rows)) => rows,
    };
    for (name, ids) in by_module {
        let wrong = || refuse("trainable_token_indices", format!("{name}: {ids:?}"));
        let module = module(&name).filter(|module| !modules_to_save.contains(module));
        let rows = trainable_token_indices.of_mut(module.ok_or_else(wrong)?);
        let unique: BTreeSet<u32> = ids.iter().copied().collect();
        if unique.len() != ids.len() || !rows.is_empty() {
            return Err(wrong());
        }
        rows.extend(ids.into_iter().map(TokenIndex::Id));
    }
    Ok(Described {
        lora: Lora {
            from: None,
            rank: config.r,
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
            use_rslora: config.use_rslora == Some(true),
            use_dora: config.use_dora == Some(true),
            // Whatever it was: it is over.
            init_lora_weights: Start::Default,
            targets,
            target_parameters,
            exclude_modules,
            layers_to_transform: config.layers_to_transform.map(Blocks::all).unwrap_or_default(),
            rank_pattern,
            alpha_pattern,
            bias: config.bias.unwrap_or_default(),
            modules_to_save,
            trainable_token_indices,
            vera: None,
        },
        base: config.base_model_name_or_path.map(PathBuf::from),
        ensure_weight_tying: config.ensure_weight_tying == Some(true),
    })
}

/// Whether a pattern of PEFT means the same as the name that it is.
fn is_name(pattern: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !pattern.is_empty() && pattern.chars().all(plain)
}

/// The module that PEFT finds by the end of its name.
fn module(name: &str) -> Option<Module> {
    let last = name.rsplit('.').next()?;
    Module::ALL.into_iter().find(|module| module.name() == last)
}

/// The error for a setting of the folder's settings.
pub fn refusal(folder: &Path, key: &str, value: &str) -> PeftError {
    settings::refusal(&folder.join(CONFIG), key, value)
}
