//! How one tensor of the model is stored: as itself, or quantised as it was published.
//!
//! Owns finding the parts of a quantised tensor by their names and checking their shapes
//! and dtypes; the engine's `model::stored` makes numbers of them.
//!
//! - fp8: `X` in E4M3 and beside it `X_scale_inv` (DeepSeek, Transformers) or `X_scale`
//!   (per tensor or per channel), one factor for each block of the last two dimensions.
//! - mxfp4: for `X` of shape `[experts, in, out]` the two tensors `X_blocks` `[experts, out,
//!   in / 32, 16]`, two values a byte, and `X_scales` `[experts, out, in / 32]`, exponents.
//!
//! Reference: Transformers' `integrations/finegrained_fp8.py` and `integrations/mxfp4.py`.

use safetensors::tensor::Dtype;

use super::mismatch::Mismatch;
use super::{Checkpoint, Entry, View};

/// Rows and columns of an fp8 block where nothing else is said, as DeepSeek publishes.
pub(super) const FP8_BLOCK: [usize; 2] = [128, 128];

/// Values that share an exponent in mxfp4, and the bytes that they take.
const MXFP4_GROUP: usize = 32;
const MXFP4_BYTES: usize = 16;

/// What [`FP8_BLOCK`]-like factors are called beside the tensor `X`: `X_scale_inv`, `X_scale`.
const FP8_SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// A tensor of the model in the form in which it is stored.
#[derive(Clone, Copy, Debug)]
pub enum StoredTensor<'a> {
    /// As itself.
    Plain(View<'a>),
    /// E4M3 values times one factor for each block of the last two dimensions.
    Fp8 {
        /// The values.
        weight: View<'a>,
        /// The factors: as the values, with the number of blocks in place of rows and columns;
        /// or a single one.
        scale: View<'a>,
        /// Rows and columns of a block; the last ones may be cut off.
        block: [usize; 2],
    },
    /// E2M1 values in groups of 32 along `in`, each group with an exponent.
    Mxfp4 {
        /// `[experts, out, in / 32, 16]`, the even value in the low half of a byte.
        blocks: View<'a>,
        /// `[experts, out, in / 32]`, exponents of 2 plus 127.
        scales: View<'a>,
    },
}

/// The parts by which a checkpoint has a tensor, checked against its shape.
pub(super) enum Parts<'a> {
    Plain(&'a Entry),
    Fp8 { weight: &'a Entry, scale: &'a Entry, scale_name: String, block: [usize; 2] },
    Mxfp4 { blocks: &'a Entry, scales: &'a Entry, names: [String; 2] },
}

