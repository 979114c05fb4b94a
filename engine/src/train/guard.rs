//! What the loop remembers of its losses, and what it does about bad ones.
//!
//! Owns the judgement of a step (NaN, infinity, spikes) and of a validation (the best one, early
//! stopping), by the words of the recipe. Touches no tensor: skipping, rolling back and saving
//! are the loop's. The memory travels with each checkpoint, so that a resumed run judges alike.
//!
//! References: early stopping and the best checkpoint as Transformers' `EarlyStoppingCallback`
//! and `load_best_model_at_end`; leaving out the rows of a spike after arXiv 2204.02311,
//! section 5.1.

use heirloom::recipe::{OnBadStep, Train};
use heirloom::track::Cause;
use serde::{Deserialize, Serialize};

/// Bad steps in a row after which a run stops whatever its recipe says: it mends itself no more.
const MAX_BAD_STEPS: u64 = 10;

/// What was seen so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Losses of the last steps that were taken, the newest last; empty unless spikes are
    /// looked for.
    pub losses: Vec<f64>,
    /// Bad steps since the last one that was taken.
    pub bad_in_a_row: u64,
    /// The best validation.
    pub best: Option<Best>,
    /// Validations since then that were not better.
    pub not_better: u64,
    /// Whether the run is done before its last step.
    pub done_early: bool,
    /// The newest checkpoint that was due by the recipe: where a roll-back goes. A run that is
    /// stopped by a signal leaves others, which an undisturbed one does not have.
    pub anchor: Option<u64>,
}

/// The lowest validation loss, and the step at which it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// The step.
    pub step: u64,
    /// The loss.
    pub loss: f64,
}

/// A step that went wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bad {
    /// In which way.
    pub cause: Cause,
    /// The loss, or the norm of the gradient.
    pub value: f64,
    /// What is done.
    pub action: OnBadStep,
}

/// What a validation means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// It is the best so far.
    pub best: bool,
    /// The run is done.
    pub done: bool,
}

impl Seen {
    /// Judges a step by its loss and the norm of its gradient, and remembers it.
    pub fn judge(&mut self, train: &Train, loss: f64, grad_norm: f64) -> Option<Bad> {
        let bad = self.look(train, loss, grad_norm);
        match &bad {
            Some(_) => self.bad_in_a_row += 1,
            None => {
                self.bad_in_a_row = 0;
                self.remember(train, loss);
            }
        }
        bad.map(|bad| match self.bad_in_a_row {
            1..=MAX_BAD_STEPS => bad,
            _ => Bad { action: OnBadStep::Stop, ..bad },
        })
    }

    fn look(&self, train: &Train, loss: f64, grad_norm: f64) -> Option<Bad> {
        let action = train.on_non_finite;
        if !loss.is_finite() {
            return Some(Bad { cause: Cause::NonFiniteLoss, value: loss, action });
        }
        if !grad_norm.is_finite() {
            return Some(Bad { cause: Cause::NonFiniteGradient, value: grad_norm, action });
        }
        let spike = train.loss_spike.as_ref()?;
        let usual = median(&self.losses).filter(|_| self.losses.len() >= spike.window)?;
        let action = spike.action;
        (loss > spike.factor * usual).then_some(Bad {
            cause: Cause::LossSpike,
            value: loss,
            action,
        })
    }

    fn remember(&mut self, train: &Train, loss: f64) {
        let Some(spike) = &train.loss_spike else { return };
        self.losses.push(loss);
        let beyond = self.losses.len().saturating_sub(spike.window);
        self.losses.drain(..beyond);
    }

    /// Judges the validation loss of a step, and remembers it.
    pub fn validated(&mut self, train: &Train, step: u64, loss: f64) -> Verdict {
        let threshold = train.early_stopping.as_ref().map_or(0.0, |early| early.threshold);
        // As in Transformers: to be the best takes any difference, to wait on takes enough of one.
        let best = self.best.is_none_or(|best| loss < best.loss);
        let enough = self.best.is_none_or(|best| best.loss - loss > threshold);
        if loss.is_finite() && best {
            self.best = Some(Best { step, loss });
        }
        self.not_better = if loss.is_finite() && enough { 0 } else { self.not_better + 1 };
        self.done_early =
            train.early_stopping.as_ref().is_some_and(|early| self.not_better >= early.patience);
        Verdict { best: loss.is_finite() && best, done: self.done_early }
    }

    /// Steps whose checkpoints are kept besides the newest ones.
    pub fn kept(&self, train: &Train) -> Vec<u64> {
        let best = self.best.filter(|_| train.keep_best_checkpoint || train.load_best_at_end);
        best.map(|best| best.step).into_iter().chain(self.anchor).collect()
    }
}

