//! The run folder: the names of its files, who may write into it ([`hold`]), and the shape of an
//! evaluation in it.
//!
//! ```text
//! runs/NAME/  recipe.yaml (resolved)  recipe.lock  consent_report.json  metrics.jsonl
//!             record_tree.json  record_index.parquet  record_key
//!             tensorboard/  wandb/  track/NAME.json  trainer.lock
//!             checkpoints/step-000200/  adapter/ (or model/ for full training)
//!             summary.json  eval/SUITE.json
//! ```

pub mod hold;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Paths inside a run folder.
#[derive(Clone, Debug)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// The run folder at `path`; nothing is created.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// The recipe with every default filled in.
    pub fn recipe(&self) -> PathBuf {
        self.0.join("recipe.yaml")
    }
    /// Every input by digest.
    pub fn lock(&self) -> PathBuf {
        self.0.join("recipe.lock")
    }
    /// Rows seen, used and excluded.
    pub fn consent_report(&self) -> PathBuf {
        self.0.join("consent_report.json")
    }
    /// What is committed to of the records that are used.
    pub fn record_tree(&self) -> PathBuf {
        self.0.join("record_tree.json")
    }
    /// Every row that was seen, used or not; private.
    pub fn record_index(&self) -> PathBuf {
        self.0.join("record_index.parquet")
    }
    /// The key of the records' tokens; private.
    pub fn record_key(&self) -> PathBuf {
        self.0.join("record_key")
    }
    /// One object a step.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }
    /// TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.0.join("tensorboard")
    }
    /// Files for `wandb sync`.
    pub fn wandb(&self) -> PathBuf {
        self.0.join("wandb")
    }
    /// What each tracker on a server has been sent.
    pub fn track(&self) -> PathBuf {
        self.0.join("track")
    }
    /// Held by the program that writes into the folder: a [`hold::Hold`].
    pub fn trainer_lock(&self) -> PathBuf {
        self.0.join("trainer.lock")
    }
    /// How training went: a [`Summary`], there once it is complete.
    pub fn summary(&self) -> PathBuf {
        self.0.join("summary.json")
    }
    /// Where checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }
    /// The trained adapter, PEFT format.
    pub fn adapter(&self) -> PathBuf {
        self.0.join("adapter")
    }
    /// The trained model of full training, Hugging Face format.
    pub fn model(&self) -> PathBuf {
        self.0.join("model")
    }
    /// Where the results of suites lie.
    pub fn evals(&self) -> PathBuf {
        self.0.join("eval")
    }
    /// Results of a suite: an [`EvalReport`].
    pub fn eval(&self, suite: &str) -> PathBuf {
        self.evals().join(format!("{suite}.json"))
    }
}

/// Contents of `eval/SUITE.json`.
///
/// Holds text of rows, so it stays in the run folder: a release gets its numbers only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalReport {
    /// Name of the suite.
    pub suite: String,
    /// Rows that it was measured on.
    pub rows: u64,
    /// The adapted model.
    pub target: Scores,
    /// What it is compared with: the base model.
    pub baseline: Option<Scores>,
    /// The first few rows with their answers.
    #[serde(default)]
    pub samples: Vec<Sample>,
}

/// What was measured of one model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Share of rows whose generated answer equals the reference, 0 to 1.
    pub exact_match: f64,
    /// Mean negative log-likelihood of the reference's tokens, in nats.
    pub loss: f64,
    /// Tokens that the loss was measured on.
    pub tokens: u64,
}

/// One row of a suite and what the models made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// The row.
    pub record_id: String,
    /// What was asked.
    pub prompt: String,
    /// The answer that the row holds.
    pub reference: String,
    /// The baseline's answer.
    pub baseline: Option<String>,
    /// The adapted model's answer.
    pub target: String,
}

/// Contents of `summary.json`, written when training is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Optimiser steps taken.
    pub steps: u64,
    /// Tokens processed.
    pub tokens: u64,
    /// Of these, tokens that carried loss.
    pub trained_tokens: u64,
    /// Seconds of training, all parts of a resumed run together.
    pub seconds: f64,
    /// Most memory that the program had resident, in bytes, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// When training ended, in UTC.
    pub finished: jiff::Timestamp,
    /// Rows that were withdrawn while the run was going, and left out from then on.
    #[serde(default)]
    pub withdrawn_rows: u64,
    /// Trained weights.
    pub trainable_parameters: u64,
    /// Threads that computed; another number may round differently.
    pub threads: u32,
    /// Version of libtorch.
    pub libtorch: String,
}
