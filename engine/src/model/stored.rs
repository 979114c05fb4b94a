//! Numbers from quantised storage.
//!
//! Owns dequantising the forms of [`heirloom::base::StoredTensor`] into a dtype to compute
//! in, a band of rows at a time: neither the whole tensor in f32 nor the whole file is ever
//! in memory. Shapes and dtypes were checked when the checkpoint was compared with the
//! architecture.
//!
//! References: Transformers' `Fp8Dequantize` (`integrations/finegrained_fp8.py`) and
//! `convert_moe_packed_tensors` (`integrations/mxfp4.py`), whose results these equal in
//! every bit; blocks that are cut off, as DeepSeek's `weight_dequant`.

use heirloom::base::View;
use tch::{Device, Kind, Tensor};

use super::weights::sizes;
use crate::error::Result;

/// Values that are dequantised at once; in f32, 1 MiB.
const BAND_VALUES: usize = 256 << 10;

/// What the sixteen patterns of E2M1 stand for.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Exponent that an E8M0 scale of 0 stands for, negated.
const E8M0_BIAS: i64 = 127;

/// Multiplies E4M3 values by the factor of their block, in f32, and rounds to `kind` once.
///
/// `scale` is f32, with one factor for each block of `[rows, columns]`, or a single one.
pub(super) fn fp8(
    weight: View<'_>,
    scale: &Tensor,
    [block_rows, block_columns]: [usize; 2],
    kind: Kind,
) -> Result<Tensor> {
    let tensor = Tensor::f_empty(sizes(weight.shape), (kind, Device::Cpu))?;
    let Some((leading, &[rows, columns])) = weight.shape.split_last_chunk() else {
        return Ok(tensor);
    };
    let matrices: usize = leading.iter().product();
    let blocks = rows.div_ceil(block_rows);
    let scale = scale.f_reshape([(matrices * blocks) as i64, -1])?;
    let flat = tensor.f_view([-1, columns as i64])?;
    let band_rows = (BAND_VALUES / columns.max(1)).max(1);
    for block in 0..matrices * blocks {
        // One factor for each column of this row of blocks.
        let factors = scale.f_narrow(0, block as i64, 1)?;
        let factors = factors.f_repeat_interleave_self_int(block_columns as i64, 1, None)?;
        let factors = factors.f_narrow(1, 0, columns as i64)?;
        let matrix_end = (block / blocks + 1) * rows;
        let first = block / blocks * rows + block % blocks * block_rows;
        let end = (first + block_rows).min(matrix_end);
        for row in (first..end).step_by(band_rows) {
            let count = band_rows.min(end - row);
            let range = row * columns..(row + count) * columns;
            let Some(bytes) = weight.bytes.get(range.clone()) else { continue };
            let shape = [count as i64, columns as i64];
            let values = Tensor::f_from_data_size(bytes, &shape, Kind::Float8e4m3fn)?;
            let values = values.f_to_kind(Kind::Float)?.f_mul(&factors)?;
            flat.f_narrow(0, row as i64, count as i64)?.f_copy_(&values)?;
            weight.release(range);
        }
    }
    Ok(tensor)
}

/// Unpacks `[experts, out, groups, 16]` blocks to `[experts, groups * 32, out]`: E2M1 values
/// times two to the power of their group's exponent.
pub(super) fn mxfp4(blocks: View<'_>, scales: View<'_>, kind: Kind) -> Result<Tensor> {
    let &[experts, out, groups, bytes] = blocks.shape else {
        return Ok(Tensor::f_empty(sizes(blocks.shape), (kind, Device::Cpu))?);
    };
    let width = groups * bytes * 2;
    let shape = sizes(&[experts, width, out]);
    let tensor = Tensor::f_empty(shape, (kind, Device::Cpu))?;
    // As the reference: the values in `kind`, which has all sixteen exactly.
    let table = Tensor::f_from_slice(&E2M1)?.f_to_kind(kind)?;
    let band_rows = (BAND_VALUES / width.max(1)).max(1);
    for expert in 0..experts {
        let matrix = tensor.f_select(0, expert as i64)?;
        for row in (0..out).step_by(band_rows) {
            let count = band_rows.min(out - row);
            let first = expert * out + row;
            let packed = piece(blocks, first * groups * bytes, &[count * groups, bytes])?;
            let exponents = piece(scales, first * groups, &[count * groups, 1])?;
            let exponents = exponents.f_to_kind(Kind::Int)?.f_sub_scalar(E8M0_BIAS)?;
            let halves =
                [packed.f_bitwise_and(15)?, packed.f_bitwise_right_shift_tensor_scalar(4)?];
            let nibbles = Tensor::f_stack(&halves, -1)?.f_view(-1)?.f_to_kind(Kind::Int64)?;
            let values = table.f_index_select(0, &nibbles)?.f_view([-1, bytes as i64 * 2])?;
            let values = values.f_ldexp(&exponents)?.f_view([count as i64, width as i64])?;
            matrix.f_narrow(1, row as i64, count as i64)?.f_copy_(&values.f_t_copy()?)?;
            let end = first + count;
            blocks.release(first * groups * bytes..end * groups * bytes);
            scales.release(first * groups..end * groups);
        }
    }
    Ok(tensor)
}

/// Bytes from `start` on as a tensor of this shape.
fn piece(view: View<'_>, start: usize, shape: &[usize; 2]) -> Result<Tensor> {
    let bytes = view.bytes.get(start..start + shape[0] * shape[1]).unwrap_or_default();
    Ok(Tensor::f_from_data_size(bytes, &sizes(shape), Kind::Uint8)?)
}
