//! `heirloom bench`: a few steps of a recipe, measured and thrown away.
//!
//! Owns what is measured and how it is said. The steps are those of `train`, from the same
//! stream; what an operation takes is [`profile`]'s, what a step has to compute [`flops`]'s,
//! and what the machine can do [`machine`]'s.

mod machine;

use std::io;
use std::time::Instant;

use heirloom::cli::printer::Printer;
use heirloom::dataset::stream::{MicroBatch, Position, Spec, Stream};
use heirloom::diagnose::Failure;
use heirloom::job::{Bench, Work};
use serde::Serialize;

use self::machine::{Machine, MatrixRate};
use super::train;
use crate::device;
use crate::error::{EngineError, Result};
use crate::memory;
use crate::model::weights;
use crate::ops::profile::{self, Operation};
use crate::train::{Trainer, flops};

/// Steps that fill caches, compile kernels, and are not counted.
const WARM_UP_STEPS: usize = 3;

/// What of a step no operation claims.
const REST: &str = "other";

/// What is printed for programs. Of steps it says what the median one took: numbers of one
/// step fit each other.
#[derive(Debug, Serialize)]
struct Report {
    tokens_per_second: f64,
    step_seconds: f64,
    /// Of the fastest and the slowest step.
    step_seconds_range: (f64, f64),
    peak_memory_bytes: Option<u64>,
    /// Of tensors alone.
    tensor_memory_bytes: u64,
    steps: usize,
    warm_up_steps: usize,
    tokens_per_step: u64,
    trained_tokens_per_step: u64,
    matrix_rate: MatrixRate,
    model_flops_per_step: f64,
    /// Products of the step over those that the machine could have made meanwhile.
    matrix_share: f64,
    operations: Vec<Share>,
    machine: Machine,
}

/// An operation's part of a step.
#[derive(Debug, Serialize)]
struct Share {
    name: String,
    seconds: f64,
    /// Of the step, 0 to 1.
    share: f64,
    calls: u64,
}

/// One measured step.
#[derive(Debug)]
struct Measured {
    seconds: f64,
    tokens: u64,
    trained_tokens: u64,
    flops: f64,
    operations: Vec<Operation>,
}

impl Measured {
    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }
}

/// Measures the steps of the work that comes on the standard input.
pub(super) fn bench(job: &Bench, printer: Printer) -> Result<(), Failure> {
    // Before anything else asks libtorch: it learns of CUDA now or never.
    let device = device::open(job.device)?;
    let work: Work = serde_json::from_reader(io::stdin().lock())
        .map_err(|source| EngineError::NoJob { source })?;
    let machine = Machine::look(job.device);
    let kind = weights::kind(work.recipe.base.dtype);
    let (steps, peak) = measure(work, job.steps, device, printer)?;
    // Last: its tensors are no part of the peak.
    let matrix_rate = machine::matrix_rate(kind, device)?;
    let report = report(steps, peak, matrix_rate, machine)?;
    if job.json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|source| EngineError::Json { path: "report".into(), source })?;
        return Ok(printer.data(&text)?);
    }
    say(&report, printer)
}

/// The most memory at one time.
#[derive(Clone, Copy, Debug)]
struct Peak {
    /// Of the process, or of a device of CUDA, where the system tells.
    process: Option<u64>,
    /// Of tensors.
    tensors: u64,
}

/// Takes so many steps; gives the measured ones and the peak of memory.
fn measure(
    work: Work,
    count: usize,
    device: tch::Device,
    printer: Printer,
) -> Result<(Vec<Measured>, Peak), Failure> {
    let Work { mut recipe, lock } = work;
    if recipe.train.deterministic {
        device::only_deterministic(device)?;
    }
    let (base, encoder, _) = train::open(&mut recipe, &lock)?;
    let mut trainer = Trainer::open(&recipe, &base, &lock.training, None, device)?;
    // However short the data: a bench begins another pass.
    let spec = Spec { epochs: u32::MAX, ..Spec::locked(&recipe, &lock)? };
    let mut stream = Stream::open(spec, encoder, Position::default())?;
    let total = WARM_UP_STEPS + count;
    // What a device held while the base was loaded is no part of training.
    device::forget_peak(device)?;
    let bar = printer.bar(total as u64, "steps");
    let mut steps = Vec::with_capacity(count);
    for number in 0..total {
        let began = Instant::now();
        let (taken, operations) = profile::measure(|| -> Result<_, Failure> {
            let rows = {
                let _scope = profile::scope("rows");
                stream.next().transpose()?
            };
            let ended = || EngineError::StreamEnded { step: number as u64, steps: total as u64 };
            let step = rows.ok_or_else(ended)?;
            if let Some(error) = trainer.step(&step, 1, began)?.error {
                return Err(error.into());
            }
            device::finish(device);
            Ok(step)
        });
        let seconds = began.elapsed().as_secs_f64();
        let step = taken?;
        bar.inc(1);
        if number < WARM_UP_STEPS {
            continue;
        }
        let batches = step.micro_batches.iter();
        steps.push(Measured {
            seconds,
            tokens: batches.clone().map(|batch| batch.tokens.len() as u64).sum(),
            trained_tokens: batches.map(MicroBatch::trained_tokens).sum(),
            flops: flops::of_step(&trainer.model, &recipe.adapter, &step),
            operations,
        });
    }
    bar.finish_and_clear();
    let process = match device {
        tch::Device::Cpu => memory::resident_peak(),
        _ => device::peak(device)?,
    };
    let peak = Peak { process, tensors: memory::usage().peak };
    Ok((steps, peak))
}

