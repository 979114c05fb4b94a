//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Follows PEFT 0.21's `LoraConfig` and `save_pretrained`. Which settings are accepted at all
//! stands in `peft_settings`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fs_err as fs;
use heirloom::base::Checkpoint;
use heirloom::hub::Address;
use heirloom::recipe::{Lora, Module, Targets, TokenIndex, TokenIndices};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::adapter::{self, peft_settings, tokens};
use crate::error::{EngineError, Result};
use crate::model::{Decoder, weights};

/// File name of the settings.
pub const CONFIG: &str = "adapter_config.json";
/// File name of the weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Families where PEFT takes every target called like a layer of a feed-forward part for the
/// experts; the layers outside the attention are named as parameters instead, which it leaves
/// alone.
const FEED_FORWARD_AS_PARAMETERS: [&str; 4] =
    ["deepseek_v2", "deepseek_v3", "mixtral", "qwen3_moe"];

/// What is written; the order of the fields is that of PEFT's file: alphabetical.
#[derive(Debug, Serialize)]
struct Written {
    base_model_name_or_path: String,
    bias: &'static str,
    fan_in_fan_out: bool,
    inference_mode: bool,
    init_lora_weights: bool,
    #[serde(serialize_with = "whole_if_whole")]
    lora_alpha: f64,
    lora_dropout: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modules_to_save: Vec<Module>,
    peft_type: &'static str,
    r: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    target_modules: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    target_parameters: Vec<String>,
    task_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trainable_token_indices: Option<TokenIndices>,
    use_dora: bool,
    use_rslora: bool,
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
    target_modules: Modules,
    target_parameters: Option<Vec<String>>,
    modules_to_save: Option<Vec<String>>,
    trainable_token_indices: Option<Indices>,
    ensure_weight_tying: Option<bool>,
    use_rslora: Option<bool>,
}

impl Found {
    /// The alpha that, divided by the rank, scales the update. With `use_rslora` PEFT divides
    /// by the root of the rank.
    fn alpha(&self) -> f64 {
        let factor = if self.use_rslora == Some(true) { f64::from(self.r).sqrt() } else { 1.0 };
        self.lora_alpha * factor
    }
}

/// A list for the embedding, or rows by the name of the module.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Indices {
    List(Vec<u32>),
    ByModule(BTreeMap<String, Vec<u32>>),
}

/// PEFT declares `lora_alpha` an integer, and stricter readers believe it.
fn whole_if_whole<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < f64::from(u32::MAX) {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
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
    ensure_weight_tying: bool,
}

/// Reads `adapter_config.json`.
pub fn describe(folder: &Path) -> Result<Described> {
    let path = folder.join(CONFIG);
    let text = fs::read_to_string(&path)?;
    let json = |source| EngineError::Json { path: path.clone(), source };
    let value: Value = serde_json::from_str(&text).map_err(json)?;
    let refuse = |key, value: String| peft_settings::refusal(&path, key, &value);
    peft_settings::check(&path, &value)?;
    let config: Found = serde_json::from_value(value).map_err(json)?;
    if config.peft_type != "LORA" {
        return Err(refuse("peft_type", config.peft_type));
    }
    if config.r == 0 {
        return Err(refuse("r", "0".to_owned()));
    }
    let alpha = config.alpha();
    let mut parameters = Vec::new();
    for parameter in config.target_parameters.unwrap_or_default() {
        match parameter.strip_suffix(".weight") {
            Some(layer) => parameters.push(layer.to_owned()),
            None => return Err(refuse("target_parameters", parameter)),
        }
    }
    let targets = match config.target_modules {
        Modules::List(modules) => Targets::Modules([modules, parameters].concat()),
        Modules::Word(word) if word == "all-linear" => Targets::AllLinear,
        Modules::Word(word) => return Err(refuse("target_modules", word)),
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
            rank: config.r,
            alpha,
            dropout: config.lora_dropout,
            targets,
            modules_to_save,
            trainable_token_indices,
        },
        base: config.base_model_name_or_path.map(PathBuf::from),
        ensure_weight_tying: config.ensure_weight_tying == Some(true),
    })
}

/// The module that PEFT finds by the end of its name.
fn module(name: &str) -> Option<Module> {
    let last = name.rsplit('.').next()?;
    Module::ALL.into_iter().find(|module| module.name() == last)
}

/// Keys under which PEFT keeps the base's own weights of a module when it was resized.
fn base_keys(lora: &Lora, module: Module) -> Vec<String> {
    let path = tokens::path(module);
    let mut keys = vec![format!("{path}.token_adapter.base_layer.weight")];
    if !lora.modules_to_save.contains(&module) {
        keys.push(format!("{path}.weight"));
    }
    keys
}

/// Rows that a base must have for the adapter in `folder`; 0 where that cannot be seen.
pub fn rows(folder: &Path) -> Result<usize> {
    let lora = describe(folder)?.lora;
    let checkpoint = Checkpoint::open_file(&folder.join(WEIGHTS))?;
    let mut rows = 0;
    for module in Module::ALL {
        let ids = lora.trainable_token_indices.ids(module).into_iter();
        rows = rows.max(ids.max().map_or(0, |id| id as usize + 1));
        let whole = format!("{}.weight", tokens::path(module));
        for key in base_keys(&lora, module).into_iter().chain([whole]) {
            let stored = checkpoint.get(&key).and_then(|view| view.shape.first().copied());
            rows = rows.max(stored.unwrap_or_default());
        }
    }
    Ok(rows)
}

