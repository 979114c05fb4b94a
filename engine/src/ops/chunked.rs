//! Sums over rows that are found some rows at a time.
//!
//! What a row becomes on its way to the loss (its logits, above all) is never there for all
//! rows at once: the gradient is found in the forward pass, while a chunk is at hand, and the
//! backward pass scales it. After Liger kernels (arXiv 2410.10989).

use tch::{Kind, Tensor};

use super::native;
use crate::error::Result;

/// The sum of what `loss` says of chunks of at most `rows` of the hidden states `[m, hidden]`;
/// it is told where a chunk begins. The gradients of `trained`, weights that it uses, add up
/// chunk by chunk.
pub fn summed(
    hidden: &Tensor,
    trained: &[&Tensor],
    rows: i64,
    loss: impl Fn(&Tensor, i64) -> Result<Tensor>,
) -> Result<Tensor> {
    let (mut losses, mut gradients, mut sums) = (Vec::new(), Vec::new(), Vec::new());
    let trained: Vec<_> = trained.iter().filter(|weight| weight.requires_grad()).copied().collect();
    for (start, chunk) in chunks(hidden, rows)? {
        let leaf = chunk.f_set_requires_grad(hidden.requires_grad())?;
        let loss = loss(&leaf, start)?;
        losses.push(loss.f_detach()?.f_view([1])?);
        if !loss.requires_grad() {
            continue;
        }
        let mut leaves = trained.clone();
        leaves.extend(hidden.requires_grad().then_some(&leaf));
        let mut found = Tensor::f_run_backward(&[&loss], &leaves, false, false)?;
        if hidden.requires_grad() {
            gradients.extend(found.pop());
        }
        match sums.is_empty() {
            true => sums = found,
            false => {
                for (sum, more) in sums.iter_mut().zip(&found) {
                    let _ = sum.f_add_(more)?;
                }
            }
        }
    }
    let (mut inputs, loss) = (trained, Tensor::f_cat(&losses, 0)?.f_sum(Kind::Float)?);
    if !gradients.is_empty() {
        inputs.push(hidden);
        sums.push(Tensor::f_cat(&gradients, 0)?);
    }
    scaled(&inputs, loss, sums)
}

/// At most so many rows at a time, each with the place of its first; one chunk at least, so
/// that nothing is the sum over nothing.
pub(crate) fn chunks(hidden: &Tensor, rows: i64) -> Result<Vec<(i64, Tensor)>> {
    let all = hidden.size2()?.0;
    let hidden = hidden.f_detach()?;
    let starts = (0..all.max(1)).step_by(rows.max(1) as usize);
    starts.map(|start| Ok((start, hidden.f_narrow(0, start, rows.min(all - start))?))).collect()
}

/// `loss` as a node whose gradients are known but for the factor that comes from above.
pub(super) fn scaled(inputs: &[&Tensor], loss: Tensor, gradients: Vec<Tensor>) -> Result<Tensor> {
    let [loss] = native::node(inputs, [loss], move |given| {
        let Some(Some(factor)) = given.first() else {
            return Ok(gradients.iter().map(|_| None).collect());
        };
        let scale = |mut gradient: Tensor| -> Result<_> {
            Ok(Some(gradient.f_mul_(&factor.f_to_kind(gradient.kind())?)?))
        };
        gradients.into_iter().map(scale).collect()
    })?;
    Ok(loss)
}
