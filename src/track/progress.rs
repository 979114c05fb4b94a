//! Progress bars, and plain lines where there is no terminal.
//!
//! Owns what people see while a run goes on, on stderr. On a terminal two bars are redrawn, of
//! the pass and of all steps; elsewhere (a log file, a pipe) a line appears now and then; when
//! quiet, nothing does. Training goes on when nobody can see it any more: what cannot be written
//! is left out.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Cause, End, Event, Happened, Sink, StepMetrics, ValidationMetrics};
use crate::diagnose::amount;
use crate::job::Verbosity;

/// Time between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Redraws per second of the bars.
const REDRAWS: u8 = 5;

/// Parts into which the bar of a pass divides it.
const PARTS: u64 = 1000;

/// How long a run is.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Optimiser steps.
    pub steps: u64,
    /// Of these, done before this program began.
    pub done: u64,
    /// Passes over the data.
    pub epochs: u32,
}

/// Tells how much memory is in use, where that is known.
pub type MemoryInUse = fn() -> Option<u64>;

/// Shows metrics to people.
pub struct Progress {
    display: Display,
    extent: Extent,
    /// When this program began: the pace is its own.
    since: Instant,
    memory: MemoryInUse,
}

enum Display {
    Nothing,
    Bars { all: MultiProgress, epoch: ProgressBar, steps: ProgressBar },
    Lines { to: Box<dyn Write + Send>, every: Duration, last: Option<Instant> },
}

/// Says something beside the bars, from any thread.
#[derive(Clone, Debug)]
pub enum Voice {
    /// Nothing to anyone.
    Silent,
    /// A line above the bars.
    Above(MultiProgress),
    /// A line on stderr.
    Plain,
}

