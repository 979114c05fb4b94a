//! The run folder: names of its files, and nothing else.
//!
//! ```text
//! runs/NAME/  recipe.yaml (resolved)  recipe.lock  consent_report.json  metrics.jsonl
//!             checkpoints/step-000200/  adapter/ (or model/ for full training)
//!             eval/SUITE.json
//! ```

use std::path::{Path, PathBuf};

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
    /// One object a step.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
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
    /// Results of a suite.
    pub fn eval(&self, suite: &str) -> PathBuf {
        self.0.join("eval").join(format!("{suite}.json"))
    }
}
