//! Every fused operation against its reference: one body for all.
//!
//! The measure is the reference in f64 on the same numbers. What a loop writes begins as NaN
//! (see `loops::room`), so that a gap is an error that no bound lets pass.

use heirloom::base::{Activation, NormKind};
use tch::{Device, Kind, Tensor};

use super::cuda::backends::Backend;
use super::rotary::{self, Angles};
use super::{AdamWFactors, reference};

/// So large that norms of one feature have gradients that are not all rounding.
const EPS: f64 = 0.5;
/// Error that f32 may have, in parts of the largest number.
const F32: f64 = 2e-6;
/// A unit in the last place of bfloat16.
const BFLOAT16: f64 = 0.008;

/// Outputs from inputs.
type Run = Box<dyn Fn(&[Tensor]) -> Vec<Tensor>>;

struct Operation {
    name: String,
    /// Shapes of the inputs for so many rows of such width.
    shapes: fn(i64, i64) -> Vec<Vec<i64>>,
    run: Run,
}

fn operations() -> Vec<Operation> {
    let mut all = Vec::new();
    let mut add = |name: String, shapes, run| all.push(Operation { name, shapes, run });
    for kind in
        [NormKind::WeightAfterRounding, NormKind::WeightBeforeRounding, NormKind::OnePlusWeight]
    {
        add(
            format!("rms_norm {kind:?}"),
            |rows, width| vec![vec![rows, width], vec![width]],
            Box::new(move |i| vec![super::rms_norm(&i[0], &i[1], EPS, kind).unwrap()]),
        );
        add(
            format!("add_rms_norm {kind:?}"),
            |rows, width| vec![vec![rows, width], vec![rows, width], vec![width]],
            Box::new(move |i| {
                let (sum, y) = super::add_rms_norm(&i[0], &i[1], &i[2], EPS, kind).unwrap();
                vec![sum, y]
            }),
        );
    }
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        add(
            format!("gated {activation:?}"),
            |rows, width| vec![vec![rows, width], vec![rows, width]],
            Box::new(move |i| vec![super::gated(&i[0], &i[1], activation).unwrap()]),
        );
    }
    for (interleaved, partial, wide) in
        [(false, 1, false), (true, 1, false), (false, 2, true), (true, 2, false), (true, 1, true)]
    {
        add(
            format!("rotate {interleaved} {partial} {wide}"),
            |rows, width| vec![vec![rows, 3, width]],
            Box::new(move |i| {
                let (rows, _, width) = i[0].size3().unwrap();
                let kind = if wide { Kind::Float } else { i[0].kind() };
                let angles = angles(rows, width / 2 / partial, kind, i[0].device());
                vec![rotary::rotate(&i[0], &angles, interleaved).unwrap()]
            }),
        );
    }
    all
}

/// Angles whose cosines and sines are numbers of every dtype.
fn angles(rows: i64, half: i64, kind: Kind, device: Device) -> Angles {
    let angle = Tensor::arange(rows * half, (Kind::Float, Device::Cpu)).view([rows, 1, half]);
    let table = |table: Tensor| table.to_kind(Kind::BFloat16).to_kind(kind).to(device);
    Angles { cos: table(angle.cos()), sin: table(angle.sin()) }
}

/// How an input lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lies {
    Dense,
    Transposed,
    /// Among other columns.
    Sliced,
    /// Every second column.
    Stepped,
}

impl Lies {
    /// The same numbers, lying so; a leaf.
    fn lay(self, x: &Tensor) -> Tensor {
        let last = x.size().last().copied().unwrap();
        match self {
            Self::Transposed if x.dim() > 1 => {
                x.transpose(-1, -2).copy().contiguous().transpose(-1, -2)
            }
            Self::Sliced => x.constant_pad_nd([3, 2]).narrow(-1, 3, last),
            Self::Stepped => {
                Tensor::stack(&[x, &x.zeros_like()], -1).flatten(-2, -1).slice(-1, 0, None, 2)
            }
            _ => x.copy(),
        }
    }
}

