//! Weights unpacked by kernels (`engine/cuda/nf4.cu`, `engine/cuda/bytes.cu`).
//!
//! Owns the unsafe launches, with all that makes them safe: shapes, dtypes, dense tensors on
//! one device, room for the weight.

#![expect(unsafe_code, reason = "kernels over the elements of tensors")]

use std::ffi::c_void;
use std::ptr::null;

use tch::{Kind, Tensor};

use super::Absmax;
use super::absmax::BLOCK as CODES_BLOCK;
use super::nf4::BLOCK;
use crate::error::{EngineError, Result};
use crate::ops::cuda::{self, By, Grid, Kernel, THREADS};
use crate::ops::reference;

/// As in `nf4.cu`.
#[repr(C)]
struct Nf4Job {
    count: i64,
    packed: *const c_void,
    absmax: *const c_void,
    codes: *const c_void,
    scales: *const c_void,
    offset: *const c_void,
    table: *const c_void,
    weight: *mut c_void,
}

/// As in `bytes.cu`.
#[repr(C)]
struct BytesJob {
    rows: i64,
    columns: i64,
    rows_each: i64,
    columns_each: i64,
    across: i64,
    values: *const c_void,
    scales: *const c_void,
    weight: *mut c_void,
}

/// As in `fp8_rows.cu`.
#[repr(C)]
struct Fp8RowsJob {
    rows: i64,
    width: i64,
    stride: i64,
    least: f32,
    x: *const c_void,
    values: *mut c_void,
    scales: *mut c_void,
}

/// Whether kernels unpack what lies where this tensor does to such a matrix.
pub(super) fn serve(packed: &Tensor, kind: Kind) -> bool {
    let kernels = !matches!(cuda::by(packed.device()), None | Some(By::Loops));
    kernels && (cuda::known(kind) || kind == Kind::Half) && !reference::asked()
}

/// The weight of this size that was packed, its absmax unpacked on the way.
pub(super) fn nf4(
    packed: &Tensor,
    absmax: &Absmax,
    size: (i64, i64),
    kind: Kind,
) -> Result<Tensor> {
    let count = size.0 * size.1;
    let packed = dense(packed, packed, Kind::Uint8, (count + 1) / 2)?;
    let blocks = (count + BLOCK - 1) / BLOCK;
    let weight = room(&packed, size, kind)?;
    let mut job = Nf4Job {
        count,
        packed: packed.data_ptr(),
        absmax: null(),
        codes: null(),
        scales: null(),
        offset: null(),
        table: null(),
        weight: weight.data_ptr(),
    };
    // Held until the launch.
    let mut held = Vec::new();
    let mut start = |tensor: &Tensor, kind, numel| -> Result<*const c_void> {
        held.push(dense(tensor, &packed, kind, numel)?);
        Ok(held.last().map_or(null(), |tensor| tensor.data_ptr().cast_const()))
    };
    match absmax {
        Absmax::Plain(absmax) => job.absmax = start(absmax, Kind::Float, blocks)?,
        Absmax::Double { codes, scales, offset, table } => {
            job.codes = start(codes, Kind::Uint8, blocks)?;
            job.scales = start(scales, Kind::Float, (blocks + CODES_BLOCK - 1) / CODES_BLOCK)?;
            job.offset = start(offset, Kind::Float, 1)?;
            job.table = start(table, Kind::Float, 256)?;
        }
    }
    // SAFETY: all tensors are dense, on one device, as large as the job says, and live on;
    // nothing else writes into the new one.
    unsafe { launch(&packed, &job, cuda::NF4, kind, Grid::elements(count))? };
    Ok(weight)
}

/// `values · absmax / 127`, with an absmax for each row.
pub(super) fn int8(
    values: &Tensor,
    absmax: &Tensor,
    size: (i64, i64),
    kind: Kind,
) -> Result<Tensor> {
    let values = dense(values, values, Kind::Int8, size.0 * size.1)?;
    bytes(cuda::INT8, &values, absmax, (1, size.1.max(1)), size, kind)
}

