//! Attention modules: projections and rotation; what queries do with keys is a function given.

use heirloom::base::{self, LatentQuery, Qkv};
use tch::Tensor;

use super::linear::Linear;
use super::parts::{Norm, Rows, Tensors};
use crate::error::{EngineError, Result};
use crate::ops::attention::Scores;
use crate::ops::profile::scope;
use crate::ops::rotary::{self, Angles};

/// Either kind of attention, with how its scores are made.
#[derive(Debug)]
pub(super) struct Attention {
    projections: Projections,
    o: Linear,
    rope: Option<usize>,
    interleaved: bool,
    scores: Scores,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each block of a model")]
enum Projections {
    Grouped {
        qkv: Vec<Linear>,
        qk_norm: Option<(Norm, Norm)>,
        heads: i64,
        kv_heads: i64,
        head_dim: i64,
    },
    Latent {
        q: Vec<Linear>,
        q_norm: Option<Norm>,
        kv_a: Linear,
        kv_a_norm: Norm,
        kv_b: Linear,
        widths: Latent,
    },
}

/// Widths of latent attention, as in `base::LatentAttention`.
#[derive(Clone, Copy, Debug)]
struct Latent {
    heads: i64,
    nope: i64,
    rope: i64,
    value: i64,
    latent: i64,
}

impl Projections {
    fn grouped(grouped: &base::GroupedAttention, tensors: &mut Tensors) -> Result<Self> {
        let qkv = match &grouped.qkv {
            Qkv::Separate(each) => each.as_slice(),
            Qkv::Fused(fused) => std::slice::from_ref(fused),
        };
        Ok(Self::Grouped {
            qkv: qkv.iter().map(|linear| tensors.linear(linear)).collect::<Result<_>>()?,
            qk_norm: match &grouped.qk_norm {
                Some((q, k)) => Some((tensors.norm(q)?, tensors.norm(k)?)),
                None => None,
            },
            heads: grouped.heads as i64,
            kv_heads: grouped.kv_heads as i64,
            head_dim: grouped.head_dim as i64,
        })
    }

    fn latent(latent: &base::LatentAttention, tensors: &mut Tensors) -> Result<Self> {
        let (q, q_norm) = match &latent.q {
            LatentQuery::Full(q) => (vec![tensors.linear(q)?], None),
            LatentQuery::LowRank(a, norm, b) => {
                (vec![tensors.linear(a)?, tensors.linear(b)?], Some(tensors.norm(norm)?))
            }
        };
        Ok(Self::Latent {
            q,
            q_norm,
            kv_a: tensors.linear(&latent.kv_a)?,
            kv_a_norm: tensors.norm(&latent.kv_a_norm)?,
            kv_b: tensors.linear(&latent.kv_b)?,
            widths: Latent {
                heads: latent.heads as i64,
                nope: latent.nope_dim as i64,
                rope: latent.rope_dim as i64,
                value: latent.value_dim as i64,
                latent: latent.latent as i64,
            },
        })
    }
}

impl Attention {
    /// Takes the tensors of `attention`; `ropes` tells which embeddings are interleaved.
    pub(super) fn build(
        attention: &base::Attention,
        ropes: &[base::Rope],
        tensors: &mut Tensors,
    ) -> Result<Self> {
        let (projections, o, rope, scores) = match attention {
            base::Attention::Grouped(grouped) => {
                (Projections::grouped(grouped, tensors)?, &grouped.o, grouped.rope, &grouped.scores)
            }
            base::Attention::Latent(latent) => {
                let projections = Projections::latent(latent, tensors)?;
                (projections, &latent.o, Some(latent.rope), &latent.scores)
            }
        };
        let interleaved = rope.and_then(|rope| ropes.get(rope)).is_some_and(|r| r.interleaved);
        let sinks = scores.sinks.as_ref().map(|sinks| tensors.take(sinks)).transpose()?;
        let scores = Scores {
            scale: scores.scale,
            window: scores.sliding_window.map(|window| window as i64),
            softcap: scores.softcap,
            sinks,
            dropout: scores.dropout,
        };
        Ok(Self { projections, o: tensors.linear(o)?, rope, interleaved, scores })
    }

    /// Whether weights are dropped while training.
    pub(super) fn drops(&self) -> bool {
        self.scores.dropout > 0.0
    }

