//! `heirloom data withdraw`.

use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;

use crate::cli::check::quoted;
use crate::cli::exit::ExitStatus;
use crate::cli::printer::Printer;
use crate::dataset::consent::purposes;
use crate::dataset::ledger::{self, ANY, Digest, Kind, NewEvent, Scope};
use crate::diagnose::{Diagnose, Failure};
use crate::files::{read_bounded, sha256_of_file};

/// Shortest key of subjects, in bytes: a shorter one can be found by trying.
const MIN_KEY_BYTES: usize = 32;

/// Longest key of subjects that is read, in bytes.
const MAX_KEY_BYTES: u64 = 4096;

/// Write down that a consent has ended; runs that name the ledger leave the rows out.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("who").required(true)),
    after_help = "\
Examples:
  heirloom data withdraw --ledger withdrawals.jsonl --record b6c87583-d112-8a2e-a75d-79c5f8568057
  heirloom data withdraw --ledger withdrawals.jsonl --subject-id ada@example.org \\
      --key-file subject.key
  heirloom data withdraw --ledger withdrawals.jsonl --record 17 --scope purpose=dpv:Marketing \\
      --effective 2026-05-01T00:00:00Z --evidence letter.pdf

The ledger only grows: what is written down stays. It is begun where there is none; an empty file
is a ledger without events. `heirloom lineage affected` says what was made of the rows."
)]
pub(in crate::cli) struct Arguments {
    /// The ledger, such as `withdrawals.jsonl`.
    #[arg(long, value_name = "FILE")]
    ledger: PathBuf,
    /// The record, by its `record_id`.
    #[arg(long, value_name = "ID", group = "who")]
    record: Option<String>,
    /// The subject, by the 64 hexadecimal digits of `subject_ref`: every record of theirs.
    #[arg(long, value_name = "REF", group = "who", value_parser = subject)]
    subject: Option<Digest>,
    /// The subject, by the id that `subject_ref` was computed from.
    #[arg(long, value_name = "ID", group = "who", requires = "key_file")]
    subject_id: Option<String>,
    /// The key that `subject_ref` was computed with: all bytes of this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "subject"])]
    key_file: Option<PathBuf>,
    /// What happened.
    #[arg(long, value_enum, default_value = "withdrawn")]
    event: Kind,
    /// For what: `purpose=TERM` or `processing=TERM`, in DPV terms; may be given again.
    /// Without any, for everything.
    #[arg(long, value_name = "WHAT=TERM", value_parser = scope_term)]
    scope: Vec<ScopeTerm>,
    /// From when on it holds, such as `2026-05-01T00:00:00Z`; otherwise from now on.
    #[arg(long, value_name = "TIME", value_parser = time)]
    effective: Option<Timestamp>,
    /// A file that proves it; its SHA-256 is written down.
    #[arg(long, value_name = "FILE")]
    evidence: Option<PathBuf>,
}

/// One `--scope`.
#[derive(Clone, Debug)]
enum ScopeTerm {
    Purpose(String),
    Processing(String),
}

#[derive(Debug, thiserror::Error)]
enum WithdrawError {
    #[error("the key `{}` has {bytes} bytes, fewer than {MIN_KEY_BYTES}", path.display())]
    ShortKey { path: PathBuf, bytes: usize },
    #[error("the key of the subjects cannot be used")]
    Key(#[source] std::io::Error),
    #[error("the evidence cannot be read")]
    Evidence(#[source] std::io::Error),
}

impl Diagnose for WithdrawError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::ShortKey { .. } => {
                Some("name the file of the key that `subject_ref` was computed with".to_owned())
            }
            Self::Key(source) | Self::Evidence(source) => source.hint(),
        }
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let now = Timestamp::now();
    let evidence = arguments.evidence.as_deref().map(evidence).transpose()?;
    let event = NewEvent {
        record_id: arguments.record.clone(),
        subject_ref: subject_ref(arguments)?,
        event: arguments.event,
        scope: scope(&arguments.scope),
        effective_at: arguments.effective.unwrap_or(now),
        evidence_sha256: evidence,
    };
    let written = ledger::append(&arguments.ledger, event, now)?;
    printer.data(&written.line.event_id)?;

