//! Trained rows of the embedding and of the output projection.
//!
//! Owns which tensors they are, their keys in `adapter_model.safetensors` and where they
//! start. Their use stands in `model::replacement`.
//!
//! Reference: PEFT 0.21's `modules_to_save` and `trainable_token_indices` of `LoraConfig`.

use heirloom::recipe::{Lora, Module};
use tch::{Kind, Tensor};

use crate::error::{EngineError, Result};
use crate::model::{Decoder, Replacement, Rows};

/// What is trained of one module.
struct Part {
    module: Module,
    /// `None`: all of them.
    rows: Option<Vec<u32>>,
}

impl Part {
    /// The parts that `lora` trains; those of a tied output are the embedding's.
    fn of(lora: &Lora, tied: bool) -> Vec<Self> {
        let part = |module| {
            if lora.modules_to_save.contains(&module) {
                return Some(Self { module, rows: None });
            }
            let rows = lora.trainable_token_indices.ids(module);
            let shared = tied && module == Module::LmHead;
            (!rows.is_empty() && !shared).then_some(Self { module, rows: Some(rows) })
        };
        Module::ALL.into_iter().filter_map(part).collect()
    }

    fn key(&self) -> String {
        key(self.module, self.rows.is_none())
    }

    fn shape(&self, model: &Decoder) -> Result<[i64; 2]> {
        let (rows, width) = model.table(self.module).size2()?;
        Ok([self.rows.as_ref().map_or(rows, |ids| ids.len() as i64), width])
    }
}

/// The path of a module in a PEFT model.
pub(super) fn path(module: Module) -> &'static str {
    match module {
        Module::EmbedTokens => "base_model.model.model.embed_tokens",
        Module::LmHead => "base_model.model.lm_head",
    }
}

fn key(module: Module, whole: bool) -> String {
    match whole {
        true => format!("{}.weight", path(module)),
        false => format!("{}.token_adapter.trainable_tokens_delta", path(module)),
    }
}

/// Every tensor with its shape.
pub(super) fn expected(model: &Decoder, lora: &Lora) -> Result<Vec<(String, Vec<usize>)>> {
    let parts = Part::of(lora, model.architecture.tie_word_embeddings);
    let one = |part: Part| {
        let shape = part.shape(model)?.map(|size| size as usize);
        Ok((part.key(), shape.to_vec()))
    };
    parts.into_iter().map(one).collect()
}

/// Copies, in f32, of what the model has where `lora` trains: every part starts there.
pub fn initial(model: &Decoder, lora: &Lora) -> Result<Vec<(String, Tensor)>> {
    let mut initial = Vec::new();
    for part in Part::of(lora, model.architecture.tie_word_embeddings) {
        let table = model.table(part.module);
        let values = match &part.rows {
            None => table.shallow_clone(),
            Some(ids) => {
                refuse_beyond(ids, table.size2()?.0)?;
                let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
                table.f_index_select(0, &Tensor::f_from_slice(&ids)?.f_to(table.device())?)?
            }
        };
        initial.push((part.key(), values.f_detach()?.f_to_kind(Kind::Float)?));
    }
    Ok(initial)
}

/// Puts in place what `get` gives for every key and shape.
pub(super) fn attach(
    model: &mut Decoder,
    lora: &Lora,
    mut get: impl FnMut(&str, &[i64]) -> Result<Tensor>,
) -> Result<()> {
    let tied = model.architecture.tie_word_embeddings;
    for part in Part::of(lora, tied) {
        let (table_rows, _) = model.table(part.module).size2()?;
        let device = model.table(part.module).device();
        let values = get(&part.key(), &part.shape(model)?)?.f_to(device)?;
        let replacement = match &part.rows {
            None => Replacement::Whole(values),
            Some(ids) => {
                refuse_beyond(ids, table_rows)?;
                let rows = Rows::new(ids, table_rows, values)?;
                if tied {
                    model.replaced.output = Some(Replacement::Rows(rows.share()));
                }
                Replacement::Rows(rows)
            }
        };
        *model.replaced.of_mut(part.module) = Some(replacement);
    }
    Ok(())
}

/// What is trained of a model, by key.
pub(super) fn weights(model: &Decoder) -> Vec<(String, Tensor)> {
    let tied = model.architecture.tie_word_embeddings;
    let one = |module| {
        let replacement = model.replaced.of(module)?;
        let whole = matches!(replacement, Replacement::Whole(_));
        let shared = tied && module == Module::LmHead && !whole;
        let values = || (key(module, whole), replacement.values().shallow_clone());
        (!shared).then(values)
    };
    Module::ALL.into_iter().filter_map(one).collect()
}

/// Whether a merged model can still tie its embedding and its output.
pub fn stay_tied(model: &Decoder) -> bool {
    let whole = |module| matches!(model.replaced.of(module), Some(Replacement::Whole(_)));
    !Module::ALL.into_iter().any(whole)
}

fn refuse_beyond(ids: &[u32], rows: i64) -> Result<()> {
    match ids.iter().find(|id| i64::from(**id) >= rows) {
        Some(id) => Err(EngineError::NoSuchToken { id: *id, rows: rows as u64 }),
        None => Ok(()),
    }
}
