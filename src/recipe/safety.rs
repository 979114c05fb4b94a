//! Words of `train` for what goes wrong on the way, and for when enough is enough.
//!
//! Owns the settings. What they do is the loop's (`engine/src/train/guard.rs`).

use serde::{Deserialize, Serialize};

/// What is done about a step that went wrong. Its weights are never taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadStep {
    /// The run ends with an error; `--resume` goes on from its newest checkpoint.
    #[default]
    Stop,
    /// The weights stay as they are, and the next step follows.
    Skip,
    /// Weights and optimiser become those of the newest checkpoint, and the next step follows:
    /// the rows since are not seen again in this pass.
    RollBack,
}

/// When a loss is too high to be believed, and what is done then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSpike {
    /// A loss above so many times the median of the steps before is a spike.
    #[serde(default = "default_factor")]
    pub factor: f64,
    /// So many steps before; without as many, there is none.
    #[serde(default = "default_window")]
    pub window: usize,
    /// What is done.
    #[serde(default = "skip")]
    pub action: OnBadStep,
}

fn default_factor() -> f64 {
    2.0
}

fn default_window() -> usize {
    32
}

fn skip() -> OnBadStep {
    OnBadStep::Skip
}

/// When a run is done before its last step, in the words of Transformers'
/// `EarlyStoppingCallback`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// `early_stopping_patience`: so many validations in a row without a better one.
    pub patience: u64,
    /// `early_stopping_threshold`: better by more than this, in nats.
    #[serde(default)]
    pub threshold: f64,
}
