//! Progress bars, and plain lines where there is no terminal.
//!
//! Owns what people see while a run goes on, on stderr. On a terminal one bar is redrawn;
//! elsewhere (a log file, a pipe) a line appears now and then; when quiet, nothing does.
//! Training goes on when nobody can see it any more: what cannot be written is left out.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Sink, StepMetrics, ValidationMetrics};
use crate::job::Verbosity;

/// Time between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Redraws per second of the bar.
const REDRAWS: u8 = 5;

/// Shows metrics to people.
pub struct Progress {
    display: Display,
    total: u64,
    /// Step from which this program started, and when: the pace is this program's own.
    from: (u64, Instant),
}

enum Display {
    Nothing,
    Bar(ProgressBar),
    Lines { to: Box<dyn Write + Send>, every: Duration, last: Option<Instant> },
}

impl Progress {
    /// Progress on stderr of a run of `total` steps, of which `done` are done already.
    pub fn new(verbosity: Verbosity, total: u64, done: u64) -> Self {
        let display = match verbosity {
            Verbosity::Quiet => Display::Nothing,
            Verbosity::Normal if io::stderr().is_terminal() => {
                Display::Bar(bar(ProgressDrawTarget::stderr_with_hz(REDRAWS), total, done))
            }
            Verbosity::Normal => {
                let to = Box::new(io::stderr());
                Display::Lines { to, every: BETWEEN_LINES, last: None }
            }
        };
        Self { display, total, from: (done, Instant::now()) }
    }

    /// `1m 20s` until the last step, at the pace so far.
    fn time_left(&self, step: u64) -> String {
        let (from, since) = self.from;
        let done = step.saturating_sub(from).max(1) as f64;
        let left = self.total.saturating_sub(step) as f64;
        let seconds = since.elapsed().as_secs_f64() / done * left;
        let duration = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        indicatif::HumanDuration(duration).to_string()
    }
}

fn bar(target: ProgressDrawTarget, total: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
    let template = "step {pos}/{len} {bar:24} {msg}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.reset_eta();
    bar
}

fn numbers(metrics: &StepMetrics) -> String {
    let StepMetrics { loss, lr, tokens_per_second, .. } = metrics;
    format!("loss {loss:.4}  lr {lr:.2e}  {tokens_per_second:.0} tokens/s")
}

impl Sink for Progress {
    fn step(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        let (step, left) = (metrics.step, self.time_left(metrics.step));
        match &mut self.display {
            Display::Nothing => {}
            Display::Bar(bar) => {
                bar.set_message(numbers(metrics));
                bar.set_position(step);
            }
            Display::Lines { to, every, last } => {
                let due = last.is_none_or(|last| last.elapsed() >= *every);
                if due || step == self.total {
                    *last = Some(Instant::now());
                    let (total, numbers) = (self.total, numbers(metrics));
                    let _ = writeln!(to, "step {step}/{total}  {numbers}  {left} left");
                }
            }
        }
        Ok(())
    }

    fn validation(&mut self, metrics: &ValidationMetrics) -> io::Result<()> {
        let ValidationMetrics { step, validation_loss, .. } = metrics;
        let line = format!("step {step}/{}  validation loss {validation_loss:.4}", self.total);
        match &mut self.display {
            Display::Nothing => {}
            Display::Bar(bar) => bar.println(line),
            Display::Lines { to, .. } => {
                let _ = writeln!(to, "{line}");
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if let Display::Bar(bar) = &self.display {
            bar.abandon();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::tests::{step, validation};
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

    /// What is written, line by line, about steps 1 to 4 and a validation after step 2.
    fn lines(every: Duration) -> Vec<String> {
        let written = Shared::default();
        let display = Display::Lines { to: Box::new(written.clone()), every, last: None };
        let mut progress = Progress { display, total: 4, from: (0, Instant::now()) };
        for number in 1..=4 {
            progress.step(&step(number)).unwrap();
            if number == 2 {
                progress.validation(&validation(number)).unwrap();
            }
        }
        progress.finish().unwrap();
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_come_first_last_and_now_and_then() {
        let now_and_then = lines(Duration::from_secs(3600));
        assert_eq!(now_and_then.len(), 3, "{now_and_then:?}");
        assert_eq!(now_and_then[1], "step 2/4  validation loss 2.0000");
        assert_eq!(
            now_and_then[2],
            "step 4/4  loss 0.2500  lr 1.00e-4  100 tokens/s  0 seconds left"
        );
        assert_eq!(lines(Duration::ZERO).len(), 5);
    }

    #[test]
    fn the_bar_follows_the_steps_and_resumes_where_it_was() {
        let hidden = bar(ProgressDrawTarget::hidden(), 4, 2);
        let display = Display::Bar(hidden.clone());
        let mut progress = Progress { display, total: 4, from: (2, Instant::now()) };
        assert_eq!((hidden.position(), hidden.length()), (2, Some(4)));
        progress.step(&step(3)).unwrap();
        assert_eq!(hidden.position(), 3);
        assert_eq!(hidden.message(), "loss 0.3333  lr 1.00e-4  100 tokens/s");
        progress.finish().unwrap();
        assert!(hidden.is_finished());
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
        let mut progress = Progress { display, total: 4, from: (0, Instant::now()) };
        progress.step(&step(1)).unwrap();
        progress.validation(&validation(1)).unwrap();
        progress.finish().unwrap();
    }

    #[test]
    fn quiet_is_quiet() {
        let mut progress = Progress::new(Verbosity::Quiet, 4, 0);
        progress.step(&step(1)).unwrap();
        assert!(matches!(progress.display, Display::Nothing));
    }
}
