//! The trained weights, laid end to end in one f32 tensor.
//!
//! One flat tensor makes the optimiser, the gradient norm and a checkpoint a handful of
//! operations each, however many layers there are. The model sees views into it.

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Views start at multiples of so many elements (64 bytes), as libtorch's own tensors do:
/// matrix products round by alignment, and a resumed run must round alike.
const ALIGNMENT: i64 = 16;

/// Weights that are trained.
#[derive(Debug)]
pub struct Parameters {
    /// All weights, decayed ones first, `[length]` f32.
    pub flat: Tensor,
    /// Names, sorted as in `views`.
    names: Vec<String>,
    /// Leaves of the autograd graph, each a view of `flat`.
    views: Vec<Tensor>,
    offsets: Vec<i64>,
    /// The first so many elements are subject to weight decay.
    pub decayed: i64,
    /// Trained weights, without the gaps of alignment.
    pub count: u64,
}

impl Parameters {
    /// Lays out these initial weights on a device. As in Transformers' `Trainer`, matrices decay and
    /// vectors (norms) do not.
    pub fn new(initial: Vec<(String, Tensor)>, device: Device) -> Result<Self> {
        let (matrices, vectors): (Vec<_>, Vec<_>) =
            initial.into_iter().partition(|(_, tensor)| tensor.dim() > 1);
        let mut offsets = Vec::new();
        let mut length = 0;
        let mut decayed = 0;
        let mut count = 0;
        for (index, (_, tensor)) in matrices.iter().chain(&vectors).enumerate() {
            if index == matrices.len() {
                decayed = length;
            }
            offsets.push(length);
            count += tensor.numel() as u64;
            length += (tensor.numel() as i64 + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        }
        if vectors.is_empty() {
            decayed = length;
        }
        tch::no_grad(|| {
            let flat = Tensor::f_zeros([length], (Kind::Float, device))?;
            let mut names = Vec::new();
            let mut views = Vec::new();
            for ((name, tensor), offset) in matrices.into_iter().chain(vectors).zip(&offsets) {
                let numel = tensor.numel() as i64;
                let mut view =
                    flat.f_narrow(0, *offset, numel)?.f_view(tensor.size().as_slice())?;
                view.f_copy_(&tensor)?;
                views.push(view.f_set_requires_grad(true)?);
                names.push(name);
            }
            Ok(Self { flat, names, views, offsets, decayed, count })
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

    /// Names with views into a tensor that has the layout of `flat`.
    pub fn split<'a>(&'a self, flat: &'a Tensor) -> impl Iterator<Item = (&'a str, Tensor)> {
        self.names.iter().zip(&self.views).zip(&self.offsets).map(|((name, view), offset)| {
            let part = flat.narrow(0, *offset, view.numel() as i64);
            (name.as_str(), part.view(view.size().as_slice()))
        })
    }
}
