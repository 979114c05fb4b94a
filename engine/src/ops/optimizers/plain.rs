//! The same steps in plain tensor calls, in the order in which PyTorch, bitsandbytes and
//! Transformers make them.

use tch::{Kind, Tensor};

use super::{AdafactorFactors, BLOCK, Blocks, LionFactors, Squares};
use crate::error::Result;
use crate::ops::{AdamWFactors, reference};

/// See [`super::lion`].
pub(super) fn lion(
    weights: &mut Tensor,
    mean: &mut Tensor,
    gradient: &Tensor,
    factors: LionFactors,
) -> Result<()> {
    let LionFactors { keep, lr, betas: [beta1, beta2], new: [new1, new2] } = factors;
    let _ = weights.f_mul_scalar_(f64::from(keep))?;
    let along = mean.f_mul_scalar(f64::from(beta1))?;
    let along = along.f_add(&gradient.f_mul_scalar(f64::from(new1))?)?;
    let _ = weights.f_sub_(&along.f_sign()?.f_mul_scalar(f64::from(lr))?)?;
    let fresh = gradient.f_mul_scalar(f64::from(new2))?;
    let _ = mean.f_mul_scalar_(f64::from(beta2))?.f_add_(&fresh)?;
    Ok(())
}

/// See [`super::adamw_8bit`].
pub(super) fn adamw_8bit(
    weights: &mut Tensor,
    [mean, square]: [&mut Blocks; 2],
    maps: [&Tensor; 2],
    gradient: &Tensor,
    factors: AdamWFactors,
) -> Result<()> {
    let (mut means, mut squares) = (unpack(mean, maps[0])?, unpack(square, maps[1])?);
    reference::adamw([weights, &mut means, &mut squares], gradient, factors)?;
    pack(mean, &means, maps[0])?;
    pack(square, &squares, maps[1])
}

fn unpack(blocks: &Blocks, map: &Tensor) -> Result<Tensor> {
    let numbers = map.f_index_select(0, &blocks.codes.f_to_kind(Kind::Int64)?)?;
    let scaled = numbers.f_view([-1, BLOCK])?.f_mul(&blocks.absmax.f_unsqueeze(1)?)?;
    Ok(scaled.f_view([-1])?)
}

fn pack(blocks: &mut Blocks, values: &Tensor, map: &Tensor) -> Result<()> {
    let rows = values.f_view([-1, BLOCK])?;
    let absmax = rows.f_abs()?.f_amax([1i64].as_slice(), true)?;
    let absmax = absmax.f_where_self(&absmax.f_ne(0.0)?, &absmax.f_ones_like()?)?;
    let scaled = rows.f_div(&absmax)?;
    // Of the numbers on both sides the nearer, and of two as near the lower.
    let high = scaled.f_searchsorted(map, false, true, "right", None::<Tensor>)?;
    let high = high.f_clamp(1, 255)?;
    let low = high.f_sub_scalar(1)?;
    let distance = |code: &Tensor| -> Result<Tensor> {
        let number = map.f_index_select(0, &code.f_view([-1])?)?.f_view_as(&scaled)?;
        Ok(scaled.f_sub(&number)?.f_abs()?)
    };
    let nearer = distance(&high)?.f_lt_tensor(&distance(&low)?)?;
    let codes = high.f_where_self(&nearer, &low)?.f_view([-1])?;
    blocks.codes.f_copy_(&codes.f_to_kind(Kind::Uint8)?)?;
    blocks.absmax.f_copy_(&absmax.f_view([-1])?)?;
    Ok(())
}

/// See [`super::adafactor`].
pub(super) fn adafactor(
    weight: &mut Tensor,
    state: &mut Squares,
    gradient: &Tensor,
    factors: AdafactorFactors,
) -> Result<()> {
    let AdafactorFactors { decay, eps, least_scale, clip_threshold, lr, weight_decay, beta1 } =
        factors;
    let (decay, mut lr) = (f64::from(decay), f64::from(lr));
    let squares = gradient.f_square()?.f_add_scalar(f64::from(eps))?;
    let track = |running: &mut Tensor, new: Tensor| -> Result<()> {
        let _ = running.f_mul_scalar_(decay)?.f_add_(&new.f_mul_scalar(1.0 - decay)?)?;
        Ok(())
    };
    let mean_over = |x: &Tensor, dim: i64| x.f_mean_dim([dim].as_slice(), false, Kind::Float);
    let mut step = if gradient.dim() >= 2 {
        track(&mut state.rows, mean_over(&squares, -1)?)?;
        track(&mut state.columns, mean_over(&squares, -2)?)?;
        let by_row = state.rows.f_div(&mean_over(&state.rows, -1)?.f_unsqueeze(-1)?)?;
        let by_row = by_row.f_rsqrt()?.f_unsqueeze(-1)?;
        by_row.f_mul(&state.columns.f_unsqueeze(-2)?.f_rsqrt()?)?
    } else {
        track(&mut state.columns, squares)?;
        state.columns.f_rsqrt()?
    };
    let _ = step.f_mul_(gradient)?;
    let length = root_mean_square(&step)?;
    if least_scale >= 0.0 {
        lr *= root_mean_square(weight)?.max(f64::from(least_scale));
    }
    let _ = step.f_mul_scalar_(lr / (length / f64::from(clip_threshold)).max(1.0))?;
    let _ = weight.f_mul_scalar_(1.0 - lr * f64::from(weight_decay))?;
    if let Some(mean) = &mut state.mean {
        let fresh = step.f_mul_scalar(1.0 - f64::from(beta1))?;
        let _ = mean.f_mul_scalar_(f64::from(beta1))?.f_add_(&fresh)?;
        step = mean.shallow_clone();
    }
    let _ = weight.f_sub_(&step)?;
    Ok(())
}

fn root_mean_square(x: &Tensor) -> Result<f64> {
    Ok(x.f_norm()?.f_double_value(&[])? / (x.numel() as f64).sqrt())
}
