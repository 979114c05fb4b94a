//! Against plain tensor calls: values and gradients.

use tch::Device;

use super::*;

/// Three layers over the same rows: with bias and update, without an update, with one.
struct Case {
    x: Tensor,
    weights: [Tensor; 3],
    bias: Tensor,
    updates: [(Tensor, Tensor); 2],
}

const RANK: i64 = 3;
const SCALING: f64 = 0.5;

impl Case {
    fn new(rows: i64, width: i64, kind: Kind, x_strided: bool) -> Self {
        let draw = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
        let leaf = |tensor: Tensor, kind| tensor.to_kind(kind).set_requires_grad(true);
        let x = if x_strided { draw([width, rows]).tr() } else { draw([rows, width]) };
        let update = |out| {
            (
                leaf(draw([RANK, width]), kind_of_adapter(kind)),
                leaf(draw([out, RANK]), kind_of_adapter(kind)),
            )
        };
        Self {
            x: leaf(x, kind),
            weights: [5, 9, 1].map(|out| draw([out, width]).to_kind(kind)),
            bias: draw([1, 5]).view(5).to_kind(kind),
            updates: [update(5), update(1)],
        }
    }

    /// The same numbers in another dtype.
    fn to(&self, kind: Kind) -> Self {
        let leaf = |tensor: &Tensor| tensor.detach().to_kind(kind).set_requires_grad(true);
        let plain = |tensor: &Tensor| tensor.to_kind(kind);
        let update = |(a, b): &(Tensor, Tensor)| (leaf(a), leaf(b));
        Self {
            x: leaf(&self.x),
            weights: [0, 1, 2].map(|i: usize| plain(&self.weights[i])),
            bias: plain(&self.bias),
            updates: [update(&self.updates[0]), update(&self.updates[1])],
        }
    }

    fn layers(&self, dropout: f64) -> Vec<Layer> {
        let layer = |weight: usize, bias: bool, update: Option<usize>| {
            let matrix = self.weights[weight].shallow_clone();
            Layer {
                product: None,
                weight: Box::new(move || Ok(matrix.shallow_clone())),
                bias: bias.then(|| self.bias.shallow_clone()),
                low_rank: update.map(|update| LowRank {
                    a: self.updates[update].0.shallow_clone(),
                    b: self.updates[update].1.shallow_clone(),
                    scaling: SCALING,
                    dropout,
                }),
            }
        };
        vec![layer(0, true, Some(0)), layer(1, false, None), layer(2, false, Some(1))]
    }

    fn fused(&self) -> Vec<Tensor> {
        linears(&self.x, self.layers(0.0)).unwrap()
    }

    fn reference(&self) -> Vec<Tensor> {
        let x = &self.x;
        let update = |(a, b): &(Tensor, Tensor)| x.matmul(&a.tr()).matmul(&b.tr()) * SCALING;
        vec![
            x.linear(&self.weights[0], Some(&self.bias)) + update(&self.updates[0]),
            x.linear(&self.weights[1], None::<&Tensor>),
            x.linear(&self.weights[2], None::<&Tensor>) + update(&self.updates[1]),
        ]
    }

    /// Values, then gradients of all leaves under weights that differ everywhere.
    fn all(&self, outputs: Vec<Tensor>) -> Vec<Tensor> {
        let weighted = |y: &Tensor| {
            let weights = Tensor::arange(y.numel() as i64, (Kind::Double, Device::Cpu)).cos();
            (y.to_kind(Kind::Double) * weights.view_as(y)).sum(Kind::Double)
        };
        let loss: Tensor = outputs.iter().map(weighted).sum();
        let [first, second] = &self.updates;
        let leaves = [&self.x, &first.0, &first.1, &second.0, &second.1];
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        outputs.into_iter().map(|y| y.detach()).chain(gradients).collect()
    }
}

