//! How long attention and the loss take beside their references: `attention [ROUNDS]`. For
//! measuring; prints a table of Markdown, medians in milliseconds.
//!
//! Every round takes both, one right after the other, so that what else the machine does
//! slows down both alike.

use heirloom::cli::printer::Printer;
use heirloom_engine::error::Result;
use heirloom_engine::ops::attention::{self, Scores, reference};
use heirloom_engine::ops::cross_entropy::{self, Logits, Targets};
use heirloom_engine::ops::{self, Layout};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let rounds = std::env::args().nth(1).map_or(Ok(9), |rounds| rounds.parse())?;
    let printer = Printer::Normal;
    printer.data("| forward and backward | dtype | threads | reference | fused | ratio |")?;
    printer.data("|---|---|---|---|---|---|")?;
    let mixed: Vec<u32> = (0..15).map(|place| 32 + place * 7919 % 481).collect();
    for threads in [1, 2] {
        tch::set_num_threads(threads);
        for kind in [Kind::BFloat16, Kind::Float] {
            for (name, lengths, heads, kv_heads) in [
                ("attention, 4 documents of 512, 8 heads", vec![512; 4], 8, 8),
                ("the same, 4 key heads", vec![512; 4], 8, 4),
                ("2,048 tokens, 16 heads", vec![2048], 16, 16),
                ("15 documents of 32 to 512, 8 heads, 4 key heads", mixed.clone(), 8, 4),
                ("64 documents of 32, 8 heads, 4 key heads", vec![32; 64], 8, 4),
            ] {
                let (plain, fused) = attend(rounds, &lengths, heads, kv_heads, kind)?;
                printer.data(&line(name, kind, threads, plain, fused))?;
            }
            let (plain, fused) = lose(rounds, kind)?;
            let name = "loss of 2,048 rows, hidden 512, vocabulary 8,192";
            printer.data(&line(name, kind, threads, plain, fused))?;
        }
    }
    Ok(())
}

fn line(name: &str, kind: Kind, threads: i32, plain: f64, fused: f64) -> String {
    let ratio = plain / fused;
    format!("| {name} | {kind:?} | {threads} | {plain:.1} | {fused:.1} | {ratio:.1} |")
}

fn draw(sizes: &[i64], kind: Kind) -> Result<Tensor> {
    Ok(Tensor::f_randn(sizes, (Kind::Float, Device::Cpu))?.f_to_kind(kind)?)
}

/// Heads are 64 wide.
fn attend(
    rounds: usize,
    lengths: &[u32],
    heads: i64,
    kv_heads: i64,
    kind: Kind,
) -> Result<(f64, f64)> {
    let layout = Layout::new(lengths, Device::Cpu)?;
    let rows = lengths.iter().map(|length| i64::from(*length)).sum::<i64>();
    let leaf = |heads| draw(&[rows, heads, 64], kind).map(|x| x.set_requires_grad(true));
    let leaves = [leaf(heads)?, leaf(kv_heads)?, leaf(kv_heads)?];
    let gradient = draw(&[rows, heads * 64], kind)?;
    let scores = Scores { scale: 0.125, window: None, softcap: None, sinks: None, dropout: 0.0 };
    let backward = |output: Tensor| -> Result<()> {
        let loss = output.f_mul(&gradient)?.f_sum(Kind::Float)?;
        Tensor::f_run_backward(&[loss], &leaves, false, false)?;
        Ok(())
    };
    let [q, k, v] = &leaves;
    medians(
        rounds,
        || backward(reference::packed(q, k, v, &layout, &scores, true)?),
        || backward(attention::packed(q, k, v, &layout, &scores, true)?),
    )
}

fn lose(rounds: usize, kind: Kind) -> Result<(f64, f64)> {
    let hidden = draw(&[2048, 512], kind)?.set_requires_grad(true);
    let output = draw(&[8192, 512], kind)?.f_mul_scalar(0.02)?;
    let ids = Tensor::f_randint(8192, [2048], (Kind::Int64, Device::Cpu))?;
    let backward = |loss: Tensor| -> Result<()> {
        Tensor::f_run_backward(&[loss], &[&hidden], false, false)?;
        Ok(())
    };
    let targets = Targets { ids: &ids, weights: None, smoothing: 0.0 };
    let logits = Logits { scaling: 1.0, softcap: None };
    medians(
        rounds,
        || {
            let logits = hidden.f_linear(&output, None::<Tensor>)?;
            backward(ops::cross_entropy_sum(&logits, targets)?)
        },
        || backward(cross_entropy::frozen(&hidden, &output, logits, targets)?),
    )
}

/// Median milliseconds of two ways, taken in turns.
fn medians(
    rounds: usize,
    first: impl Fn() -> Result<()>,
    second: impl Fn() -> Result<()>,
) -> Result<(f64, f64)> {
    let timed = |run: &dyn Fn() -> Result<()>| -> Result<f64> {
        let started = Instant::now();
        run()?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (one, other) = (timed(&first)?, timed(&second)?);
        // The first round compiles products.
        if round > 0 {
            firsts.push(one);
            seconds.push(other);
        }
    }
    Ok((median(firsts), median(seconds)))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
