//! Activation checkpointing (arXiv 1604.06174): what the backward pass needs of the forward
//! pass, and where it is until then.
//!
//! Owns [`Kept`], a tensor that waits where it is, waits in host memory, or is made again, and
//! [`checkpoint`], a part of a model of which only the input is kept. Does not own which parts
//! these are: that is the model's.
//!
//! Follows `torch.utils.checkpoint` with `use_reentrant=True`, a backward pass within the
//! backward pass, with two differences: gradients of weights are asked for and handed on, and
//! not added to `.grad`; and random numbers come back by a seed that the part sets itself, not
//! by the generator's state.

use tch::{Device, Tensor};

use super::native::node;
use super::reference;
use crate::error::Result;

/// A tensor for the backward pass.
pub struct Kept(Place);

enum Place {
    /// Where it was made.
    Here(Tensor),
    /// Copied to host memory.
    Host { copy: Tensor, device: Device },
    /// Nowhere.
    Again(Box<dyn FnOnce() -> Result<Tensor> + Send>),
}

impl Kept {
    /// Keeps it where it is.
    pub fn here(x: &Tensor) -> Self {
        Self(Place::Here(x.detach()))
    }

    /// Copies it to host memory, and back when it is asked for. From and to a CUDA device that
    /// is asynchronous, in the order of the device's work: libtorch takes pinned memory for
    /// such copies by itself, and gives neither side's memory to others before they are done.
    pub fn on_host(x: &Tensor) -> Result<Self> {
        let copy = x.f_detach()?.f_to_device_(Device::Cpu, x.kind(), true, true)?;
        Ok(Self(Place::Host { copy, device: x.device() }))
    }

    /// Keeps nothing; `make` makes it again, without a graph.
    pub fn again(make: impl FnOnce() -> Result<Tensor> + Send + 'static) -> Self {
        Self(Place::Again(Box::new(make)))
    }

    /// Whether it takes no memory until it is asked for.
    pub fn is_made_again(&self) -> bool {
        matches!(self.0, Place::Again(_))
    }

    /// The tensor, outside of every graph.
    pub fn take(self) -> Result<Tensor> {
        match self.0 {
            Place::Here(tensor) => Ok(tensor),
            Place::Host { copy, device } => {
                Ok(copy.f_to_device_(device, copy.kind(), true, false)?)
            }
            Place::Again(make) => tch::no_grad(make),
        }
    }
}

/// `run(x)`, of which the graph keeps nothing but `kept`, which is `x`: the backward pass runs
/// it again. `trained` are the leaves that `run` uses besides `x`, which get their gradients.
///
/// `run` must do the same the second time: what it draws, it draws from a seed of its own.
pub fn checkpoint(
    x: &Tensor,
    kept: Kept,
    trained: Vec<Tensor>,
    run: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static,
) -> Result<Tensor> {
    let y = tch::no_grad(|| run(&x.f_detach()?))?;
    let (wanted, plain) = (x.requires_grad(), reference::asked());
    let leaves: Vec<Tensor> = trained.iter().map(Tensor::shallow_clone).collect();
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(&leaves).collect();
    let [y] = node(&inputs, [y], move |gradients| {
        let [Some(gradient)] = gradients else {
            return Ok((0..=trained.len()).map(|_| None).collect());
        };
        let x = kept.take()?.f_set_requires_grad(wanted)?;
        let run = || if plain { reference::only(|| run(&x)) } else { run(&x) };
        let y = tch::with_grad(run)?;
        let leaves: Vec<&Tensor> = wanted.then_some(&x).into_iter().chain(&trained).collect();
        let found = gradients_of(y, gradient.shallow_clone(), &leaves)?;
        Ok((!wanted).then_some(None).into_iter().chain(found).collect())
    })?;
    Ok(y)
}

/// The gradients of `leaves`, where they have some, from that of `y`.
fn gradients_of(y: Tensor, gradient: Tensor, leaves: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
    // tch's backward pass begins with ones. This node has them be the gradient, at no cost.
    let begin = tch::with_grad(|| {
        let nothing = Tensor::f_zeros([1], (gradient.kind(), Device::Cpu))?;
        node(&[&y], [nothing], move |_| Ok(vec![Some(gradient)]))
    })?;
    drop(y);
    let found = Tensor::f_run_backward(&begin, leaves, false, false)?;
    Ok(found.into_iter().map(|gradient| gradient.defined().then_some(gradient)).collect())
}

/// `x Wᵀ + b` with a trained weight, in the dtype of `x`, as libtorch's `linear` but for where
/// the rows are until the backward pass.
pub fn trained_linear(
    x: &Tensor,
    kept: Kept,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let y = tch::no_grad(|| x.f_linear(weight, bias))?;
    let (wanted, matrix) = (x.requires_grad(), weight.f_detach()?);
    let biased = bias.is_some();
    let inputs: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    let [y] = node(&inputs, [y], move |gradients| {
        let [Some(gradient)] = gradients else {
            return Ok((0..2 + usize::from(biased)).map(|_| None).collect());
        };
        let of_x = wanted.then(|| gradient.f_mm(&matrix)).transpose()?;
        let of_weight = gradient.f_tr()?.f_mm(&kept.take()?)?;
        let mut found = vec![of_x, Some(of_weight)];
        if biased {
            found.push(Some(gradient.f_sum_dim_intlist(
                [0i64].as_slice(),
                false,
                gradient.kind(),
            )?));
        }
        Ok(found)
    })?;
    Ok(y)
}

#[cfg(test)]
#[path = "checkpointing_tests.rs"]
mod tests;
