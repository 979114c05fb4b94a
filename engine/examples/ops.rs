//! How long the fused operations take beside their references: `ops [ROUNDS]`. For measuring;
//! prints a table of Markdown, medians in milliseconds.
//!
//! Every round takes both, one right after the other, so that what else the machine does
//! slows down both alike.

use std::hint::black_box;
use std::time::Instant;

use heirloom::base::{Activation, NormKind};
use heirloom_engine::ops::optimizers::{
    self, AdafactorFactors, BLOCK, Blocks, LionFactors, Squares,
};
use heirloom_engine::ops::rotary::{self, Angles};
use heirloom_engine::ops::{self, AdamWFactors, reference};
use tch::{Device, Kind, Tensor};

type Failure = Box<dyn std::error::Error>;
/// Outputs of an operation whose inputs are these leaves.
type Run = Box<dyn Fn(&[Tensor]) -> heirloom_engine::error::Result<Vec<Tensor>>>;

/// Name, shapes of the inputs (those of one dimension are frozen), and what to run.
type Operation = (String, Vec<Vec<i64>>, Run);

/// Numbers of a step of AdamW.
const FACTORS: AdamWFactors = AdamWFactors {
    keep: 0.999,
    betas: [0.9, 0.999],
    new: [0.1, 0.001],
    step: 1e-4,
    root: 0.5,
    eps: 1e-8,
};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Times that one round does the same, so that it is longer than the clock is coarse.
const REPEATS: u32 = 4;

fn main() -> Result<(), Failure> {
    let rounds = std::env::args().nth(1).map_or(Ok(15), |rounds| rounds.parse())?;
    let printer = heirloom::cli::printer::Printer::Normal;
    printer.data("| operation, bfloat16, forward and backward | threads | reference | fused | ratio |\n|---|---|---|---|---|")?;
    for threads in [1, 2] {
        tch::set_num_threads(threads);
        for (name, shapes, run) in operations()? {
            let leaf = |shape: &Vec<i64>| {
                let drawn = Tensor::f_randn(shape.as_slice(), (Kind::BFloat16, Device::Cpu))?;
                drawn.f_set_requires_grad(shape.len() > 1)
            };
            let leaves: Vec<Tensor> = shapes.iter().map(leaf).collect::<Result<_, _>>()?;
            let once = || forward_and_backward(&leaves, &run);
            let (plain, fused) = medians(rounds, || reference::only(once), once)?;
            printer.data(&line(&name, threads, plain, fused))?;
        }
        let (plain, fused) = adamw(rounds)?;
        printer.data(&line("AdamW, 4 million weights, f32", threads, plain, fused))?;
        for (name, (plain, fused)) in optimizers(rounds)? {
            printer.data(&line(name, threads, plain, fused))?;
        }
    }
    Ok(())
}

fn line(name: &str, threads: i32, plain: f64, fused: f64) -> String {
    format!("| {name} | {threads} | {plain:.2} | {fused:.2} | {:.1} |", plain / fused)
}

fn operations() -> Result<Vec<Operation>, Failure> {
    let mut all: Vec<Operation> = Vec::new();
    for width in [512i64, 1376] {
        let shape = vec![2048, width];
        let named = |name: &str| format!("{name} [2048, {width}]");
        for kind in [NormKind::WeightAfterRounding, NormKind::OnePlusWeight] {
            let run: Run = Box::new(move |i| Ok(vec![ops::rms_norm(&i[0], &i[1], 1e-5, kind)?]));
            all.push((
                named(&format!("RMS norm, {kind:?}")),
                vec![shape.clone(), vec![width]],
                run,
            ));
        }
        let run: Run = Box::new(|i| {
            let kind = NormKind::WeightAfterRounding;
            let (sum, y) = ops::add_rms_norm(&i[0], &i[1], &i[2], 1e-5, kind)?;
            Ok(vec![sum, y])
        });
        let shapes = vec![shape.clone(), shape.clone(), vec![width]];
        all.push((named("residual and RMS norm"), shapes, run));
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let run: Run = Box::new(move |i| Ok(vec![ops::gated(&i[0], &i[1], activation)?]));
            all.push((named(&format!("gated {activation:?}")), vec![shape.clone(); 2], run));
        }
        let heads = width / 32;
        for interleaved in [false, true] {
            let angle = Tensor::f_randn([2048, 1, 16], (Kind::BFloat16, Device::Cpu))?;
            let angles = Angles { cos: angle.f_cos()?, sin: angle.f_sin()? };
            let run: Run =
                Box::new(move |i| Ok(vec![rotary::rotate(&i[0], &angles, interleaved)?]));
            let layout = if interleaved { "pairs" } else { "halves" };
            let name = format!("rotary, {layout} [2048, {heads}, 32]");
            all.push((name, vec![vec![2048, heads, 32]], run));
        }
    }
    Ok(all)
}

