//! Every loop of the shim against the tensor calls beside it, and the linear layer.

use super::*;
use crate::ops::cuda::backends::Backend;

const SIZES: [(i64, i64); 7] = [(1, 1), (7, 33), (24, 100), (4, 64), (130, 200), (1, 65), (3, 0)];
const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

fn draw(size: (i64, i64), kind: Kind) -> Tensor {
    let weight = Tensor::randn([size.0, size.1], (Kind::Float, Device::Cpu)) * 0.02;
    weight.to_kind(kind)
}

/// Kernels that unpack, and those on a device where one is asked for.
fn kernels() -> Vec<Backend> {
    Backend::all().into_iter().filter(|backend| *backend != Backend::Loops).collect()
}

/// The bits of what kernels unpack, whatever packed it, against tensor calls.
fn unpacks_alike(weight: &Quantized, expected: impl Fn(Kind) -> Tensor) {
    for backend in kernels() {
        let weight = weight.to(backend.device()).unwrap();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let found = backend.run(|| weight.unpack(kind)).unwrap().to(Device::Cpu);
            let expected = expected(kind);
            assert_eq!((found.kind(), found.size()), (kind, expected.size()));
            let same = found.allclose(&expected, 0.0, 0.0, true);
            assert!(same, "{:?} {kind:?} by {backend:?}", weight.size2());
        }
    }
}

#[test]
fn kernels_unpack_nf4_to_the_bits_of_tensor_calls() {
    for size in SIZES.into_iter().chain([(64, 200), (16, 1024)]).filter(|size| size.1 > 0) {
        for how in [Quantization::Nf4, Quantization::Nf4Double] {
            let weight = Quantized::pack(&draw(size, Kind::Float), how).unwrap().unwrap();
            unpacks_alike(&weight, |kind| {
                let Quantized::Nf4(weight) = &weight else { panic!("{how:?}") };
                let absmax = weight.absmax.unpack().unwrap();
                nf4::unpack(&weight.packed, &absmax, size, kind).unwrap()
            });
        }
    }
}

#[test]
fn kernels_unpack_int8_and_fp8_to_the_bits_of_tensor_calls() {
    for size in SIZES.into_iter().chain([(5, 4096)]).filter(|size| size.1 > 0) {
        let weight = Int8::pack(&draw(size, Kind::Float)).unwrap();
        let plain = |kind| int8::unpack(&weight.values, &weight.absmax, kind).unwrap();
        unpacks_alike(&Quantized::Int8(weight.share()), plain);
        for block in [(1, size.1), (5, 7), (128, 128), (2, 16)] {
            let weight = Fp8::pack_blocks(&draw(size, Kind::Float), block).unwrap();
            let plain = |kind| fp8::unpack(&weight.values, &weight.scales, block, kind).unwrap();
            unpacks_alike(&Quantized::Fp8(weight.share()), plain);
        }
    }
    // Every pattern of bits, the two that are no numbers among them.
    let patterns = Tensor::arange(256, (Kind::Int64, Device::Cpu)).to_kind(Kind::Uint8);
    let values = patterns.view_dtype(Kind::Float8e4m3fn).view([16, 16]);
    let scales = Tensor::ones([16, 1], (Kind::Float, Device::Cpu));
    let weight = Fp8::stored(values, &scales, (1, 16), Kind::BFloat16).unwrap();
    unpacks_alike(&Quantized::Fp8(weight.share()), |kind| weight.values.to_kind(kind));
}

#[test]
fn parts_that_do_not_fit_each_other_never_reach_a_kernel() {
    let weight = Nf4::pack(&draw((4, 70), Kind::Float)).unwrap();
    for size in [(4, 72), (4, 7)] {
        let wrong = Nf4 { size, ..weight.share() };
        let before = crate::ops::cuda::emulated::launched();
        let found = crate::ops::cuda::emulated::only(|| wrong.unpack(Kind::Float));
        assert!(found.is_err());
        assert_eq!(crate::ops::cuda::emulated::launched(), before);
    }
}

/// The same numbers with another one between each two.
fn spread(tensor: &Tensor) -> Tensor {
    let spread = Tensor::stack(&[tensor, tensor], -1).select(-1, 0);
    assert!(tensor.numel() < 2 || !spread.is_contiguous());
    spread
}