    /// Over rows `[n, hidden]`. `ropes` are the angles of every rotary embedding; `attend` gets
    /// q `[n, heads, d]`, k and v `[n, kv_heads, …]` after rotation and gives `[n, heads · e]`.
    pub(super) fn forward(
        &self,
        x: &Rows<'_>,
        ropes: &[Angles],
        train: bool,
        attend: impl FnOnce(Tensor, Tensor, Tensor, &Scores) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let _scope = scope("attention projections");
        let angles = self.rope.and_then(|rope| ropes.get(rope));
        let rotate = |x: Tensor| {
            let _scope = scope("rotary");
            match angles {
                Some(angles) => rotary::rotate(&x, angles, self.interleaved),
                None => Ok(x),
            }
        };
        let (q, k, v) = match &self.projections {
            Projections::Grouped { .. } => self.grouped(x, train, rotate)?,
            Projections::Latent { .. } => self.latent(x, train, rotate)?,
        };
        self.o.forward(&attend(q, k, v, &self.scores)?, train)
    }

    fn grouped(
        &self,
        rows: &Rows<'_>,
        train: bool,
        rotate: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let Projections::Grouped { qkv, qk_norm, heads, kv_heads, head_dim } = &self.projections
        else {
            return Err(wrong_kind());
        };
        let [q, k, v] = match qkv.as_slice() {
            [q, k, v] => Linear::forward_all([q, k, v], rows, train)?,
            [fused] => {
                let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
                let all = fused.forward_rows(rows, train)?;
                [
                    all.f_narrow(-1, 0, queries)?,
                    all.f_narrow(-1, queries, keys)?,
                    all.f_narrow(-1, queries + keys, keys)?,
                ]
            }
            _ => return Err(wrong_kind()),
        };
        let count = rows.x.size2()?.0;
        let split = |rows: Tensor| rows.f_reshape([count, -1, *head_dim]);
        // Per head, or over all heads together: as wide as the norm's weight.
        let normed = |rows: Tensor, norm: Option<&Norm>| -> Result<Tensor> {
            match norm {
                Some(norm) if norm.width() == *head_dim => norm.forward(&split(rows)?),
                Some(norm) => Ok(split(norm.forward(&rows)?)?),
                None => Ok(split(rows)?),
            }
        };
        let (q_norm, k_norm) = qk_norm.as_ref().map(|(q, k)| (q, k)).unzip();
        Ok((rotate(normed(q, q_norm)?)?, rotate(normed(k, k_norm)?)?, split(v)?))
    }

    fn latent(
        &self,
        normed: &Rows<'_>,
        train: bool,
        rotate: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let Projections::Latent { q, q_norm, kv_a, kv_a_norm, kv_b, widths } = &self.projections
        else {
            return Err(wrong_kind());
        };
        let Latent { heads, nope, rope, value, latent } = *widths;
        let rows = normed.x.size2()?.0;
        let queries = match (q.as_slice(), q_norm) {
            ([a, b], Some(norm)) => {
                b.forward(&norm.forward(&a.forward_rows(normed, train)?)?, train)?
            }
            ([q], None) => q.forward_rows(normed, train)?,
            _ => return Err(wrong_kind()),
        };
        let queries = queries.f_view([rows, heads, nope + rope])?;
        let compressed = kv_a.forward_rows(normed, train)?;
        let latents = kv_a_norm.forward(&compressed.f_narrow(-1, 0, latent)?)?;
        let shared = compressed.f_narrow(-1, latent, rope)?.f_unsqueeze(1)?;
        let both = kv_b.forward(&latents, train)?.f_view([rows, heads, nope + value])?;
        let shared = rotate(shared)?.f_expand([rows, heads, rope], false)?;
        let q = Tensor::f_cat(
            &[queries.f_narrow(-1, 0, nope)?, rotate(queries.f_narrow(-1, nope, rope)?)?],
            -1,
        )?;
        let k = Tensor::f_cat(&[both.f_narrow(-1, 0, nope)?, shared], -1)?;
        Ok((q, k, both.f_narrow(-1, nope, value)?))
    }

    /// The linear layers, in the order of `Layer::linears`.
    pub(super) fn linears(&self) -> Vec<&Linear> {
        let mut linears: Vec<&Linear> = match &self.projections {
            Projections::Grouped { qkv, .. } => qkv.iter().collect(),
            Projections::Latent { q, kv_a, kv_b, .. } => q.iter().chain([kv_a, kv_b]).collect(),
        };
        linears.push(&self.o);
        linears
    }

    /// Like [`Attention::linears`], to be changed.
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut linears: Vec<&mut Linear> = match &mut self.projections {
            Projections::Grouped { qkv, .. } => qkv.iter_mut().collect(),
            Projections::Latent { q, kv_a, kv_b, .. } => q.iter_mut().chain([kv_a, kv_b]).collect(),
        };
        linears.push(&mut self.o);
        linears
    }
}

/// Modules that do not fit each other: a defect of ours.
fn wrong_kind() -> EngineError {
    EngineError::Defect("attention was built from parts of another kind".to_owned())
}
