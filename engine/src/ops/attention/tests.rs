//! Fused attention against the reference.

use tch::{Device, Kind, Tensor};

use super::{Scores, fused, reference};
use crate::ops::Layout;
use crate::ops::cuda::backends;

/// What is asked for.
struct Case {
    lengths: &'static [u32],
    /// Heads of queries and of keys.
    heads: (i64, i64),
    /// Widths of keys and of values.
    widths: (i64, i64),
    window: Option<i64>,
    softcap: Option<f64>,
    sinks: bool,
}

const PLAIN: Case = Case {
    lengths: &[129, 1, 300, 64, 32],
    heads: (4, 2),
    widths: (64, 64),
    window: None,
    softcap: None,
    sinks: false,
};

const CASES: [Case; 9] = [
    PLAIN,
    Case { lengths: &[1], ..PLAIN },
    Case { lengths: &[1, 1, 3, 1], heads: (3, 1), widths: (5, 3), ..PLAIN },
    Case { lengths: &[515, 17], heads: (6, 2), widths: (24, 40), ..PLAIN },
    Case { lengths: &[300, 31], heads: (2, 2), widths: (80, 80), window: Some(1), ..PLAIN },
    Case { lengths: &[600, 31, 256], window: Some(100), ..PLAIN },
    Case { softcap: Some(2.0), window: Some(300), ..PLAIN },
    Case { sinks: true, heads: (5, 1), ..PLAIN },
    Case { sinks: true, softcap: Some(5.0), window: Some(7), widths: (16, 16), ..PLAIN },
];

/// q, k, v, the gradient of the output and sinks, in f64 but of values that bfloat16 has.
fn inputs(case: &Case) -> Vec<Tensor> {
    tch::manual_seed(7);
    let rows = case.lengths.iter().map(|length| i64::from(*length)).sum::<i64>();
    let ((heads, kv_heads), (width, value_width)) = (case.heads, case.widths);
    let draw = |sizes: &[i64]| {
        let drawn = Tensor::randn(sizes, (Kind::BFloat16, Device::Cpu)) * 2.0;
        drawn.to_kind(Kind::Double)
    };
    vec![
        draw(&[rows, heads, width]),
        draw(&[rows, kv_heads, width]),
        draw(&[rows, kv_heads, value_width]),
        draw(&[rows, heads * value_width]),
        draw(&[heads]),
    ]
}

/// Who computes.
#[derive(Clone, Copy)]
enum By {
    Reference,
    Fused,
    /// Whoever is chosen on a device.
    Chosen(Device),
}

/// The output and the gradients of q, k, v and sinks.
fn both_passes(case: &Case, inputs: &[Tensor], kind: Kind, by: By) -> Vec<Tensor> {
    let device = if let By::Chosen(device) = by { device } else { Device::Cpu };
    // Memory that is taken next holds no number.
    for input in inputs {
        drop(Tensor::full(input.size(), f64::NAN, (kind, Device::Cpu)));
    }
    let leaf = |x: &Tensor| x.to_kind(kind).to(device).detach().set_requires_grad(true);
    let layout = Layout::new(case.lengths, device).unwrap();
    let mut leaves: Vec<_> = inputs[..3].iter().map(leaf).collect();
    let sinks = case.sinks.then(|| leaf(&inputs[4]));
    leaves.extend(sinks.as_ref().map(Tensor::shallow_clone));
    let (window, softcap) = (case.window, case.softcap);
    let scores = Scores { scale: 0.125, window, softcap, sinks, dropout: 0.0 };
    let [q, k, v] = [&leaves[0], &leaves[1], &leaves[2]];
    let output = match by {
        By::Reference => reference::packed(q, k, v, &layout, &scores, true),
        By::Fused => fused::packed(q, k, v, &layout, &scores),
        By::Chosen(_) => super::packed(q, k, v, &layout, &scores, true),
    }
    .unwrap();
    let loss = (&output * inputs[3].to_kind(kind).to(device)).sum(Kind::Double);
    let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
    [output.detach()].into_iter().chain(gradients).map(|x| x.to(Device::Cpu)).collect()
}

/// Length of the difference over length of `exact`.
fn apart(found: &Tensor, exact: &Tensor) -> f64 {
    assert_eq!(found.size(), exact.size());
    let length = |x: Tensor| x.to_kind(Kind::Double).square().sum(Kind::Double).sqrt();
    let exact = exact.to_kind(Kind::Double);
    let norm = length(exact.shallow_clone()).double_value(&[]);
    // A query that sees one key has no gradient but for rounding.
    length(found.to_kind(Kind::Double) - exact).double_value(&[]) / norm.max(1.0)
}

#[test]
fn values_and_gradients_are_those_of_the_reference() {
    compare(&CASES, By::Fused);
}

/// Flash attention where it computes what is asked, and the reference where it does not.
#[test]
fn on_a_device_values_and_gradients_are_those_of_the_reference() {
    let Some(index) = backends::device() else { return };
    compare(&CASES, By::Chosen(Device::Cuda(index)));
    // Wide heads, groups of heads that share a key, and a window: all of them flash's.
    let wide = Case { widths: (128, 128), heads: (8, 2), window: Some(33), ..PLAIN };
    compare(
        &[wide, Case { widths: (256, 256), lengths: &[2, 700], ..PLAIN }],
        By::Chosen(Device::Cuda(index)),
    );
}

