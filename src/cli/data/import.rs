//! `heirloom data import`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::super::check::Output;
use super::super::exit::ExitStatus;
use super::super::printer::Printer;
use crate::dataset::import::{Import, Options, Outcome};
use crate::diagnose::{Diagnose, Failure};
use crate::recipe::{Format, WriteError};

/// Turn JSONL, CSV or Parquet into Parquet whose rows carry their consent.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is known of the rows' consent stands in a declaration, a YAML file: which columns say it,
which records, or a default with its basis. Nothing is taken for granted; without a declaration
there is no import. docs/guide/your-data.md shows how to write one.

Rows that cannot be used are set aside: a file names their lines and what is wrong with them.

Examples:
  heirloom data import letters.jsonl -o letters.parquet --consent consent.yaml
  heirloom data import 'dump/*.csv' -o faq.parquet --consent consent.yaml --format alpaca \\
      --columns instruction=question --columns output=answer
  heirloom data import train.parquet -o chats.parquet --consent consent.yaml --output-format json")]
pub(in super::super) struct Arguments {
    /// Files or globs: `.jsonl`, `.json`, `.csv`, `.parquet`
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<String>,
    /// The Parquet file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The declaration of consent, a YAML file
    #[arg(long, value_name = "FILE")]
    consent: PathBuf,
    /// Shape of the rows [default: told from the keys of the first rows]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The format's word for a column, and the column's own name; may be given again
    #[arg(long, value_name = "FIELD=COLUMN", num_args = 1.., value_parser = pair)]
    columns: Vec<(String, String)>,
    /// Where rows that are set aside are named [default: OUTPUT with `.rejects.jsonl`]
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Replace the output, if it is there
    #[arg(long)]
    force: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    output_format: Output,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair =
        text.split_once('=').filter(|(field, column)| !field.is_empty() && !column.is_empty());
    let pair = pair.map(|(field, column)| (field.to_owned(), column.to_owned()));
    pair.ok_or_else(|| "write FIELD=COLUMN, the format's word first".to_owned())
}

/// The environment cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`SOURCE_DATE_EPOCH` is `{found}`, not a number of seconds since 1970")]
struct EpochError {
    found: String,
}

impl Diagnose for EpochError {
    fn hint(&self) -> Option<String> {
        Some("unset it, or give it the time of the snapshot".to_owned())
    }
}

pub(super) fn run(arguments: Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let as_json = arguments.output_format == Output::Json;
    let is_told = arguments.format.is_some();
    let import = Import::prepare(Options {
        sources: arguments.sources,
        output: arguments.output,
        consent: arguments.consent,
        format: arguments.format,
        columns: arguments.columns.into_iter().collect(),
        rejects: arguments.rejects,
        force: arguments.force,
        now: now()?,
    })?;
    if !is_told {
        printer.note(&format!(
            "format: {}, by the keys of the first rows; `--format` says another",
            word(import.format)
        ));
    }
    let bar = printer.bytes(import.bytes, "importing");
    let outcome = import.run(&|behind| bar.set_position(behind));
    bar.finish_and_clear();
    let outcome = outcome?;
    if as_json {
        let answer = Answer { source_format: word(import.format), ..Answer::of(&outcome) };
        let json = serde_json::to_string_pretty(&answer).map_err(WriteError::Json)?;
        printer.data(&json)?;
    } else {
        table(&outcome, printer)?;
    }
    explain(&outcome, printer);
    Ok(ExitStatus::Success)
}

/// The instant of a snapshot that names none.
fn now() -> Result<Timestamp, EpochError> {
    let Some(found) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(Timestamp::now()) };
    let found = found.to_string_lossy().into_owned();
    let instant = found.trim().parse().ok().and_then(|epoch| Timestamp::from_second(epoch).ok());
    instant.ok_or(EpochError { found })
}

/// A format as it is typed.
fn word(format: Format) -> String {
    let value = clap::ValueEnum::to_possible_value(&format);
    value.map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn table(outcome: &Outcome, printer: Printer) -> Result<(), Failure> {
    let row =
        |what: &str, why: &str, rows: u64| [what.to_owned(), why.to_owned(), rows.to_string()];
    let mut lines = vec![row("imported", "", outcome.rows)];
    let statuses = outcome.statuses.iter();
    lines.extend(statuses.map(|(status, rows)| row("", status, *rows)));
    let rejected = outcome.rejected.values().sum();
    lines.push(row("set aside", "", rejected));
    let reasons = outcome.rejected.iter();
    lines.extend(reasons.map(|(reason, rows)| row("", reason, *rows)));
    Ok(printer.table(["rows", "", "number"], &lines)?)
}

/// What people should know beside the numbers.
fn explain(outcome: &Outcome, printer: Printer) {
    let rejected: u64 = outcome.rejected.values().sum();
    if rejected > 0 {
        printer.note(&format!(
            "\nwarning: {rejected} of {} rows were not imported\n  hint: `{}` names the line and \
             the reason of each",
            rejected + outcome.rows,
            outcome.rejects.display()
        ));
    }
    if outcome.without_end > 0 {
        printer.note(&format!(
            "\nwarning: {} rows name no end of their consent, and no run will use them\n  hint: \
             map `expires_at`, or say `expiry: endless` in the declaration if that is so",
            outcome.without_end
        ));
    }
    if outcome.without_subject > 0 {
        printer.note(&format!(
            "\nwarning: {} rows rest on consent and do not say whose: a subject who withdraws \
             will not be found in them\n  hint: map `subject` in the declaration",
            outcome.without_subject
        ));
    }
    if !outcome.left_aside.is_empty() {
        let names: Vec<String> =
            outcome.left_aside.iter().map(|name| format!("`{name}`")).collect();
        printer.note(&format!("\nnot taken over: {}", names.join(", ")));
    }
    let ledger = outcome.ledger.as_ref().map(|ledger| {
        format!(", and its ledger of withdrawals: `data.consent.ledgers: [{ledger}]`")
    });
    printer.note(&format!(
        "\nnext: name it in a recipe: `{{ path: {}, format: {} }}`{}",
        outcome.output.display(),
        word(outcome.format),
        ledger.unwrap_or_default()
    ));
}

/// What is printed for programs.
#[derive(Serialize)]
struct Answer<'a> {
    output: &'a std::path::Path,
    rejects: &'a std::path::Path,
    source_format: String,
    /// By which a recipe reads the output.
    format: String,
    rows: u64,
    statuses: &'a BTreeMap<&'static str, u64>,
    without_end: u64,
    without_subject: u64,
    rejected: &'a BTreeMap<&'static str, u64>,
    not_taken_over: Vec<&'a str>,
}

impl<'a> Answer<'a> {
    fn of(outcome: &'a Outcome) -> Self {
        Self {
            output: &outcome.output,
            rejects: &outcome.rejects,
            source_format: String::new(),
            format: word(outcome.format),
            rows: outcome.rows,
            statuses: &outcome.statuses,
            without_end: outcome.without_end,
            without_subject: outcome.without_subject,
            rejected: &outcome.rejected,
            not_taken_over: outcome.left_aside.iter().map(String::as_str).collect(),
        }
    }
}
