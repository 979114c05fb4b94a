//! Products of fp8 with fp8, on devices that have units for them.
//!
//! Owns the forward product of a weight with a scale for each row: the rows it meets are
//! quantised, too, each by its largest number, and libtorch multiplies both as they are
//! (`_scaled_mm`), adding in f32. So it computes other numbers than the unpacked weight does,
//! by what the rows lose. Does not own the backward pass, which unpacks the weight: gradients
//! are not quantised.
//!
//! Reference: torchao's row-wise recipe of float8 (`Float8LinearConfig`), forward product.

use tch::{Device, Kind, Tensor};

use super::{Fp8, kernels};
use crate::error::Result;
use crate::ops::{cuda, reference};

/// The largest number of E4M3.
const LARGEST: f64 = 448.0;
/// No row is divided by less, as in torchao.
pub(super) const LEAST: f64 = 1e-12;
/// The first generation of devices whose row-wise products libtorch has.
const CAPABILITY: (i32, i32) = (9, 0);
/// Features come in so many.
const STEP: i64 = 16;

/// Whether rows of `kind` meet this weight in fp8.
pub(super) fn serves(weight: &Fp8, kind: Kind) -> bool {
    let Device::Cuda(index) = weight.values.device() else { return false };
    let new_enough = cuda::capability(index).is_ok_and(|capability| capability >= CAPABILITY);
    new_enough && takes(weight, kind) && !reference::asked()
}

/// Whether they could, on a device that has the units.
fn takes(weight: &Fp8, kind: Kind) -> bool {
    let (out_features, in_features) = weight.size;
    let (rows, columns) = weight.block;
    let one_scale_a_row = rows == 1 && columns >= in_features;
    let features = in_features > 0 && in_features % STEP == 0 && out_features % STEP == 0;
    // libtorch gives nothing else where rows have scales.
    kind == Kind::BFloat16 && one_scale_a_row && features
}

/// `x Wᵀ + bias` for rows of bfloat16, `[n, in_features]`.
pub(super) fn product(x: &Tensor, weight: &Fp8, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.size2()?.0 == 0 {
        return plain(x, weight, bias);
    }
    let (values, scales) = quantized(x)?;
    let columns = weight.values.f_tr()?;
    let weight_scales = weight.scales.f_view([1, -1])?;
    // Adds as fast as the units do; torchao does, too, in this product alone.
    let product = values.f_internal_scaled_mm(
        &columns,
        &scales,
        &weight_scales,
        bias,
        None,
        x.kind(),
        true,
    )?;
    Ok(product)
}

/// The same numbers in tensor calls, but for the order of additions: what is quantised is
/// unpacked and multiplied in f32.
fn plain(x: &Tensor, weight: &Fp8, bias: Option<&Tensor>) -> Result<Tensor> {
    let (values, scales) = quantized(x)?;
    let wide = |values: &Tensor| values.f_to_kind(Kind::Float);
    let product = wide(&values)?.f_mm(&wide(&weight.values)?.f_tr()?)?;
    let mut product = product.f_mul(&scales)?.f_mul(&weight.scales.f_view([1, -1])?)?;
    if let Some(bias) = bias {
        let _ = product.f_add_(&wide(bias)?)?;
    }
    Ok(product.f_to_kind(x.kind())?)
}

/// Rows in E4M3, `[n, width]`, and what each is multiplied with, `[n, 1]` f32.
fn quantized(x: &Tensor) -> Result<(Tensor, Tensor)> {
    match kernels::serve(x, x.kind()) && cuda::known(x.kind()) {
        true => kernels::fp8_rows(x, LEAST),
        false => quantized_plainly(x),
    }
}