fn compare(cases: &[Case], by: By) {
    for (number, case) in cases.iter().enumerate() {
        let inputs = inputs(case);
        let exact = both_passes(case, &inputs, Kind::Double, By::Reference);
        let wide = both_passes(case, &inputs, Kind::Float, by);
        let wide_reference = both_passes(case, &inputs, Kind::Float, By::Reference);
        let narrow = both_passes(case, &inputs, Kind::BFloat16, by);
        let narrow_reference = both_passes(case, &inputs, Kind::BFloat16, By::Reference);
        for (place, exact) in exact.iter().enumerate() {
            let of = |all: &[Tensor]| apart(&all[place], exact);
            let (ours, theirs) = (of(&wide), of(&wide_reference));
            assert!(ours <= 2e-6 + 1.5 * theirs, "case {number}, {place}: {ours:e} {theirs:e}");
            let (ours, theirs) = (of(&narrow), of(&narrow_reference));
            // One digit of bfloat16: weights are rounded to it on the way.
            assert!(
                ours <= (1.1 * theirs).max(8e-3),
                "case {number}, {place}: {ours:e} {theirs:e}"
            );
        }
    }
}

/// The bits of a document's rows.
fn rows_of(all: &[Tensor], start: i64, count: i64) -> Vec<Tensor> {
    all.iter().map(|x| x.narrow(0, start, count).contiguous()).collect()
}

#[test]
fn a_document_of_nan_touches_no_other_and_runs_repeat_their_bits() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let inputs = inputs(&PLAIN);
        let before = both_passes(&PLAIN, &inputs, kind, By::Fused);
        assert_eq!(before, both_passes(&PLAIN, &inputs, kind, By::Fused));
        let (start, count) = (130, 300);
        for input in &inputs[..4] {
            let _ = input.narrow(0, start, count).fill_(f64::NAN);
        }
        let after = both_passes(&PLAIN, &inputs, kind, By::Fused);
        for (start, count) in [(0, start), (start + count, 96)] {
            assert_eq!(rows_of(&before, start, count), rows_of(&after, start, count));
        }
        // Nothing of what went wrong is hidden.
        for changed in rows_of(&after, start, count) {
            assert!(bool::try_from(changed.isnan().any()).unwrap());
        }
    }
}

#[test]
fn heads_may_lie_anywhere_in_memory() {
    let (case, inputs) = (&PLAIN, inputs(&PLAIN));
    for kind in [Kind::Float, Kind::BFloat16] {
        let expected = both_passes(case, &inputs, kind, By::Fused);
        let layout = Layout::new(case.lengths, Device::Cpu).unwrap();
        let scores =
            Scores { scale: 0.125, window: None, softcap: None, sinks: None, dropout: 0.0 };
        let dense: Vec<_> = inputs[..3].iter().map(|x| x.to_kind(kind)).collect();
        // One after the other within a row, as a fused projection gives them, amid NaN.
        let blank = dense[0].f_full_like(f64::NAN).unwrap();
        let all = Tensor::cat(&[&blank, &dense[0], &dense[1], &dense[2], &blank], 1);
        let slices = [all.narrow(1, 4, 4), all.narrow(1, 8, 2), all.narrow(1, 10, 2)];
        // Heads before rows, and numbers of a head apart.
        let swap = |x: &Tensor, a, b| x.transpose(a, b).contiguous().transpose(a, b);
        let turned = [swap(&dense[0], 0, 1), swap(&dense[1], 1, 2), swap(&dense[2], 0, 2)];
        for [q, k, v] in [slices, turned] {
            let found = fused::packed(&q, &k, &v, &layout, &scores).unwrap();
            assert_eq!(found, expected[0]);
        }
    }
}

#[test]
fn no_documents_give_no_rows() {
    let empty = |heads| Tensor::zeros([0, heads, 8], (Kind::BFloat16, Device::Cpu));
    let layout = Layout::new(&[], Device::Cpu).unwrap();
    let scores = Scores { scale: 1.0, window: None, softcap: None, sinks: None, dropout: 0.0 };
    let q = empty(4).set_requires_grad(true);
    let output = fused::packed(&q, &empty(2), &empty(2), &layout, &scores).unwrap();
    assert_eq!(output.size(), [0, 32]);
    output.sum(Kind::Float).backward();
    assert_eq!(q.grad().size(), [0, 4, 8]);
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let zeros = |rows, heads| Tensor::zeros([rows, heads, 8], (Kind::Float, Device::Cpu));
    let layout = Layout::new(&[3], Device::Cpu).unwrap();
    let scores = Scores { scale: 1.0, window: None, softcap: None, sinks: None, dropout: 0.0 };
    for (q, k) in
        [(zeros(4, 2), zeros(4, 2)), (zeros(3, 3), zeros(3, 2)), (zeros(3, 2), zeros(2, 2))]
    {
        assert!(fused::packed(&q, &k, &k, &layout, &scores).is_err());
    }
}
