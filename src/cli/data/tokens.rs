//! The tokens of a row as text.
//!
//! What is trained stands between marks that survive copying and a terminal without colour;
//! colour only repeats them.

use std::fmt::Write as _;

use owo_colors::{OwoColorize as _, Style};

use super::show::Row;
use super::visible::{self, BETWEEN, CUT, LINE_FEED, PART, SPECIAL, TRAINED, visible};
use super::words::{plural, verdicts};
use crate::cli::check::grouped;
use crate::dataset::chat::Document;
use crate::dataset::consent::Counts;
use crate::dataset::error::DatasetError;
use crate::dataset::look::{Cut, Look, Part, Pieces, Seen};
use crate::diagnose::Diagnose as _;
use crate::recipe::Overlong;

/// Before every line of a row.
const INDENT: &str = "  ";

/// What the signs mean.
pub(super) fn legend() -> String {
    let ([open, close], [special, end]) = (TRAINED, SPECIAL);
    let trained = format!("{open}trained{close}");
    let special = format!("{special}special token{end}");
    format!(
        "{}  {}  {}  {BETWEEN} between tokens  {PART} part of a character  {LINE_FEED} line feed  \
         {CUT} end of a window",
        trained.style(Kind::Trained.style()),
        "masked".style(Kind::Masked.style()),
        special.style(Kind::Special.style()),
    )
}

/// A row: who it is, what becomes of it, its tokens.
pub(super) fn row(look: &Look, row: &Row) -> String {
    let id = visible(&row.record_id);
    let mut text = format!("{} ", id.bold());
    // Writing to a string cannot fail.
    let _ = write!(text, "(row {} of {})", row.row, visible(&row.file.to_string_lossy()));
    match &row.seen {
        Seen::Refused(reason) => {
            let refused = format!("the consent gate refuses it: {reason}");
            let _ = write!(text, "\n{INDENT}{}", refused.yellow());
        }
        Seen::Broken(error) => {
            let broken = format!("may be used and cannot be tokenised: {}", because(error));
            let _ = write!(text, "\n{INDENT}{}", visible(&broken).red());
            if let Some(hint) = error.hint() {
                let _ = write!(text, "\n{INDENT}hint: {}", visible(&hint));
            }
        }
        Seen::Elsewhere => {
            let _ = write!(text, "\n{INDENT}on the other side of `data.validation_split`");
        }
        Seen::Used(_, document) => {
            let _ = write!(text, "\n{INDENT}{}", sizes(row.cut, document));
            for (part, verdict) in document.parts() {
                if let Some(verdict) = verdict {
                    let _ = write!(text, "\n{INDENT}{}:", verdict.name().bold());
                }
                let part = document.part(part);
                let _ = write!(text, "\n{INDENT}{}", tokens(look.pieces(), &part, row.cut));
            }
        }
    }
    text
}

/// Why a row cannot be tokenised, without saying again which row it is.
pub(super) fn because(error: &DatasetError) -> String {
    match error {
        DatasetError::Row { source, .. } => source.to_string(),
        DatasetError::Format { source, .. } => source.to_string(),
        error => error.to_string(),
    }
}

/// `61 tokens, 24 trained; cut into 2 windows of 32`
fn sizes(cut: Option<Cut>, document: &Document) -> String {
    let tokens = plural(document.tokens.len() as u64, "token");
    let text = format!("{tokens}, {} trained", grouped(document.trained_tokens()));
    match cut {
        Some(cut) => format!("{text}; {}", fate(cut).yellow()),
        None => text,
    }
}

fn fate(cut: Cut) -> String {
    let Cut { how, window, pieces, left_out, lost } = cut;
    let (window, lost) = (grouped(window as u64), grouped(lost));
    match how {
        Overlong::Refuse => {
            format!("longer than a window of {window}, so that a run is refused")
        }
        Overlong::Drop => format!("longer than a window of {window}, so that it is left out"),
        Overlong::Truncate if pieces == 0 => {
            format!("left out: nothing in its first {window} tokens is trained")
        }
        Overlong::Truncate => {
            format!("cut off after {window} tokens, with {lost} trained ones beyond")
        }
        Overlong::Split => {
            let text = format!("cut into windows of {window}: {pieces} trained on");
            if left_out == 0 {
                return text;
            }
            format!("{text}, {left_out} left out, in which nothing is trained")
        }
    }
}

/// What a piece of text is, and so its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Masked,
    Trained,
    Special,
    TrainedSpecial,
    Sign,
    Escape,
}

impl Kind {
    fn style(self) -> Style {
        let plain = Style::new();
        match self {
            Self::Masked => plain,
            Self::Trained => plain.green().bold(),
            Self::Special => plain.magenta(),
            Self::TrainedSpecial => plain.magenta().bold(),
            Self::Sign => plain.dimmed(),
            Self::Escape => plain.yellow(),
        }
    }
}

