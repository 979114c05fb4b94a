//! The only place that prints: data to stdout, words for people to stderr.
//!
//! Colour only helps; every message can be read without it. anstream takes it away where
//! there is no terminal or where `NO_COLOR` asks for that.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::OwoColorize as _;

use crate::diagnose::{Diagnose, Failure};
use crate::job::Verbosity;

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Printer {
    /// Data and errors only.
    Quiet,
    /// Everything.
    Normal,
}

/// stdout cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to the standard output")]
pub struct OutputError(#[from] io::Error);

impl Diagnose for OutputError {
    fn hint(&self) -> Option<String> {
        self.0.hint()
    }
}

impl From<Verbosity> for Printer {
    fn from(verbosity: Verbosity) -> Self {
        match verbosity {
            Verbosity::Quiet => Self::Quiet,
            Verbosity::Normal => Self::Normal,
        }
    }
}

impl From<Printer> for Verbosity {
    fn from(printer: Printer) -> Self {
        match printer {
            Printer::Quiet => Self::Quiet,
            Printer::Normal => Self::Normal,
        }
    }
}

impl Printer {
    /// Prints data, with a line feed, to stdout. A reader that has seen enough (`| head`)
    /// is no error.
    pub fn data(self, text: &str) -> Result<(), OutputError> {
        self.text(&format!("{text}\n"))
    }

    /// Prints a piece of data to stdout at once, without a line feed.
    pub fn text(self, piece: &str) -> Result<(), OutputError> {
        let mut stdout = anstream::stdout().lock();
        match write!(stdout, "{piece}").and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Prints words for people, with a line feed, to stderr; nothing when quiet.
    pub fn note(self, text: &str) {
        if self == Self::Normal {
            to_stderr(text);
        }
    }

    /// Prints a table of data to stdout.
    pub fn table<const N: usize>(
        self,
        header: [&str; N],
        rows: &[[String; N]],
    ) -> Result<(), OutputError> {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY).set_header(header);
        table.add_rows(rows);
        self.data(&table.to_string())
    }

    /// A progress bar on stderr; invisible when quiet or where there is no terminal.
    pub fn bar(self, length: u64, what: &str) -> ProgressBar {
        let target = match self {
            Self::Quiet => ProgressDrawTarget::hidden(),
            Self::Normal => ProgressDrawTarget::stderr(),
        };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(what.to_owned())
    }

    /// Warns where something failed that must not stop the work.
    pub fn warn_of<E: Diagnose>(self, result: Result<(), E>) {
        let Err(error) = result else { return };
        let mut text = format!("warning: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        let hint = error.hint().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        self.note(&harmless(text + &hint));
    }

    /// As [`Printer::bar`], of bytes.
    pub fn bytes(self, length: u64, what: &str) -> ProgressBar {
        let style = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}";
        let bar = self.bar(length, what);
        bar.with_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        )
    }

    /// Prints a failure with its details, its causes and its hint, also when quiet.
    pub fn failure(self, failure: &Failure) {
        to_stderr(&render(failure));
    }
}

/// The text of a failure, coloured, without a line feed at its end.
fn render(failure: &Failure) -> String {
    let mut text = format!("{} {}", "error:".red().bold(), harmless(failure));
    for detail in failure.details() {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {}", harmless(detail).replace('\n', "\n  "));
    }
    let mut cause = failure.source();
    while let Some(error) = cause {
        let _ = write!(text, "\n  caused by: {}", harmless(error));
        cause = error.source();
    }
    if let Some(hint) = failure.hint() {
        let _ = write!(text, "\n\n{} {}", "hint:".cyan().bold(), harmless(hint));
    }
    text
}

/// What an error says, which may quote files of strangers, with everything escaped by which
/// they could command the terminal or turn words round.
fn harmless(said: impl Display) -> String {
    let commands = |letter: char| {
        letter.is_control() && letter != '\n'
            || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut text = String::new();
    for letter in said.to_string().chars() {
        if commands(letter) {
            text.extend(letter.escape_default());
        } else {
            text.push(letter);
        }
    }
    text
}

/// When even stderr is closed, there is nobody left to tell.
fn to_stderr(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the pot is empty")]
    struct Empty(#[source] io::Error);

    impl Diagnose for Empty {
        fn hint(&self) -> Option<String> {
            Some("fill it".to_owned())
        }
        fn details(&self) -> Vec<String> {
            vec!["one\n  more".to_owned(), "two".to_owned()]
        }
    }

    #[test]
    fn a_failure_shows_details_causes_and_hint() {
        let failure = Failure::from(Empty(io::Error::other("a leak")));
        let plain = anstream::adapter::strip_str(&render(&failure)).to_string();
        assert_eq!(
            plain,
            "error: the pot is empty\n  one\n    more\n  two\n  caused by: a leak\n\nhint: fill it"
        );
    }

    #[test]
    fn a_quoted_file_cannot_command_the_terminal() {
        let told = "record `\u{1b}[2J\r\u{202e}\u{9b}x` of `ä.parquet`\nline two\there";
        let shown = "record `\\u{1b}[2J\\r\\u{202e}\\u{9b}x` of `ä.parquet`\nline two\\there";
        assert_eq!(harmless(told), shown);
    }
}
