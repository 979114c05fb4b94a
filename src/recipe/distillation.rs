//! The words of `objective: { distillation: … }`: who teaches, and how closely it is followed.
//!
//! `beta` and `temperature` are those of TRL's `GKDConfig` and `DistillationConfig`, `kd_ratio`
//! is torchtune's. Rows are those of `data`: nothing is sampled from the student.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Dtype, Quantization, Storage};

/// Settings of distillation (arXiv 1503.02531, 2306.13649).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distillation {
    /// Whose distributions are learned.
    #[serde(default)]
    pub teacher: Option<Teacher>,
    /// A Parquet file of what it said to these rows (`heirloom logits`): then it is not loaded.
    #[serde(default)]
    pub logits: Option<PathBuf>,
    /// Which divergence from them is made small: 0 the forward one, `KL(teacher ‖ student)`; 1 the
    /// reverse one; between them the generalised Jensen-Shannon divergence.
    #[serde(default)]
    pub beta: f64,
    /// What the logits of both are divided by.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Share of the divergence in the loss; the rest is the cross-entropy of supervised
    /// training.
    #[serde(default = "one")]
    pub kd_ratio: f64,
}

/// A model that teaches: frozen, beside the one that learns, with the same tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Folder in Hugging Face format, relative to the current directory.
    pub model: PathBuf,
    /// Precision of it in memory and of its computation.
    #[serde(default)]
    pub dtype: Dtype,
    /// How its weights are stored in memory.
    #[serde(default)]
    pub quantization: Quantization,
    /// Its linear layers that are not quantised, as in `base.unquantized`.
    #[serde(default)]
    pub unquantized: Vec<String>,
}

impl Distillation {
    /// The model that is asked while training goes on, rather than before.
    pub fn live(&self) -> Option<&Teacher> {
        self.teacher.as_ref().filter(|_| self.logits.is_none())
    }
}

impl Teacher {
    /// How its weights are held.
    pub fn storage(&self) -> Storage {
        let Self { dtype, quantization, unquantized, .. } = self;
        Storage { dtype: *dtype, quantization: *quantization, unquantized: unquantized.clone() }
    }
}

fn one() -> f64 {
    1.0
}
