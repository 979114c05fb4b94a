//! Batches of answers that are judged.
//!
//! Owns going through the model with them: the base, which is the model with its adapter
//! switched off, for no memory of its own; the model; and the gradient. An objective is a
//! function of the log-likelihoods of whole answers, so its gradient is that of the sum of
//! the tokens' negative log-likelihoods, each times the negative derivative by its answer:
//! the cross-entropy of supervised training with other weights, in the same memory.

use std::ops::Range;

use heirloom::dataset::stream::{MicroBatch, Verdict};
use heirloom::recipe::Objective;

use super::grade::{self, Answer, Grade};
use super::{Figures, Measure, Part};
use crate::error::{EngineError, Result};
use crate::model::Decoder;
use crate::train::loss::Predicting;

/// How many documents of a batch there is such a verdict on.
pub(super) fn count(batch: &MicroBatch, verdict: Verdict) -> f64 {
    batch.verdicts.iter().filter(|found| **found == verdict).count() as f64
}

/// Tokens of the better conversations of a batch but the first of each.
pub(super) fn learned(batch: &MicroBatch) -> f64 {
    let documents = batch.lengths.iter().zip(&batch.verdicts);
    let chosen = documents.filter(|(_, verdict)| **verdict == Verdict::Chosen);
    chosen.map(|(length, _)| f64::from(length.saturating_sub(1))).sum()
}

/// The tokens that are asked for, all of whose likelihoods are found in one pass.
struct Asked {
    /// Of the batch.
    places: Vec<usize>,
    /// The document of each, and whether it is of the answer.
    of: Vec<(usize, bool)>,
    documents: usize,
}

impl Asked {
    /// The tokens of answers; with `whole`, all of the better conversations.
    fn new(batch: &MicroBatch, whole: bool) -> Self {
        let mut asked = Self { places: Vec::new(), of: Vec::new(), documents: 0 };
        for (document, range) in ranges(batch).enumerate() {
            let chosen = batch.verdicts.get(document) == Some(&Verdict::Chosen);
            for place in range.skip(1) {
                let answer = batch.weights.get(place).is_some_and(|weight| *weight > 0.0);
                if answer || (whole && chosen) {
                    asked.places.push(place);
                    asked.of.push((document, answer));
                }
            }
            asked.documents += 1;
        }
        asked
    }

    /// Log-likelihoods and numbers of tokens of the answers.
    fn answers(&self, each: &[f64]) -> Vec<Answer> {
        let mut answers = vec![Answer::default(); self.documents];
        for ((document, _), nll) in self.of.iter().zip(each).filter(|((_, answer), _)| *answer) {
            if let Some(answer) = answers.get_mut(*document) {
                answer.logp -= nll;
                answer.tokens += 1.0;
            }
        }
        answers
    }

    /// As the model has them, without a graph.
    fn answered(&self, model: &Decoder, batch: &MicroBatch) -> Result<Vec<Answer>> {
        let each = tch::no_grad(|| Predicting::run(model, batch, &self.places, false)?.each(model));
        Ok(self.answers(&each?))
    }

    /// As the base has them.
    fn answered_by_base(&self, model: &mut Decoder, batch: &MicroBatch) -> Result<Vec<Answer>> {
        model.without_adapter(|base| self.answered(base, batch))?
    }
}

/// Where the documents of a batch lie.
fn ranges(batch: &MicroBatch) -> impl Iterator<Item = Range<usize>> + '_ {
    batch.lengths.iter().scan(0, |start, length| {
        let range = *start..*start + *length as usize;
        *start = range.end;
        Some(range)
    })
}

/// How much likelier than by the base answers to other questions are, on average over all
/// batches; at least 0.
pub(super) fn kl(model: &mut Decoder, batches: &[MicroBatch]) -> Result<f64> {
    let (mut sum, mut answers) = (0.0, 0.0);
    for batch in batches.iter().flat_map(|batch| &batch.mismatched) {
        let asked = Asked::new(batch, false);
        answers += asked.documents as f64;
        if asked.places.is_empty() {
            continue;
        }
        let base = asked.answered_by_base(model, batch)?;
        let moved = asked.answered(model, batch)?;
        sum += moved.iter().zip(base).map(|(now, then)| now.logp - then.logp).sum::<f64>();
    }
    Ok(if answers > 0.0 { (sum / answers).max(0.0) } else { 0.0 })
}

/// What an objective thinks of a batch.
#[derive(Default)]
struct Judgement {
    sum: f64,
    /// Derivatives of the sum by the log-likelihood of each document's answer.
    slopes: Vec<f64>,
    figures: Figures,
}

impl Judgement {
    fn add(&mut self, name: &'static str, value: f64) {
        self.figures.add(name, value, 1.0);
    }

    /// Takes in two answers.
    fn pair(&mut self, grade: Grade, logps: [f64; 2]) {
        let [chosen, rejected] = grade.rewards;
        self.sum += grade.loss;
        self.slopes.extend(grade.slopes);
        self.add("rewards/accuracies", f64::from(u8::from(chosen > rejected)));
        self.one(Verdict::Chosen, chosen, logps[0]);
        self.one(Verdict::Rejected, rejected, logps[1]);
    }