fn report(
    mut steps: Vec<Measured>,
    peak: Peak,
    matrix_rate: MatrixRate,
    machine: Machine,
) -> Result<Report> {
    // Steps need not be of one size, so it is speed that puts them in order.
    steps.sort_by(|one, other| one.tokens_per_second().total_cmp(&other.tokens_per_second()));
    let seconds = || steps.iter().map(|step| step.seconds);
    let range = (seconds().fold(f64::INFINITY, f64::min), seconds().fold(0.0, f64::max));
    let count = steps.len();
    // Of an even number, the slower of the two in the middle.
    let middle = steps.get(count.saturating_sub(1) / 2);
    let median = middle.ok_or(EngineError::StreamEnded { step: 0, steps: 0 })?;
    Ok(Report {
        tokens_per_second: median.tokens_per_second(),
        step_seconds: median.seconds,
        step_seconds_range: range,
        peak_memory_bytes: peak.process,
        tensor_memory_bytes: peak.tensors,
        steps: count,
        warm_up_steps: WARM_UP_STEPS,
        tokens_per_step: median.tokens,
        trained_tokens_per_step: median.trained_tokens,
        model_flops_per_step: median.flops,
        matrix_share: median.flops / median.seconds.max(1e-9) / (matrix_rate.gflops * 1e9),
        matrix_rate,
        operations: shares(median),
        machine,
    })
}

/// The operations of a step and what none of them claims, longest first: together the step.
fn shares(step: &Measured) -> Vec<Share> {
    let share = |name: String, seconds: f64, calls| Share {
        name,
        seconds,
        share: seconds / step.seconds.max(1e-9),
        calls,
    };
    let named = |operation: &Operation| {
        let name = match operation.backward {
            true => format!("{} backward", operation.name),
            false => operation.name.to_owned(),
        };
        share(name, operation.time.as_secs_f64(), operation.calls)
    };
    let mut shares: Vec<Share> = step.operations.iter().map(named).collect();
    let claimed: f64 = shares.iter().map(|share| share.seconds).sum();
    shares.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    shares.push(share(REST.to_owned(), (step.seconds - claimed).max(0.0), 1));
    shares
}

/// Prints a report for people.
fn say(report: &Report, printer: Printer) -> Result<(), Failure> {
    let Report { machine, matrix_rate, step_seconds_range: (fastest, slowest), .. } = report;
    let memory = report.peak_memory_bytes.map_or("unknown".to_owned(), |bytes| {
        let what = match report.machine.is_processor() {
            true => "the program and its libraries included",
            false => "of the device, from the first step on",
        };
        format!("{:.0} MiB at most, {what}", mebibytes(bytes))
    });
    let lines = [
        format!("machine  {machine}"),
        format!(
            "speed    {:.0} tokens per second: {:.3} s a step of {} tokens, {} of them trained",
            report.tokens_per_second,
            report.step_seconds,
            report.tokens_per_step,
            report.trained_tokens_per_step
        ),
        format!(
            "         the median of {} steps, which took {fastest:.3} to {slowest:.3} s",
            report.steps
        ),
        format!("memory   {memory}"),
        format!("matrices {matrix_rate} is what this machine can do"),
        format!(
            "         {:.1} GFLOP in a step's matrix products: {:.0} % of what the machine could \
             have done in that time",
            report.model_flops_per_step / 1e9,
            100.0 * report.matrix_share
        ),
    ];
    printer.data(&lines.join("\n"))?;
    let row = |share: &Share| {
        [
            share.name.clone(),
            format!("{:.4}", share.seconds),
            format!("{:.1} %", 100.0 * share.share),
            share.calls.to_string(),
        ]
    };
    let rows: Vec<_> = report.operations.iter().map(row).collect();
    Ok(printer.table(["operation", "seconds", "of the step", "calls"], &rows)?)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use heirloom::job::Device;

    use super::*;

    fn step(seconds: f64, tokens: u64) -> Measured {
        let operation = |name, backward, share| Operation {
            name,
            backward,
            time: Duration::from_secs_f64(seconds * share),
            calls: 2,
        };
        Measured {
            seconds,
            tokens,
            trained_tokens: tokens / 2,
            flops: 1e9 * tokens as f64,
            operations: vec![
                operation("attention", false, 0.25),
                operation("attention", true, 0.5),
            ],
        }
    }

    fn of(steps: Vec<Measured>) -> Report {
        let rate = MatrixRate { gflops: 200.0, dtype: "float32", size: 2 };
        let peak = Peak { process: Some(1), tensors: 1 };
        report(steps, peak, rate, Machine::look(Device::Cpu)).unwrap()
    }

    #[test]
    fn the_median_is_by_speed_and_one_step() {
        // 100, 50 and 10 tokens a second: the short last step of a pass is neither.
        let found = of(vec![step(1.0, 100), step(0.1, 1), step(2.0, 100)]);
        assert_eq!((found.step_seconds, found.tokens_per_second), (2.0, 50.0));
        assert_eq!((found.tokens_per_step, found.trained_tokens_per_step), (100, 50));
        assert_eq!(found.step_seconds_range, (0.1, 2.0));
        assert_eq!(found.matrix_share, 0.25);
        assert_eq!(of(vec![step(1.0, 100), step(2.0, 100)]).step_seconds, 2.0);
    }

    #[test]
    fn operations_add_up_to_the_step() {
        let found = of(vec![step(2.0, 100)]);
        let names: Vec<&str> = found.operations.iter().map(|share| share.name.as_str()).collect();
        assert_eq!(names, ["attention backward", "attention", "other"]);
        let seconds: f64 = found.operations.iter().map(|share| share.seconds).sum();
        let shares: f64 = found.operations.iter().map(|share| share.share).sum();
        assert!((seconds - 2.0).abs() < 1e-9 && (shares - 1.0).abs() < 1e-9);
    }
}