/// Numbers of bfloat16, in f64.
fn numbers(shapes: &[Vec<i64>]) -> Vec<Tensor> {
    let draw = |shape: &Vec<i64>| {
        let drawn = Tensor::randn(shape.as_slice(), (Kind::Float, Device::Cpu));
        drawn.to_kind(Kind::BFloat16).to_kind(Kind::Double)
    };
    shapes.iter().map(draw).collect()
}

/// As [`results`], by one of those who are put to the test.
fn results_by(
    backend: Backend,
    operation: &Operation,
    inputs: &[Tensor],
    settings: (Kind, Lies),
    wants: impl Fn(usize) -> bool,
) -> Vec<Tensor> {
    let inputs: Vec<Tensor> = inputs.iter().map(|x| backend.take(x)).collect();
    let found = backend.run(|| results(operation, &inputs, settings, wants));
    found.iter().map(|x| x.to(Device::Cpu)).collect()
}

/// Outputs, then gradients of the inputs for which `wants` says so.
fn results(
    operation: &Operation,
    inputs: &[Tensor],
    (kind, lies): (Kind, Lies),
    wants: impl Fn(usize) -> bool,
) -> Vec<Tensor> {
    let leaf = |(index, x): (usize, &Tensor)| {
        lies.lay(&x.to_kind(kind)).detach().set_requires_grad(wants(index))
    };
    let leaves: Vec<Tensor> = inputs.iter().enumerate().map(leaf).collect();
    let mut found = (operation.run)(&leaves);
    let device = leaves.first().map_or(Device::Cpu, Tensor::device);
    let mut loss = Tensor::zeros([], (kind, device));
    for (index, output) in found.iter().enumerate() {
        // Gradients that are one number, expanded, and such that are not.
        let part = match lies {
            Lies::Sliced => output * (index as f64 + 0.5),
            _ => lies.lay(&weights(output)) * output,
        };
        loss += part.sum(kind);
    }
    let wanted: Vec<&Tensor> = leaves.iter().filter(|leaf| leaf.requires_grad()).collect();
    assert_eq!(loss.requires_grad(), !wanted.is_empty());
    if !wanted.is_empty() {
        found.extend(Tensor::run_backward(&[loss], &wanted, false, false));
    }
    found.iter().map(Tensor::detach).collect()
}

/// Factors of a loss, numbers of every dtype.
fn weights(output: &Tensor) -> Tensor {
    let count = Tensor::arange(output.numel() as i64, (Kind::Double, Device::Cpu));
    let factors = (count * 0.7).sin().to_kind(Kind::BFloat16).to_kind(output.kind());
    factors.to(output.device()).view(output.size().as_slice())
}

/// Largest error in parts of the largest number; sums of numbers around one may nearly cancel.
fn error(found: &Tensor, exact: &Tensor) -> f64 {
    assert_eq!(found.size(), exact.size());
    if exact.numel() == 0 {
        return 0.0;
    }
    let largest = |x: Tensor| x.abs().max().double_value(&[]);
    largest(found.to_kind(Kind::Double) - exact) / largest(exact.shallow_clone()).max(0.5)
}

fn compare(operation: &Operation, shape: (i64, i64), kind: Kind, lies: Lies) {
    let inputs = numbers(&(operation.shapes)(shape.0, shape.1));
    let exact = results(operation, &inputs, (Kind::Double, lies), |_| true);
    let plain = reference::only(|| results(operation, &inputs, (kind, lies), |_| true));
    let bound = if kind == Kind::Float { F32 } else { BFLOAT16 };
    for backend in Backend::all() {
        let found = results_by(backend, operation, &inputs, (kind, lies), |_| true);
        for (place, ((found, plain), exact)) in found.iter().zip(&plain).zip(&exact).enumerate() {
            assert_eq!((found.kind(), plain.kind()), (kind, kind));
            let (ours, theirs) = (error(found, exact), error(plain, exact));
            let name = &operation.name;
            assert!(
                ours <= bound.max(theirs),
                "{name} {shape:?} {kind:?} {lies:?} by {backend:?}, result {place}: {ours:e} against \
                 {theirs:e}",
            );
        }
    }
}