/// The same in tensor calls.
fn quantized_plainly(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let wide = x.f_to_kind(Kind::Float)?;
    let largest = wide.f_abs()?.f_amax([1i64].as_slice(), true)?.f_clamp_min(LEAST)?;
    let factor = largest.f_reciprocal()?.f_mul_scalar(LARGEST)?;
    let scaled = wide.f_mul(&factor)?.f_clamp(-LARGEST, LARGEST)?;
    Ok((scaled.f_to_kind(Kind::Float8e4m3fn)?, factor.f_reciprocal()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::{backends, emulated};

    fn draw(rows: i64, width: i64, kind: Kind) -> Tensor {
        Tensor::randn([rows, width], (Kind::Float, Device::Cpu)).to_kind(kind)
    }

    fn bytes(x: &Tensor) -> Tensor {
        x.view_dtype(Kind::Uint8)
    }

    #[test]
    fn rows_are_quantised_alike_by_kernel_and_tensor_calls() {
        tch::manual_seed(4);
        for (rows, width) in [(1, 1), (7, 33), (5, 4096), (0, 16), (3, 1000)] {
            for kind in [Kind::Float, Kind::BFloat16] {
                // Over all of the range of e4m3, the numbers below its normal ones, too.
                let x = draw(rows, width, kind) * (draw(rows, width, kind) * 6.0).exp();
                let (values, scales) = quantized_plainly(&x).unwrap();
                let (found, found_scales) = emulated::only(|| quantized(&x)).unwrap();
                assert_eq!(bytes(&found), bytes(&values), "{rows} {width} {kind:?}");
                assert_eq!(found_scales, scales, "{rows} {width} {kind:?}");
            }
        }
    }

    #[test]
    fn rows_that_are_nothing_stay_nothing_and_nan_stays_nan() {
        let x = Tensor::from_slice(&[0.0f32, 0.0, 1e-40, -1e-40, f32::NAN, 1.0]).view([3, 2]);
        for kernels in [false, true] {
            let (values, scales) =
                if kernels { emulated::only(|| quantized(&x)) } else { quantized_plainly(&x) }
                    .unwrap();
            let found = values.to_kind(Kind::Float) * scales;
            let expected = Tensor::from_slice(&[0.0f32, 0.0, 0.0, 0.0]).view([2, 2]);
            assert_eq!(found.narrow(0, 0, 2), expected, "{kernels}");
            assert!(found.double_value(&[2, 0]).is_nan(), "{kernels}");
        }
    }

    #[test]
    fn products_are_those_of_the_quantised_rows() {
        tch::manual_seed(5);
        for (rows, out_features, in_features) in [(1, 16, 16), (33, 48, 160), (0, 16, 32)] {
            let weight = Fp8::pack_rows(&draw(out_features, in_features, Kind::BFloat16)).unwrap();
            let (x, bias) =
                (draw(rows, in_features, Kind::BFloat16), draw(1, out_features, Kind::BFloat16));
            assert!(takes(&weight, Kind::BFloat16));
            let found = plain(&x, &weight, Some(&bias.view(-1))).unwrap();
            let (values, scales) = quantized_plainly(&x).unwrap();
            let wide = |x: &Tensor| x.to_kind(Kind::Double);
            let rows_again = wide(&values) * wide(&scales);
            let weight_again = wide(&weight.values) * wide(&weight.scales);
            let exact = rows_again.matmul(&weight_again.tr()) + wide(&bias);
            let apart = (wide(&found) - &exact).abs() / exact.abs().clamp_min(1.0);
            // A unit in the last place of bfloat16.
            let worst = if rows == 0 { 0.0 } else { apart.max().double_value(&[]) };
            assert!(worst <= 0.004, "{worst:e}");
            // What the rows lose by it: e4m3 has three bits of mantissa.
            let unquantised = wide(&x).matmul(&weight_again.tr()) + wide(&bias);
            let lost = (&exact - &unquantised).norm() / unquantised.norm().clamp_min(1e-9);
            assert!(lost.double_value(&[]) < 0.04, "{lost}");
        }
    }

    /// What a device's units make of it: the same numbers, added in another order.
    #[test]
    fn on_a_device_products_are_those_of_the_tensor_calls() {
        let Some(index) = backends::device() else { return };
        if cuda::capability(index).unwrap() < CAPABILITY {
            return;
        }
        tch::manual_seed(6);
        for (rows, out_features, in_features) in [(1, 16, 16), (33, 48, 160), (257, 4096, 1024)] {
            let weight = Fp8::pack_rows(&draw(out_features, in_features, Kind::BFloat16)).unwrap();
            let x = draw(rows, in_features, Kind::BFloat16);
            let bias = draw(1, out_features, Kind::BFloat16).view(-1);
            let expected = plain(&x, &weight, Some(&bias)).unwrap();
            let there = Device::Cuda(index);
            let weight = weight.to(there).unwrap();
            assert!(serves(&weight, Kind::BFloat16));
            let found = product(&x.to(there), &weight, Some(&bias.to(there))).unwrap();
            let apart =
                (found.to(Device::Cpu).to_kind(Kind::Float) - expected.to_kind(Kind::Float)).norm()
                    / expected.to_kind(Kind::Float).norm();
            assert!(apart.double_value(&[]) < 4e-3, "{rows} {out_features}: {apart}");
        }
    }

    #[test]
    fn what_the_units_cannot_do_is_unpacked() {
        let weight = |out_features, in_features| {
            Fp8::pack_rows(&draw(out_features, in_features, Kind::BFloat16)).unwrap()
        };
        assert!(!takes(&weight(16, 16), Kind::Float));
        assert!(!takes(&weight(16, 24), Kind::BFloat16));
        assert!(!takes(&weight(24, 16), Kind::BFloat16));
        let blocks = Fp8::pack_blocks(&draw(32, 32, Kind::BFloat16), (16, 16)).unwrap();
        assert!(!takes(&blocks, Kind::BFloat16));
        assert!(!serves(&weight(16, 16), Kind::BFloat16));
    }
}
