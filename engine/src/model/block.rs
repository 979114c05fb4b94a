//! A block of the decoder, and what of it is kept for the backward pass.

#![expect(unsafe_code, reason = "blocks are held by the model and by graphs at once")]

use std::ops::Deref;
use std::sync::Arc;

use heirloom::base::{Architecture, Layer};
use tch::Tensor;

use super::attention::Attention;
use super::expert_update::ExpertParameter;
use super::feed_forward::{Experts, FeedForward};
use super::linear::Linear;
use super::parts::{Norm, Rows, Tensors};
use crate::error::Result;
use crate::ops::Layout;
use crate::ops::attention::{self, Scores};
use crate::ops::checkpointing::{Kept, checkpoint};
use crate::ops::profile::scope;
use crate::ops::rotary::Angles;

/// Attention, then feed-forward, each added to the residual stream.
#[derive(Debug)]
pub(super) struct Block {
    before_attention: Option<Norm>,
    attention: Attention,
    after_attention: Option<Norm>,
    before_feed_forward: Option<Norm>,
    feed_forward: FeedForward,
    after_feed_forward: Option<Norm>,
    residual_multiplier: f64,
    residual_dropout: f64,
    /// Its weights that are trained, adapters aside.
    trained: Vec<Tensor>,
}

/// How a forward pass is made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mode {
    /// Dropout is on.
    pub(super) train: bool,
    /// What norms and gated units give is made again in the backward pass, not kept.
    pub(super) again: bool,
}

/// What a block of packed documents needs besides its rows.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) layout: &'a Layout,
    pub(super) angles: &'a [Angles],
    pub(super) mode: Mode,
    /// What dropout draws from, if anything drops.
    pub(super) seed: Option<i64>,
}

impl Block {
    pub(super) fn build(
        layer: &Layer,
        architecture: &Architecture,
        tensors: &mut Tensors,
    ) -> Result<Self> {
        let norms = &layer.norms;
        Ok(Self {
            before_attention: tensors.maybe_norm(&norms.before_attention)?,
            attention: Attention::build(&layer.attention, &architecture.ropes, tensors)?,
            after_attention: tensors.maybe_norm(&norms.after_attention)?,
            before_feed_forward: tensors.maybe_norm(&norms.before_feed_forward)?,
            feed_forward: FeedForward::build(&layer.feed_forward, tensors)?,
            after_feed_forward: tensors.maybe_norm(&norms.after_feed_forward)?,
            residual_multiplier: layer.residual_multiplier,
            residual_dropout: layer.residual_dropout,
            trained: tensors.trained(),
        })
    }

    /// The attention part.
    pub(super) fn attention(&self) -> &Attention {
        &self.attention
    }

    /// The feed-forward part.
    pub(super) fn feed_forward(&self) -> &FeedForward {
        &self.feed_forward
    }

    /// Both parts, to be changed.
    pub(super) fn parts_mut(&mut self) -> (&mut Attention, &mut FeedForward) {
        (&mut self.attention, &mut self.feed_forward)
    }

    /// Whether something is dropped while training.
    pub(super) fn drops(&self) -> bool {
        let drops = |linear: &Linear| linear.low_rank.as_ref().is_some_and(|it| it.dropout > 0.0);
        self.linears().any(drops) || self.residual_dropout > 0.0 || self.attention.drops()
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().into_iter().chain(self.feed_forward.linears())
    }

    /// The leaves of the graph that this block makes.
    fn leaves(&self) -> Vec<Tensor> {
        let adapters = self.linears().flat_map(Linear::trained_leaves);
        let experts = self.feed_forward.experts().into_iter().flat_map(Experts::parameters);
        let of_experts = experts.flat_map(ExpertParameter::trained_leaves);
        let all = self.trained.iter().chain(adapters).chain(of_experts);
        all.filter(|leaf| leaf.requires_grad()).map(Tensor::shallow_clone).collect()
    }

    /// One block over the rows of packed documents.
    pub(super) fn packed(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        if let Some(seed) = pass.seed {
            tch::manual_seed(seed);
        }
        self.forward(x, pass.angles, pass.mode, |q, k, v, scores| {
            let _scope = scope("attention");
            attention::packed(&q, &k, &v, pass.layout, scores, pass.mode.train)
        })
    }

    /// One block over rows `[n, hidden_size]`; for `attend` see [`Attention::forward`].
    pub(super) fn forward(
        &self,
        x: &Tensor,
        ropes: &[Angles],
        mode: Mode,
        attend: impl FnOnce(Tensor, Tensor, Tensor, &Scores) -> Result<Tensor>,
    ) -> Result<Tensor> {
        // Of what the parts do not claim.
        let _scope = scope("residual");
        let normed = Rows::normed(self.before_attention.as_ref(), x, mode.again)?;
        let attended = self.attention.forward(&normed, ropes, mode.train, attend)?;
        drop(normed);
        let branch = self.branch(apply(&self.after_attention, &attended)?, mode.train)?;
        let (x, normed) = match &self.before_feed_forward {
            Some(norm) => Rows::normed_sum(norm, x, &branch, mode.again)?,
            None => {
                let x = x.f_add(&branch)?;
                (x.shallow_clone(), Rows::kept(&x))
            }
        };
        let fed = self.feed_forward.forward(&normed, mode)?;
        Ok(x.f_add(&self.branch(apply(&self.after_feed_forward, &fed)?, mode.train)?)?)
    }

    /// What is added to the residual stream for a branch.
    fn branch(&self, mut branch: Tensor, train: bool) -> Result<Tensor> {
        if train && self.residual_dropout > 0.0 {
            branch = branch.f_dropout(self.residual_dropout, true)?;
        }
        if self.residual_multiplier != 1.0 {
            branch = branch.f_mul_scalar(self.residual_multiplier)?;
        }
        Ok(branch)
    }
}

/// Applies a norm where there is one.
fn apply(norm: &Option<Norm>, x: &Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(x),
        None => Ok(x.shallow_clone()),
    }
}

/// A block that graphs hold, too, until their backward pass.
#[derive(Debug)]
pub(super) struct Shared(Arc<Block>);

// SAFETY: the only references to a block on another thread are those of a backward pass, which
// reads its tensors. libtorch's tensors may be read from several threads, and count their
// owners atomically; `get_mut` changes a block only where nothing else holds it.
unsafe impl Send for Shared {}

impl Shared {
    #[expect(clippy::arc_with_non_send_sync, reason = "owners are counted across threads")]
    pub(super) fn new(block: Block) -> Self {
        Self(Arc::new(block))
    }

    /// To be changed, unless a graph holds it.
    pub(super) fn get_mut(&mut self) -> Option<&mut Block> {
        Arc::get_mut(&mut self.0)
    }

    /// As [`Block::packed`], keeping nothing but `x`, in host memory if asked for.
    pub(super) fn checkpointed(&self, x: &Tensor, pass: &Pass<'_>, host: bool) -> Result<Tensor> {
        let _scope = scope("residual");
        let kept = if host { Kept::on_host(x)? } else { Kept::here(x) };
        let (block, layout, mode, seed) =
            (Self(Arc::clone(&self.0)), pass.layout.share(), pass.mode, pass.seed);
        let angles: Vec<Angles> = pass.angles.iter().map(Angles::share).collect();
        checkpoint(x, kept, self.leaves(), move |x| {
            // All of it, not only the Arc within: that alone may go to another thread.
            let block: &Self = &block;
            block.packed(x, &Pass { layout: &layout, angles: &angles, mode, seed })
        })
    }
}

impl Deref for Shared {
    type Target = Block;

    fn deref(&self) -> &Block {
        &self.0
    }
}