    fn one(&mut self, verdict: Verdict, reward: f64, logp: f64) {
        let (rewards, logps) = match verdict {
            Verdict::Chosen => ("rewards/chosen", "logps/chosen"),
            Verdict::Rejected => ("rewards/rejected", "logps/rejected"),
        };
        self.add(rewards, reward);
        self.add(logps, logp);
    }
}

impl Measure<'_> {
    /// What a batch of answers adds.
    pub(super) fn judged(&self, model: &mut Decoder, batch: &MicroBatch) -> Result<Option<Part>> {
        let whole = matches!(self.objective, Objective::Orpo(_));
        let asked = Asked::new(batch, whole);
        if asked.places.is_empty() {
            return Ok(None);
        }
        if batch.verdicts.len() != asked.documents {
            return Err(EngineError::Defect("documents without verdicts".to_owned()));
        }
        // First: while a graph holds the model, its adapter stays on.
        let base = match self.objective.has_reference() {
            true => asked.answered_by_base(model, batch)?,
            false => Vec::new(),
        };
        let predicting = Predicting::run(model, batch, &asked.places, self.train)?;
        let each = predicting.each(model)?;
        let mut answers = asked.answers(&each);
        for (answer, base) in answers.iter_mut().zip(base) {
            answer.reference = base.logp;
        }
        let mut judgement = self.judgement(&answers, &batch.verdicts)?;
        let mut weights = vec![0.0; asked.places.len()];
        for (weight, (document, answer)) in weights.iter_mut().zip(&asked.of) {
            let slope = judgement.slopes.get(*document).copied().unwrap_or_default();
            *weight = if *answer { -slope } else { 0.0 };
        }
        if whole {
            self.learn(batch, &asked, &each, &mut weights, &mut judgement);
        }
        let graph = match self.train {
            true => {
                let weights = weights.into_iter().map(|weight| weight as f32).collect();
                Some(predicting.sum(model, weights, 0.0)?.f_div_scalar(self.over)?)
            }
            false => None,
        };
        Ok(Some(Part { sum: judgement.sum, graph, figures: judgement.figures }))
    }

    fn judgement(&self, answers: &[Answer], verdicts: &[Verdict]) -> Result<Judgement> {
        let mut judgement = Judgement::default();
        let sums = |pair: [Answer; 2]| pair.map(|answer| answer.logp);
        let means = |pair: [Answer; 2]| pair.map(|answer| answer.logp / answer.tokens.max(1.0));
        match self.objective {
            Objective::Supervised | Objective::Distillation(_) => {}
            Objective::Dpo(dpo) => {
                for pair in pairs(answers, verdicts)? {
                    judgement.pair(grade::dpo(dpo, pair), sums(pair));
                }
            }
            Objective::Simpo(simpo) => {
                for pair in pairs(answers, verdicts)? {
                    judgement.pair(grade::simpo(simpo, pair), means(pair));
                }
            }
            Objective::Orpo(orpo) => {
                for pair in pairs(answers, verdicts)? {
                    let (grade, log_odds) = grade::orpo(orpo, pair);
                    judgement.pair(grade, means(pair));
                    judgement.add("log_odds_chosen", log_odds);
                    judgement.add("log_odds_ratio", -grade.loss / orpo.beta);
                }
            }
            Objective::Kto(kto) => {
                for (answer, verdict) in answers.iter().zip(verdicts) {
                    let (loss, slope, reward) = grade::kto(kto, *answer, *verdict, self.kl);
                    judgement.sum += loss;
                    judgement.slopes.push(slope);
                    judgement.one(*verdict, reward, answer.logp);
                }
            }
        }
        Ok(judgement)
    }

    /// Adds the mean negative log-likelihood of the better conversations, question and answer,
    /// as ORPO in TRL has it. It is a mean over tokens, and the rest one over pairs.
    fn learn(
        &self,
        batch: &MicroBatch,
        asked: &Asked,
        each: &[f64],
        weights: &mut [f64],
        judgement: &mut Judgement,
    ) {
        let share = self.over / self.learned.max(1.0);
        for ((weight, nll), (document, _)) in weights.iter_mut().zip(each).zip(&asked.of) {
            if batch.verdicts.get(*document) == Some(&Verdict::Chosen) {
                *weight += share;
                judgement.sum += share * nll;
                judgement.figures.add("nll_loss", *nll, 1.0);
            }
        }
    }
}

/// Answers two by two, the better one first.
fn pairs(answers: &[Answer], verdicts: &[Verdict]) -> Result<Vec<[Answer; 2]>> {
    let apart = || EngineError::Defect("the answers of a preference came apart".to_owned());
    let pair = |(answers, verdicts): (&[Answer], &[Verdict])| match (answers, verdicts) {
        ([chosen, rejected], [Verdict::Chosen, Verdict::Rejected]) => Ok([*chosen, *rejected]),
        _ => Err(apart()),
    };
    answers.chunks(2).zip(verdicts.chunks(2)).map(pair).collect()
}
