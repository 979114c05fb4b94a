//! The trained weights, laid end to end in one f32 tensor.
//!
//! One flat tensor makes the optimiser, the gradient norm and a checkpoint a handful of
//! operations each, however many layers there are. The model sees views into it. Weights that
//! move alike lie side by side, so that an optimiser goes through a few [`Segment`]s.

use std::ops::Range;

use heirloom::recipe::{Optimizer, Pace, Train};
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Views start at multiples of so many elements (64 bytes), as libtorch's own tensors do:
/// matrix products round by alignment, and a resumed run must round alike.
const ALIGNMENT: i64 = 16;

/// Those of weights whose state is kept in blocks start with a block, which no two share.
pub const BLOCK: i64 = 256;

/// How a weight moves, and by whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Whether the optimiser is not for it, and AdamW moves it.
    pub left: bool,
    /// Its learning rate and its decay.
    pub pace: Pace,
    /// Whether its state is kept in blocks.
    blocks: bool,
}

impl Group {
    /// As in Transformers' `Trainer`: matrices decay as the optimiser says, vectors (norms) do
    /// not.
    fn plain(dimensions: usize) -> Self {
        let weight_decay = (dimensions < 2).then_some(0.0);
        Self { left: false, pace: Pace { lr_ratio: 1.0, weight_decay }, blocks: false }
    }

    /// As a recipe says.
    fn of(train: &Train, name: &str, shape: &[usize]) -> Self {
        let left = train.optimizer.leaves(name, shape);
        let blocks = matches!(train.optimizer, Optimizer::Adamw8bit(_)) && !left;
        Self { left, pace: train.pace(name, shape.len()), blocks }
    }
}

/// Weights that move alike, side by side.
#[derive(Clone, Debug)]
pub struct Segment {
    /// How they move.
    pub group: Group,
    /// Their elements, gaps included.
    pub elements: Range<i64>,
}

impl Segment {
    /// Its part of a tensor that has the layout of the weights.
    pub fn of(&self, flat: &Tensor) -> Result<Tensor> {
        Ok(flat.f_narrow(0, self.elements.start, self.elements.end - self.elements.start)?)
    }
}

/// Weights that are trained.
#[derive(Debug)]
pub struct Parameters {
    /// All weights, `[length]` f32: those that the optimiser is for, then those that it leaves.
    pub flat: Tensor,
    /// Names, sorted as in `views`.
    names: Vec<String>,
    /// Leaves of the autograd graph, each a view of `flat`.
    views: Vec<Tensor>,
    offsets: Vec<i64>,
    /// What moves alike, in the order of `flat`.
    pub segments: Vec<Segment>,
    /// Trained weights, without the gaps of alignment.
    pub count: u64,
}

impl Parameters {
    /// Lays out these initial weights on a device, matrices first.
    pub fn new(initial: Vec<(String, Tensor)>, device: Device) -> Result<Self> {
        Self::grouped(initial, device, |_, shape| Group::plain(shape.len()))
    }

    /// Lays out these initial weights for a recipe's optimiser and its groups.
    pub fn for_recipe(
        initial: Vec<(String, Tensor)>,
        train: &Train,
        device: Device,
    ) -> Result<Self> {
        Self::grouped(initial, device, |name, shape| Group::of(train, name, shape))
    }

    fn grouped(
        initial: Vec<(String, Tensor)>,
        device: Device,
        group: impl Fn(&str, &[usize]) -> Group,
    ) -> Result<Self> {
        let mut groups: Vec<(Group, Vec<(String, Tensor)>)> = Vec::new();
        for (name, tensor) in initial {
            let shape: Vec<usize> = tensor.size().iter().map(|size| *size as usize).collect();
            let group = group(&name, &shape);
            match groups.iter_mut().find(|(known, _)| *known == group) {
                Some((_, members)) => members.push((name, tensor)),
                None => groups.push((group, vec![(name, tensor)])),
            }
        }
        // A stable sort: what decays comes first, and what is left over last.
        groups.sort_by_key(|(group, _)| (group.left, group.pace.weight_decay == Some(0.0)));
        let (mut offsets, mut segments, mut length) = (Vec::new(), Vec::new(), 0);
        for (group, members) in &groups {
            let (start, step) = (length, if group.blocks { BLOCK } else { ALIGNMENT });
            for (_, tensor) in members {
                offsets.push(length);
                length += (tensor.numel() as i64 + step - 1) / step * step;
            }
            segments.push(Segment { group: *group, elements: start..length });
        }
        let members: Vec<_> = groups.into_iter().flat_map(|(_, members)| members).collect();
        tch::no_grad(|| {
            let flat = Tensor::f_zeros([length], (Kind::Float, device))?;
            let (mut names, mut views, mut count) = (Vec::new(), Vec::new(), 0);
            for ((name, tensor), offset) in members.into_iter().zip(&offsets) {
                let numel = tensor.numel() as i64;
                let mut view =
                    flat.f_narrow(0, *offset, numel)?.f_view(tensor.size().as_slice())?;
                view.f_copy_(&tensor)?;
                views.push(view.f_set_requires_grad(true)?);
                names.push(name);
                count += numel as u64;
            }
            Ok(Self { flat, names, views, offsets, segments, count })
        })
    }

    /// The leaf of a weight.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let index = self.names.iter().position(|candidate| candidate == name)?;
        Some(self.views.get(index)?.shallow_clone())
    }

    /// Adds the gradient of `loss` to `into`, which has the layout of `flat`.
    pub fn add_gradient(&self, loss: &Tensor, into: &Tensor) -> Result<()> {
        let gradients = Tensor::f_run_backward(&[loss], &self.views, false, false)?;
        tch::no_grad(|| {
            let gradients = gradients.iter().zip(&self.offsets);
            // An expert that no token chose has none.
            for (gradient, offset) in gradients.filter(|(gradient, _)| gradient.defined()) {
                let gradient = gradient.f_reshape([-1])?;
                let mut place = into.f_narrow(0, *offset, gradient.numel() as i64)?;
                let _ = place.f_add_(&gradient)?;
            }
            Ok(())
        })
    }

    /// A zero gradient.
    pub fn zero_gradient(&self) -> Result<Tensor> {
        Ok(self.flat.f_detach()?.f_zeros_like()?)
    }

    /// Elements that the optimiser is for, gaps included; AdamW moves the rest.
    pub fn own(&self) -> i64 {
        let own = self.segments.iter().filter(|segment| !segment.group.left);
        own.map(|segment| segment.elements.end).max().unwrap_or(0)
    }

    /// Where the weights lie in `flat`, and their shapes, in its order.
    pub fn places(&self) -> impl Iterator<Item = (i64, Vec<i64>)> {
        self.offsets.iter().copied().zip(self.views.iter().map(Tensor::size))
    }

    /// Names with views into a tensor that has the layout of `flat`.
    pub fn split<'a>(&'a self, flat: &'a Tensor) -> impl Iterator<Item = (&'a str, Tensor)> {
        self.names.iter().zip(&self.views).zip(&self.offsets).map(|((name, view), offset)| {
            let part = flat.narrow(0, *offset, view.numel() as i64);
            (name.as_str(), part.view(view.size().as_slice()))
        })
    }
}