/// The middle one of some finite numbers, or of two the upper; `None` where there are none.
fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use heirloom::recipe::{self, Recipe};

    use super::*;

    fn train(more: &str) -> Train {
        let text = format!(
            "heirloom: 1\nname: a\nbase: {{ model: b }}\nadapter: full\ndata:\n  purpose: \
             [dpv:ServiceProvision]\n  train: [{{ path: t.parquet, format: chat }}]\n  \
             validation: [{{ path: v.parquet, format: chat }}]\n  sequence_length: 64\ntrain:\n  \
             epochs: 1\n  tokens_per_step: 64\n  seed: 1\n  optimizer: {{ adamw: {{ lr: 1e-3 }} \
             }}\n{more}"
        );
        let Recipe { train, .. } =
            recipe::read::parse("r.yaml".as_ref(), &text, &[]).unwrap().recipe;
        train
    }

    #[test]
    fn what_is_no_number_is_never_taken() {
        let mut seen = Seen::default();
        for (loss, norm, cause) in [
            (f64::NAN, 1.0, Cause::NonFiniteLoss),
            (f64::INFINITY, f64::NAN, Cause::NonFiniteLoss),
            (1.0, f64::NAN, Cause::NonFiniteGradient),
            (1.0, f64::INFINITY, Cause::NonFiniteGradient),
        ] {
            let bad = seen.judge(&train(""), loss, norm).unwrap();
            assert_eq!((bad.cause, bad.action), (cause, OnBadStep::Stop));
            let skip = train("  on_non_finite: skip\n");
            assert_eq!(seen.clone().judge(&skip, loss, norm).unwrap().action, OnBadStep::Skip);
        }
        assert_eq!(seen.judge(&train(""), 1.0, 1.0), None);
        assert_eq!(seen.bad_in_a_row, 0);
    }

    #[test]
    fn a_spike_is_far_above_the_median_of_the_last_steps_that_were_taken() {
        let train = train("  loss_spike: { factor: 3.0, window: 4, action: roll-back }\n");
        let mut seen = Seen::default();
        // Too few steps to know what is usual.
        for loss in [9.0, 1.0, 1.1, 50.0] {
            assert_eq!(seen.judge(&train, loss, 1.0), None);
        }
        seen.losses = vec![9.0, 1.0, 1.2, 1.1];
        let bad = seen.judge(&train, 3.7, 1.0).unwrap();
        assert_eq!((bad.cause, bad.action), (Cause::LossSpike, OnBadStep::RollBack));
        assert_eq!(seen.losses, [9.0, 1.0, 1.2, 1.1], "a spike is nothing usual");
        assert_eq!(seen.judge(&train, 3.5, 1.0), None);
        assert_eq!(seen.losses, [1.0, 1.2, 1.1, 3.5], "only the window is kept");
    }

    #[test]
    fn a_run_that_mends_itself_no_more_is_stopped() {
        let train = train("  on_non_finite: skip\n");
        let mut seen = Seen::default();
        let actions: Vec<OnBadStep> =
            (0..12).map(|_| seen.judge(&train, f64::NAN, 1.0).unwrap().action).collect();
        assert_eq!(actions[..10], [OnBadStep::Skip; 10]);
        assert_eq!(actions[10], OnBadStep::Stop);
    }

    #[test]
    fn early_stopping_waits_as_long_as_transformers_does() {
        let train = train("  early_stopping: { patience: 2, threshold: 0.1 }\n");
        let mut seen = Seen::default();
        let verdicts: Vec<(bool, bool)> = [3.0, 2.0, 1.95, f64::NAN, 1.0]
            .into_iter()
            .enumerate()
            .map(|(step, loss)| seen.validated(&train, step as u64, loss))
            .map(|verdict| (verdict.best, verdict.done))
            .collect();
        // The third is better by too little, the fourth is nothing.
        let expected = [(true, false), (true, false), (true, false), (false, true), (true, false)];
        assert_eq!(verdicts, expected);
        assert_eq!(seen.best, Some(Best { step: 4, loss: 1.0 }));
    }

    #[test]
    fn the_best_checkpoint_and_that_of_a_roll_back_are_kept() {
        let mut seen = Seen { anchor: Some(6), ..Seen::default() };
        seen.validated(&train(""), 4, 1.0);
        assert_eq!(seen.kept(&train("")), [6]);
        assert_eq!(seen.kept(&train("  keep_best_checkpoint: true\n")), [4, 6]);
        assert_eq!(seen.kept(&train("  load_best_at_end: true\n")), [4, 6]);
    }
}
