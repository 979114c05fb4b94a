//! Attention in tensor calls: the reference of the fused one, and what computes where that
//! does not.
//!
//! libtorch's scaled-dot-product attention where it computes what is asked; where scores are
//! capped or sinks take part, the same in plain tensor calls, softmax in f32 as Transformers'
//! `eager_attention_forward`.

use tch::{Kind, Tensor};

use super::Scores;
use crate::error::Result;
use crate::ops::Layout;

/// Which keys a query may see.
enum Mask<'a> {
    /// Those at its own position and before.
    Causal,
    /// Where this is true; `[…, queries, keys]`.
    Where(&'a Tensor),
}

/// As [`super::packed`]. Each group of the layout is a padded batch of documents of similar
/// length; padding lies behind every real token and the causal mask hides it.
pub fn packed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &Layout,
    scores: &Scores,
    train: bool,
) -> Result<Tensor> {
    let heads = q.size3()?.1;
    let (k, v) = (repeat_heads(k, heads)?, repeat_heads(v, heads)?);
    let mut outputs = Vec::with_capacity(layout.groups.len());
    for group in &layout.groups {
        let batch = |x: &Tensor| -> Result<Tensor> {
            let (_, heads, width) = x.size3()?;
            let rows = match &group.gather {
                Some(index) => x.f_index_select(0, index)?,
                None => x.shallow_clone(),
            };
            Ok(rows.f_view([group.documents, group.length, heads, width])?.f_transpose(1, 2)?)
        };
        let window = scores.window.filter(|window| *window < group.length);
        let mask = match window {
            Some(window) => Some(windowed(group.length, window, q.device())?),
            None => None,
        };
        let mask = mask.as_ref().map_or(Mask::Causal, Mask::Where);
        let attended = attend(&batch(q)?, &batch(&k)?, &batch(&v)?, &mask, scores, train)?;
        let rows = group.documents * group.length;
        outputs.push(attended.f_transpose(1, 2)?.f_reshape([rows, -1])?);
    }
    match &layout.scatter {
        Some(index) => Ok(Tensor::f_cat(&outputs, 0)?.f_index_select(0, index)?),
        None => Ok(Tensor::f_cat(&outputs, 0)?),
    }
}

/// Attention of new tokens against cached ones, themselves included.
///
/// `q` is `[rows, heads, m, d]`, `k` and `v` `[rows, kv_heads, used, …]`; `visible` is
/// `[rows, 1, m, used]`, bool. The result is `[rows * m, heads * e]`.
pub fn cached(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    visible: &Tensor,
    scores: &Scores,
) -> Result<Tensor> {
    let (rows, heads, new, _) = q.size4()?;
    let expand = |x: &Tensor| -> Result<Tensor> {
        let (rows, kv, used, width) = x.size4()?;
        let x = x.f_unsqueeze(2)?.f_expand([rows, kv, heads / kv, used, width], false)?;
        Ok(x.f_reshape([rows, heads, used, width])?)
    };
    let attended = attend(q, &expand(k)?, &expand(v)?, &Mask::Where(visible), scores, false)?;
    Ok(attended.f_transpose(1, 2)?.f_reshape([rows * new, -1])?)
}

/// `[batch, heads, …]` each, as many key heads as query heads.
fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scores: &Scores,
    train: bool,
) -> Result<Tensor> {
    let dropout = if train { scores.dropout } else { 0.0 };
    if scores.softcap.is_none() && scores.sinks.is_none() {
        let (given, causal) = match mask {
            Mask::Causal => (None, true),
            Mask::Where(visible) => (Some(*visible), false),
        };
        return Ok(Tensor::f_scaled_dot_product_attention(
            q,
            k,
            v,
            given,
            dropout,
            causal,
            scores.scale,
            false,
        )?);
    }
    let mut logits = q.f_matmul(&k.f_transpose(2, 3)?)?.f_mul_scalar(scores.scale)?;
    if let Some(cap) = scores.softcap {
        logits = crate::ops::soft_cap(&logits, cap)?;
    }
    let length = q.size4()?.2;
    let visible = match mask {
        Mask::Causal => &windowed(length, length, q.device())?,
        Mask::Where(visible) => *visible,
    };
    logits = logits.f_masked_fill(&visible.f_logical_not()?, f64::NEG_INFINITY)?;
    let weights = match &scores.sinks {
        None => logits.f_softmax(-1, Kind::Float)?.f_to_kind(q.kind())?,
        Some(sinks) => {
            let (batch, heads, queries, _) = logits.size4()?;
            let sinks = sinks.f_view([1, heads, 1, 1])?.f_to_kind(logits.kind())?;
            let sinks = sinks.f_expand([batch, heads, queries, 1], false)?;
            let joined = Tensor::f_cat(&[&logits, &sinks], -1)?;
            let (largest, _) = joined.f_max_dim(-1, true)?;
            let joined = joined.f_sub(&largest)?.f_softmax(-1, logits.kind())?;
            joined.f_narrow(-1, 0, logits.size4()?.3)?
        }
    };
    let weights = if dropout > 0.0 { weights.f_dropout(dropout, true)? } else { weights };
    Ok(weights.f_matmul(v)?)
}

/// Causal visibility over `length` tokens that ends `window` tokens back, `[length, length]`.
fn windowed(length: i64, window: i64, device: tch::Device) -> Result<Tensor> {
    let all = Tensor::f_ones([length, length], (Kind::Bool, device))?;
    Ok(all.f_tril(0)?.f_logical_and(&all.f_triu(1 - window)?)?)
}

/// Gives every query head its own copy of its key or value head: `[n, kv, d]` to
/// `[n, heads, d]`.
fn repeat_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    let (rows, kv, width) = x.size3()?;
    if kv == heads {
        return Ok(x.shallow_clone());
    }
    let copies = x.f_unsqueeze(2)?.f_expand([rows, kv, heads / kv, width], false)?;
    Ok(copies.f_reshape([rows, heads, width])?)
}