fn forward_and_backward(leaves: &[Tensor], run: &Run) -> Result<(), Failure> {
    let outputs = run(leaves)?;
    let wanted: Vec<&Tensor> = leaves.iter().filter(|leaf| leaf.requires_grad()).collect();
    // What the sum costs is in both; its gradient is expanded, which the fused ones write out.
    let mut loss = Tensor::f_zeros([], (Kind::BFloat16, Device::Cpu))?;
    for output in &outputs {
        loss = loss.f_add(&output.f_sum(Kind::BFloat16)?)?;
    }
    black_box(Tensor::f_run_backward(&[loss], &wanted, false, false)?);
    Ok(())
}

fn adamw(rounds: usize) -> Result<(f64, f64), Failure> {
    let flat = || Tensor::f_ones([4 << 20], (Kind::Float, Device::Cpu));
    let (weights, mean, square, gradient) = (flat()?, flat()?, flat()?, flat()?);
    let step = || -> Result<(), Failure> {
        let [mut weights, mut mean, mut square] =
            [&weights, &mean, &square].map(Tensor::shallow_clone);
        let state = [&mut weights, &mut mean, &mut square];
        Ok(ops::adamw(state, &gradient, FACTORS)?)
    };
    medians(rounds, || reference::only(step), step)
}

/// What was timed, and milliseconds of its plain and its fused form.
type Timed = (&'static str, (f64, f64));

/// The steps of other optimisers, over as many weights.
fn optimizers(rounds: usize) -> Result<Vec<Timed>, Failure> {
    let shape = [2048i64, 2048];
    let count = shape[0] * shape[1];
    let flat = || Tensor::f_ones([count], (Kind::Float, Device::Cpu));
    let (weights, mean, gradient) = (flat()?, flat()?, Tensor::f_randn([count], FLOAT)?);
    let lion = || -> Result<(), Failure> {
        let factors = LionFactors { keep: 0.999, lr: 1e-4, betas: [0.9, 0.99], new: [0.1, 0.01] };
        let (mut weights, mut mean) = (weights.shallow_clone(), mean.shallow_clone());
        Ok(optimizers::lion(&mut weights, &mut mean, &gradient, factors)?)
    };
    let map = Tensor::f_linspace(0.0, 1.0, 256, FLOAT)?;
    let eight = || -> Result<(), Failure> {
        let blocks = || -> Result<Blocks, Failure> {
            Ok(Blocks {
                codes: Tensor::f_zeros([count], (Kind::Uint8, Device::Cpu))?,
                absmax: Tensor::f_zeros([count / BLOCK], FLOAT)?,
            })
        };
        let (mut mean, mut square, mut weights) = (blocks()?, blocks()?, weights.shallow_clone());
        let state = [&mut mean, &mut square];
        Ok(optimizers::adamw_8bit(&mut weights, state, [&map, &map], &gradient, FACTORS)?)
    };
    let (rows, columns) = (Tensor::f_zeros([2048], FLOAT)?, Tensor::f_zeros([2048], FLOAT)?);
    let adafactor = || -> Result<(), Failure> {
        let factors = AdafactorFactors {
            decay: 0.9,
            eps: 1e-30,
            least_scale: -1.0,
            clip_threshold: 1.0,
            lr: 1e-4,
            weight_decay: 0.1,
            beta1: 0.0,
        };
        let (rows, columns) = (rows.shallow_clone(), columns.shallow_clone());
        let mut state = Squares { rows, columns, mean: None };
        let mut weight = weights.f_view(shape)?;
        Ok(optimizers::adafactor(&mut weight, &mut state, &gradient.f_view(shape)?, factors)?)
    };
    Ok(vec![
        ("Lion, 4 million weights, f32", medians(rounds, || reference::only(lion), lion)?),
        ("AdamW in 8 bits, as many", medians(rounds, || reference::only(eight), eight)?),
        ("Adafactor, as many", medians(rounds, || reference::only(adafactor), adafactor)?),
    ])
}

/// Milliseconds of each, alternating.
fn medians(
    rounds: usize,
    plain: impl Fn() -> Result<(), Failure>,
    fused: impl Fn() -> Result<(), Failure>,
) -> Result<(f64, f64), Failure> {
    plain()?;
    fused()?;
    let (mut plains, mut fuseds) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        plains.push(timed(&plain)?);
        fuseds.push(timed(&fused)?);
    }
    Ok((median(plains), median(fuseds)))
}

fn timed(work: impl Fn() -> Result<(), Failure>) -> Result<f64, Failure> {
    let started = Instant::now();
    for _ in 0..REPEATS {
        work()?;
    }
    Ok(started.elapsed().as_secs_f64() * 1e3 / f64::from(REPEATS))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