impl Voice {
    /// Prints a line.
    pub fn say(&self, line: &str) {
        match self {
            Self::Silent => {}
            Self::Above(bars) => {
                let _ = bars.println(line);
            }
            Self::Plain => {
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }
}

impl Progress {
    /// Progress on stderr.
    pub fn new(verbosity: Verbosity, extent: Extent, memory: MemoryInUse) -> Self {
        let display = match verbosity {
            Verbosity::Quiet => Display::Nothing,
            Verbosity::Normal if io::stderr().is_terminal() => {
                bars(ProgressDrawTarget::stderr_with_hz(REDRAWS), extent)
            }
            Verbosity::Normal => {
                let to = Box::new(io::stderr());
                Display::Lines { to, every: BETWEEN_LINES, last: None }
            }
        };
        Self { display, extent, since: Instant::now(), memory }
    }

    /// What warnings of other threads are said with.
    pub fn voice(&self) -> Voice {
        match &self.display {
            Display::Nothing => Voice::Silent,
            Display::Bars { all, .. } => Voice::Above(all.clone()),
            Display::Lines { .. } => Voice::Plain,
        }
    }

    /// `1m 20s` until the last step, at the pace so far.
    fn time_left(&self, step: u64) -> String {
        let done = step.saturating_sub(self.extent.done).max(1) as f64;
        let left = self.extent.steps.saturating_sub(step) as f64;
        let seconds = self.since.elapsed().as_secs_f64() / done * left;
        let duration = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        indicatif::HumanDuration(duration).to_string()
    }

    fn numbers(&self, metrics: &StepMetrics) -> String {
        let StepMetrics { loss, lr, tokens_per_second, .. } = metrics;
        let memory = (self.memory)().map(|bytes| format!("  {}", amount(bytes)));
        let memory = memory.unwrap_or_default();
        format!("loss {loss:.4}  lr {lr:.2e}  {tokens_per_second:.0} tokens/s{memory}")
    }

    fn line(&mut self, line: &str) {
        match &mut self.display {
            Display::Nothing => {}
            Display::Bars { all, .. } => {
                let _ = all.println(line);
            }
            Display::Lines { to, .. } => {
                let _ = writeln!(to, "{line}");
            }
        }
    }
}

fn bars(target: ProgressDrawTarget, extent: Extent) -> Display {
    let all = MultiProgress::with_draw_target(target);
    let bar = |length, template| {
        let bar = all.add(ProgressBar::new(length));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar
    };
    let epoch = bar(PARTS, "epoch {prefix} {bar:24} {percent} %");
    let steps = bar(extent.steps, "step {pos}/{len} {bar:24} {msg}  {eta} left");
    steps.set_position(extent.done);
    steps.reset_eta();
    Display::Bars { all, epoch, steps }
}

/// The pass that is going on or has just ended, from 1, and how much of it is done.
fn place_in(epoch: f64) -> (u64, f64) {
    let pass = epoch.ceil().max(1.0);
    (pass as u64, epoch - (pass - 1.0))
}

impl Sink for Progress {
    fn step(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        if matches!(self.display, Display::Nothing) {
            return Ok(());
        }
        let (step, left) = (metrics.step, self.time_left(metrics.step));
        let (numbers, extent) = (self.numbers(metrics), self.extent);
        match &mut self.display {
            Display::Nothing => {}
            Display::Bars { epoch, steps, .. } => {
                let (pass, done) = place_in(metrics.epoch);
                epoch.set_prefix(format!("{pass}/{}", extent.epochs));
                epoch.set_position((done * PARTS as f64) as u64);
                steps.set_message(numbers);
                steps.set_position(step);
            }
            Display::Lines { to, every, last } => {
                let due = last.is_none_or(|last| last.elapsed() >= *every);
                if due || step == extent.steps {
                    *last = Some(Instant::now());
                    let (total, epoch) = (extent.steps, metrics.epoch);
                    let _ = writeln!(
                        to,
                        "step {step}/{total}  epoch {epoch:.2}  {numbers}  {left} left"
                    );
                }
            }
        }
        Ok(())
    }

    fn validation(&mut self, metrics: &ValidationMetrics) -> io::Result<()> {
        let ValidationMetrics { step, validation_loss, .. } = metrics;
        let total = self.extent.steps;
        self.line(&format!("step {step}/{total}  validation loss {validation_loss:.4}"));
        Ok(())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.line(&format!("step {}/{}  {}", event.step, self.extent.steps, words(event)));
        Ok(())
    }

    fn finish(&mut self, _: End) -> io::Result<()> {
        if let Display::Bars { epoch, steps, .. } = &self.display {
            epoch.abandon();
            steps.abandon();
        }
        Ok(())
    }
}

/// What happened, in words.
fn words(event: &Event) -> String {
    let value = &event.value;
    let why = match event.cause {
        Cause::NonFiniteLoss => format!("the loss is {value}"),
        Cause::NonFiniteGradient => format!("the gradient is {value}"),
        Cause::LossSpike => format!("the loss jumped to {value}"),
        Cause::ValidationLoss => format!("the validation loss, {value}, falls no more"),
    };
    let what = match (event.event, event.to_step) {
        (Happened::Skip, _) => "skipped".to_owned(),
        (Happened::RollBack, Some(step)) => format!("rolled back to the weights of step {step}"),
        (Happened::RollBack, None) => "rolled back".to_owned(),
        (Happened::Stop, _) => "stopped".to_owned(),
        (Happened::EarlyStop, _) => "done early".to_owned(),
    };
    format!("{what}: {why}")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::tests::{event, step, validation};
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn progress(display: Display, done: u64) -> Progress {
        let extent = Extent { steps: 4, done, epochs: 1 };
        Progress { display, extent, since: Instant::now(), memory: || Some(3 << 30) }
    }

    /// What is written, line by line, about steps 1 to 4, a validation and an event after step 2.
    fn lines(every: Duration) -> Vec<String> {
        let written = Shared::default();
        let display = Display::Lines { to: Box::new(written.clone()), every, last: None };
        let mut progress = progress(display, 0);
        for number in 1..=4 {
            progress.step(&step(number)).unwrap();
            if number == 2 {
                progress.validation(&validation(number)).unwrap();
                progress.event(&event(number)).unwrap();
            }
        }
        progress.finish(End::Complete).unwrap();
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_come_first_last_and_now_and_then() {
        let now_and_then = lines(Duration::from_secs(3600));
        assert_eq!(now_and_then.len(), 4, "{now_and_then:?}");
        assert_eq!(now_and_then[1], "step 2/4  validation loss 2.0000");
        assert_eq!(now_and_then[2], "step 2/4  skipped: the loss is NaN");
        assert_eq!(
            now_and_then[3],
            "step 4/4  epoch 1.00  loss 0.2500  lr 1.00e-4  100 tokens/s  3.0 GiB  0 seconds left"
        );
        assert_eq!(lines(Duration::ZERO).len(), 6);
    }

    #[test]
    fn the_bars_follow_the_steps_and_resume_where_they_were() {
        let extent = Extent { steps: 4, done: 2, epochs: 1 };
        let display = bars(ProgressDrawTarget::hidden(), extent);
        let Display::Bars { epoch, steps, .. } = &display else { panic!("bars") };
        let (epoch, steps) = (epoch.clone(), steps.clone());
        let mut progress = progress(display, 2);
        assert_eq!((steps.position(), steps.length()), (2, Some(4)));
        progress.step(&step(3)).unwrap();
        assert_eq!((steps.position(), epoch.position()), (3, 750));
        assert_eq!(steps.message(), "loss 0.3333  lr 1.00e-4  100 tokens/s  3.0 GiB");
        assert_eq!(epoch.prefix(), "1/1");
        progress.finish(End::Complete).unwrap();
        assert!(steps.is_finished() && epoch.is_finished());
    }

    #[test]
    fn a_pass_that_has_just_ended_is_full() {
        assert_eq!(place_in(0.0), (1, 0.0));
        assert_eq!(place_in(0.25), (1, 0.25));
        assert_eq!(place_in(1.0), (1, 1.0));
        assert_eq!(place_in(1.5), (2, 0.5));
    }

    /// A terminal that was closed.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn nobody_watching_is_no_error() {
        let display = Display::Lines { to: Box::new(Closed), every: Duration::ZERO, last: None };
        let mut progress = progress(display, 0);
        progress.step(&step(1)).unwrap();
        progress.validation(&validation(1)).unwrap();
        progress.event(&event(1)).unwrap();
        progress.finish(End::Complete).unwrap();
    }

    #[test]
    fn quiet_is_quiet() {
        let extent = Extent { steps: 4, done: 0, epochs: 1 };
        let mut progress = Progress::new(Verbosity::Quiet, extent, || None);
        progress.step(&step(1)).unwrap();
        assert!(matches!(progress.display, Display::Nothing));
        assert!(matches!(progress.voice(), Voice::Silent));
    }
}
