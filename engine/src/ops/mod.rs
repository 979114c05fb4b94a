//! The operations of a model: readable references in tensor calls.
//!
//! Owns the mathematics between tensors, over rows laid end to end (see [`layout`]): every
//! function takes `[n, …]` where `n` counts the tokens of all documents of a micro-batch.
//! Does not own weights or modules.
//!
//! Follows Transformers' `modeling_llama.py` operation by operation, so that numbers agree:
//! norms are computed in f32 and cast back before the weight is applied; rotary embedding
//! rotates halves, not pairs.

pub mod layout;

use tch::{Kind, Tensor};

use crate::error::Result;
pub use layout::Layout;

/// Root-mean-square norm (arXiv 1910.07467): `weight * x / sqrt(mean(x²) + eps)`.
///
/// `x` is `[n, hidden]`, `weight` `[hidden]`; the result has the dtype of `x`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.f_to_kind(Kind::Float)?;
    let square = wide.f_square()?.f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
    let normed = wide.f_mul(&square.f_add_scalar(eps)?.f_rsqrt()?)?;
    Ok(normed.f_to_kind(x.kind())?.f_mul(weight)?)
}

/// Rotary position embedding (arXiv 2104.09864): rotates the halves of each head.
///
/// `x` is `[n, heads, d]`; `cos` and `sin` are `[n, 1, d / 2]` in the dtype of `x`.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.size().last().copied().unwrap_or(0) / 2;
    let (first, second) = (x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?);
    let turned_first = first.f_mul(cos)?.f_sub(&second.f_mul(sin)?)?;
    let turned_second = second.f_mul(cos)?.f_add(&first.f_mul(sin)?)?;
    Ok(Tensor::f_cat(&[turned_first, turned_second], -1)?)
}

/// Gated unit (arXiv 2002.05202): `silu(gate) * up`, elementwise.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(gate.f_silu()?.f_mul(up)?)
}

/// Causal attention within each document, through libtorch's scaled-dot-product attention.
///
/// `q` is `[n, heads, d]`, `k` and `v` are `[n, kv_heads, d]`; the result is
/// `[n, heads * d]`. Documents never see each other: each group of the layout is a padded
/// batch of documents of similar length, padding lies behind every real token and the
/// causal mask hides it.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, layout: &Layout) -> Result<Tensor> {
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
        let attended = Tensor::f_scaled_dot_product_attention(
            &batch(q)?,
            &batch(&k)?,
            &batch(&v)?,
            None::<Tensor>,
            0.0,
            true,
            None,
            false,
        )?;
        let rows = group.documents * group.length;
        outputs.push(attended.f_transpose(1, 2)?.f_reshape([rows, -1])?);
    }
    match &layout.scatter {
        Some(index) => Ok(Tensor::f_cat(&outputs, 0)?.f_index_select(0, index)?),
        None => Ok(Tensor::f_cat(&outputs, 0)?),
    }
}

/// Gives every query head its own copy of its key or value head: `[n, kv, d]` to
/// `[n, heads, d]`.
pub fn repeat_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    let (rows, kv, width) = x.size3()?;
    if kv == heads {
        return Ok(x.shallow_clone());
    }
    let copies = x.f_unsqueeze(2)?.f_expand([rows, kv, heads / kv, width], false)?;
    Ok(copies.f_reshape([rows, heads, width])?)
}

/// Sum of the negative log-likelihoods of `targets` (`[m]`, i64) under `logits`
/// (`[m, vocabulary]`), in nats, computed in f32.
pub fn cross_entropy_sum(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let logits = logits.f_to_kind(Kind::Float)?;
    Ok(logits.f_cross_entropy_loss(targets, None::<Tensor>, tch::Reduction::Sum, -100, 0.0)?)
}
