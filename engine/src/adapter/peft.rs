//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Owns the tensors of such a folder, and writing it. Reading the settings is `heirloom::peft`'s.
//!
//! Follows PEFT 0.21's `LoraConfig` and `save_pretrained`.

use std::path::Path;

use heirloom::base::Checkpoint;
use heirloom::hub::Address;
use heirloom::peft::refusal;
pub use heirloom::peft::{CONFIG, Described, WEIGHTS, describe};
use heirloom::recipe::{
    FEED_FORWARD_AS_PARAMETERS, Lora, Module, Pattern, Targets, TokenIndices, Vectors,
};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::adapter::{self, tokens, vera};
use crate::error::{EngineError, Result};
use crate::model::{Decoder, weights};

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

/// The same of VeRA.
#[derive(Debug, Serialize)]
struct WrittenVera<'a> {
    base_model_name_or_path: String,
    bias: &'static str,
    d_initial: f64,
    fan_in_fan_out: bool,
    inference_mode: bool,
    init_weights: bool,
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    layers_to_transform: &'a [u32],
    peft_type: &'static str,
    projection_prng_key: u32,
    r: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    save_projection: bool,
    target_modules: Vec<String>,
    task_type: &'static str,
    vera_dropout: f64,
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
    let refuse = |key: &str, value: String| Err(refusal(path, key, &value).into());
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
    if model.architecture.tie_word_embeddings {
        check_tied(&described, folder)?;
    }
    load(model, folder, &described.lora)?;
    Ok(described)
}

/// Wraps `model` as `lora` says with the tensors in `folder`.
fn load(model: &mut Decoder, folder: &Path, lora: &Lora) -> Result<()> {
    let tied = model.architecture.tie_word_embeddings;
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
    match lora.vera.is_some_and(|vera| vera.save_projection) {
        true => vera::load(model, &checkpoint),
        false => Ok(()),
    }
}

/// As [`attach`], to be trained further as `lora` says, which began as the folder's settings:
/// the values that training starts from, by key, in f32. `None` where nothing is gone on from.
pub fn resume(model: &mut Decoder, lora: &Lora) -> Result<Option<Vec<(String, Tensor)>>> {
    let Some(folder) = &lora.from else { return Ok(None) };
    let described = describe(folder)?;
    if model.architecture.tie_word_embeddings {
        check_tied(&described, folder)?;
    }
    load(model, folder, lora)?;
    let wide = |(key, tensor): (String, Tensor)| Ok((key, tensor.f_to_kind(Kind::Float)?));
    Ok(Some(adapter::weights(model).into_iter().map(wide).collect::<Result<_>>()?))
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
    let layers = parameters.into_iter().map(|name| format!("{name}.weight"));
    let target_parameters: Vec<String> =
        layers.chain(lora.target_parameters.iter().cloned()).collect();
    // A base on the hub is named as PEFT names it, so that PEFT finds it there.
    let (base_model_name_or_path, revision) = match Address::of(base) {
        Some(Ok(address)) => (address.repo, Some(address.revision)),
        _ => (base.display().to_string(), None),
    };
    if let Some(Vectors { d_initial, projection_prng_key, save_projection }) = lora.vera {
        let config = WrittenVera {
            base_model_name_or_path,
            bias: "none",
            d_initial,
            fan_in_fan_out: false,
            inference_mode: true,
            init_weights: true,
            layers_to_transform: &lora.layers_to_transform,
            peft_type: "VERA",
            projection_prng_key,
            r: lora.rank,
            revision,
            save_projection,
            target_modules: modules,
            task_type: "CAUSAL_LM",
            vera_dropout: lora.dropout,
        };
        let shared = vera::written(model).filter(|_| save_projection);
        return write(
            folder,
            &config,
            adapter::written(model)?.into_iter().chain(shared.into_iter().flatten()),
        );
    }
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
    write(folder, &config, adapter::written(model)?.into_iter())
}

/// Writes settings and tensors.
fn write(
    folder: &Path,
    config: &impl Serialize,
    tensors: impl Iterator<Item = (String, Tensor)>,
) -> Result<()> {
    let path = folder.join(CONFIG);
    let mut text = serde_json::to_string_pretty(config)
        .map_err(|source| EngineError::Json { path: path.clone(), source })?;
    text.push('\n');
    heirloom::files::write_atomically(&path, text.as_bytes())?;
    let tensors = tensors.map(|(key, tensor)| (key, weights::Lazy::ready(tensor))).collect();
    weights::save(&folder.join(WEIGHTS), tensors)
}