#[test]
fn nf4_is_packed_alike_by_loop_and_tensor_calls() {
    for size in SIZES {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let weight = draw(size, kind);
            let expected = nf4::pack(&weight).unwrap();
            assert_eq!(
                native::nf4_pack(&weight, nf4::BLOCK).unwrap(),
                expected,
                "{size:?} {kind:?}"
            );
            let spread = native::nf4_pack(&spread(&weight), nf4::BLOCK).unwrap();
            assert_eq!(spread, expected, "{size:?} {kind:?}");
        }
    }
}

#[test]
fn numbers_that_are_none_are_packed_alike() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, 1e-40, 3e38] {
        let weight = draw((3, 50), Kind::Float);
        for place in [0, 70, 149] {
            let _ = weight.view(-1).narrow(0, place, 1).fill_(odd);
        }
        let (found, found_absmax) = native::nf4_pack(&weight, nf4::BLOCK).unwrap();
        let (packed, absmax) = nf4::pack(&weight).unwrap();
        assert_eq!(found, packed, "{odd}");
        assert!(found_absmax.allclose(&absmax, 0.0, 0.0, true), "{odd}");
    }
}

#[test]
fn nf4_is_unpacked_alike_by_loop_and_tensor_calls() {
    for size in SIZES {
        let weight = Nf4::pack(&draw(size, Kind::Float)).unwrap();
        let absmax = weight.absmax.unpack().unwrap();
        for kind in KINDS {
            let expected = nf4::unpack(&weight.packed, &absmax, size, kind).unwrap();
            assert_eq!(weight.unpack(kind).unwrap(), expected, "{size:?} {kind:?}");
            let (packed, absmax) = (spread(&weight.packed), spread(&absmax));
            let found = native::nf4_unpack(&packed, &absmax, size, kind).unwrap();
            assert_eq!(found, expected, "{size:?} {kind:?}");
        }
    }
}

#[test]
fn int8_is_unpacked_alike_by_loop_and_tensor_calls() {
    for size in SIZES.into_iter().filter(|size| size.1 > 0) {
        let weight = Int8::pack(&draw(size, Kind::Float)).unwrap();
        for kind in KINDS {
            let expected = int8::unpack(&weight.values, &weight.absmax, kind).unwrap();
            assert_eq!(weight.unpack(kind).unwrap(), expected, "{size:?} {kind:?}");
            let (values, absmax) = (spread(&weight.values), spread(&weight.absmax));
            let found = native::int8_unpack(&values, &absmax, size, kind).unwrap();
            assert_eq!(found, expected, "{size:?} {kind:?}");
        }
    }
}

#[test]
fn fp8_is_unpacked_alike_by_loop_and_tensor_calls() {
    // Every pattern of bits, the two that are no numbers among them.
    let patterns = Tensor::arange(256, (Kind::Int64, Device::Cpu)).to_kind(Kind::Uint8);
    for (size, block) in [((16, 16), (1, 16)), ((16, 16), (5, 7)), ((8, 32), (128, 128))] {
        let values = patterns.view_dtype(Kind::Float8e4m3fn).view([size.0, size.1]);
        let scales = [(size.0 + block.0 - 1) / block.0, (size.1 + block.1 - 1) / block.1];
        let scales = Tensor::rand(scales, (Kind::Float, Device::Cpu)) + 0.01;
        let weight = Fp8::stored(values, &scales, block, Kind::BFloat16).unwrap();
        for kind in KINDS {
            let expected = fp8::unpack(&weight.values, &weight.scales, block, kind).unwrap();
            let found = weight.unpack(kind).unwrap();
            assert!(found.allclose(&expected, 0.0, 0.0, true), "{block:?} {kind:?}");
        }
    }
}

#[test]
fn packing_in_bands_is_packing_at_once() {
    // More than a band, with a block across its end.
    let weight = draw((1500, 1000), Kind::BFloat16);
    let (first, last) = (weight.narrow(0, 0, 128), weight.narrow(0, 1408, 92));
    for (part, at) in [(first, 0), (last, 1408)] {
        let rows = part.size()[0];
        let whole = Int8::pack(&weight).unwrap().values.narrow(0, at, rows);
        assert_eq!(whole, Int8::pack(&part).unwrap().values);
        let whole = Fp8::pack_blocks(&weight, (128, 128)).unwrap().values.narrow(0, at, rows);
        let alone = Fp8::pack_blocks(&part, (128, 128)).unwrap().values;
        assert_eq!(whole.to_kind(Kind::Float), alone.to_kind(Kind::Float));
    }
}