/// The adapter is f32 over whatever base, and f64 in the reference.
fn kind_of_adapter(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

fn distance(found: &Tensor, wanted: &Tensor) -> f64 {
    let wide = |x: &Tensor| x.to_kind(Kind::Double);
    let norm = |x: Tensor| if x.numel() == 0 { 0.0 } else { x.norm().double_value(&[]) };
    norm(wide(found) - wide(wanted)) / norm(wide(wanted)).max(1e-9)
}

#[test]
fn values_and_gradients_are_those_of_plain_calls() {
    tch::manual_seed(3);
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 2e-6), (Kind::BFloat16, 2e-2)] {
        for (rows, width) in [(1, 1), (7, 33), (65, 16), (0, 8)] {
            for strided in [false, true] {
                let case = Case::new(rows, width, kind, strided);
                let exact = case.to(Kind::Double);
                let wanted = exact.all(exact.reference());
                let found = case.all(case.fused());
                assert_eq!(found.len(), wanted.len());
                for (place, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                    assert_eq!(found.size(), wanted.size());
                    let distance = distance(found, wanted);
                    assert!(distance <= tolerance, "{kind:?} {rows}x{width} {place}: {distance}");
                }
            }
        }
    }
}

#[test]
fn a_layer_whose_result_is_not_used_has_no_gradient_and_disturbs_none() {
    tch::manual_seed(4);
    let case = Case::new(7, 5, Kind::Double, false);
    let leaves = [&case.x, &case.updates[0].0, &case.updates[0].1];
    let gradients =
        |y: &Tensor| Tensor::run_backward(&[y.sum(Kind::Double)], &leaves, false, false);
    let (found, wanted) = (gradients(&case.fused()[0]), gradients(&case.reference()[0]));
    for (found, wanted) in found.iter().zip(&wanted) {
        assert!(distance(found, wanted) < 1e-12);
    }
}

#[test]
fn rows_that_need_no_gradient_get_none() {
    let case = Case::new(7, 5, Kind::Double, false);
    let x = case.x.detach();
    let y = linears(&x, case.layers(0.0)).unwrap();
    let loss: Tensor = y.iter().map(|y| y.sum(Kind::Double)).sum();
    let (a, b) = &case.updates[0];
    assert_eq!(Tensor::run_backward(&[loss], &[a, b], false, false).len(), 2);
}

#[test]
fn dropout_drops_the_same_inputs_in_both_directions() {
    tch::manual_seed(5);
    let case = Case::new(11, 6, Kind::Double, false);
    let (a, b) = (&case.updates[0].0, &case.updates[0].1);
    let y = linears(&case.x, case.layers(0.4)).unwrap().remove(0);
    // The update is linear in x: its gradient with respect to x tells what was kept.
    let update =
        |y: &Tensor| y.detach() - case.x.detach().linear(&case.weights[0], Some(&case.bias));
    let loss = y.sum(Kind::Double);
    let gradients = Tensor::run_backward(&[loss], &[&case.x, a, b], false, false);
    let plain = case.weights[0].sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
    let through = (&gradients[0] - plain)
        / (b.detach().sum_dim_intlist([0i64].as_slice(), true, Kind::Double).matmul(&a.detach())
            * SCALING);
    let scaled: Vec<f64> = Vec::try_from(through.reshape([-1])).unwrap();
    let kept = scaled.iter().filter(|factor| (*factor - 1.0 / 0.6).abs() < 1e-9).count();
    let dropped = scaled.iter().filter(|factor| factor.abs() < 1e-9).count();
    assert_eq!(kept + dropped, 66);
    assert!(kept > 20 && dropped > 10, "{kept} kept");
    let masked = case.x.detach() * through;
    let wanted = masked.matmul(&a.detach().tr()).matmul(&b.detach().tr()) * SCALING;
    assert!(distance(&update(&y), &wanted) < 1e-10);
    let of_b = Tensor::ones_like(&y).tr().matmul(&masked.matmul(&a.detach().tr())) * SCALING;
    assert!(distance(&gradients[2], &of_b) < 1e-10);
}