/// The key under which the adapter brings the base's own weights of `module`, if it does.
fn base_key(checkpoint: &Checkpoint, lora: &Lora, module: Module) -> Option<String> {
    base_keys(lora, module).into_iter().find(|key| checkpoint.get(key).is_some())
}

/// Refuses what PEFT does with two modules that are tied and not trained alike.
fn check_tied(described: &Described, path: &Path) -> Result<()> {
    let Lora { modules_to_save, trainable_token_indices: rows, .. } = &described.lora;
    let refuse = |key, value: String| Err(peft_settings::refusal(&path.join(CONFIG), key, &value));
    if described.ensure_weight_tying && !modules_to_save.is_empty() {
        return refuse("ensure_weight_tying", "true".to_owned());
    }
    if !rows.lm_head.is_empty() && rows.lm_head != rows.embed_tokens {
        let ids = rows.ids(Module::LmHead);
        return refuse("trainable_token_indices", format!("lm_head: {ids:?}"));
    }
    Ok(())
}

/// Wraps `model` with the adapter in `folder`, for which it has [enough rows](rows).
pub fn attach(model: &mut Decoder, folder: &Path) -> Result<Described> {
    let described = describe(folder)?;
    let lora = &described.lora;
    let tied = model.architecture.tie_word_embeddings;
    if tied {
        check_tied(&described, folder)?;
    }
    let path = folder.join(WEIGHTS);
    let checkpoint = Checkpoint::open_file(&path)?;
    let mut expected = Vec::new();
    for linear in model.linears() {
        if lora.targets.choose(&linear.name) {
            let (out_features, in_features) = linear.weight.size2()?;
            let (key_a, key_b) = adapter::keys(&linear.name);
            let rank = lora.rank as usize;
            expected.push((key_a, vec![rank, in_features as usize]));
            expected.push((key_b, vec![out_features as usize, rank]));
        }
    }
    expected.extend(tokens::expected(model, lora)?);
    for module in Module::ALL {
        if let Some(key) = base_key(&checkpoint, lora, module) {
            let (rows, width) = model.table(module).size2()?;
            expected.push((key, vec![rows as usize, width as usize]));
        }
    }
    // What PEFT writes a second time.
    let lm_head = tokens::path(Module::LmHead);
    let again = |key: &str| {
        key.ends_with(".original_module.weight")
            || key.ends_with(".modules_to_save.weight")
            || (tied && key.starts_with(&format!("{lm_head}.token_adapter.")))
    };
    checkpoint
        .expect(&expected, again)
        .map_err(|problems| EngineError::Tensors { path, problems })?;
    for module in Module::ALL {
        if let Some(key) = base_key(&checkpoint, lora, module) {
            let (kind, device) = (model.table(module).kind(), model.table(module).device());
            let table = weights::load_as(&checkpoint, &key, kind)?.f_to(device)?;
            model.set_table(module, table);
        }
    }
    adapter::attach(model, lora, |key, _| weights::load(&checkpoint, key))?;
    Ok(described)
}

/// Writes both files into `folder`, which is not yet in its place. Tokens in `lora` stand by
/// their ids. The targets are written as
/// the last parts of the names of the wrapped layers, as users write them.
pub fn save(folder: &Path, model: &Decoder, lora: &Lora, base: &Path) -> Result<()> {
    let as_parameters = FEED_FORWARD_AS_PARAMETERS.contains(&model.architecture.model_type);
    let wrapped = model.linears().filter(|linear| linear.low_rank.is_some());
    let (parameters, modules): (Vec<&str>, Vec<&str>) = wrapped
        .map(|linear| linear.name.as_str())
        .partition(|name| as_parameters && !name.contains(".self_attn."));
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let mut modules: Vec<String> = match &lora.targets {
        Targets::Modules(modules) if parameters.is_empty() => modules.clone(),
        _ => modules.into_iter().map(last).collect(),
    };
    modules.sort();
    modules.dedup();
    let target_parameters: Vec<String> =
        parameters.into_iter().map(|name| format!("{name}.weight")).collect();
    // A base on the hub is named as PEFT names it, so that PEFT finds it there.
    let (base_model_name_or_path, revision) = match Address::of(base) {
        Some(Ok(address)) => (address.repo, Some(address.revision)),
        _ => (base.display().to_string(), None),
    };
    let config = Written {
        base_model_name_or_path,
        bias: "none",
        fan_in_fan_out: false,
        inference_mode: true,
        init_lora_weights: true,
        lora_alpha: lora.alpha,
        // PEFT knows no dropout on parameters; it would only matter for further training.
        lora_dropout: if target_parameters.is_empty() { lora.dropout } else { 0.0 },
        modules_to_save: lora.modules_to_save.clone(),
        peft_type: "LORA",
        r: lora.rank,
        revision,
        target_modules: modules,
        target_parameters,
        task_type: "CAUSAL_LM",
        trainable_token_indices: Some(lora.trainable_token_indices.clone())
            .filter(|rows| *rows != TokenIndices::default()),
        use_dora: false,
        use_rslora: false,
    };
    let path = folder.join(CONFIG);
    let mut text = serde_json::to_string_pretty(&config)
        .map_err(|source| EngineError::Json { path: path.clone(), source })?;
    text.push('\n');
    heirloom::files::write_atomically(&path, text.as_bytes())?;
    let tensors = adapter::weights(model)
        .into_iter()
        .map(|(key, tensor)| (key, weights::Lazy::ready(tensor)))
        .collect();
    weights::save(&folder.join(WEIGHTS), tensors)
}
