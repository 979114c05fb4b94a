//! What the words of `train` about bad steps and the end of a run have to say.

use super::Check;
use crate::recipe::Recipe;

/// Most steps that a spike is judged by: they travel with each checkpoint.
const MAX_WINDOW: u64 = 10_000;

impl Check<'_> {
    pub(super) fn safety(&mut self, recipe: &Recipe) {
        let train = &recipe.train;
        if let Some(spike) = &train.loss_spike {
            self.rule(
                spike.factor > 1.0,
                "train.loss_spike.factor",
                format!("is {}, which ordinary steps reach", spike.factor),
                "write more than 1, such as 2.0",
            );
            self.at_least_one(spike.window as u64, "train.loss_spike.window");
            self.at_most(spike.window as u64, MAX_WINDOW, "train.loss_spike.window");
        }
        if let Some(early) = &train.early_stopping {
            self.at_least_one(early.patience, "train.early_stopping.patience");
            self.not_negative(early.threshold, "train.early_stopping.threshold");
        }
        let validated = !recipe.data.validation.is_empty() || recipe.data.validation_split > 0.0;
        for (wanted, key) in [
            (train.early_stopping.is_some(), "train.early_stopping"),
            (train.keep_best_checkpoint, "train.keep_best_checkpoint"),
            (train.load_best_at_end, "train.load_best_at_end"),
        ] {
            self.rule(
                validated || !wanted || !self.means_something("data.validation"),
                key,
                "goes by the validation loss, and there are no rows for validation",
                "add `data.validation` or `data.validation_split`, or leave it out",
            );
        }
    }
}