#[test]
fn zeros_stay_zeros_in_every_format() {
    let weight = draw((6, 70), Kind::Float);
    let _ = weight.narrow(0, 2, 2).zero_();
    for how in [Quantization::Nf4, Quantization::Int8, Quantization::Fp8] {
        let packed = Quantized::pack(&weight, how).unwrap().unwrap();
        let found = packed.unpack(Kind::Float).unwrap();
        assert_eq!(found.narrow(0, 2, 2).abs().max().double_value(&[]), 0.0, "{how:?}");
        assert!(!bool::try_from(found.isnan().any()).unwrap(), "{how:?}");
    }
}

#[test]
fn formats_take_the_bytes_that_they_promise() {
    let weight = draw((128, 256), Kind::BFloat16);
    let values = 128 * 256;
    for (how, expected) in [
        (Quantization::Nf4, values / 2 + values / 64 * 4),
        (Quantization::Nf4Double, values / 2 + values / 64 + 4 * (2 + 1 + 256)),
        (Quantization::Int8, values + 128 * 4),
        (Quantization::Fp8, values + 128 * 4),
    ] {
        let packed = Quantized::pack(&weight, how).unwrap().unwrap();
        assert_eq!(packed.bytes(), expected, "{how:?}");
        assert_eq!((packed.size2(), packed.kind()), ((128, 256), Kind::BFloat16));
    }
    assert!(Quantized::pack(&weight, Quantization::None).unwrap().is_none());
}

#[test]
fn the_linear_layer_has_the_values_and_gradients_of_its_unpacked_weight() {
    for kind in KINDS {
        let weight =
            Quantized::pack(&draw((33, 70), kind), Quantization::Nf4Double).unwrap().unwrap();
        let (dense, bias) = (weight.unpack(kind).unwrap(), draw((1, 33), kind).view(-1));
        let x = draw((5, 70), kind);
        let leaf = || x.copy().set_requires_grad(true);
        let (ours, plain) = (leaf(), leaf());
        let found = linear(&ours, &weight, Some(&bias)).unwrap();
        let expected = plain.linear(&dense, Some(&bias));
        assert_eq!(found, expected);
        let gradient = draw((5, 33), kind);
        (found * &gradient).sum(Kind::Float).backward();
        (expected * &gradient).sum(Kind::Float).backward();
        assert_eq!(ours.grad(), plain.grad());
    }
}

#[test]
fn no_rows_give_no_rows() {
    let weight = Quantized::pack(&draw((4, 70), Kind::Float), Quantization::Nf4).unwrap().unwrap();
    let x = draw((0, 70), Kind::Float).set_requires_grad(true);
    let output = linear(&x, &weight, None).unwrap();
    assert_eq!(output.size(), [0, 4]);
    output.sum(Kind::Float).backward();
    assert_eq!(x.grad().size(), [0, 70]);
}

/// Bytes that this process has resident.
fn resident() -> usize {
    let status = fs_err::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn no_unpacked_weight_is_kept_for_the_backward_pass() {
    // Unpacked, each layer has 64 MiB; they share the packed weight.
    let (width, layers) = (4096, 6);
    let weight = Tensor::ones([width, width], (Kind::BFloat16, Device::Cpu));
    let weight = Quantized::pack(&weight, Quantization::Nf4).unwrap().unwrap();
    let x = draw((2, width), Kind::Float).set_requires_grad(true);
    let before = resident();
    let mut y = x.shallow_clone();
    for _ in 0..layers {
        y = linear(&y, &weight, None).unwrap() * 1e-3;
    }
    let kept = resident().saturating_sub(before);
    // One copy or less; autograd over unpacked weights keeps six.
    assert!(kept < (2 * 64) << 20, "{kept} bytes");
    y.sum(Kind::Float).backward();
    assert_eq!(x.grad().size(), [2, width]);
}

#[test]
fn tensors_that_do_not_belong_together_are_errors() {
    let weight = Nf4::pack(&draw((4, 70), Kind::Float)).unwrap();
    let absmax = weight.absmax.unpack().unwrap();
    for size in [(4, 72), (4, 7)] {
        let error = native::nf4_unpack(&weight.packed, &absmax, size, Kind::Float).unwrap_err();
        assert!(error.to_string().contains("libtorch"), "{error}");
    }
    assert!(weight.unpack(Kind::Double).is_err());
    assert!(Nf4::pack(&draw((4, 70), Kind::Double)).is_err());
}
