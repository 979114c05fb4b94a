//! `heirloom data show`.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::look::{self, Loose};
use super::{tokens, visible};
use crate::cli::check::Output;
use crate::cli::exit::ExitStatus;
use crate::cli::printer::Printer;
use crate::dataset::chat::Document;
use crate::dataset::consent::{Counts, Reason};
use crate::dataset::error::DatasetError;
use crate::dataset::look::{Cut, Look, Place, Seen};
use crate::dataset::stats::split_name;
use crate::diagnose::{Diagnose, Failure};
use crate::recipe::lock::Split;
use crate::recipe::{Overlong, WriteError};

/// Rows that are shown unless somebody says how many.
const FEW: u64 = 3;

/// Most rows that are shown; they are held in memory.
const MAX_SHOWN: u64 = 10_000;

/// Rows drawn at random for each one that is wanted, before it is said that too many are
/// refused.
const DRAWS_PER_ROW: u64 = 64;

/// Print the tokens of some rows as the model will see them, trained and masked ones told apart.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Rows that the consent gate refuses are never shown: they are counted, and a row that was asked
for by its id says why it is refused. Colour only helps: trained tokens stand in ⟦ ⟧ everywhere.

Examples:
  heirloom data show recipes/quickstart.yaml
  heirloom data show recipes/quickstart.yaml --record b6c87583-d112-8a2e-a75d-79c5f8568057
  heirloom data show recipes/quickstart.yaml --split validation --random 2 --seed 7
  heirloom data show recipes/quickstart.yaml --set data.train_on=all --first 1 --format json
  heirloom data show data/catalogue/test.parquet --model data/seedling \\
      --purpose dpv:ServiceProvision")]
pub(super) struct Arguments {
    /// A recipe, or a Parquet file of rows (then with `--model` and `--purpose`)
    source: PathBuf,
    #[command(flatten)]
    chosen: Chosen,
    /// Seed of `--random`
    #[arg(long, default_value_t = 0, value_name = "S", requires = "random")]
    seed: u64,
    /// `train`, `validation` or the name of a suite
    #[arg(long, default_value = "train", value_name = "SPLIT")]
    split: String,
    #[command(flatten)]
    loose: Loose,
    /// Change a value of the recipe; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// How to print the rows
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

/// Which rows: at most one of these.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Chosen {
    /// The first N rows that may be used [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_SHOWN))]
    first: Option<u64>,
    /// N rows that may be used, drawn at random
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_SHOWN))]
    random: Option<u64>,
    /// Rows by their number in the split, counted from 0 over all its files
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    rows: Vec<u64>,
    /// A row by its record id; may be given again
    #[arg(long, value_name = "ID")]
    record: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum ShowError {
    #[error("no row of `{split}` has the record id {}", named(ids))]
    NoRecord { split: String, ids: Vec<String> },
    #[error("there is no row {number} in `{split}`: it has {rows} rows, counted from 0")]
    NoRow { split: String, number: u64, rows: u64 },
}

impl Diagnose for ShowError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoRecord { .. } => {
                "check the spelling, or look in another split with `--split`".to_owned()
            }
            Self::NoRow { .. } => "give smaller numbers".to_owned(),
        })
    }
}

/// `a`, `b`.
fn named(ids: &[String]) -> String {
    let ids = ids.iter().map(|id| format!("`{}`", visible::visible(id)));
    ids.collect::<Vec<_>>().join(", ")
}

/// A row that is shown.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) record_id: String,
    pub(super) file: PathBuf,
    pub(super) row: u64,
    pub(super) number: u64,
    pub(super) cut: Option<Cut>,
    pub(super) seen: Seen,
}

impl Row {
    fn new(place: &Place<'_>, mut seen: Seen) -> Self {
        let mut cut = None;
        if let Seen::Used(_, document) = &mut seen {
            cut = place.cut(document);
            if let Some(cut) = cut.filter(|cut| cut.how == Overlong::Split) {
                // As in training: nothing comes before the first token of a piece.
                let firsts = document.weights.iter_mut().enumerate();
                let firsts = firsts.filter(|(token, _)| cut.is_before(*token));
                firsts.for_each(|(_, weight)| *weight = 0.0);
            }
        }
        Self {
            record_id: place.record_id().to_owned(),
            file: place.path().to_owned(),
            row: place.row_in_file(),
            number: place.number,
            cut,
            seen,
        }
    }
}

