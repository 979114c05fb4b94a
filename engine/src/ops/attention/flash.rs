//! Attention on CUDA by libtorch's flash kernels (arXiv 2307.08691), over documents as they lie.
//!
//! Owns when they serve: causal attention within documents, in bfloat16 or f16, heads of at most
//! 256 features that keys and values share, with or without a window. What they cannot do (caps,
//! sinks, dropout, f32) is left to the reference. Kept for the backward pass: q, k, v, the
//! output, and for each row and head the logarithm of its sum of exponentials.
//!
//! cuDNN has kernels for packed documents, too (`_cudnn_attention_forward`), said to be faster
//! on Hopper: to be measured before they are taken.

#![expect(unsafe_code, reason = "functions of C++ that take pointers to tensors")]

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::Scores;
use crate::error::{EngineError, Result};
use crate::ops::{Layout, cuda, native, reference};

/// The most features of a head.
const WIDEST: i64 = 256;
/// Features of a head come in so many.
const STEP: i64 = 8;
/// The first generation of devices that the kernels are made for.
const CAPABILITY: (i32, i32) = (8, 0);

unsafe extern "C" {
    fn heirloom_flash(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        starts: *const C_tensor,
        longest: i64,
        scale: f64,
        window: i64,
        results: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn heirloom_flash_backward(
        gradient: *const C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        kept: *const *mut C_tensor,
        starts: *const C_tensor,
        longest: i64,
        scale: f64,
        window: i64,
        results: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// What both passes need.
struct Flash {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// First row of every document and the end of the last, i32 on the device.
    offsets: Tensor,
    longest: i64,
    scale: f64,
    /// Keys that a query sees before its own; all of them where negative.
    window: i64,
}

/// Whether these kernels compute what is asked.
pub(super) fn computes(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores) -> bool {
    let Device::Cuda(index) = q.device() else { return false };
    let new_enough = cuda::capability(index).is_ok_and(|capability| capability >= CAPABILITY);
    new_enough && takes(q, k, v, scores) && !reference::asked()
}

/// Whether they would, on a device that has them.
fn takes(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores) -> bool {
    let narrow = matches!(q.kind(), Kind::BFloat16 | Kind::Half);
    let alike = [k, v].iter().all(|x| x.kind() == q.kind() && x.device() == q.device());
    let width = q.size().last().copied().unwrap_or(0);
    let same = [k, v].iter().all(|x| x.size().last() == Some(&width));
    let rows = q.size().first().copied().unwrap_or(0);
    let fits = same && rows > 0 && width > 0 && width <= WIDEST && width % STEP == 0;
    narrow && alike && fits && scores.softcap.is_none() && scores.sinks.is_none()
}

/// As [`super::packed`], without dropout.
pub(super) fn packed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &Layout,
    scores: &Scores,
) -> Result<Tensor> {
    let (flash, [output, lse, random, unused]) = tch::no_grad(|| forward(q, k, v, layout, scores))?;
    let (rows, heads, width) = output.size3()?;
    let seen = output.f_view([rows, heads * width])?;
    let [output] = native::node(&[q, k, v], [seen], move |gradients| match gradients {
        [Some(gradient)] => flash.backward(gradient, [output, lse, random, unused]),
        _ => Ok(vec![None, None, None]),
    })?;
    Ok(output)
}

fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &Layout,
    scores: &Scores,
) -> Result<(Flash, [Tensor; 4])> {
    let ((rows, heads, width), (_, kv_heads, _)) = (q.size3()?, k.size3()?);
    let fits = k.size() == [rows, kv_heads, width]
        && v.size() == k.size()
        && kv_heads > 0
        && heads % kv_heads == 0
        && layout.starts.last() == Some(&rows);
    if !fits {
        return Err(EngineError::Defect(
            "queries, keys, values and documents that do not fit".to_owned(),
        ));
    }
    let offsets = match &layout.offsets {
        Some(offsets) if offsets.device() == q.device() => offsets.shallow_clone(),
        _ => return Err(EngineError::Defect("documents that lie on another device".to_owned())),
    };
    let dense = |x: &Tensor| -> Result<Tensor> {
        let x = x.f_detach()?;
        Ok(if x.stride().last() == Some(&1) { x } else { x.f_contiguous()? })
    };
    let flash = Flash {
        q: dense(q)?,
        k: dense(k)?,
        v: dense(v)?,
        offsets,
        longest: layout.longest as i64,
        scale: scores.scale,
        window: scores.window.map_or(-1, |window| window - 1),
    };
    let mut results = [null_mut(); 4];
    // SAFETY: the tensors live throughout the call; there is room for four.
    native::check(unsafe {
        heirloom_flash(
            flash.q.as_ptr(),
            flash.k.as_ptr(),
            flash.v.as_ptr(),
            flash.offsets.as_ptr(),
            flash.longest,
            flash.scale,
            flash.window,
            results.as_mut_ptr(),
        )
    })?;
    // SAFETY: all four were made, and are ours.
    let results = results.map(|pointer| unsafe { Tensor::from_ptr(pointer) });
    Ok((flash, results))
}

impl Flash {
    /// The gradients of q, k and v.
    fn backward(&self, gradient: &Tensor, kept: [Tensor; 4]) -> Result<Vec<Option<Tensor>>> {
        let gradient = gradient.f_to_kind(self.q.kind())?.f_contiguous()?;
        let gradient = gradient.f_view(kept[0].size().as_slice())?;
        let kept = kept.each_ref().map(|tensor| tensor.as_ptr().cast_mut());
        let mut results = [null_mut(); 3];
        // SAFETY: the tensors live throughout the call; there is room for three.
        native::check(unsafe {
            heirloom_flash_backward(
                gradient.as_ptr(),
                self.q.as_ptr(),
                self.k.as_ptr(),
                self.v.as_ptr(),
                kept.as_ptr(),
                self.offsets.as_ptr(),
                self.longest,
                self.scale,
                self.window,
                results.as_mut_ptr(),
            )
        })?;
        // SAFETY: all three were made, and are ours.
        Ok(results.map(|pointer| Some(unsafe { Tensor::from_ptr(pointer) })).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores() -> Scores {
        Scores { scale: 0.125, window: Some(7), softcap: None, sinks: None, dropout: 0.0 }
    }

    fn heads(kind: Kind, width: i64) -> Tensor {
        Tensor::zeros([5, 2, width], (kind, Device::Cpu))
    }

    #[test]
    fn what_the_kernels_cannot_do_is_left_to_the_reference() {
        let (q, sinks) =
            (heads(Kind::BFloat16, 64), Tensor::zeros([2], (Kind::Float, Device::Cpu)));
        assert!(takes(&q, &q, &q, &scores()));
        assert!(!takes(&q, &q, &heads(Kind::BFloat16, 32), &scores()));
        for (kind, width) in [(Kind::Float, 64), (Kind::BFloat16, 60), (Kind::Half, 264)] {
            let q = heads(kind, width);
            assert!(!takes(&q, &q, &q, &scores()), "{kind:?} {width}");
        }
        let none = q.narrow(0, 0, 0);
        assert!(!takes(&none, &none, &none, &scores()));
        assert!(!takes(&q, &q, &q, &Scores { softcap: Some(3.0), ..scores() }));
        assert!(!takes(&q, &q, &q, &Scores { sinks: Some(sinks), ..scores() }));
        // Nothing but a device of CUDA has them.
        assert!(!computes(&q, &q, &q, &scores()));
    }

    #[test]
    fn tensors_in_ordinary_memory_are_an_error_of_libtorch_and_no_crash() {
        let q = heads(Kind::BFloat16, 64);
        let mut layout = Layout::new(&[3, 2], Device::Cpu).unwrap();
        assert!(packed(&q, &q, &q, &layout, &scores()).is_err());
        layout.offsets = Some(Tensor::from_slice(&[0i32, 3, 5]));
        let error = packed(&q, &q, &q, &layout, &scores()).unwrap_err();
        let causes = std::error::Error::source(&error).map(ToString::to_string);
        assert!(causes.is_some_and(|text| text.contains("_flash_attention_forward")));
    }
}
