//! Words of `track`: where metrics go beside `metrics.jsonl`.
//!
//! Owns the settings of each tracker, in its own words. Does not own what is sent there (that
//! is [`crate::track`]). Nothing secret is a setting: a recipe is shown to others, so keys and
//! tokens come from the environment.

use serde::{Deserialize, Serialize};

/// Where metrics go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracker {
    /// `metrics.jsonl` in the run folder.
    Jsonl,
    /// Event files in the run folder.
    Tensorboard,
    /// Weights & Biases.
    Wandb(Wandb),
    /// An MLflow server.
    Mlflow(Mlflow),
}

impl Tracker {
    /// Its word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Tensorboard => "tensorboard",
            Self::Wandb(_) => "wandb",
            Self::Mlflow(_) => "mlflow",
        }
    }
}

/// Settings of a run in Weights & Biases, in the words of `wandb.init`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wandb {
    /// `offline` writes files for `wandb sync`; `online` sends while the run goes on.
    #[serde(default)]
    pub mode: WandbMode,
    /// `project`.
    #[serde(default = "default_project")]
    pub project: String,
    /// `entity`: user or team; `null`: that of the key.
    #[serde(default)]
    pub entity: Option<String>,
    /// `group`.
    #[serde(default)]
    pub group: Option<String>,
    /// `tags`.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// `WANDB_MODE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WandbMode {
    /// Into files; nothing is sent.
    #[default]
    Offline,
    /// To `WANDB_BASE_URL`, with `WANDB_API_KEY`.
    Online,
}

/// Settings of a run in MLflow, in its words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mlflow {
    /// Address of the server; `null`: `MLFLOW_TRACKING_URI`.
    #[serde(default)]
    pub tracking_uri: Option<String>,
    /// `experiment_name`; made where it is not there.
    #[serde(default = "default_project")]
    pub experiment_name: String,
}

fn default_project() -> String {
    "heirloom".to_owned()
}
