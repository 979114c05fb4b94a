//! `heirloom data consent`.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::check::Output;
use crate::cli::exit::ExitStatus;
use crate::cli::printer::Printer;
use crate::dataset::consent::{self, ConsentRow, Counts, Dataset};
use crate::dataset::gate::Gate;
use crate::dataset::source::{self, SourceFile};
use crate::diagnose::{Diagnose, Failure};
use crate::recipe::plan::ask;
use crate::recipe::{self, WriteError};

/// Say which rows a recipe may use, and why, without training.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  heirloom data consent 'data/catalogue/train-*.parquet' --recipe recipes/quickstart.yaml
  heirloom data consent data/catalogue/test.parquet --recipe recipes/quickstart.yaml --format json
  heirloom data consent data/catalogue/test.parquet --recipe recipes/quickstart.yaml \\
      --at 2098-12-31T00:00:00Z --explain 06230c26-4e03-8bee-b537-5d378862106e

Only the consent columns are read, never what the rows say.")]
pub(in crate::cli) struct Arguments {
    /// A Parquet file, a glob of them, or an address.
    path: String,
    /// The recipe that asks: its purpose, processing, `max_hours` and ledgers.
    #[arg(long)]
    recipe: PathBuf,
    /// Change a value of the recipe; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The start of the run that is asked about, such as `2027-01-01T00:00:00Z` [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// Say of one row, by its `record_id`, which rule decides about it.
    #[arg(long, value_name = "ID")]
    explain: Option<String>,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

#[derive(Debug, thiserror::Error)]
enum ConsentCommandError {
    #[error("no row of `{pattern}` has the `record_id` `{}`", id.escape_debug())]
    NoRecord { pattern: String, id: String, rows: u64 },
}

impl Diagnose for ConsentCommandError {
    fn hint(&self) -> Option<String> {
        let Self::NoRecord { rows, .. } = self;
        Some(format!(
            "an id is given whole, with its upper and lower case; {rows} rows were looked at"
        ))
    }
}

/// What is said of one row.
#[derive(Debug, Serialize)]
struct Explained {
    path: PathBuf,
    record_id: String,
    used: bool,
    reason: Option<consent::Reason>,
    why: String,
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let recipe = recipe::read(&arguments.recipe, &arguments.sets)?.recipe;
    let ask = ask(&recipe.data, arguments.at.unwrap_or_else(Timestamp::now));
    let ledgers = &recipe.data.consent.ledgers;
    let gate = Gate::open(ask, ledgers)?;
    let mut files = Vec::new();
    for path in source::resolve(&arguments.path)? {
        let file = SourceFile::open(&path)?;
        gate.check(&path, file.defaults())?;
        files.push(file);
    }
    match &arguments.explain {
        Some(id) => print_explained(arguments, &explain(arguments, &files, id, &gate)?, printer),
        None => print_counts(arguments, &count(&files, &gate)?, printer),
    }
}

fn count(files: &[SourceFile], gate: &Gate) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    for file in files {
        counts.add(&gate.count(file)?);
    }
    Ok(counts)
}

fn explain(
    arguments: &Arguments,
    files: &[SourceFile],
    id: &str,
    gate: &Gate,
) -> Result<Vec<Explained>, Failure> {
    let (ask, ledger) = (gate.ask(), gate.withdrawals());
    let mut all = Vec::new();
    for file in files {
        let about = |row: &ConsentRow<'_>, subject: Option<&_>, dataset: &Dataset| {
            let event = ledger.find(id, subject, ask);
            let said = gate.in_ledger(id, subject);
            let mut why = consent::explain(row, ask, dataset, said);
            if let Some(event) = event {
                let (seq, path) = (event.seq, ledger.ledger(event).display());
                let (kind, at) = (event.kind, event.effective_at);
                why = format!("{why} It is line {seq} of `{path}`: {kind}, in effect from {at}.");
            }
            let verdict = consent::judge(row, ask, dataset, said);
            Explained {
                path: file.path().to_owned(),
                record_id: id.to_owned(),
                used: verdict.is_ok(),
                reason: verdict.err(),
                why,
            }
        };
        all.extend(consent::find(file, id, about)?);
    }
    if all.is_empty() {
        let rows = files.iter().flat_map(|file| file.group_rows()).sum();
        let (pattern, id) = (arguments.path.clone(), id.to_owned());
        return Err(ConsentCommandError::NoRecord { pattern, id, rows }.into());
    }
    Ok(all)
}

fn print_explained(
    arguments: &Arguments,
    rows: &[Explained],
    printer: Printer,
) -> Result<ExitStatus, Failure> {
    match arguments.format {
        Output::Json => printer.data(&json(&rows)?)?,
        Output::Text => {
            for row in rows {
                printer.data(&format!("{}: {}", row.path.display(), row.why))?;
            }
        }
    }
    Ok(ExitStatus::Success)
}

fn print_counts(
    arguments: &Arguments,
    counts: &Counts,
    printer: Printer,
) -> Result<ExitStatus, Failure> {
    if arguments.format == Output::Json {
        printer.data(&json(counts)?)?;
        return Ok(ExitStatus::Success);
    }
    let mut rows = vec![["used".to_owned(), counts.used.to_string()]];
    for (reason, number) in &counts.excluded {
        rows.push([format!("left out: {}", reason.key()), number.to_string()]);
    }
    rows.push(["seen".to_owned(), counts.seen.to_string()]);
    printer.table(["rows", "number"], &rows)?;
    Ok(ExitStatus::Success)
}

fn json(value: &impl Serialize) -> Result<String, WriteError> {
    serde_json::to_string_pretty(value).map_err(WriteError::Json)
}
