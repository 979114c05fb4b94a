//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Follows PEFT 0.21's `LoraConfig` and `save_pretrained`. A setting that would change the
//! computation and is not understood is an error.

use std::path::{Path, PathBuf};

use fs_err as fs;
use heirloom::base::Checkpoint;
use heirloom::hub::Address;
use heirloom::recipe::{Lora, Targets};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::adapter;
use crate::error::{EngineError, Result};
use crate::model::{Decoder, weights};

/// File name of the settings.
pub const CONFIG: &str = "adapter_config.json";
/// File name of the weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Settings that must be at PEFT's default, by key: another value means another method.
const PLAIN: [(&str, &[&str]); 11] = [
    ("bias", &["none"]),
    ("use_dora", &["false"]),
    ("use_rslora", &["false"]),
    ("use_qalora", &["false"]),
    ("lora_bias", &["false"]),
    ("fan_in_fan_out", &["false"]),
    ("alpha_pattern", &["{}", "null"]),
    ("rank_pattern", &["{}", "null"]),
    ("modules_to_save", &["null", "[]"]),
    ("layers_to_transform", &["null", "[]"]),
    ("trainable_token_indices", &["null", "[]"]),
];

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
    peft_type: &'static str,
    r: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    target_modules: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    target_parameters: Vec<String>,
    task_type: &'static str,
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
    /// Rank, alpha, dropout and targets.
    pub lora: Lora,
    /// The base that it was trained on, if it says so.
    pub base: Option<PathBuf>,
}

/// Reads `adapter_config.json`.
pub fn describe(folder: &Path) -> Result<Described> {
    let path = folder.join(CONFIG);
    let text = fs::read_to_string(&path)?;
    let json = |source| EngineError::Json { path: path.clone(), source };
    let value: Value = serde_json::from_str(&text).map_err(json)?;
    let refuse = |key: &'static str, value: String| EngineError::AdapterSetting {
        path: path.clone(),
        key,
        value,
    };
    for (key, plain) in PLAIN {
        let found = value.get(key).map(|value| match value {
            Value::String(word) => word.clone(),
            other => other.to_string(),
        });
        if let Some(found) = found.filter(|found| !plain.contains(&found.as_str())) {
            return Err(refuse(key, found));
        }
    }
    let config: Found = serde_json::from_value(value).map_err(json)?;
    if config.peft_type != "LORA" {
        return Err(refuse("peft_type", config.peft_type));
    }
    if config.r == 0 {
        return Err(refuse("r", "0".to_owned()));
    }
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
    Ok(Described {
        lora: Lora {
            rank: config.r,
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
            targets,
        },
        base: config.base_model_name_or_path.map(PathBuf::from),
    })
}

/// Wraps `model` with the adapter in `folder`.
pub fn attach(model: &mut Decoder, folder: &Path) -> Result<Described> {
    let described = describe(folder)?;
    let path = folder.join(WEIGHTS);
    let checkpoint = Checkpoint::open_file(&path)?;
    let mut expected = Vec::new();
    for linear in model.linears() {
        if described.lora.targets.choose(&linear.name) {
            let (out_features, in_features) = linear.weight.size2()?;
            let (key_a, key_b) = adapter::keys(&linear.name);
            let rank = described.lora.rank as usize;
            expected.push((key_a, vec![rank, in_features as usize]));
            expected.push((key_b, vec![out_features as usize, rank]));
        }
    }
    checkpoint
        .expect(&expected, |_| false)
        .map_err(|problems| EngineError::Tensors { path, problems })?;
    adapter::attach(model, &described.lora, |key, _| weights::load(&checkpoint, key))?;
    Ok(described)
}

/// Writes both files into `folder`, which is not yet in its place. The targets are written as
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
        peft_type: "LORA",
        r: lora.rank,
        revision,
        target_modules: modules,
        target_parameters,
        task_type: "CAUSAL_LM",
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