/// The rows that are shown, and the verdicts on all that were looked at for them.
#[derive(Debug, Default)]
struct Found {
    rows: Vec<Row>,
    counts: Counts,
    missing: Vec<String>,
}

impl Found {
    /// Looks at a row; shows it if it is used, or whatever became of it.
    fn add(&mut self, place: &Place<'_>, whatever: bool) -> Result<(), DatasetError> {
        let seen = place.see()?;
        let verdict = if let Seen::Refused(reason) = seen { Err(reason) } else { Ok(()) };
        self.counts.count(verdict);
        if whatever || matches!(seen, Seen::Used(..) | Seen::Broken(_)) {
            self.rows.push(Row::new(place, seen));
        }
        Ok(())
    }

    fn has(&self, wanted: u64) -> bool {
        self.rows.len() as u64 >= wanted
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let Arguments { source, sets, loose, .. } = arguments;
    let look = look::of_source(source, sets, loose, printer)?;
    let split = look::split(&look, &arguments.split)?;
    let found = find(&look, &split, arguments)?;
    // Of rows that are not there, nothing is printed but the error.
    if found.missing.is_empty() || !found.rows.is_empty() {
        printer.data(&match arguments.format {
            Output::Text => text(&look, &found),
            Output::Json => json(&look, &split, &found).map_err(WriteError::Json)?,
        })?;
    }
    if found.missing.is_empty() {
        return Ok(ExitStatus::Success);
    }
    Err(ShowError::NoRecord { split: split_name(&split), ids: found.missing }.into())
}

fn find(look: &Look, split: &Split, arguments: &Arguments) -> Result<Found, Failure> {
    let chosen = &arguments.chosen;
    let mut found = Found::default();
    if let Some(wanted) = chosen.random {
        draw(look, split, wanted, arguments.seed, &mut found)?;
    } else if !chosen.rows.is_empty() {
        let rows = look.rows(split)?;
        if let Some(number) = chosen.rows.iter().find(|number| **number >= rows) {
            let (split, number) = (split_name(split), *number);
            return Err(ShowError::NoRow { split, number, rows }.into());
        }
        let numbers = chosen.rows.iter().copied().collect();
        look.some(split, &numbers, |place| found.add(&place, true))?;
    } else if !chosen.record.is_empty() {
        let ids: BTreeSet<&str> = chosen.record.iter().map(String::as_str).collect();
        let numbers = look.find(split, &ids)?;
        let missing = ids.iter().filter(|id| !numbers.contains_key(**id));
        found.missing = missing.map(|id| (*id).to_owned()).collect();
        look.some(split, &numbers.into_values().collect(), |place| found.add(&place, true))?;
    } else {
        let wanted = chosen.first.unwrap_or(FEW);
        look.each(split, |place| {
            found.add(&place, false)?;
            Ok(go_on(!found.has(wanted)))
        })?;
    }
    Ok(found)
}

fn go_on(yes: bool) -> ControlFlow<()> {
    if yes { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// Draws rows until so many may be used. Every row that may be used is as likely as the others.
fn draw(
    look: &Look,
    split: &Split,
    wanted: u64,
    seed: u64,
    found: &mut Found,
) -> Result<(), DatasetError> {
    let rows = look.rows(split)?;
    let most = wanted.saturating_mul(DRAWS_PER_ROW).min(rows);
    let mut drawn = BTreeSet::new();
    let mut draws = (0..).map(|draw| number(seed, draw, rows));
    while !found.has(wanted) && (drawn.len() as u64) < most {
        // As many at once as are still wanted, so that their row groups are read once.
        let lacking = wanted - found.rows.len() as u64;
        let mut batch = BTreeSet::new();
        while (batch.len() as u64) < lacking && (drawn.len() as u64) < most {
            let next = draws.next().unwrap_or_default();
            if drawn.insert(next) {
                batch.insert(next);
            }
        }
        look.some(split, &batch, |place| found.add(&place, false))?;
    }
    found.rows.sort_by_key(|row| row.number);
    Ok(())
}

/// A number below `rows`, from a seed.
fn number(seed: u64, draw: u64, rows: u64) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(draw.to_le_bytes());
    let digest: [u8; 32] = digest.finalize().into();
    let word = digest.iter().take(8).fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    // The bias is below 2^-24 for a million million rows.
    ((u128::from(word) * u128::from(rows)) >> 64) as u64
}

fn text(look: &Look, found: &Found) -> String {
    let mut parts = Vec::new();
    if found.rows.iter().any(|row| matches!(row.seen, Seen::Used(..))) {
        parts.push(tokens::legend());
    }
    parts.extend(found.rows.iter().map(|row| tokens::row(look, row)));
    let shown = found.rows.iter().filter(|row| !matches!(row.seen, Seen::Refused(_)));
    parts.push(tokens::summary(&found.counts, shown.count()));
    parts.join("\n\n")
}

/// What is printed for programs.
#[derive(Serialize)]
struct Answer<'a> {
    split: String,
    /// Verdicts on all rows that were looked at.
    looked_at: &'a Counts,
    rows: Vec<JsonRow<'a>>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    record_id: &'a str,
    file: &'a std::path::Path,
    row: u64,
    number: u64,
    /// `used`, `refused`, `elsewhere` or `broken`.
    verdict: &'static str,
    /// By which rule of the gate.
    reason: Option<Reason>,
    /// Why it cannot be tokenised.
    error: Option<String>,
    /// What becomes of it when it is longer than a window.
    overlong: Option<Overlong>,
    tokens: usize,
    trained_tokens: u64,
    ids: &'a [u32],
    pieces: Vec<&'a str>,
    weights: &'a [f32],
    /// What of it is judged, and how.
    verdicts: Vec<JsonVerdict>,
}

#[derive(Serialize)]
struct JsonVerdict {
    verdict: &'static str,
    /// From where to where.
    tokens: Range<usize>,
}

impl<'a> JsonRow<'a> {
    fn new(look: &'a Look, row: &'a Row) -> Self {
        let (document, verdict, reason, error) = match &row.seen {
            Seen::Used(_, document) => (Some(document), "used", None, None),
            Seen::Elsewhere => (None, "elsewhere", None, None),
            Seen::Refused(reason) => (None, "refused", Some(*reason), None),
            Seen::Broken(error) => (None, "broken", None, Some(tokens::because(error))),
        };
        let ids = document.map_or(&[][..], |document| &document.tokens);
        Self {
            record_id: &row.record_id,
            file: &row.file,
            row: row.row,
            number: row.number,
            verdict,
            reason,
            error,
            overlong: row.cut.map(|cut| cut.how),
            tokens: ids.len(),
            trained_tokens: document.map_or(0, |document| document.trained_tokens()),
            ids,
            pieces: ids.iter().map(|id| look.pieces().spelling(*id)).collect(),
            weights: document.map_or(&[][..], |document| &document.weights),
            verdicts: document.into_iter().flat_map(judged).collect(),
        }
    }
}

fn judged(document: &Document) -> impl Iterator<Item = JsonVerdict> + use<> {
    let parts = document.parts();
    parts.filter_map(|(tokens, verdict)| Some(JsonVerdict { verdict: verdict?.name(), tokens }))
}

fn json(look: &Look, split: &Split, found: &Found) -> Result<String, serde_json::Error> {
    visible::json(&Answer {
        split: split_name(split),
        looked_at: &found.counts,
        rows: found.rows.iter().map(|row| JsonRow::new(look, row)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_the_same_again() {
        let mut counts = [0; 10];
        for draw in 0..10_000 {
            counts[number(7, draw, 10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (880..1120).contains(count)), "{counts:?}");
        assert_eq!([number(7, 0, 1000), number(7, 1, 1000), number(8, 0, 1000)], [461, 440, 522]);
    }
}
