//! Steps of optimisers beside AdamW ([`super::adamw`]): Lion, AdamW with running means in
//! blocks of eight bits, Adafactor.
//!
//! Owns the calls of the loops (`engine/shim/optimizers.cpp`), with what makes them safe, and
//! the same in plain tensor calls, which serve every device. Does not own which weights move
//! how (`crate::train::optimizer`).

#![expect(unsafe_code, reason = "loops over the elements of tensors")]

mod plain;
#[cfg(test)]
mod tests;

use std::ptr::null_mut;

use tch::{Device, Kind, Tensor};

use super::{AdamWFactors, reference};
use crate::error::{EngineError, Result};

/// Elements that share a scale in eight bits.
pub const BLOCK: i64 = 256;

/// The numbers of one step of Lion.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LionFactors {
    /// 1 - learning rate × weight decay.
    pub keep: f32,
    /// Learning rate.
    pub lr: f32,
    /// β₁ and β₂.
    pub betas: [f32; 2],
    /// 1 - β₁ and 1 - β₂.
    pub new: [f32; 2],
}

/// The numbers of one step of Adafactor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AdafactorFactors {
    /// Of the running squares.
    pub decay: f32,
    /// Added to squared gradients.
    pub eps: f32,
    /// The learning rate is in proportion to the weights' root mean square, at least this;
    /// below 0 it is not.
    pub least_scale: f32,
    /// The longest step, as a root mean square.
    pub clip_threshold: f32,
    /// Learning rate.
    pub lr: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Decay of the running mean of steps, where there is one.
    pub beta1: f32,
}

#[repr(C)]
struct LionJob {
    count: i64,
    weights: *mut f32,
    mean: *mut f32,
    gradient: *const f32,
    factors: LionFactors,
}

#[repr(C)]
struct AdamW8bitJob {
    blocks: i64,
    weights: *mut f32,
    codes: [*mut u8; 2],
    absmax: [*mut f32; 2],
    maps: [*const f32; 2],
    gradient: *const f32,
    factors: AdamWFactors,
}

#[repr(C)]
struct AdafactorJob {
    batches: i64,
    rows: i64,
    columns: i64,
    factored: i32,
    weights: *mut f32,
    row_squares: *mut f32,
    column_squares: *mut f32,
    mean: *mut f32,
    gradient: *const f32,
    factors: AdafactorFactors,
}

unsafe extern "C" {
    fn heirloom_lion(job: *const LionJob);
    fn heirloom_adamw_8bit(job: *const AdamW8bitJob);
    fn heirloom_adafactor(job: *const AdafactorJob);
}

/// Whether the loops take tensors that lie there; elsewhere plain calls do the same.
fn loops(gradient: &Tensor) -> bool {
    gradient.device() == Device::Cpu && gradient.kind() == Kind::Float && !reference::asked()
}

/// A tensor that a loop reads or writes: dense, of this dtype and length.
fn dense(tensor: &Tensor, kind: Kind, length: i64) -> Result<*mut std::ffi::c_void> {
    let fits = tensor.kind() == kind
        && tensor.numel() as i64 == length
        && tensor.is_contiguous()
        && tensor.device() == Device::Cpu;
    let defect = || EngineError::Defect("an optimiser's state is not that of its weights".into());
    if fits { Ok(tensor.data_ptr()) } else { Err(defect()) }
}

fn floats(tensor: &Tensor, length: i64) -> Result<*mut f32> {
    Ok(dense(tensor, Kind::Float, length)?.cast())
}

/// One step of Lion (arXiv 2302.06675) over flat f32 weights and their running mean, which are
/// changed in place.
pub fn lion(
    weights: &mut Tensor,
    mean: &mut Tensor,
    gradient: &Tensor,
    factors: LionFactors,
) -> Result<()> {
    if !loops(gradient) {
        return plain::lion(weights, mean, gradient, factors);
    }
    let count = gradient.numel() as i64;
    let job = LionJob {
        count,
        weights: floats(weights, count)?,
        mean: floats(mean, count)?,
        gradient: floats(gradient, count)?,
        factors,
    };
    // SAFETY: the tensors live on, are dense and as long as said, and are ours to change.
    unsafe { heirloom_lion(&job) };
    Ok(())
}

/// Numbers in blocks of [`BLOCK`] codes of eight bits with a scale for each block.
#[derive(Debug)]
pub struct Blocks {
    /// Codes, u8.
    pub codes: Tensor,
    /// The largest absolute value of each block, f32.
    pub absmax: Tensor,
}

/// One step of AdamW over flat f32 weights, whole blocks of them, whose running mean and
/// running square are unpacked and packed again (arXiv 2110.02861); `maps` are what the codes
/// of both stand for.
pub fn adamw_8bit(
    weights: &mut Tensor,
    state: [&mut Blocks; 2],
    maps: [&Tensor; 2],
    gradient: &Tensor,
    factors: AdamWFactors,
) -> Result<()> {
    if !loops(gradient) {
        return plain::adamw_8bit(weights, state, maps, gradient, factors);
    }
    let count = gradient.numel() as i64;
    let blocks = count / BLOCK;
    let [mean, square] = state;
    let job = AdamW8bitJob {
        blocks,
        weights: floats(weights, blocks * BLOCK)?,
        codes: [
            dense(&mean.codes, Kind::Uint8, count)?.cast(),
            dense(&square.codes, Kind::Uint8, count)?.cast(),
        ],
        absmax: [floats(&mean.absmax, blocks)?, floats(&square.absmax, blocks)?],
        maps: [floats(maps[0], 256)?, floats(maps[1], 256)?],
        gradient: floats(gradient, count)?,
        factors,
    };
    // SAFETY: as in `lion`; a code of eight bits is inside a map of 256.
    unsafe { heirloom_adamw_8bit(&job) };
    Ok(())
}

/// What Adafactor remembers of a weight.
#[derive(Debug)]
pub struct Squares {
    /// Running squares by row, `[…, rows]`; empty of a vector.
    pub rows: Tensor,
    /// Running squares by column, `[…, columns]`; of a vector, those of its elements.
    pub columns: Tensor,
    /// Running mean of steps, in the shape of the weight.
    pub mean: Option<Tensor>,
}

/// One step of Adafactor (arXiv 1804.04235) over one weight, in its own shape.
pub fn adafactor(
    weight: &mut Tensor,
    state: &mut Squares,
    gradient: &Tensor,
    factors: AdafactorFactors,
) -> Result<()> {
    if !loops(gradient) {
        return plain::adafactor(weight, state, gradient, factors);
    }
    let shape = gradient.size();
    let columns = shape.last().copied().unwrap_or(1);
    let rows = if shape.len() < 2 { 1 } else { shape[shape.len() - 2] };
    let count = gradient.numel() as i64;
    let batches = count / (rows * columns).max(1);
    let factored = shape.len() >= 2;
    let job = AdafactorJob {
        batches,
        rows,
        columns,
        factored: i32::from(factored),
        weights: floats(weight, count)?,
        row_squares: floats(&state.rows, if factored { batches * rows } else { 0 })?,
        column_squares: floats(&state.columns, batches * columns)?,
        mean: match &state.mean {
            Some(mean) => floats(mean, count)?,
            None => null_mut(),
        },
        gradient: floats(gradient, count)?,
        factors,
    };
    // SAFETY: as in `lion`.
    unsafe { heirloom_adafactor(&job) };
    Ok(())
}