impl Checkpoint {
    /// One tensor of the model, in whatever form it is stored; `None` where it is missing or
    /// is none that can be loaded.
    pub fn stored(&self, name: &str) -> Option<StoredTensor<'_>> {
        Some(match self.parts(name, None).ok()? {
            Parts::Plain(entry) => StoredTensor::Plain(self.view(entry)?),
            Parts::Fp8 { weight, scale, block, .. } => {
                StoredTensor::Fp8 { weight: self.view(weight)?, scale: self.view(scale)?, block }
            }
            Parts::Mxfp4 { blocks, scales, .. } => {
                StoredTensor::Mxfp4 { blocks: self.view(blocks)?, scales: self.view(scales)? }
            }
        })
    }

    /// Finds the parts of a tensor, of shape `expected` if that is known.
    pub(super) fn parts(
        &self,
        name: &str,
        expected: Option<&[usize]>,
    ) -> Result<Parts<'_>, Mismatch> {
        let Some(entry) = self.tensors.get(name) else {
            return self.mxfp4(name, expected);
        };
        check_shape(name, entry, expected.unwrap_or(&entry.shape))?;
        match entry.dtype {
            Dtype::F8_E4M3 => self.fp8(name, entry),
            Dtype::F32 | Dtype::BF16 | Dtype::F16 => Ok(Parts::Plain(entry)),
            // Counters and codes of our own; no architecture has one.
            Dtype::I64 | Dtype::U8 if expected.is_none() => Ok(Parts::Plain(entry)),
            _ => Err(wrong_dtype(name, entry)),
        }
    }

    fn fp8<'a>(&'a self, name: &str, weight: &'a Entry) -> Result<Parts<'a>, Mismatch> {
        let named = FP8_SCALES.iter().map(|ending| format!("{name}{ending}"));
        let found = named.into_iter().find_map(|name| Some((self.tensors.get(&name)?, name)));
        let Some((scale, scale_name)) = found else {
            let (tensor, scale) = (name.to_owned(), format!("{name}{}", FP8_SCALES[0]));
            return Err(Mismatch::NoScale { tensor, dtype: format!("{:?}", weight.dtype), scale });
        };
        if !matches!(scale.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(wrong_dtype(&scale_name, scale));
        }
        let Some((leading, [rows, columns])) = weight.shape.split_last_chunk() else {
            return Err(wrong_dtype(name, weight));
        };
        if scale.shape.iter().product::<usize>() == 1 {
            let block = [(*rows).max(1), (*columns).max(1)];
            return Ok(Parts::Fp8 { weight, scale, scale_name, block });
        }
        let [block_rows, block_columns] = self.fp8_block;
        let blocks = match scale.shape.split_last_chunk() {
            Some((same, [down, across])) if same == leading => Some(block_size(
                *rows, *down, block_rows,
            ))
            .zip(Some(block_size(*columns, *across, block_columns))),
            _ => None,
        };
        if let Some((Some(rows), Some(columns))) = blocks {
            return Ok(Parts::Fp8 { weight, scale, scale_name, block: [rows, columns] });
        }
        let grid = [rows.div_ceil(block_rows), columns.div_ceil(block_columns)];
        let expected = [leading, &grid].concat();
        Err(Mismatch::Shape { tensor: scale_name, expected, found: scale.shape.clone() })
    }

    fn mxfp4(&self, name: &str, expected: Option<&[usize]>) -> Result<Parts<'_>, Mismatch> {
        let names = [format!("{name}_blocks"), format!("{name}_scales")];
        let [blocks, scales] = names.each_ref().map(|name| self.tensors.get(name));
        let Some(blocks) = blocks else {
            return Err(Mismatch::Missing { tensor: name.to_owned(), nearest: None });
        };
        let [blocks_name, scales_name] = &names;
        let Some(scales) = scales else {
            let (tensor, scale) = (blocks_name.clone(), scales_name.clone());
            return Err(Mismatch::NoScale { tensor, dtype: format!("{:?}", blocks.dtype), scale });
        };
        let should = match (expected, blocks.shape.as_slice()) {
            // Groups are whole: another width has no such form.
            (Some(&[experts, width, out]), _) if width.is_multiple_of(MXFP4_GROUP) => {
                [experts, out, width / MXFP4_GROUP, MXFP4_BYTES]
            }
            (None, &[experts, out, groups, _]) => [experts, out, groups, MXFP4_BYTES],
            (expected, found) => {
                let (tensor, found) = (blocks_name.clone(), found.to_vec());
                let expected = expected.unwrap_or_default().to_vec();
                return Err(Mismatch::Shape { tensor, expected, found });
            }
        };
        check_shape(blocks_name, blocks, &should)?;
        check_shape(scales_name, scales, &should[..3])?;
        for (name, entry) in [(blocks_name, blocks), (scales_name, scales)] {
            if entry.dtype != Dtype::U8 {
                return Err(wrong_dtype(name, entry));
            }
        }
        Ok(Parts::Mxfp4 { blocks, scales, names })
    }
}

/// Rows (or columns) of a block, of which `grid` cover `size`: as configured, with the last
/// one cut off, or else whatever divides evenly, as Transformers' `Fp8Dequantize` does.
fn block_size(size: usize, grid: usize, configured: usize) -> Option<usize> {
    if grid == size.div_ceil(configured) {
        return Some(configured.min(size.max(1)));
    }
    (grid > 0 && size.is_multiple_of(grid)).then(|| (size / grid).max(1))
}

fn check_shape(name: &str, entry: &Entry, expected: &[usize]) -> Result<(), Mismatch> {
    if entry.shape == expected {
        return Ok(());
    }
    let (tensor, found) = (name.to_owned(), entry.shape.clone());
    Err(Mismatch::Shape { tensor, expected: expected.to_vec(), found })
}

fn wrong_dtype(name: &str, entry: &Entry) -> Mismatch {
    Mismatch::Dtype { tensor: name.to_owned(), dtype: format!("{:?}", entry.dtype) }
}
