//! Progress of looking at rows: on a terminal a line that counts them; elsewhere nothing.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::job::Verbosity;

/// Redraws per second of the line.
const REDRAWS: u8 = 5;

/// Counts rows.
pub struct Rows(ProgressBar);

impl Rows {
    /// None so far.
    pub fn new(verbosity: Verbosity) -> Self {
        if verbosity == Verbosity::Quiet || !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("looking at rows: {human_pos} ({per_sec})");
        let bar = ProgressBar::no_length();
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS));
        Self(style.map(|style| bar.clone().with_style(style)).unwrap_or(bar))
    }

    /// So many more.
    pub fn advance(&self, rows: u64) {
        self.0.inc(rows);
    }

    /// That was all.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
