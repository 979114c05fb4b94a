//! `heirloom lineage prove`.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;

use crate::cli::exit::ExitStatus;
use crate::cli::printer::Printer;
use crate::diagnose::{Diagnose, Failure};
use crate::files::write_privately_with;
use crate::provenance::tree::{self, Evidence, IndexRow, Proof};
use crate::recipe::WriteError;
use crate::run::RunFolder;

/// Prove that a run used a record, or that it did not.
///
/// An inclusion proof holds the salt and the digest of the record's content, and the path to
/// the root; an exclusion proof the two leaves on either side of where the record would be.
/// To check either, the auditor needs the run's `record_key` too, or, for an inclusion, the
/// data. Who holds the key can tell of any record whether the run used it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  heirloom lineage prove --record b6c87583-d112-8a2e-a75d-79c5f8568057 runs/quickstart
  heirloom lineage prove --record b6c87583-d112-8a2e-a75d-79c5f8568057 runs/quickstart \\
      -o proof.json --include-key")]
pub(in crate::cli) struct Arguments {
    /// A run folder with its private index of records.
    run: PathBuf,
    /// The record's id.
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    record: String,
    /// Where to write the proof; without it, it is printed.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Put the run's key into the proof.
    #[arg(long)]
    include_key: bool,
}

#[derive(Debug, thiserror::Error)]
enum ProveError {
    #[error("`{}` has no record tree", path.display())]
    NoTree { path: PathBuf },
}

impl Diagnose for ProveError {
    fn hint(&self) -> Option<String> {
        Some(
            "name a run folder that has its `record_tree.json` and `record_index.parquet`"
                .to_owned(),
        )
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let run = RunFolder::new(&arguments.run);
    if [run.record_tree(), run.record_index(), run.record_key()].iter().any(|path| !path.is_file())
    {
        return Err(ProveError::NoTree { path: arguments.run.clone() }.into());
    }
    let (proof, rows) = tree::prove(&run, &arguments.record, arguments.include_key)?;
    let text = serde_json::to_string_pretty(&proof).map_err(WriteError::Json)?;
    match &arguments.output {
        Some(path) => {
            // The salt in it lets anyone who guesses the text confirm the guess.
            write_privately_with(path, |file| writeln!(file, "{text}"))?;
        }
        None => printer.data(&text)?,
    }
    printer.note(&summary(&proof, &rows, &arguments.run));
    Ok(ExitStatus::Success)
}

fn summary(proof: &Proof, rows: &[IndexRow], run: &std::path::Path) -> String {
    let what = match &proof.proof {
        Evidence::Inclusion(leaves) if leaves.len() == 1 => "was used: one content".to_owned(),
        Evidence::Inclusion(leaves) => format!("was used: {} contents", leaves.len()),
        Evidence::Exclusion { .. } => match rows.iter().find_map(|row| row.reason.as_deref()) {
            Some(reason) => format!("was seen and not used: {reason}"),
            None => "was not seen".to_owned(),
        },
    };
    let holder = if proof.key.is_some() {
        "the proof holds the run's key: who has it can ask after any record".to_owned()
    } else {
        format!("to check it, the auditor needs `{}`", run.join("record_key").display())
    };
    format!("`{}` {what}\n{holder}", proof.record_id)
}