    let ledger = arguments.ledger.display();
    if written.created {
        printer.note(&format!("`{ledger}` was not there, and begins with this event"));
    }
    let line = &written.line;
    printer.note(&format!(
        "{} from {} on, in line {} of `{ledger}`",
        line.event, line.effective_at, line.seq
    ));
    let whom = match (&line.record_id, &line.subject_ref) {
        (Some(record), _) => format!("--record {}", quoted(record)),
        (None, subject) => format!("--subject {}", subject.unwrap_or_default()),
    };
    printer.note(&format!(
        "runs leave the rows out whose recipe has the ledger among `data.consent.ledgers`\n\n\
         next: heirloom lineage affected {whom}"
    ));
    Ok(ExitStatus::Success)
}

/// Whom it is about, where it is a subject.
fn subject_ref(arguments: &Arguments) -> Result<Option<Digest>, WithdrawError> {
    let (Some(id), Some(path)) = (&arguments.subject_id, &arguments.key_file) else {
        return Ok(arguments.subject);
    };
    let key = read_bounded(path, MAX_KEY_BYTES).map_err(WithdrawError::Key)?;
    if key.len() < MIN_KEY_BYTES {
        return Err(WithdrawError::ShortKey { path: path.clone(), bytes: key.len() });
    }
    let refused = |error| WithdrawError::Key(std::io::Error::other(error));
    let mut hmac = Hmac::<Sha256>::new_from_slice(&key).map_err(refused)?;
    hmac.update(id.as_bytes());
    Ok(Some(Digest(hmac.finalize().into_bytes().into())))
}

fn evidence(path: &Path) -> Result<Digest, WithdrawError> {
    let hex = sha256_of_file(path).map_err(WithdrawError::Evidence)?;
    let none = || WithdrawError::Evidence(std::io::Error::other("it has no SHA-256"));
    Digest::parse(&hex).ok_or_else(none)
}

/// What is not narrowed down is everything.
fn scope(terms: &[ScopeTerm]) -> Scope {
    let mut scope = Scope { purposes: Vec::new(), processing: Vec::new() };
    for term in terms {
        let (list, term) = match term {
            ScopeTerm::Purpose(term) => (&mut scope.purposes, term),
            ScopeTerm::Processing(term) => (&mut scope.processing, term),
        };
        if !list.contains(term) {
            list.push(term.clone());
        }
    }
    for list in [&mut scope.purposes, &mut scope.processing] {
        if list.is_empty() {
            list.push(ANY.to_owned());
        }
    }
    scope
}

/// A term that DPV does not have is a slip of the pen: it would count as all.
fn scope_term(text: &str) -> Result<ScopeTerm, String> {
    let (what, term) = text.split_once('=').unwrap_or_default();
    let (known, nearest) = match what {
        "purpose" => (purposes::is_known(term), purposes::nearest(term)),
        "processing" => (purposes::is_known_processing(term), purposes::nearest_processing(term)),
        _ => return Err("it must be `purpose=TERM` or `processing=TERM`".to_owned()),
    };
    if matches!(term, "dpv:Purpose" | "dpv:Processing") {
        return Err(format!(
            "`{term}` is every {what}: leave `--scope` out, or write `{what}={ANY}`"
        ));
    }
    if !known && term != ANY {
        let nearest = nearest.map(|nearest| format!("; did you mean `{nearest}`?"));
        return Err(format!("`{term}` is no {what} of DPV 2.3{}", nearest.unwrap_or_default()));
    }
    Ok(match what {
        "purpose" => ScopeTerm::Purpose(term.to_owned()),
        _ => ScopeTerm::Processing(term.to_owned()),
    })
}

/// Digits of either case: people copy them from anywhere.
pub(in crate::cli) fn subject(text: &str) -> Result<Digest, String> {
    Digest::parse(&text.to_ascii_lowercase())
        .ok_or_else(|| "it must be the 64 hexadecimal digits of `subject_ref`".to_owned())
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "it must be a time with its zone: `2026-05-01T00:00:00Z`".to_owned())
}