/// Text in colours, with as few changes of colour as there are.
struct Painter {
    text: String,
    run: String,
    kind: Kind,
}

impl Painter {
    fn new() -> Self {
        Self { text: String::new(), run: String::new(), kind: Kind::Masked }
    }

    /// The end of the text, to write more of a kind.
    fn with(&mut self, kind: Kind) -> &mut String {
        if kind != self.kind {
            self.flush();
            self.kind = kind;
        }
        &mut self.run
    }

    fn flush(&mut self) {
        let run = std::mem::take(&mut self.run);
        if self.kind == Kind::Masked {
            self.text.push_str(&run);
        } else if !run.is_empty() {
            let _ = write!(self.text, "{}", run.style(self.kind.style()));
        }
    }

    fn finish(mut self) -> String {
        self.flush();
        self.text
    }
}

/// All tokens of a document, marked.
fn tokens(pieces: &Pieces, document: &Document, cut: Option<Cut>) -> String {
    let mut parts: Vec<Vec<Part<'_>>> = vec![Vec::new(); document.tokens.len()];
    pieces.visit(&document.tokens, |token, part| {
        parts.get_mut(token).into_iter().for_each(|parts| parts.push(part));
    });
    let mut painter = Painter::new();
    let mut before = Before { weight: 0.0, special: true, line_feed: false };
    for (token, (parts, weight)) in parts.iter().zip(&document.weights).enumerate() {
        let special = matches!(parts.first(), Some(Part::Special(_)));
        if before.weight != *weight {
            close(&mut painter, before.weight);
        }
        if std::mem::take(&mut before.line_feed) {
            painter.with(Kind::Masked).push_str(&format!("\n{INDENT}"));
        }
        if cut.is_some_and(|cut| cut.is_before(token)) {
            painter.with(Kind::Escape).push(CUT);
        }
        if before.weight != *weight {
            open(&mut painter, *weight);
        } else if !special && !before.special {
            painter.with(Kind::Sign).push(BETWEEN);
        }
        before.special = special;
        before.weight = *weight;
        before.line_feed = paint(&mut painter, parts, *weight > 0.0);
    }
    close(&mut painter, before.weight);
    painter.finish()
}

/// The token before.
struct Before {
    weight: f32,
    special: bool,
    /// It ended in a line feed: what comes next begins a line.
    line_feed: bool,
}

fn open(painter: &mut Painter, weight: f32) {
    if weight > 0.0 {
        painter.with(Kind::Trained).push(TRAINED[0]);
    }
}

fn close(painter: &mut Painter, weight: f32) {
    if weight > 0.0 {
        let text = painter.with(Kind::Trained);
        text.push(TRAINED[1]);
        if weight != 1.0 {
            let _ = write!(text, "×{weight}");
        }
    }
}

/// Writes what a token stands for; says whether a line feed is its last character.
fn paint(painter: &mut Painter, parts: &[Part<'_>], trained: bool) -> bool {
    let (said, special) = match trained {
        true => (Kind::Trained, Kind::TrainedSpecial),
        false => (Kind::Masked, Kind::Special),
    };
    let mut line_feed = false;
    for (index, part) in parts.iter().enumerate() {
        if std::mem::take(&mut line_feed) {
            painter.with(Kind::Masked).push_str(&format!("\n{INDENT}"));
        }
        match part {
            Part::Special(word) => {
                let text = painter.with(special);
                text.push(SPECIAL[0]);
                word.chars().for_each(|letter| visible::push(text, letter, false));
                text.push(SPECIAL[1]);
            }
            Part::Char('\n') => {
                painter.with(Kind::Sign).push(LINE_FEED);
                line_feed = true;
            }
            Part::Char(letter) => {
                let kind = if visible::is_escaped(*letter) { Kind::Escape } else { said };
                visible::push(painter.with(kind), *letter, index == 0);
            }
            Part::Begun => painter.with(Kind::Sign).push(PART),
            Part::Byte(byte) => {
                let _ = write!(painter.with(Kind::Escape), "\\x{byte:02x}");
            }
        }
    }
    line_feed
}

/// How many rows are shown, and how many were refused on the way.
pub(super) fn summary(counts: &Counts, shown: usize) -> String {
    let refused = counts.seen - counts.used;
    let mut text = format!("{} shown", plural(shown as u64, "row"));
    if refused > 0 {
        let looked = plural(counts.seen, "row");
        let reasons = verdicts(counts);
        let _ = write!(
            text,
            "; of {looked} looked at, the consent gate refused {}: {reasons}",
            grouped(refused)
        );
    }
    text
}
