//! Weights & Biases.
//!
//! Owns what a run says of itself there, in both ways: [`offline`], a file that `wandb sync`
//! sends, and [`online`], over HTTP. In the shape of the client the field uses from Rust
//! (`RunInfo`, `log`, `finish`), which itself cannot be built on: see
//! `docs/decisions/0019-trackers.md`.
//!
//! Each line is a row of its own: `_step` is its number in `metrics.jsonl`, and `step`, the
//! optimiser step, is what everything is drawn over.

pub mod offline;
pub mod online;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::line::{Line, in_json};
use super::trackers::{About, settings};
use crate::recipe::Wandb;

/// A run, in the words of `wandb.init`.
#[derive(Clone, Debug, PartialEq)]
pub struct RunInfo {
    /// Its identity: the beginning of the lock's digest, so that a resumed run is the same one.
    pub id: String,
    /// The name that is shown.
    pub name: String,
    /// Where it belongs.
    pub settings: Wandb,
    /// What of the recipe is shown.
    pub config: Map<String, Value>,
    /// When it began.
    pub began: Timestamp,
}

impl RunInfo {
    /// Of a run whose recipe asks for it.
    pub fn of(about: &About<'_>, wandb: &Wandb) -> Self {
        Self {
            id: about.id.clone(),
            name: about.recipe.name.clone(),
            settings: wandb.clone(),
            config: settings(about.recipe),
            began: about.began,
        }
    }

    /// Seconds since 1970 at which a line was written, had the run never been interrupted.
    fn time_of(&self, line: &Line) -> f64 {
        self.began.as_nanosecond() as f64 / 1e9 + line.seconds
    }

    /// The row of line `number` of the file.
    fn row(&self, number: usize, line: &Line) -> Vec<(String, Value)> {
        let own = [
            ("_step", json!(number)),
            ("_timestamp", json!(self.time_of(line))),
            ("_runtime", json!(line.seconds)),
            ("step", json!(line.step)),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        own.chain(line.values.iter().map(|(name, value)| (name.clone(), in_json(*value)))).collect()
    }
}

/// The last value of each name: what the table of runs shows.
#[derive(Clone, Debug, Default, PartialEq)]
struct Latest(BTreeMap<String, Value>);

impl Latest {
    fn take(&mut self, row: &[(String, Value)]) {
        self.0.extend(row.iter().cloned());
    }
}
