//! Progress of downloads: on a terminal a bar for the file and one for everything; elsewhere
//! a line where a file begins and one where it ends; when quiet, nothing.

use std::io::{self, IsTerminal, Write};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::job::Verbosity;

/// Redraws per second of the bars.
const REDRAWS: u8 = 5;

/// Shows several downloads, one after the other.
pub struct Transfers {
    display: Display,
}

enum Display {
    Nothing,
    Bars { bars: MultiProgress, total: ProgressBar },
    Lines,
}

/// One of them.
pub struct Transfer {
    name: String,
    size: u64,
    lines: bool,
    bar: ProgressBar,
    total: ProgressBar,
}

impl Transfers {
    /// Downloads on stderr of `needed` bytes in all.
    pub fn new(verbosity: Verbosity, needed: u64) -> Self {
        let display = match verbosity {
            Verbosity::Quiet => Display::Nothing,
            Verbosity::Normal if io::stderr().is_terminal() => {
                let target = ProgressDrawTarget::stderr_with_hz(REDRAWS);
                let bars = MultiProgress::with_draw_target(target);
                let total = bars.add(bar("total", needed));
                Display::Bars { bars, total }
            }
            Verbosity::Normal => Display::Lines,
        };
        Self { display }
    }

    /// A file of `size` bytes begins, of which `done` are there already.
    pub fn begin(&self, name: &str, size: u64, done: u64) -> Transfer {
        let (hidden, mut lines) = (ProgressBar::hidden(), false);
        let (bar, total) = match &self.display {
            Display::Nothing => (hidden.clone(), hidden),
            Display::Bars { bars, total } => {
                (bars.insert_before(total, bar(name, size)), total.clone())
            }
            Display::Lines => {
                lines = true;
                let left = HumanBytes(size.saturating_sub(done));
                line(&match done {
                    0 => format!("downloading {name} ({left})"),
                    _ => format!("downloading the rest of {name} ({left} of {})", HumanBytes(size)),
                });
                (hidden.clone(), hidden)
            }
        };
        bar.set_position(done);
        bar.reset_eta();
        Transfer { name: name.to_owned(), size, lines, bar, total }
    }

    /// Says something between two files.
    pub fn note(&self, words: &str) {
        match &self.display {
            Display::Nothing => {}
            Display::Bars { bars, .. } => {
                let _ = bars.println(words);
            }
            Display::Lines => line(words),
        }
    }

    /// Everything is here.
    pub fn finish(&self) {
        if let Display::Bars { total, .. } = &self.display {
            total.finish_and_clear();
        }
    }
}

impl Transfer {
    /// So many bytes came.
    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        self.total.inc(bytes);
    }

    /// What came counts no longer.
    pub fn restart(&self) {
        self.total.set_length(self.total.length().unwrap_or(0) + self.bar.position());
        self.bar.set_position(0);
    }

    /// The file is here.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        if self.lines {
            line(&format!("downloaded {} ({})", self.name, HumanBytes(self.size)));
        }
    }
}

fn bar(name: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(name.to_owned());
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// When even stderr is closed, there is nobody left to tell.
fn line(words: &str) {
    let _ = writeln!(io::stderr(), "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_count_what_came_and_forget_what_was_wrong() {
        let total = ProgressBar::hidden();
        total.set_length(90);
        let bar = ProgressBar::hidden();
        bar.set_length(100);
        bar.set_position(10);
        let transfer =
            Transfer { name: "x".to_owned(), size: 100, lines: false, bar, total: total.clone() };
        transfer.advance(30);
        assert_eq!((transfer.bar.position(), total.position()), (40, 30));
        transfer.restart();
        transfer.advance(100);
        assert_eq!((transfer.bar.position(), total.position()), (100, 130));
        assert_eq!(total.length(), Some(130));
    }

    #[test]
    fn quiet_is_quiet() {
        let transfers = Transfers::new(Verbosity::Quiet, 10);
        let transfer = transfers.begin("x", 10, 0);
        transfer.advance(10);
        transfer.finish();
        assert!(matches!(transfers.display, Display::Nothing) && !transfer.lines);
    }
}
