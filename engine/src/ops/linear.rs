//! Linear layers that read the same rows, with their low-rank updates.
//!
//! Owns the forward and backward pass of `y = x Wᵀ + b + s · dropout(x) Aᵀ Bᵀ` over frozen
//! weights, for one layer or for several (query, key and value; gate and up). The rows are read
//! once for all their low-rank paths and kept once, or not at all ([`linears_over`]); a frozen
//! weight is asked for again in the backward pass, so that one that is packed is never kept
//! unpacked, and has no gradient. Trained weights are left to libtorch.
//!
//! Follows LoRA (arXiv 2106.09685) as PEFT's `lora.Linear` applies it, except that the low-rank
//! products are made in the dtype of the rows: PEFT widens bfloat16 rows to the adapter's f32.

use tch::{Kind, Tensor};

use super::checkpointing::Kept;
use super::native::node;
use super::reference;
use crate::error::Result;

/// Gives a weight `[out_features, in_features]` in the dtype of the rows.
pub type Matrix = Box<dyn Fn() -> Result<Tensor> + Send>;

/// Multiplies rows with a weight that it never unpacks: `x Wᵀ + bias`.
pub type Product = Box<dyn Fn(&Tensor, Option<&Tensor>) -> Result<Tensor> + Send>;

/// One of the layers.
pub struct Layer {
    /// Its weight.
    pub weight: Matrix,
    /// What makes the forward product without it, where something does.
    pub product: Option<Product>,
    /// `[out_features]`, in the dtype of the rows.
    pub bias: Option<Tensor>,
    /// Its update.
    pub low_rank: Option<LowRank>,
}

/// A low-rank update.
pub struct LowRank {
    /// `[r, in_features]`.
    pub a: Tensor,
    /// `[out_features, r]`.
    pub b: Tensor,
    /// Factor of the update.
    pub scaling: f64,
    /// Probability of dropping an input of this update; 0 outside of training.
    pub dropout: f64,
}

/// What the backward pass needs of one layer.
struct Saved {
    weight: Matrix,
    update: Option<Update>,
}

struct Update {
    /// A and B in the dtype of the rows.
    a: Tensor,
    b: Tensor,
    /// Factor of the update; what dropout keeps is scaled up by it, too.
    scaling: f64,
    /// `scaling · dropped(x) Aᵀ`, `[n, r]`.
    inner: Tensor,
    /// The inputs that dropout keeps, `[n, in_features]` bool.
    kept: Option<Tensor>,
}

/// Applies layers to the same rows `[n, in_features]`: `[n, out_features]` of each.
pub fn linears(x: &Tensor, layers: Vec<Layer>) -> Result<Vec<Tensor>> {
    linears_over(x, Kept::here(x), layers)
}

/// The same over rows that the backward pass gets from `kept`.
pub fn linears_over(x: &Tensor, kept: Kept, layers: Vec<Layer>) -> Result<Vec<Tensor>> {
    if reference::asked() {
        return reference::linears(x, layers);
    }
    let (mut inputs, mut outputs, mut saved) = (vec![x.shallow_clone()], Vec::new(), Vec::new());
    tch::no_grad(|| -> Result<()> {
        let updates = updates(x, &layers)?;
        for (layer, update) in layers.into_iter().zip(updates) {
            let Layer { weight, product, bias, low_rank } = layer;
            let mut y = match product {
                Some(product) => product(x, bias.as_ref())?,
                None => x.f_linear(&weight()?, bias)?,
            };
            if let (Some(LowRank { a, b, .. }), Some(update)) = (low_rank, &update) {
                let _ = y.f_addmm_(&update.inner, &update.b.f_tr()?)?;
                inputs.extend([a, b]);
            }
            outputs.push(y);
            saved.push(Saved { weight, update });
        }
        Ok(())
    })?;
    let wanted = x.requires_grad();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    node(&inputs, outputs, move |gradients| backward(&kept.take()?, wanted, &saved, gradients))
}

