//! Mixtures of experts: who is asked, and what their answers weigh.
//!
//! Follows the routers and experts of Transformers 5.23 (`modeling_mixtral.py`,
//! `modeling_deepseek_v3.py`, `modeling_gpt_oss.py`): scores in f32, experts one after another
//! over the tokens that chose them.

use heirloom::base::{Groups, Router, Scoring};
use tch::{Kind, Tensor};

use crate::error::Result;

/// The experts of every token and their weights, `[n, per_token]` each (i64, and f32 or the
/// dtype of the model).
///
/// `logits` is `[n, experts]`, `correction` `[experts]`.
pub fn choose(
    logits: &Tensor,
    correction: Option<&Tensor>,
    router: &Router,
) -> Result<(Tensor, Tensor)> {
    let per_token = router.per_token as i64;
    if router.scoring == Scoring::SoftmaxOfChosen {
        let (best, chosen) = logits.f_topk(per_token, -1, true, true)?;
        return Ok((chosen, best.f_softmax(-1, best.kind())?));
    }
    let scores = match router.scoring {
        Scoring::Sigmoid => logits.f_to_kind(Kind::Float)?.f_sigmoid()?,
        _ => logits.f_softmax(-1, Kind::Float)?,
    };
    // Nothing flows back through the choice itself.
    let chosen = tch::no_grad(|| -> Result<Tensor> {
        let mut wanted = match correction {
            Some(correction) => scores.f_add(correction)?,
            None => scores.shallow_clone(),
        };
        if let Some(groups) = router.groups {
            wanted = best_groups(&wanted, groups)?;
        }
        Ok(wanted.f_topk(per_token, -1, true, true)?.1)
    })?;
    let mut weights = scores.f_gather(-1, &chosen, false)?;
    if router.normalize {
        let sum = weights.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)?;
        // The same tiny number as in the reference, against sigmoids that are all zero.
        let sum = if router.scoring == Scoring::Sigmoid { sum.f_add_scalar(1e-20)? } else { sum };
        weights = weights.f_div(&sum)?;
    }
    if router.scale != 1.0 {
        weights = weights.f_mul_scalar(router.scale)?;
    }
    if router.rounded {
        weights = weights.f_to_kind(logits.kind())?;
    }
    Ok((chosen, weights))
}

/// Scores with those outside the best groups at minus infinity.
fn best_groups(scores: &Tensor, groups: Groups) -> Result<Tensor> {
    let (rows, experts) = scores.size2()?;
    let count = groups.count as i64;
    let grouped = scores.f_view([rows, count, experts / count])?;
    let (best, _) = grouped.f_topk(groups.best_of as i64, -1, true, true)?;
    let of_group = best.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)?;
    let (_, chosen) = of_group.f_topk(groups.chosen as i64, -1, true, true)?;
    let outside = of_group.f_ones_like()?.f_to_kind(Kind::Bool)?;
    let outside = outside.f_scatter_value(-1, &chosen, 0.0)?.f_unsqueeze(-1)?;
    Ok(grouped.f_masked_fill(&outside, f64::NEG_INFINITY)?.f_view([rows, experts])?)
}

/// Sum over the chosen experts of weight times answer: `[n, hidden]`, as `x`.
///
/// `ask` computes one expert's answers to the rows given.
pub fn mix(
    x: &Tensor,
    chosen: &Tensor,
    weights: &Tensor,
    ask: impl Fn(usize, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut mixed = x.f_zeros_like()?;
    let per_token = chosen.size2()?.1;
    let flat = Vec::<i64>::try_from(chosen.f_view([-1])?)?;
    // Rows by expert, found on the host: the order of additions is that of the experts.
    let experts = flat.iter().copied().max().map_or(0, |last| last + 1);
    let mut slots = vec![Vec::new(); experts as usize];
    for (slot, expert) in flat.into_iter().enumerate() {
        if let Some(slots) = slots.get_mut(expert as usize) {
            slots.push(slot as i64);
        }
    }
    let weights = weights.f_view([-1])?;
    for (expert, slots) in slots.iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
        let slots = Tensor::f_from_slice(slots)?.f_to(x.device())?;
        let rows = slots.f_floor_divide_scalar(per_token)?;
        let answers = ask(expert, &x.f_index_select(0, &rows)?)?;
        let weights = weights.f_index_select(0, &slots)?.f_unsqueeze(-1)?;
        let weighted = answers.f_mul(&weights)?.f_to_kind(x.kind())?;
        let _ = mixed.f_index_add_(0, &rows, &weighted)?;
    }
    Ok(mixed)
}

/// gpt-oss' gated unit over `[m, 2 · width]`, gates and the other half in turn: gates are cut
/// off above `limit`, the other half on both sides.
pub fn clamped_swiglu(both: &Tensor, alpha: f64, limit: f64) -> Result<Tensor> {
    let gate = both.f_slice(-1, 0, None, 2)?.f_clamp_max(limit)?;
    let up = both.f_slice(-1, 1, None, 2)?.f_clamp(-limit, limit)?;
    let glu = gate.f_mul(&gate.f_mul_scalar(alpha)?.f_sigmoid()?)?;
    Ok(up.f_add_scalar(1.0)?.f_mul(&glu)?)
}
