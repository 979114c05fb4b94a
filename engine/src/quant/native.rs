//! The loops of `engine/shim/quant.cpp`, as Rust calls them.
//!
//! Owns the unsafe calls; shapes, dtypes and layout are checked on the other side.

#![expect(unsafe_code, reason = "functions of C++ that take pointers to tensors")]

use std::ffi::c_char;

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::error::Result;
use crate::ops::native::check;

unsafe extern "C" {
    fn heirloom_nf4_pack(
        weight: *const C_tensor,
        packed: *mut C_tensor,
        absmax: *mut C_tensor,
    ) -> *mut c_char;
    fn heirloom_nf4_unpack(
        packed: *const C_tensor,
        absmax: *const C_tensor,
        weight: *mut C_tensor,
    ) -> *mut c_char;
    fn heirloom_int8_unpack(
        values: *const C_tensor,
        absmax: *const C_tensor,
        weight: *mut C_tensor,
    ) -> *mut c_char;
    fn heirloom_fp8_unpack(
        values: *const C_tensor,
        scales: *const C_tensor,
        block_rows: i64,
        block_columns: i64,
        weight: *mut C_tensor,
    ) -> *mut c_char;
}

/// Packs a weight on the CPU: two codes a byte, `[⌈n / 2⌉]`, and the absmax of every block.
pub(super) fn nf4_pack(weight: &Tensor, block: i64) -> Result<(Tensor, Tensor)> {
    let weight = weight.f_contiguous()?;
    let numel = weight.numel() as i64;
    let mut packed = Tensor::f_empty([(numel + 1) / 2], (Kind::Uint8, weight.device()))?;
    let mut absmax =
        Tensor::f_empty([(numel + block - 1) / block], (Kind::Float, weight.device()))?;
    // SAFETY: the tensors live throughout the call.
    check(unsafe { heirloom_nf4_pack(weight.as_ptr(), packed.as_mut_ptr(), absmax.as_mut_ptr()) })?;
    Ok((packed, absmax))
}

/// The weight of this size that was packed.
pub(super) fn nf4_unpack(
    packed: &Tensor,
    absmax: &Tensor,
    size: (i64, i64),
    kind: Kind,
) -> Result<Tensor> {
    let (packed, absmax) = (packed.f_contiguous()?, absmax.f_contiguous()?);
    let mut weight = Tensor::f_empty([size.0, size.1], (kind, packed.device()))?;
    // SAFETY: the tensors live throughout the call.
    check(unsafe { heirloom_nf4_unpack(packed.as_ptr(), absmax.as_ptr(), weight.as_mut_ptr()) })?;
    Ok(weight)
}

/// `values · absmax / 127`, with an absmax for each row.
pub(super) fn int8_unpack(
    values: &Tensor,
    absmax: &Tensor,
    size: (i64, i64),
    kind: Kind,
) -> Result<Tensor> {
    let (values, absmax) = (values.f_contiguous()?, absmax.f_contiguous()?);
    let mut weight = Tensor::f_empty([size.0, size.1], (kind, values.device()))?;
    // SAFETY: the tensors live throughout the call.
    check(unsafe { heirloom_int8_unpack(values.as_ptr(), absmax.as_ptr(), weight.as_mut_ptr()) })?;
    Ok(weight)
}

/// `values · scale`, with a scale for each block of rows and columns.
pub(super) fn fp8_unpack(
    values: &Tensor,
    scales: &Tensor,
    block: (i64, i64),
    size: (i64, i64),
    kind: Kind,
) -> Result<Tensor> {
    let (values, scales) = (values.f_contiguous()?, scales.f_contiguous()?);
    let mut weight = Tensor::f_empty([size.0, size.1], (kind, values.device()))?;
    // SAFETY: the tensors live throughout the call.
    check(unsafe {
        let (values, scales) = (values.as_ptr(), scales.as_ptr());
        heirloom_fp8_unpack(values, scales, block.0, block.1, weight.as_mut_ptr())
    })?;
    Ok(weight)
}
