//! What an adapter folder of VeRA says about itself.
//!
//! Reference: `VeraConfig` of PEFT 0.21.2.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{Blocks, Described, Modules, PeftError, is_name, settings};
use crate::recipe::{Lora, Targets, Vectors};

#[derive(Debug, Deserialize)]
struct Found {
    base_model_name_or_path: Option<String>,
    r: u32,
    target_modules: Modules,
    #[serde(default)]
    projection_prng_key: u32,
    save_projection: Option<bool>,
    #[serde(default)]
    vera_dropout: f64,
    d_initial: Option<f64>,
    layers_to_transform: Option<Blocks>,
    layers_pattern: Option<Modules>,
}

/// Reads the settings of VeRA.
pub(super) fn describe(path: &Path, value: Value) -> Result<Described, PeftError> {
    let refuse = |key: &str, value: String| settings::refusal(path, key, &value);
    settings::check(path, &value, &settings::VERA)?;
    let json = |source| PeftError::Json { path: path.to_owned(), source };
    let found: Found = serde_json::from_value(value).map_err(json)?;
    if found.r == 0 {
        return Err(refuse("r", "0".to_owned()));
    }
    let targets = match found.target_modules {
        Modules::List(modules) => Targets::Modules(modules),
        Modules::Word(word) if word == "all-linear" => Targets::AllLinear,
        Modules::Word(word) => return Err(refuse("target_modules", word)),
    };
    let patterns = match found.layers_pattern {
        None => Vec::new(),
        Some(Modules::List(patterns)) => patterns,
        Some(Modules::Word(pattern)) => vec![pattern],
    };
    if let Some(other) = patterns.into_iter().find(|pattern| pattern != "layers") {
        return Err(refuse("layers_pattern", other));
    }
    if let Targets::Modules(names) = &targets
        && let Some(name) = names.iter().find(|name| !is_name(name))
    {
        return Err(refuse("target_modules", name.clone()));
    }
    let vectors = Vectors {
        d_initial: found.d_initial.unwrap_or(0.1),
        projection_prng_key: found.projection_prng_key,
        save_projection: found.save_projection != Some(false),
    };
    let lora = Lora {
        targets,
        dropout: found.vera_dropout,
        layers_to_transform: found.layers_to_transform.map(Blocks::all).unwrap_or_default(),
        vera: Some(vectors),
        ..Lora::new(found.r, f64::from(found.r))
    };
    let base = found.base_model_name_or_path.map(PathBuf::from);
    Ok(Described { lora, base, ensure_weight_tying: false })
}
