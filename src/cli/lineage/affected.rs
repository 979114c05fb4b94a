//! `heirloom lineage affected`.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;

use crate::cli::check::Output;
use crate::cli::data::subject;
use crate::cli::exit::ExitStatus;
use crate::cli::printer::Printer;
use crate::dataset::ledger::{Digest, Withdrawals};
use crate::diagnose::Failure;
use crate::job::ExportKind;
use crate::provenance::affected::{Affected, AffectedRun, Model, Place, Question, affected};
use crate::provenance::registry::Registry;
use crate::recipe::WriteError;

/// Say which runs, adapters and models used a record, and which were made on top of them.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("whose").required(true)),
    after_help = "\
Examples:
  heirloom lineage affected --record b6c87583-d112-8a2e-a75d-79c5f8568057
  heirloom lineage affected --ledger withdrawals.jsonl --search /archive/runs --format json

Exit status 0 means that the answer is complete, 1 that of some runs nobody can tell."
)]
pub(in crate::cli) struct Arguments {
    /// The record, by its `record_id`.
    #[arg(long, value_name = "ID", group = "whose", value_parser = NonEmptyStringValueParser::new())]
    record: Option<String>,
    /// The subject, by the 64 hexadecimal digits of `subject_ref`: every record of theirs.
    #[arg(long, value_name = "REF", group = "whose", value_parser = subject)]
    subject: Option<Digest>,
    /// Every record that an event of this ledger concerns.
    #[arg(long, value_name = "FILE", group = "whose")]
    ledger: Option<PathBuf>,
    /// Look for runs and releases below this folder, too; may be given again.
    #[arg(long, value_name = "DIR")]
    search: Vec<PathBuf>,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let withdrawals = arguments.ledger.iter().cloned().collect::<Vec<_>>();
    let withdrawals = Withdrawals::open(&withdrawals)?;
    let question = match (&arguments.record, arguments.subject) {
        (Some(record), _) => Question::Record(record),
        (None, Some(subject)) => Question::Subject(subject),
        (None, None) => Question::Ledger(&withdrawals),
    };
    let answer = affected(&Registry::of_user()?, &arguments.search, &question)?;
    match arguments.format {
        Output::Json => {
            let text = serde_json::to_string_pretty(&answer).map_err(WriteError::Json)?;
            printer.data(&text)?;
        }
        Output::Text => printer.data(&describe(&answer))?,
    }
    if answer.is_complete() {
        return Ok(ExitStatus::Success);
    }
    if answer.unknown.iter().any(|run| run.places.iter().all(|place| !place.there)) {
        printer.note("\nhint: name the folders that runs were moved to with `--search`");
    }
    Ok(ExitStatus::Failure)
}

fn describe(answer: &Affected) -> String {
    let mut lines = vec![format!(
        "{} affected, {} of which nobody can tell, {} clear",
        counted(answer.affected.len(), "run"),
        answer.unknown.len(),
        answer.clear.len()
    )];
    for run in &answer.affected {
        lines.push(format!("affected    run {}: {}", short(&run.run), because(run)));
        lines.extend(run.places.iter().map(|place| line("", place)));
        lines.extend(run.models.iter().flat_map(model));
    }
    for run in &answer.unknown {
        lines.push(format!("unknown     run {}: {}", short(&run.run), run.why));
        lines.extend(run.places.iter().map(|place| line("", place)));
        lines.extend(run.models.iter().flat_map(model));
    }
    lines.extend(answer.unread.iter().map(|what| format!("not read    {what}")));
    lines.join("\n")
}

fn because(run: &AffectedRun) -> String {
    let mut parts = Vec::new();
    match run.rows {
        Some(0) => {}
        Some(rows) => parts.push(format!("it used {}", counted(rows as usize, "row"))),
        None => parts.push("its own rows cannot be told".to_owned()),
    }
    if !run.base_from.is_empty() {
        let from: Vec<&str> = run.base_from.iter().map(|from| short(from)).collect();
        parts.push(format!("its base comes from run {}", from.join(", ")));
    }
    parts.join("; ")
}

fn model(model: &Model) -> Vec<String> {
    let kind = match model.kind {
        ExportKind::Adapter => "adapter",
        ExportKind::Merged => "model",
    };
    let what = match &model.release {
        Some(release) => format!("{kind}, release {}: ", short(release)),
        None => format!("{kind}: "),
    };
    model.places.iter().map(|place| line(&what, place)).collect()
}

fn line(what: &str, place: &Place) -> String {
    let gone = if place.there { "" } else { " (no longer there)" };
    format!("            {what}{}{gone}", place.path.display())
}

/// Enough of a digest to tell it from others.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
