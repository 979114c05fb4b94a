//! The export room: from a finished run to the payload of a release.
//!
//! Owns the shapes of a release: a PEFT adapter, or a merged model in Hugging Face format,
//! each with its tokenizer where it has one of its own. The papers beside the payload (card,
//! manifest) are `heirloom::provenance`'s.

use std::collections::BTreeMap;
use std::path::Path;

use fs_err as fs;
use heirloom::base::{BaseFolder, EMBEDDING, OUTPUT};
use heirloom::dataset::vocabulary::FILES;
use heirloom::recipe::Module;
use heirloom::run::RunFolder;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::adapter::{peft, tokens};
use crate::error::{EngineError, Result};
use crate::model::{AdaptedExpert, Decoder, Linear, weights};

const CONFIG: &str = "config.json";

/// Copies the run's adapter into `folder`.
pub fn adapter(run: &RunFolder, folder: &Path) -> Result<()> {
    for name in [peft::CONFIG, peft::WEIGHTS] {
        copy(&run.adapter().join(name), &folder.join(name))?;
    }
    companions(&run.adapter(), folder)
}

/// Merges the run's adapter into its base, in the dtype in which the base is stored:
/// tensors are computed one by one while they are written.
pub fn merged(run: &RunFolder, base: &mut BaseFolder, folder: &Path) -> Result<()> {
    base.grow(peft::rows(&run.adapter())?)?;
    let Some(checkpoint) = base.checkpoint() else {
        return Ok(());
    };
    // As stored, so that nothing is lost or invented on the way.
    let stored =
        |name: &str, shape: &[usize]| weights::grown(name, weights::load(checkpoint, name)?, shape);
    let mut model = Decoder::build(&base.architecture, Kind::Float, |name, shape| {
        Ok(stored(name, shape)?.into())
    })?;
    peft::attach(&mut model, &run.adapter())?;
    let untied = base.architecture.tie_word_embeddings && !tokens::stay_tied(&model);
    let mut names = base.architecture.tensors();
    if untied {
        names.extend(names.first().map(|(_, shape)| (OUTPUT.to_owned(), shape.clone())));
    }
    let adapted = model.adapted_experts();
    let adapted: BTreeMap<&str, &AdaptedExpert<'_>> =
        adapted.iter().map(|expert| (expert.key.as_str(), expert)).collect();
    let mut merged = Vec::new();
    for (name, shape) in names {
        let linear = model.linears().find(|linear| name == format!("{}.weight", linear.name));
        let bias = model.linears().find(|linear| name == format!("{}.bias", linear.name));
        if let Some(bias) = bias.map(Linear::merged_bias).transpose()?.flatten() {
            merged.push((name, weights::Lazy::ready(bias)));
            continue;
        }
        if let Some(expert) = adapted.get(name.as_str()) {
            let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
            merged.push((name, weights::Lazy::new(&shape, expert.kind(), || expert.merged())));
            continue;
        }
        let tensor = match (linear, name.as_str()) {
            (Some(linear), _) => {
                let (rows, columns) = linear.weight.size2()?;
                weights::Lazy::new(&[rows, columns], linear.weight.kind(), || linear.merged())
            }
            (None, EMBEDDING) => table(&model, Module::EmbedTokens),
            (None, OUTPUT) => table(&model, Module::LmHead),
            (None, _) => weights::Lazy::ready(stored(&name, &shape)?),
        };
        merged.push((name, tensor));
    }
    weights::save(&folder.join("model.safetensors"), merged)?;
    let words = if run.adapter().join("tokenizer.json").is_file() {
        run.adapter()
    } else {
        base.folder().to_owned()
    };
    companions(&words, folder)?;
    config(base, untied, folder)
}

/// The embedding or the output projection with what was trained of it.
fn table(model: &Decoder, module: Module) -> weights::Lazy<'_> {
    let table: &Tensor = model.table(module);
    weights::Lazy::new(&table.size(), table.kind(), move || match model.replaced.of(module) {
        Some(replacement) => replacement.merged(table),
        None => Ok(table.shallow_clone()),
    })
}

/// Copies the model of a fully trained run.
pub fn full(run: &RunFolder, folder: &Path) -> Result<()> {
    for name in ["model.safetensors", CONFIG] {
        copy(&run.model().join(name), &folder.join(name))?;
    }
    companions(&run.model(), folder)
}

/// Copies the files of a model folder that are about text, where there are any.
pub fn companions(from: &Path, to: &Path) -> Result<()> {
    for name in FILES.into_iter().filter(|name| from.join(name).is_file()) {
        let place = to.join(name);
        fs::create_dir_all(place.parent().unwrap_or(to))?;
        copy(&from.join(name), &place)?;
    }
    Ok(())
}

/// Writes the base's `config.json` as it is for merged weights: in as many rows as there are,
/// no longer quantised, and `untied` where embedding and output are no longer one.
pub fn config(base: &BaseFolder, untied: bool, folder: &Path) -> Result<()> {
    let (from, to) = (base.folder().join(CONFIG), folder.join(CONFIG));
    let json = |source| EngineError::Json { path: from.clone(), source };
    let text = fs::read_to_string(&from)?;
    let before: Value = serde_json::from_str(&text).map_err(json)?;
    let mut after = before.clone();
    if let Some(config) = after.as_object_mut() {
        if config.shift_remove("quantization_config").is_some() {
            config.shift_remove("torch_dtype");
            // As they are dequantised.
            config.insert("dtype".to_owned(), json!("bfloat16"));
        }
        config.insert("vocab_size".to_owned(), json!(base.architecture.vocab_size));
        let tied = base.architecture.tie_word_embeddings && !untied;
        let said = config.get("tie_word_embeddings").and_then(Value::as_bool);
        // A family may tie them without saying so.
        if untied || said.is_some_and(|said| said != tied) {
            config.insert("tie_word_embeddings".to_owned(), json!(tied));
        }
    }
    if before == after {
        // To the byte.
        return copy(&from, &to);
    }
    let text = serde_json::to_string_pretty(&after).map_err(json)? + "\n";
    Ok(heirloom::files::write_atomically(&to, text.as_bytes())?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)?;
    Ok(fs::File::open(to)?.sync_all()?)
}
