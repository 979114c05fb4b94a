//! The eval room: suites, their metrics, baselines and gates.
//!
//! Owns measuring a suite (held-out loss and exact match of greedily generated answers),
//! the [`perplexity`] of a text, and judging gates. Rows and text come from
//! `heirloom::dataset`.

pub mod perplexity;

use heirloom::dataset::chat::{ChatEncoder, Document};
use heirloom::dataset::evaluation::EvaluationRow;
use heirloom::dataset::stream::{MicroBatch, mismatched};
use heirloom::diagnose::Failure;
use heirloom::recipe::Gate;
use heirloom::run::{EvalReport, Scores};

use crate::error::{EngineError, Result};
use crate::generate;
use crate::model::Decoder;
use crate::train;

/// Tokens of a suite that are scored in one forward pass: whoever measures it gets the same
/// digits, and less memory is taken than by a step of training.
const SUITE_TOKENS: usize = 2048;

/// What a model made of a suite.
#[derive(Debug)]
pub struct Measured {
    /// The numbers.
    pub scores: Scores,
    /// The answers, by row.
    pub answers: Vec<String>,
}

/// Scores a model on rows; `tick` is told of every row that is answered.
///
/// An answer matches when it equals the row's last assistant turn, white space at both
/// ends aside.
pub fn measure(
    model: &Decoder,
    encoder: &ChatEncoder,
    rows: &[EvaluationRow],
    max_new_tokens: usize,
    tick: impl FnMut(usize),
) -> Result<Measured, Failure> {
    let documents = rows.iter().map(|row| &row.document);
    let (loss, tokens) = train::mean_nll(model, &batches(documents, SUITE_TOKENS))?;
    let prompts: Vec<Vec<u32>> =
        rows.iter().map(|row| encoder.prompt(&row.prompt)).collect::<Result<_, _>>()?;
    let stops = encoder.stop_ids();
    let generated = generate::greedy(model, &prompts, stops, max_new_tokens, tick)?;
    let answers: Vec<String> =
        generated.iter().map(|tokens| encoder.decode(tokens)).collect::<Result<_, _>>()?;
    let matches =
        answers.iter().zip(rows).filter(|(answer, row)| answer.trim() == row.reference.trim());
    let exact_match = matches.count() as f64 / rows.len().max(1) as f64;
    Ok(Measured { scores: Scores { exact_match, loss, tokens }, answers })
}

/// Rows as micro-batches for measuring their loss, of at most so many tokens; a longer row is
/// one of its own.
pub fn batches<'d>(
    documents: impl IntoIterator<Item = &'d Document>,
    batch_tokens: usize,
) -> Vec<MicroBatch> {
    let documents: Vec<&Document> = documents.into_iter().collect();
    let longest = documents.iter().map(|document| document.longest()).max().unwrap_or_default();
    let mut others = mismatched(documents.iter().copied(), longest).into_iter();
    let mut batches: Vec<MicroBatch> = Vec::new();
    for document in documents {
        let fits = |last: &MicroBatch| last.tokens.len() + document.tokens.len() <= batch_tokens;
        if !batches.last().is_some_and(fits) {
            batches.push(MicroBatch::default());
        }
        let Some(last) = batches.last_mut() else { continue };
        last.push(document);
        if let Some(other) = others.next() {
            last.push_mismatched(&other, batch_tokens);
        }
    }
    batches
}

/// The first gate that does not hold. A value that is no number holds nothing.
pub fn check_gates(gates: &[Gate], reports: &[EvalReport]) -> Result<()> {
    for gate in gates {
        let Some((suite, metric)) = gate.metric.split_once('/') else { continue };
        let Some(report) = reports.iter().find(|report| report.suite == suite) else { continue };
        let of = |scores: &Scores| if metric == "loss" { scores.loss } else { scores.exact_match };
        let value = of(&report.target);
        let fail =
            |wanted: String| Err(EngineError::Gate { metric: gate.metric.clone(), value, wanted });
        if let Some(least) = gate.at_least.filter(|least| value.is_nan() || value < *least) {
            return fail(format!("at least {least}"));
        }
        if let Some(most) = gate.at_most.filter(|most| value.is_nan() || value > *most) {
            return fail(format!("at most {most}"));
        }
        if let Some(baseline) = report.baseline.as_ref().filter(|_| gate.at_least_baseline) {
            let baseline = of(baseline);
            // A loss is better when it is less.
            let holds = if metric == "loss" { value <= baseline } else { value >= baseline };
            if !holds {
                return fail(format!("no worse than the base model's {baseline:.4}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(exact_match: f64, loss: f64, baseline: f64) -> EvalReport {
        let scores = |exact_match, loss| Scores { exact_match, loss, tokens: 1 };
        let (target, baseline) = (scores(exact_match, loss), Some(scores(baseline, baseline)));
        EvalReport { suite: "s".to_owned(), rows: 1, target, baseline, samples: Vec::new() }
    }

    fn gate(metric: &str) -> Gate {
        let metric = format!("s/{metric}");
        Gate { metric, at_least_baseline: false, at_least: None, at_most: None }
    }

    #[test]
    fn a_gate_holds_only_what_it_asks_for() {
        let least = Gate { at_least: Some(0.9), ..gate("exact_match") };
        let most = Gate { at_most: Some(0.1), ..gate("loss") };
        let accuracy = Gate { at_least_baseline: true, ..gate("exact_match") };
        let loss = Gate { at_least_baseline: true, ..gate("loss") };
        let holds = |gate: &Gate, report: EvalReport| {
            check_gates(std::slice::from_ref(gate), &[report]).is_ok()
        };
        assert!(holds(&least, report(0.9, 0.0, 0.5)) && !holds(&least, report(0.89, 0.0, 0.5)));
        assert!(holds(&most, report(0.0, 0.1, 0.5)) && !holds(&most, report(0.0, 0.11, 0.5)));
        assert!(
            holds(&accuracy, report(0.5, 0.0, 0.5)) && !holds(&accuracy, report(0.4, 0.0, 0.5))
        );
        assert!(holds(&loss, report(0.0, 0.5, 0.5)) && !holds(&loss, report(0.0, 0.6, 0.5)));
    }

    #[test]
    fn a_value_that_is_no_number_holds_nothing() {
        let gates = [
            Gate { at_least: Some(0.0), ..gate("loss") },
            Gate { at_most: Some(1e9), ..gate("loss") },
            Gate { at_least_baseline: true, ..gate("loss") },
        ];
        for gate in gates {
            assert!(check_gates(&[gate], &[report(0.0, f64::NAN, 0.5)]).is_err());
        }
    }
}