#[test]
fn values_and_gradients_are_those_of_the_reference() {
    tch::manual_seed(5);
    for operation in operations() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for rows in [0, 1, 7, 33] {
                for width in [1, 7, 33, 65] {
                    compare(&operation, (rows, width), kind, Lies::Dense);
                }
            }
            // So wide that kernels take packs of numbers and several warps a row.
            for shape in [(3, 512), (2, 1000), (5, 4096)] {
                compare(&operation, shape, kind, Lies::Dense);
            }
            for lies in [Lies::Transposed, Lies::Sliced, Lies::Stepped] {
                compare(&operation, (3, 520), kind, lies);
                compare(&operation, (7, 33), kind, lies);
                compare(&operation, (0, 33), kind, lies);
                compare(&operation, (65, 1), kind, lies);
            }
        }
    }
}

/// Rounded once, bfloat16 is at least as close to the exact numbers as rounded at every step.
#[test]
fn in_bfloat16_they_are_no_further_from_exact_than_the_reference() {
    tch::manual_seed(6);
    let settings = (Kind::BFloat16, Lies::Dense);
    for operation in operations() {
        let inputs = numbers(&(operation.shapes)(257, 256));
        let exact = results(&operation, &inputs, (Kind::Double, Lies::Dense), |_| true);
        let plain = reference::only(|| results(&operation, &inputs, settings, |_| true));
        for backend in Backend::all() {
            let found = results_by(backend, &operation, &inputs, settings, |_| true);
            for (place, ((found, plain), exact)) in found.iter().zip(&plain).zip(&exact).enumerate()
            {
                let apart = |x: &Tensor| (x.to_kind(Kind::Double) - exact).square();
                let distance = |x| apart(x).mean(Kind::Double).sqrt().double_value(&[]);
                let (ours, theirs) = (distance(found), distance(plain));
                let name = &operation.name;
                assert!(
                    ours <= 1.001 * theirs,
                    "{name} by {backend:?}, result {place}: {ours:e} against {theirs:e}"
                );
            }
        }
    }
}

#[test]
fn gradients_do_not_depend_on_which_others_are_wanted() {
    tch::manual_seed(7);
    for (operation, backend) in operations_and_backends() {
        let inputs = numbers(&(operation.shapes)(5, 9));
        let results = |wants: &dyn Fn(usize) -> bool| {
            results_by(backend, &operation, &inputs, (Kind::Float, Lies::Dense), wants)
        };
        let all = results(&|_| true);
        let outputs = all.len() - inputs.len();
        for left_out in 0..inputs.len() {
            let mut expected: Vec<&Tensor> = all.iter().collect();
            expected.remove(outputs + left_out);
            let found = results(&|index| index != left_out);
            assert_eq!(expected, found.iter().collect::<Vec<_>>(), "{}", operation.name);
        }
        let none = results(&|_| false);
        assert_eq!(none, all[..outputs], "{}", operation.name);
    }
}

fn operations_and_backends() -> impl Iterator<Item = (Operation, Backend)> {
    let by_all = |backend| operations().into_iter().map(move |operation| (operation, backend));
    Backend::all().into_iter().flat_map(by_all)
}

/// So threads that share the rows change nothing.
#[test]
fn rows_do_not_depend_on_each_other() {
    tch::manual_seed(8);
    for (operation, backend) in operations_and_backends() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let inputs = numbers(&(operation.shapes)(50, 37));
            let some: Vec<Tensor> = inputs
                .iter()
                .map(|x| if x.dim() > 1 { x.narrow(0, 0, 11) } else { x.shallow_clone() })
                .collect();
            let all = results_by(backend, &operation, &inputs, (kind, Lies::Dense), |_| true);
            let found = results_by(backend, &operation, &some, (kind, Lies::Dense), |_| true);
            for (found, all) in found.iter().zip(&all).filter(|(found, _)| found.dim() > 1) {
                assert_eq!(*found, all.narrow(0, 0, 11), "{}", operation.name);
            }
        }
    }
}