/// `values · scale`, with a scale for each block of rows and columns.
pub(super) fn fp8(
    values: &Tensor,
    scales: &Tensor,
    block: (i64, i64),
    size: (i64, i64),
    kind: Kind,
) -> Result<Tensor> {
    let values = dense(values, values, Kind::Float8e4m3fn, size.0 * size.1)?;
    bytes(cuda::E4M3, &values, scales, block, size, kind)
}

/// Rows of f32 or bfloat16 in E4M3, and what each is multiplied with, `[n, 1]`; none is divided
/// by less than `least`.
pub(super) fn fp8_rows(x: &Tensor, least: f64) -> Result<(Tensor, Tensor)> {
    let (rows, width) = x.size2()?;
    let x = if width > 1 && x.stride2()?.1 != 1 { x.f_contiguous()? } else { x.f_detach()? };
    let values = Tensor::f_empty([rows, width], (Kind::Float8e4m3fn, x.device()))?;
    let scales = room(&x, (rows, 1), Kind::Float)?;
    let job = Fp8RowsJob {
        rows,
        width,
        stride: x.stride2()?.0,
        least: least as f32,
        x: x.data_ptr(),
        values: values.data_ptr(),
        scales: scales.data_ptr(),
    };
    // SAFETY: as for `nf4`.
    unsafe { launch(&x, &job, cuda::FP8_ROWS, x.kind(), Grid::rows(rows, width, THREADS))? };
    Ok((values, scales))
}

fn bytes(
    kernel: Kernel,
    values: &Tensor,
    scales: &Tensor,
    block: (i64, i64),
    size: (i64, i64),
    kind: Kind,
) -> Result<Tensor> {
    let ((rows, columns), (rows_each, columns_each)) = (size, block);
    if rows_each < 1 || columns_each < 1 || columns > i64::from(i32::MAX) {
        return Err(EngineError::Defect("blocks without rows or columns".to_owned()));
    }
    let across = (columns + columns_each - 1) / columns_each;
    let down = (rows + rows_each - 1) / rows_each;
    let scales = dense(scales, values, Kind::Float, down * across)?;
    let weight = room(values, size, kind)?;
    let job = BytesJob {
        rows,
        columns,
        rows_each,
        // The kernel counts columns in 32 bits.
        columns_each: columns_each.min(columns.max(8)),
        across,
        values: values.data_ptr(),
        scales: scales.data_ptr(),
        weight: weight.data_ptr(),
    };
    // SAFETY: as for `nf4`.
    unsafe { launch(values, &job, kernel, kind, Grid::rows(rows, columns, THREADS))? };
    Ok(weight)
}

/// # Safety
///
/// See [`cuda::run`].
unsafe fn launch<J>(like: &Tensor, job: &J, kernel: Kernel, kind: Kind, grid: Grid) -> Result<()> {
    let no_loop =
        |_: &J| Err(EngineError::Defect("a kernel was asked for where there are loops".to_owned()));
    // SAFETY: as the caller promises.
    unsafe { cuda::run(like, job, no_loop, kernel, kind, grid) }
}

/// So many numbers in a row on the device of `beside`.
fn dense(tensor: &Tensor, beside: &Tensor, kind: Kind, numel: i64) -> Result<Tensor> {
    let fits = tensor.kind() == kind && tensor.numel() as i64 == numel;
    if !fits || tensor.device() != beside.device() {
        return Err(EngineError::Defect(
            "a packed weight whose parts do not fit each other".to_owned(),
        ));
    }
    Ok(tensor.f_contiguous()?)
}

/// Room for a weight. In tests it begins as NaN, so that they see what a kernel leaves out.
fn room(beside: &Tensor, size: (i64, i64), kind: Kind) -> Result<Tensor> {
    let mut room = Tensor::f_empty([size.0, size.1], (kind, beside.device()))?;
    if cfg!(test) {
        let _ = room.f_fill_(f64::NAN)?;
    }
    Ok(room)
}
