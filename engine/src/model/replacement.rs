//! What an adapter puts in the place of the embedding or of the output projection.
//!
//! Owns the values that replace those of the base and their use. Which rows they are and how
//! they are named is the adapter's.
//!
//! Reference: PEFT's `ModulesToSaveWrapper` and `TrainableTokensLayer`, whose values replace
//! those of the base and are not added to them. PEFT copies the whole table for each use;
//! here only the rows and the logits of the trained tokens are computed again.

use heirloom::recipe::Module;
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// What takes the place of the two tables of a model.
#[derive(Debug, Default)]
pub struct Replaced {
    /// Of the embedding.
    pub embedding: Option<Replacement>,
    /// Of the output projection.
    pub output: Option<Replacement>,
}

impl Replaced {
    /// The place of a module's replacement.
    pub fn of_mut(&mut self, module: Module) -> &mut Option<Replacement> {
        match module {
            Module::EmbedTokens => &mut self.embedding,
            Module::LmHead => &mut self.output,
        }
    }

    /// The replacement of a module, if there is one.
    pub fn of(&self, module: Module) -> Option<&Replacement> {
        match module {
            Module::EmbedTokens => self.embedding.as_ref(),
            Module::LmHead => self.output.as_ref(),
        }
    }
}

/// What takes the place of a table `[vocab_size, hidden_size]`.
#[derive(Debug)]
pub enum Replacement {
    /// All of it (`modules_to_save`).
    Whole(Tensor),
    /// Some rows (`trainable_token_indices`).
    Rows(Rows),
}

/// Rows that take the place of others.
#[derive(Debug)]
pub struct Rows {
    /// Ids of the tokens, `[k]` i64, each once.
    pub ids: Tensor,
    /// Their rows, `[k, hidden_size]`.
    pub values: Tensor,
    /// For every token its row in `values`, or -1; `[vocab_size]` i64.
    slots: Tensor,
}

impl Rows {
    /// Rows of a table with so many rows in all; `ids` are distinct and less than that.
    pub fn new(ids: &[u32], table_rows: i64, values: Tensor) -> Result<Self> {
        let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::f_from_slice(&ids)?;
        let order = Tensor::f_arange(ids.numel() as i64, (Kind::Int64, Device::Cpu))?;
        let slots = Tensor::f_full([table_rows], -1, (Kind::Int64, Device::Cpu))?;
        let (device, slots) = (values.device(), slots.f_index_copy(0, &ids, &order)?);
        Ok(Self { ids: ids.f_to(device)?, slots: slots.f_to(device)?, values })
    }

    /// The same rows under another owner.
    pub fn share(&self) -> Self {
        Self {
            ids: self.ids.shallow_clone(),
            values: self.values.shallow_clone(),
            slots: self.slots.shallow_clone(),
        }
    }
}

impl Replacement {
    /// The trained values.
    pub fn values(&self) -> &Tensor {
        match self {
            Self::Whole(values) | Self::Rows(Rows { values, .. }) => values,
        }
    }

    /// The embeddings of `tokens` `[n]`: `[n, hidden_size]`, in the dtype of `table`.
    pub(super) fn embed(&self, table: &Tensor, tokens: &Tensor) -> Result<Tensor> {
        match self {
            Self::Whole(values) => {
                let rows = Tensor::f_embedding(values, tokens, -1, false, false)?;
                Ok(rows.f_to_kind(table.kind())?)
            }
            Self::Rows(rows) => {
                let frozen = Tensor::f_embedding(table, tokens, -1, false, false)?;
                let slots = rows.slots.f_index_select(0, tokens)?;
                let trained = rows.values.f_index_select(0, &slots.f_clamp_min(0)?)?;
                let replace = slots.f_ge(0)?.f_unsqueeze(-1)?;
                Ok(trained.f_to_kind(table.kind())?.f_where_self(&replace, &frozen)?)
            }
        }
    }

    /// The logits of `hidden` `[m, hidden_size]`: `[m, vocab_size]`.
    pub(super) fn project(&self, table: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        match self {
            Self::Whole(values) => {
                Ok(hidden.f_linear(&values.f_to_kind(hidden.kind())?, None::<Tensor>)?)
            }
            Self::Rows(rows) => {
                let table = table.f_to_kind(hidden.kind())?;
                let mut logits = hidden.f_linear(&table, None::<Tensor>)?;
                // Through the dtype of the table, in which the rows are kept.
                let values = rows.values.f_to_kind(table.kind())?;
                let trained = hidden.f_linear(&values, None::<Tensor>)?;
                Ok(logits.f_index_copy_(1, &rows.ids, &trained)?)
            }
        }
    }

    /// The whole table with the replacement in it, in the dtype of `table`.
    pub fn merged(&self, table: &Tensor) -> Result<Tensor> {
        let values = self.values().f_detach()?.f_to_kind(table.kind())?;
        match self {
            Self::Whole(_) => Ok(values),
            Self::Rows(rows) => Ok(table.f_index_copy(0, &rows.ids, &values)?),
        }
    }
}
