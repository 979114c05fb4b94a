//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Follows PEFT 0.21's `LoraConfig` and `save_pretrained`. Which settings are accepted at all
//! stands in `peft_settings`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fs_err as fs;
use heirloom::base::Checkpoint;
use heirloom::hub::Address;
use heirloom::recipe::{
    Bias, FEED_FORWARD_AS_PARAMETERS, Lora, Module, Pattern, Start, Targets, TokenIndex,
    TokenIndices,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::adapter::{self, peft_settings, tokens};
use crate::error::{EngineError, Result};
use crate::model::{Decoder, weights};

/// File name of the settings.
pub const CONFIG: &str = "adapter_config.json";
/// File name of the weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// What is written; the order of the fields is that of PEFT's file: alphabetical.
#[derive(Debug, Serialize)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha_pattern: Option<Pattern<Whole>>,
    base_model_name_or_path: String,
    bias: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exclude_modules: Vec<String>,
    fan_in_fan_out: bool,
    inference_mode: bool,
    init_lora_weights: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers_to_transform: Vec<u32>,
    lora_alpha: Whole,
    lora_dropout: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modules_to_save: Vec<Module>,
    peft_type: &'static str,
    r: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank_pattern: Option<Pattern<u32>>,
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

/// A list for the embedding, or rows by the name of the module.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Indices {
    List(Vec<u32>),
    ByModule(BTreeMap<String, Vec<u32>>),
}

/// A number that is written as an integer where it is one: PEFT declares `lora_alpha` so, and
/// stricter readers believe it.
#[derive(Clone, Copy, Debug)]
struct Whole(f64);

impl Serialize for Whole {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.fract() == 0.0 && self.0.abs() < f64::from(u32::MAX) {
            serializer.serialize_i64(self.0 as i64)
        } else {
            serializer.serialize_f64(self.0)
        }
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
    let names = |key, modules: Option<Modules>| match modules {
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
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
            use_rslora: config.use_rslora == Some(true),
            use_dora: config.use_dora == Some(true),
            // Whatever it was: it is over.
            init_lora_weights: Start::Default,
            targets,
            exclude_modules,
            layers_to_transform: match config.layers_to_transform {
                None => Vec::new(),
                Some(Blocks::One(block)) => vec![block],
                Some(Blocks::Some(blocks)) => blocks,
            },
            rank_pattern,
            alpha_pattern,
            bias: config.bias.unwrap_or_default(),
            modules_to_save,
            trainable_token_indices,
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
    for (key, shape) in adapter::expected(model, lora)? {
        expected.push((key, shape.into_iter().map(|size| size as usize).collect()));
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
    // What was taken out of the base stands beside the update in what is written.
    let doubled = lora.init_lora_weights.is_taken_out().then(|| lora.doubled());
    let lora = doubled.as_ref().unwrap_or(lora);
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
    let alphas = lora.alpha_pattern.0.iter();
    let alphas: Vec<_> = alphas.map(|(name, alpha)| (name.clone(), Whole(*alpha))).collect();
    let config = Written {
        alpha_pattern: (!alphas.is_empty()).then_some(Pattern(alphas)),
        base_model_name_or_path,
        bias: lora.bias.name(),
        exclude_modules: lora.exclude_modules.clone(),
        fan_in_fan_out: false,
        inference_mode: true,
        init_lora_weights: true,
        layers_to_transform: lora.layers_to_transform.clone(),
        lora_alpha: Whole(lora.alpha),
        // PEFT knows no dropout on parameters; it would only matter for further training.
        lora_dropout: if target_parameters.is_empty() { lora.dropout } else { 0.0 },
        modules_to_save: lora.modules_to_save.clone(),
        peft_type: "LORA",
        r: lora.rank,
        rank_pattern: Some(lora.rank_pattern.clone()).filter(|pattern| !pattern.0.is_empty()),
        revision,
        target_modules: modules,
        target_parameters,
        task_type: "CAUSAL_LM",
        trainable_token_indices: Some(lora.trainable_token_indices.clone())
            .filter(|rows| *rows != TokenIndices::default()),
        use_dora: lora.use_dora,
        use_rslora: lora.use_rslora,
    };
    let path = folder.join(CONFIG);
    let mut text = serde_json::to_string_pretty(&config)
        .map_err(|source| EngineError::Json { path: path.clone(), source })?;
    text.push('\n');
    heirloom::files::write_atomically(&path, text.as_bytes())?;
    let tensors = adapter::written(model)?
        .into_iter()
        .map(|(key, tensor)| (key, weights::Lazy::ready(tensor)))
        .collect();
    weights::save(&folder.join(WEIGHTS), tensors)
}
