//! Attention on CPU in blocks that stay in the cache (`engine/shim/attention.cpp`).
//!
//! Documents are taken as they lie, heads that share a key are not copied, and blocks that no
//! query sees are not computed. Kept for the backward pass: q, k, v, the output, and for each
//! row and head the logarithm of its sum of exponentials.

#![expect(unsafe_code, reason = "functions of C++ that take pointers to the memory of tensors")]

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::Scores;
use crate::error::{EngineError, Result};
use crate::ops::{Layout, native};

unsafe extern "C" {
    safe fn heirloom_attention_multiplies_bfloat16() -> bool;
    fn heirloom_attention(job: *const Job) -> *mut c_char;
    fn heirloom_attention_backward(job: *const Job) -> *mut c_char;
}

/// As in `attention.cpp`.
#[repr(C)]
struct View {
    data: *const c_void,
    position: i64,
    head: i64,
}

/// As in `attention.cpp`.
#[repr(C)]
struct Job {
    bfloat16s: i32,
    scale: f32,
    softcap: f32,
    documents: i64,
    starts: *const i64,
    heads: i64,
    kv_heads: i64,
    width: i64,
    value_width: i64,
    window: i64,
    sinks: *const f32,
    q: View,
    k: View,
    v: View,
    output: *mut c_void,
    lse: *mut f32,
    gradient: *const c_void,
    delta: *mut f32,
    q_gradient: *mut c_void,
    k_gradient: *mut c_void,
    v_gradient: *mut c_void,
}

/// What both passes need.
struct Attention {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Option<Tensor>,
    output: Tensor,
    lse: Tensor,
    starts: Arc<[i64]>,
    scale: f64,
    softcap: Option<f64>,
    window: Option<i64>,
}

/// Whether these are tensors that this file computes with.
pub(super) fn computes(q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
    let kind = q.kind();
    let can = match kind {
        Kind::Float => true,
        Kind::BFloat16 => heirloom_attention_multiplies_bfloat16(),
        _ => false,
    };
    can && [q, k, v].iter().all(|x| x.kind() == kind && x.device() == Device::Cpu)
}

/// As [`super::packed`], without dropout.
pub(super) fn packed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &Layout,
    scores: &Scores,
) -> Result<Tensor> {
    let attention = tch::no_grad(|| Attention::forward(q, k, v, layout, scores))?;
    let (rows, heads, width) = attention.output.size3()?;
    let output = attention.output.f_view([rows, heads * width])?;
    let mut inputs = vec![q, k, v];
    inputs.extend(scores.sinks.as_ref());
    let [output] = native::node(&inputs, [output], move |gradients| {
        attention.backward(gradients.first().and_then(Option::as_ref))
    })?;
    Ok(output)
}

impl Attention {
    fn forward(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        layout: &Layout,
        scores: &Scores,
    ) -> Result<Self> {
        let ((rows, heads, width), (_, kv_heads, value_width)) = (q.size3()?, v.size3()?);
        let fits = k.size() == [rows, kv_heads, width]
            && v.size3()?.0 == rows
            && kv_heads > 0
            && heads % kv_heads == 0
            && layout.starts.last() == Some(&rows)
            && scores.sinks.as_ref().is_none_or(|sinks| sinks.size() == [heads]);
        if !fits {
            return Err(EngineError::Defect(
                "queries, keys, values and documents that do not fit".to_owned(),
            ));
        }
        let sinks = scores.sinks.as_ref();
        let wide = |sinks: &Tensor| sinks.f_detach()?.f_to_kind(Kind::Float)?.f_contiguous();
        let attention = Self {
            q: dense_heads(q)?,
            k: dense_heads(k)?,
            v: dense_heads(v)?,
            sinks: sinks.map(wide).transpose()?,
            output: Tensor::f_empty([rows, heads, value_width], (q.kind(), Device::Cpu))?,
            lse: Tensor::f_empty([rows, heads], (Kind::Float, Device::Cpu))?,
            starts: Arc::clone(&layout.starts),
            scale: scores.scale,
            softcap: scores.softcap,
            window: scores.window,
        };
        // SAFETY: the tensors and offsets live throughout the call, and fit each other.
        native::check(unsafe { heirloom_attention(&attention.job()?) })?;
        Ok(attention)
    }

    /// The gradients of q, k, v and, where there are some, sinks.
    fn backward(&self, gradient: Option<&Tensor>) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient) = gradient else {
            return Ok(self.nothing());
        };
        let gradient = gradient.f_to_kind(self.q.kind())?.f_contiguous()?;
        let empty = |like: &Tensor| Tensor::f_empty(like.size(), (like.kind(), Device::Cpu));
        let results = [empty(&self.q)?, empty(&self.k)?, empty(&self.v)?];
        let delta = empty(&self.lse)?;
        let [q, k, v] = results.each_ref().map(Tensor::data_ptr);
        let job = Job {
            gradient: gradient.data_ptr(),
            delta: delta.data_ptr().cast(),
            q_gradient: q,
            k_gradient: k,
            v_gradient: v,
            ..self.job()?
        };
        // SAFETY: the tensors and offsets live throughout the call, and fit each other.
        native::check(unsafe { heirloom_attention_backward(&job) })?;
        let mut gradients: Vec<_> = results.into_iter().map(Some).collect();
        if let Some(sinks) = &self.sinks {
            // A sink's weight adds nothing to the output: more of it is less of all others.
            let weights = sinks.f_sub(&self.lse)?.f_exp()?;
            let sum = weights.f_mul(&delta)?.f_sum_dim_intlist(0, false, Kind::Float)?;
            gradients.push(Some(sum.f_neg()?));
        }
        Ok(gradients)
    }

    fn nothing(&self) -> Vec<Option<Tensor>> {
        let inputs = if self.sinks.is_some() { 4 } else { 3 };
        (0..inputs).map(|_| None).collect()
    }

    fn job(&self) -> Result<Job> {
        let ((_, heads, width), (_, kv_heads, value_width)) = (self.q.size3()?, self.v.size3()?);
        Ok(Job {
            bfloat16s: i32::from(self.q.kind() == Kind::BFloat16),
            scale: self.scale as f32,
            softcap: self.softcap.unwrap_or(0.0) as f32,
            documents: self.starts.len() as i64 - 1,
            starts: self.starts.as_ptr(),
            heads,
            kv_heads,
            width,
            value_width,
            window: self.window.unwrap_or(i64::MAX),
            sinks: self.sinks.as_ref().map_or(std::ptr::null(), |sinks| sinks.data_ptr().cast()),
            q: view(&self.q)?,
            k: view(&self.k)?,
            v: view(&self.v)?,
            output: self.output.data_ptr(),
            lse: self.lse.data_ptr().cast(),
            gradient: std::ptr::null(),
            delta: std::ptr::null_mut(),
            q_gradient: std::ptr::null_mut(),
            k_gradient: std::ptr::null_mut(),
            v_gradient: std::ptr::null_mut(),
        })
    }
}

/// Rows and heads may lie apart, the numbers of a head may not.
fn dense_heads(x: &Tensor) -> Result<Tensor> {
    let x = x.f_detach()?;
    match x.stride().last() {
        Some(1) => Ok(x),
        _ => Ok(x.f_contiguous()?),
    }
}

fn view(x: &Tensor) -> Result<View> {
    let (position, head, _) = x.stride3()?;
    Ok(View { data: x.data_ptr(), position, head })
}