/// The way through A of every layer that has an update.
fn updates(x: &Tensor, layers: &[Layer]) -> Result<Vec<Option<Update>>> {
    let narrow = |low_rank: &LowRank| -> Result<(Tensor, Tensor)> {
        Ok((low_rank.a.f_to_kind(x.kind())?, low_rank.b.f_to_kind(x.kind())?))
    };
    let mut shared = shared(x, layers)?.into_iter();
    let update = |layer: &Layer| -> Result<Option<Update>> {
        let Some(low_rank) = &layer.low_rank else { return Ok(None) };
        let (a, b) = narrow(low_rank)?;
        let (mut scaling, mut kept) = (low_rank.scaling, None);
        let inner = match shared.next() {
            Some(inner) => inner,
            None => {
                let keep = 1.0 - low_rank.dropout;
                let mask = Tensor::f_empty(x.size(), (Kind::Bool, x.device()))?;
                let mask = mask.f_bernoulli_p(keep)?;
                let inner = x.f_mul(&mask)?.f_mm(&a.f_tr()?)?;
                // Where all inputs are dropped, nothing is left to scale.
                scaling /= keep.max(f64::MIN_POSITIVE);
                kept = Some(mask);
                inner
            }
        };
        let inner = inner.f_mul_scalar(scaling)?;
        Ok(Some(Update { a, b, scaling, inner, kept }))
    };
    layers.iter().map(update).collect()
}

/// `x Aᵀ` of all updates in one product; none where inputs are dropped, since every update
/// drops its own.
fn shared(x: &Tensor, layers: &[Layer]) -> Result<Vec<Tensor>> {
    let updates: Vec<_> = layers.iter().filter_map(|layer| layer.low_rank.as_ref()).collect();
    if updates.is_empty() || updates.iter().any(|update| update.dropout > 0.0) {
        return Ok(Vec::new());
    }
    let ranks = updates.iter().map(|update| Ok(update.a.size2()?.0)).collect::<Result<Vec<_>>>()?;
    let all = stack(updates.iter().map(|update| &update.a))?.f_to_kind(x.kind())?;
    let inner = x.f_mm(&all.f_tr()?)?;
    Ok(inner.f_split_with_sizes(&ranks, 1)?)
}

/// The gradients of the rows, and of A and B of every layer with an update, from those of the
/// layers' results.
fn backward(
    x: &Tensor,
    wanted: bool,
    layers: &[Saved],
    gradients: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let (mut of_x, mut found) = (None, Vec::new());
    let mut inners = Vec::new();
    for (layer, gradient) in layers.iter().zip(gradients) {
        if let (true, Some(gradient)) = (wanted, gradient) {
            add_product(&mut of_x, gradient, &(layer.weight)()?)?;
        }
        let Some(update) = &layer.update else { continue };
        let inner = match gradient {
            Some(gradient) => gradient.f_mm(&update.b)?.f_mul_scalar(update.scaling)?,
            None => update.inner.f_zeros_like()?,
        };
        let of_b = gradient.as_ref().map(|gradient| gradient.f_tr()?.f_mm(&update.inner));
        found.push((None, of_b.transpose()?));
        inners.push((update, inner));
    }
    if inners.iter().all(|(update, _)| update.kept.is_none()) && !inners.is_empty() {
        // The rows are read once for all of A.
        let all = Tensor::f_cat(&inners.iter().map(|(_, inner)| inner).collect::<Vec<_>>(), 1)?;
        let mut row = 0;
        let of_a = all.f_tr()?.f_mm(x)?;
        for ((update, _), (found, _)) in inners.iter().zip(&mut found) {
            let rank = update.a.size2()?.0;
            *found = Some(of_a.f_narrow(0, row, rank)?);
            row += rank;
        }
        if wanted {
            add_product(&mut of_x, &all, &stack(inners.iter().map(|(update, _)| &update.a))?)?;
        }
    } else {
        for ((update, inner), (found, _)) in inners.iter().zip(&mut found) {
            let Some(kept) = &update.kept else { continue };
            *found = Some(inner.f_tr()?.f_mm(&x.f_mul(kept)?)?);
            if let (true, Some(of_x)) = (wanted, &mut of_x) {
                let _ = of_x.f_add_(&inner.f_mm(&update.a)?.f_mul_(kept)?)?;
            }
        }
    }
    let of_updates = found.into_iter().flat_map(|(a, b)| [a, b]);
    Ok(std::iter::once(of_x).chain(of_updates).collect())
}

/// `sum + a · b`, in the place of the sum where there is one.
fn add_product(sum: &mut Option<Tensor>, a: &Tensor, b: &Tensor) -> Result<()> {
    match sum {
        Some(sum) => {
            let _ = sum.f_addmm_(a, b)?;
        }
        None => *sum = Some(a.f_mm(b)?),
    }
    Ok(())
}

fn stack<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
    Ok(Tensor::f_cat(&tensors.collect::<Vec<_>>(), 0)?)
}

#[cfg(test)]
#[path = "linear_tests.rs"]
mod tests;
