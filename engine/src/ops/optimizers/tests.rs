//! One body for loops and plain calls: both take the steps that plain calls take in f64.

use tch::{Device, Kind, Tensor};

use super::*;

/// The bar for numbers in f32.
const F32: f64 = 2e-6;

fn draw(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn apart(found: &Tensor, exact: &Tensor) -> f64 {
    let length = |x: Tensor| x.square().sum(Kind::Double).sqrt().double_value(&[]);
    let exact = exact.to_kind(Kind::Double);
    length(found.to_kind(Kind::Double) - &exact) / length(exact).max(1e-9)
}

/// What `steps` leaves in f64, and in f32 by loops and by plain calls.
fn check(name: &str, steps: impl Fn(Kind) -> Vec<Tensor>) {
    let exact = steps(Kind::Double);
    for found in [steps(Kind::Float), reference::only(|| steps(Kind::Float))] {
        assert_eq!(found.len(), exact.len());
        for (place, (found, exact)) in found.iter().zip(&exact).enumerate() {
            let apart = apart(found, exact);
            assert!(apart <= F32, "{name}, tensor {place}: {apart:e}");
        }
    }
}

#[test]
fn steps_of_lion_are_those_of_the_reference() {
    tch::manual_seed(2);
    for count in [0, 1, 33, 40_000] {
        let (start, gradients) = (draw(&[count]), [draw(&[count]), draw(&[count])]);
        check(&format!("{count}"), |kind| {
            let mut state = [start.to_kind(kind).copy(), start.zeros_like().to_kind(kind)];
            for gradient in &gradients {
                let factors =
                    LionFactors { keep: 0.99, lr: 0.01, betas: [0.9, 0.99], new: [0.1, 0.01] };
                let [weights, mean] = &mut state;
                lion(weights, mean, &gradient.to_kind(kind), factors).unwrap();
            }
            state.into()
        });
    }
}

#[test]
fn steps_of_adafactor_are_those_of_the_reference() {
    tch::manual_seed(3);
    for shape in [vec![1i64], vec![65], vec![1, 1], vec![3, 70], vec![300, 200], vec![4, 5, 6]] {
        for (least_scale, beta1) in [(-1.0, None), (1e-3, Some(0.9)), (1e-3, None)] {
            let (start, gradients) = (draw(&shape), [draw(&shape), draw(&shape) * 3.0]);
            check(&format!("{shape:?} {least_scale} {beta1:?}"), |kind| {
                let mut weight = start.to_kind(kind).copy();
                let zeros = |shape: &[i64]| Tensor::zeros(shape, (kind, Device::Cpu));
                let (rows, columns) = match shape.as_slice() {
                    [batches @ .., rows, columns] => {
                        ([batches, &[*rows]].concat(), [batches, &[*columns]].concat())
                    }
                    vector => (vec![0], vector.to_vec()),
                };
                let mean = beta1.map(|_| zeros(&shape));
                let mut state = Squares { rows: zeros(&rows), columns: zeros(&columns), mean };
                for (step, gradient) in gradients.iter().enumerate() {
                    let factors = AdafactorFactors {
                        decay: 0.5 * step as f32,
                        eps: 1e-30,
                        least_scale,
                        clip_threshold: 1.0,
                        lr: 0.05,
                        weight_decay: 0.1,
                        beta1: beta1.unwrap_or(0.0),
                    };
                    adafactor(&mut weight, &mut state, &gradient.to_kind(kind), factors).unwrap();
                }
                [weight, state.rows, state.columns].into_iter().chain(state.mean).collect()
            });
        }
    }
}

/// Codes are told apart by the nearest number, so that those of f64 are no measure: loops and
/// plain calls must agree in each.
#[test]
fn steps_in_eight_bits_are_those_of_the_reference_to_the_code() {
    tch::manual_seed(4);
    // Maps of another kind than bitsandbytes', with steps that double.
    let positive: Vec<f32> = (0..127).map(|code| 1.07f32.powi(code - 126)).collect();
    let signed = positive.iter().map(|x| -x).chain([0.0, 1e-9]).chain(positive.iter().copied());
    let mut signed: Vec<f32> = signed.collect();
    signed.sort_by(f32::total_cmp);
    let unsigned: Vec<f32> = (0..256).map(|code| (code as f32 / 255.0).powi(3)).collect();
    let maps = [Tensor::from_slice(&signed), Tensor::from_slice(&unsigned)];
    for blocks in [0i64, 1, 300] {
        let count = blocks * BLOCK;
        let (start, gradients) = (draw(&[count]), [(); 4].map(|()| draw(&[count])));
        let steps = || {
            let packed = || Blocks {
                codes: Tensor::zeros([count], (Kind::Uint8, Device::Cpu)),
                absmax: Tensor::zeros([blocks], (Kind::Float, Device::Cpu)),
            };
            let (mut weights, mut mean, mut square) = (start.copy(), packed(), packed());
            for (step, gradient) in (1..).zip(&gradients) {
                // A block that nothing moves.
                let gradient = gradient.copy();
                if blocks > 2 {
                    let _ = gradient.narrow(0, BLOCK, BLOCK).zero_();
                }
                let factors = AdamWFactors {
                    keep: 0.999,
                    betas: [0.9, 0.95],
                    new: [0.1, 0.05],
                    step: 1e-2 / (1.0 - 0.9f32.powi(step)),
                    root: (1.0 - 0.95f32.powi(step)).sqrt(),
                    eps: 1e-8,
                };
                let state = [&mut mean, &mut square];
                adamw_8bit(&mut weights, state, [&maps[0], &maps[1]], &gradient, factors).unwrap();
            }
            [weights, mean.absmax, square.absmax, mean.codes, square.codes]
        };
        let (by_loops, plainly) = (steps(), reference::only(steps));
        for (place, (found, exact)) in by_loops.iter().zip(&plainly).enumerate().take(3) {
            assert!(blocks == 0 || apart(found, exact) <= 1e-5, "{blocks} {place}");
        }
        for (found, exact) in by_loops.iter().zip(&plainly).skip(3) {
            // Numbers half-way between two codes go by their last digit.
            let other = found.ne_tensor(exact).sum(Kind::Int64).int64_value(&[]);
            assert!(other * 10_000 <= count, "{other} of {count} codes differ");
        }
    }
}

#[test]
fn a_state_that_is_not_that_of_the_weights_is_an_error() {
    let (mut weights, gradient) = (draw(&[64]), draw(&[64]));
    let factors = LionFactors { keep: 1.0, lr: 0.1, betas: [0.9, 0.9], new: [0.1, 0.1] };
    for mut mean in
        [draw(&[63]), draw(&[64]).to_kind(Kind::Double), draw(&[128]).slice(0, 0, 128, 2)]
    {
        assert!(lion(&mut weights, &mut mean, &gradient, factors).is_err());
    }
}
