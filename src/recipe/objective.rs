//! What a model is trained towards: the words of `objective`.
//!
//! Owns the settings of every objective, in the words and with the defaults of TRL, and what
//! rows each learns from. Does not own the arithmetic (`engine/src/train/objective`).

use serde::{Deserialize, Serialize};

use super::{Distillation, Format, Teacher};

/// What a model is trained towards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// What the rows say, token by token.
    #[default]
    Supervised,
    /// The better of two answers, by its log-likelihood over that of the base
    /// (arXiv 2305.18290), as TRL's `DPOTrainer`.
    Dpo(Dpo),
    /// The better of two answers, by its odds, and what it says (arXiv 2403.07691), as TRL's
    /// `ORPOTrainer`.
    Orpo(Orpo),
    /// Answers that are wanted or not (arXiv 2402.01306), as TRL's `KTOTrainer`.
    Kto(Kto),
    /// The better of two answers, by its mean log-likelihood (arXiv 2405.14734), as TRL's
    /// `CPOTrainer` with `loss_type="simpo"` and `cpo_alpha=0`.
    Simpo(Simpo),
    /// What another model would say to the same rows (arXiv 1503.02531, 2306.13649), as TRL's
    /// `GKDTrainer`.
    Distillation(Distillation),
}

/// What a row has to be for an objective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowsOf {
    /// Something to say.
    #[default]
    Examples,
    /// A better and a worse answer.
    Preferences,
    /// An answer and whether it is wanted.
    Verdicts,
}

impl Objective {
    /// Its word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo(_) => "dpo",
            Self::Orpo(_) => "orpo",
            Self::Kto(_) => "kto",
            Self::Simpo(_) => "simpo",
            Self::Distillation(_) => "distillation",
        }
    }

    /// What it learns from.
    pub fn rows(&self) -> RowsOf {
        match self {
            Self::Supervised | Self::Distillation(_) => RowsOf::Examples,
            Self::Dpo(_) | Self::Orpo(_) | Self::Simpo(_) => RowsOf::Preferences,
            Self::Kto(_) => RowsOf::Verdicts,
        }
    }

    /// The settings of distillation, where it is that.
    pub fn distillation(&self) -> Option<&Distillation> {
        match self {
            Self::Distillation(distillation) => Some(distillation),
            _ => None,
        }
    }

    /// The model that is asked while training goes on, where there is one.
    pub fn teacher(&self) -> Option<&Teacher> {
        self.distillation()?.live()
    }

    /// Whether the base is asked beside what is trained.
    pub fn has_reference(&self) -> bool {
        matches!(self, Self::Dpo(_) | Self::Kto(_))
    }
}

impl RowsOf {
    /// The one format that has such rows; none where several have.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::Examples => None,
            Self::Preferences => Some(Format::Preference),
            Self::Verdicts => Some(Format::Kto),
        }
    }
}

/// Settings of direct preference optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dpo {
    /// How much going away from the base costs; τ in IPO.
    #[serde(default = "default_beta")]
    pub beta: f64,
    /// What is made of the difference of two rewards.
    #[serde(default)]
    pub loss_type: LossType,
    /// Probability that a preference is the wrong way round, for `sigmoid`.
    #[serde(default)]
    pub label_smoothing: f64,
}

/// What DPO makes of the difference of two rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// `−log σ(βΔ)`.
    #[default]
    Sigmoid,
    /// `(Δ − 1/2β)²`, Δ by the mean over tokens (arXiv 2310.12036).
    Ipo,
    /// `max(0, 1 − βΔ)` (arXiv 2305.10425).
    Hinge,
}

impl LossType {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Ipo => "ipo",
            Self::Hinge => "hinge",
        }
    }
}

/// Settings of odds ratio preference optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orpo {
    /// Weight of the odds ratio beside what is said; λ in the paper.
    #[serde(default = "default_beta")]
    pub beta: f64,
}

/// Settings of Kahneman–Tversky optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kto {
    /// How much going away from the base costs.
    #[serde(default = "default_beta")]
    pub beta: f64,
    /// How much an answer that is wanted counts.
    #[serde(default = "one")]
    pub desirable_weight: f64,
    /// How much one that is not counts.
    #[serde(default = "one")]
    pub undesirable_weight: f64,
}

/// Settings of simple preference optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Simpo {
    /// What a mean log-likelihood is multiplied with to be a reward. The paper's least; TRL has
    /// one default for all that its `CPOTrainer` does.
    #[serde(default = "default_beta_of_simpo")]
    pub beta: f64,
    /// How much larger the reward of the better answer should be; γ in the paper.
    #[serde(default = "default_gamma")]
    pub simpo_gamma: f64,
    /// Probability that a preference is the wrong way round.
    #[serde(default)]
    pub label_smoothing: f64,
}

fn default_beta() -> f64 {
    0.1
}

fn default_beta_of_simpo() -> f64 {
    2.0
}

fn default_gamma() -> f64 {
    0.5
}

fn one() -> f64 {
    1.0
}
