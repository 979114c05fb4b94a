//! Attention: queries meet keys, within a document or against a cache.
//!
//! Owns what attention is asked for ([`Scores`]) and who computes it: [`fused`] while training
//! on CPU, [`flash`] on CUDA, [`reference`] where these cannot.

mod flash;
mod fused;
pub mod reference;
#[cfg(test)]
mod tests;

use tch::Tensor;

use super::Layout;
use crate::error::Result;
pub use reference::cached;

/// How scores are made from products.
#[derive(Debug)]
pub struct Scores {
    /// Factor of the products.
    pub scale: f64,
    /// A query sees so many keys, its own included.
    pub window: Option<i64>,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// A logit a head, `[heads]`, that joins the softmax and adds nothing.
    pub sinks: Option<Tensor>,
    /// Probability of dropping a weight.
    pub dropout: f64,
}

/// Causal attention within each document of a layout: documents never see each other.
///
/// `q` is `[n, heads, d]`, `k` `[n, kv_heads, d]`, `v` `[n, kv_heads, e]`; the result is
/// `[n, heads * e]`. `train` turns dropout on.
pub fn packed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &Layout,
    scores: &Scores,
    train: bool,
) -> Result<Tensor> {
    let drops = train && scores.dropout > 0.0;
    if drops || super::reference::asked() {
        reference::packed(q, k, v, layout, scores, train)
    } else if fused::computes(q, k, v) {
        fused::packed(q, k, v, layout, scores)
    } else if flash::computes(q, k, v, scores) {
        flash::packed(q, k, v, layout, scores)
    } else {
        reference::packed(q, k, v, layout, scores, train)
    }
}
