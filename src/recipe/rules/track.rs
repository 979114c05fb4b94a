//! What the words of `track` have to say.

use super::Check;
use crate::recipe::{Mlflow, Recipe, Tracker, Wandb};

/// Longest name of a project, an experiment or a tag, in bytes: what Weights & Biases takes.
const MAX_LABEL: usize = 128;

/// Letters that Weights & Biases has no room for in the name of a project.
const NOT_IN_A_PROJECT: &str = "/\\#?%:";

impl Check<'_> {
    pub(super) fn track(&mut self, recipe: &Recipe) {
        for (index, tracker) in recipe.track.iter().enumerate() {
            let key = format!("track[{index}]");
            let before = recipe.track.iter().take(index);
            self.rule(
                before.map(Tracker::name).all(|name| name != tracker.name()),
                &key,
                format!("is `{}`, like another before it", tracker.name()),
                "name each tracker once",
            );
            match tracker {
                Tracker::Wandb(wandb) => self.wandb(wandb, &format!("{key}.wandb")),
                Tracker::Mlflow(mlflow) => self.mlflow(mlflow, &format!("{key}.mlflow")),
                Tracker::Jsonl | Tracker::Tensorboard => {}
            }
        }
    }

    fn wandb(&mut self, wandb: &Wandb, key: &str) {
        self.label(&wandb.project, &format!("{key}.project"));
        self.rule(
            !wandb.project.contains(|letter| NOT_IN_A_PROJECT.contains(letter)),
            &format!("{key}.project"),
            format!("has one of `{NOT_IN_A_PROJECT}`, which Weights & Biases refuses"),
            "use letters, digits, `.`, `_` and `-`",
        );
        for (value, name) in [(&wandb.entity, "entity"), (&wandb.group, "group")] {
            if let Some(value) = value {
                self.label(value, &format!("{key}.{name}"));
            }
        }
        for (index, tag) in wandb.tags.iter().enumerate() {
            self.label(tag, &format!("{key}.tags[{index}]"));
        }
    }

    fn mlflow(&mut self, mlflow: &Mlflow, key: &str) {
        self.label(&mlflow.experiment_name, &format!("{key}.experiment_name"));
        let Some(address) = &mlflow.tracking_uri else { return };
        let key = format!("{key}.tracking_uri");
        let rest = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://"));
        self.rule(
            rest.is_some_and(|rest| !rest.is_empty()),
            &key,
            "is no address of a server",
            "write, for example, `http://127.0.0.1:5000`; a server of MLflow can serve any folder",
        );
        let host = rest.unwrap_or_default().split('/').next().unwrap_or_default();
        self.rule(
            !host.contains('@'),
            &key,
            "holds a password, and recipes are shown to others",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        );
    }

    fn label(&mut self, text: &str, key: &str) {
        let holds = !text.trim().is_empty()
            && text.len() <= MAX_LABEL
            && !text.contains(|letter: char| letter.is_control());
        self.rule(
            holds,
            key,
            format!("must be 1 to {MAX_LABEL} bytes of text on one line"),
            "write a short name, or leave it out",
        );
    }
}
