//! What is learned: the seam between the loop and every objective.
//!
//! Owns what a batch adds to the loss of all batches that are measured together, as a number
//! and as a graph to be differentiated ([`Measure`]). A step's micro-batches are measured
//! together, so that how it is cut into them changes nothing; so are all validation rows. Does
//! not own the loss of tokens ([`super::loss`]) nor the arithmetic of objectives ([`grade`]).

pub mod grade;
mod judged;

use std::collections::BTreeMap;

use heirloom::dataset::stream::{MicroBatch, Verdict};
use heirloom::recipe::{Objective, RowsOf};
use tch::Tensor;

use super::distillation::Distillation;
use super::loss;
use crate::error::Result;
use crate::model::Decoder;

/// An objective over batches that are measured together.
#[derive(Debug)]
pub struct Measure<'r> {
    objective: &'r Objective,
    /// Who teaches, where the objective is to learn from a teacher.
    teacher: Option<&'r Distillation>,
    /// See `train.label_smoothing_factor`.
    smoothing: f64,
    /// Whether dropout is on, and a gradient is wanted.
    train: bool,
    /// What the sum over all batches is divided by: weights of tokens, or answers.
    over: f64,
    /// Tokens of the better conversations, which ORPO learns as they are.
    learned: f64,
    /// How far the model has moved from its base, which KTO asks first.
    kl: f64,
}

/// What a batch adds.
#[derive(Debug)]
pub struct Part {
    /// To the sum of the loss.
    pub sum: f64,
    /// A graph whose gradient is that of the mean; none where nothing is trained.
    pub graph: Option<Tensor>,
    /// To what is told of it.
    pub figures: Figures,
}

impl<'r> Measure<'r> {
    /// Looks at all batches; `train` turns dropout on and asks for a gradient.
    pub fn of(
        objective: &'r Objective,
        smoothing: f64,
        model: &mut Decoder,
        batches: &[MicroBatch],
        train: bool,
    ) -> Result<Self> {
        let chosen = batches.iter().map(|batch| judged::count(batch, Verdict::Chosen)).sum();
        let rejected: f64 =
            batches.iter().map(|batch| judged::count(batch, Verdict::Rejected)).sum();
        let over = match objective.rows() {
            RowsOf::Examples => batches.iter().map(MicroBatch::weight).sum(),
            RowsOf::Preferences => chosen,
            RowsOf::Verdicts => chosen + rejected,
        };
        let learned = batches.iter().map(judged::learned).sum();
        let kl = match objective {
            Objective::Kto(_) => judged::kl(model, batches)?,
            _ => 0.0,
        };
        Ok(Self { objective, teacher: None, smoothing, train, over, learned, kl })
    }

    /// With the teacher that the objective needs, if it needs one.
    pub fn taught_by(self, teacher: Option<&'r Distillation>) -> Self {
        Self { teacher, ..self }
    }

    /// What one of these batches adds; nothing where it has nothing to learn from.
    pub fn part(&self, model: &mut Decoder, batch: &MicroBatch) -> Result<Option<Part>> {
        match (self.objective.rows(), self.train) {
            (RowsOf::Examples, true) => self.token_by_token(model, batch),
            (RowsOf::Examples, false) => tch::no_grad(|| self.token_by_token(model, batch)),
            (_, true) => self.judged(model, batch),
            (_, false) => tch::no_grad(|| self.judged(model, batch)),
        }
    }

    /// The mean of what all parts add up to.
    pub fn mean(&self, sum: f64) -> f64 {
        if self.over > 0.0 { sum / self.over } else { 0.0 }
    }

    /// What is told of all parts, by name.
    pub fn told(&self, mut figures: Figures) -> BTreeMap<String, f64> {
        if matches!(self.objective, Objective::Kto(_)) && self.over > 0.0 {
            figures.add("kl", self.kl, 1.0);
        }
        figures.means()
    }

    fn token_by_token(&self, model: &Decoder, batch: &MicroBatch) -> Result<Option<Part>> {
        let sum = match self.teacher {
            Some(teacher) => teacher.sum(model, batch, self.train, self.smoothing)?,
            None => loss::sum(model, batch, self.train, self.smoothing)?,
        };
        let Some(sum) = sum else { return Ok(None) };
        let graph = if self.train { Some(sum.f_div_scalar(self.over)?) } else { None };
        Ok(Some(Part { sum: sum.f_double_value(&[])?, graph, figures: Figures::default() }))
    }
}

/// Sums with what they are divided by, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures(BTreeMap<&'static str, (f64, f64)>);

impl Figures {
    /// Adds to a sum, and to what it is divided by.
    pub fn add(&mut self, name: &'static str, sum: f64, over: f64) {
        let figure = self.0.entry(name).or_default();
        *figure = (figure.0 + sum, figure.1 + over);
    }

    /// Adds other sums.
    pub fn extend(&mut self, other: &Self) {
        other.0.iter().for_each(|(name, (sum, over))| self.add(name, *sum, *over));
    }

    /// What was divided, with the difference between the rewards of both kinds of answers.
    fn means(self) -> BTreeMap<String, f64> {
        let means = self.0.into_iter().filter(|(_, (_, over))| *over > 0.0);
        let mut means: BTreeMap<String, f64> =
            means.map(|(name, (sum, over))| (name.to_owned(), sum / over)).collect();
        let reward = |verdict: Verdict| means.get(&format!("rewards/{}", verdict.name())).copied();
        if let Some((chosen, rejected)) = reward(Verdict::Chosen).zip(reward(Verdict::Rejected)) {
            means.insert("rewards/margins".to_owned(), chosen - rejected);
        }
        means
    }
}