#[test]
fn a_sum_alone_passes_its_gradient_on() {
    let leaf = |x: f32| {
        Tensor::full([2, 3], f64::from(x), (Kind::Float, Device::Cpu)).set_requires_grad(true)
    };
    let (x, branch, weight) = (leaf(1.0), leaf(2.0), Tensor::ones([3], (Kind::Float, Device::Cpu)));
    let kind = NormKind::WeightAfterRounding;
    let (sum, _) = super::add_rms_norm(&x, &branch, &weight, EPS, kind).unwrap();
    (sum * 3.0).sum(Kind::Float).backward();
    assert_eq!(x.grad(), x.full_like(3.0));
    assert_eq!(branch.grad(), x.full_like(3.0));
}

#[test]
fn activations_are_right_far_from_zero_and_keep_nan() {
    let gates: Vec<f64> =
        (-2000..=2000).map(|step| f64::from(step) * 0.05).chain([-1e4, 1e4]).collect();
    let gates = Tensor::from_slice(&gates).to_kind(Kind::Float).to_kind(Kind::Double).unsqueeze(0);
    let gated = |(operation, _): &(Operation, Backend)| operation.name.starts_with("gated");
    for (operation, backend) in operations_and_backends().filter(gated) {
        let operation = &operation;
        let inputs = [gates.shallow_clone(), gates.ones_like()];
        let exact = results(operation, &inputs, (Kind::Double, Lies::Dense), |_| true);
        let found = results_by(backend, operation, &inputs, (Kind::Float, Lies::Dense), |_| true);
        for (found, exact) in found.iter().zip(&exact) {
            // Each by its own size, and those that nearly vanish by their absolute error.
            let apart = (found.to_kind(Kind::Double) - exact).abs() / exact.abs().clamp_min(0.1);
            let worst = apart.max().double_value(&[]);
            assert!(worst <= F32, "{}: {worst:e}", operation.name);
        }
        for kind in [Kind::Float, Kind::BFloat16] {
            let nan = [gates.full_like(f64::NAN), gates.ones_like()];
            let found = results_by(backend, operation, &nan, (kind, Lies::Dense), |_| true);
            assert!(found.iter().all(|x| x.isnan().all().int64_value(&[]) == 1));
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let kind = NormKind::OnePlusWeight;
    assert!(super::rms_norm(&zeros(&[2, 4]), &zeros(&[3]), EPS, kind).is_err());
    let (x, branch) = (zeros(&[2, 4]), zeros(&[2, 3]));
    assert!(super::add_rms_norm(&x, &branch, &zeros(&[4]), EPS, kind).is_err());
    assert!(super::gated(&x, &branch, Activation::Silu).is_err());
    let angles = Angles { cos: zeros(&[3, 1, 2]), sin: zeros(&[3, 1, 2]) };
    assert!(rotary::rotate(&zeros(&[2, 1, 4]), &angles, false).is_err());
}

#[test]
fn steps_of_adamw_are_those_of_the_reference() {
    tch::manual_seed(9);
    for count in [0, 1, 7, 33, 65, 100_000] {
        let start = numbers(&[vec![count]]).remove(0) * 1e-2;
        let run = |kind: Kind, device: Device| {
            let start = start.to(device);
            let mut state = [
                start.to_kind(kind).copy(),
                start.zeros_like().to_kind(kind),
                start.zeros_like().to_kind(kind),
            ];
            for step in 1..=3 {
                let gradient = (&start * f64::from(step)).cos().to_kind(Kind::Float).to_kind(kind);
                let factors = AdamWFactors {
                    keep: 0.99,
                    betas: [0.9, 0.95],
                    new: [0.1, 0.05],
                    step: 1e-2 / (1.0 - 0.9f32.powi(step)),
                    root: (1.0 - 0.95f32.powi(step)).sqrt(),
                    eps: 1e-8,
                };
                let [weights, mean, square] = &mut state;
                super::adamw([weights, mean, square], &gradient, factors).unwrap();
            }
            state
        };
        let exact = run(Kind::Double, Device::Cpu);
        for backend in Backend::all().into_iter().filter(|_| count > 0) {
            let found = backend.run(|| run(Kind::Float, backend.device()));
            for (found, exact) in found.iter().zip(&exact) {
                let apart = error(&found.to(Device::Cpu), exact);
                assert!(apart <= F32, "{count} by {backend:?}: {apart:e}");
            }
        }
    }
}
