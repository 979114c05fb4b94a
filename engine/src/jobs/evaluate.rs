//! `heirloom eval`, and the evaluation at the end of a run.

use std::path::Path;
use std::sync::Arc;

use heirloom::cli::printer::{OutputError, Printer};
use heirloom::dataset::chat::ChatEncoder;
use heirloom::dataset::evaluation::{EvaluationRow, evaluation_rows};
use heirloom::dataset::gate::Gate;
use heirloom::dataset::spec::{SplitFile, suite_files};
use heirloom::diagnose::Failure;
use heirloom::files;
use heirloom::job::Evaluate;
use heirloom::recipe::Suite;
use heirloom::run::{EvalReport, Sample, Scores};

use crate::error::{EngineError, Result};
use crate::eval::{self, Measured};
use crate::model::Decoder;

/// Rows whose answers are kept in a report.
const SAMPLES: usize = 8;

/// Measures a suite on a model, and on its baseline.
pub(super) fn evaluate(job: &Evaluate, printer: Printer) -> Result<(), Failure> {
    let (model, encoder) = super::open(&job.target)?;
    let files = suite_files(&job.suite)?;
    let gate = Arc::new(Gate::open(job.gate.clone(), &job.ledgers)?);
    let rows = read(&files, &encoder, &gate)?;
    let target = measure(&model, &encoder, &job.suite, &rows, "measuring", printer)?;
    let baseline = match &job.baseline {
        None => None,
        Some(baseline) => {
            let (model, encoder) = super::open(baseline)?;
            let rows = read(&files, &encoder, &gate)?;
            Some(measure(&model, &encoder, &job.suite, &rows, "measuring baseline", printer)?)
        }
    };
    let mut report = assemble(&job.suite, &rows, target, baseline);
    if job.json {
        // Numbers only: standard output ends up in logs, and samples are text of rows.
        report.samples.clear();
        let text = serde_json::to_string_pretty(&report)
            .map_err(|source| EngineError::Json { path: job.suite.path.clone().into(), source })?;
        printer.data(&text)?;
    } else {
        print(&[report], printer)?;
    }
    Ok(())
}

/// The rows of a suite that may be used; none at all is an error.
pub(super) fn read(
    files: &[SplitFile],
    encoder: &ChatEncoder,
    gate: &Arc<Gate>,
) -> Result<Vec<EvaluationRow>, Failure> {
    Ok(evaluation_rows(files, encoder, gate)?.0)
}

/// Measures a suite on an adapted model and, `with_baseline`, on the base below it.
pub(super) fn report(
    model: &mut Decoder,
    encoder: &ChatEncoder,
    suite: &Suite,
    rows: &[EvaluationRow],
    with_baseline: bool,
    printer: Printer,
) -> Result<EvalReport, Failure> {
    let baseline = if with_baseline {
        Some(
            model
                .without_adapter(|base| measure(base, encoder, suite, rows, "base", printer))??,
        )
    } else {
        None
    };
    let target = measure(model, encoder, suite, rows, "adapted", printer)?;
    Ok(assemble(suite, rows, target, baseline))
}

fn measure(
    model: &Decoder,
    encoder: &ChatEncoder,
    suite: &Suite,
    rows: &[EvaluationRow],
    what: &str,
    printer: Printer,
) -> Result<Measured, Failure> {
    let label = format!("eval {}: {what}", suite.name);
    let bar = printer.bar(rows.len() as u64, &label);
    let tick = |rows: usize| bar.inc(rows as u64);
    let measured = eval::measure(model, encoder, rows, suite.max_new_tokens, tick)?;
    bar.finish_and_clear();
    Ok(measured)
}

fn assemble(
    suite: &Suite,
    rows: &[EvaluationRow],
    target: Measured,
    baseline: Option<Measured>,
) -> EvalReport {
    let samples = rows.iter().take(SAMPLES).zip(&target.answers).enumerate();
    let samples = samples.map(|(index, (row, answer))| Sample {
        record_id: row.record_id.clone(),
        prompt: row.asked(),
        reference: row.reference.clone(),
        baseline: baseline.as_ref().and_then(|measured| measured.answers.get(index).cloned()),
        target: answer.clone(),
    });
    EvalReport {
        suite: suite.name.clone(),
        rows: rows.len() as u64,
        samples: samples.collect(),
        target: target.scores,
        baseline: baseline.map(|measured| measured.scores),
    }
}

/// Writes `eval/SUITE.json`.
pub(super) fn write(path: &Path, report: &EvalReport) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let json = |source| EngineError::Json { path: path.to_owned(), source };
    let text = serde_json::to_string_pretty(report).map_err(json)? + "\n";
    Ok(files::write_atomically(path, text.as_bytes())?)
}

/// A table on standard output: base beside adapted.
pub(super) fn print(reports: &[EvalReport], printer: Printer) -> Result<(), OutputError> {
    let exact = |scores: &Scores| format!("{:.1} %", scores.exact_match * 100.0);
    let loss = |scores: &Scores| format!("{:.4}", scores.loss);
    let mut rows = Vec::new();
    for report in reports {
        let row = |name: &str, show: &dyn Fn(&Scores) -> String| {
            let baseline = report.baseline.as_ref().map_or("-".to_owned(), show);
            let rows = report.rows.to_string();
            [format!("{} {name}", report.suite), rows, baseline, show(&report.target)]
        };
        rows.push(row("exact match", &exact));
        rows.push(row("loss (nats per token)", &loss));
    }
    if rows.is_empty() {
        return Ok(());
    }
    printer.table(["held out", "rows", "base", "adapted"], &rows)
}
