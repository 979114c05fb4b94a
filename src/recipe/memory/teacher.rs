//! What a model that teaches takes beside the one that learns.

use super::block::Pass;
use super::{F32, Memory, Moment, PER_TOKEN, Prediction, base, widest};
use crate::base::Architecture;
use crate::recipe::Storage;

/// Rows whose divergence is found at a time (`engine/src/ops/divergence.rs`).
const DIVERGENCE_ROWS: f64 = 256.0;

/// Numbers in f32 for each of these rows and each token: log-probabilities of both, those of
/// their mixture, what the loss changes by, products on their way; and those of the cross-entropy.
const DIVERGENCE_NUMBERS: (f64, f64) = (6.0, 3.0);

impl Prediction<'_> {
    fn teacher(&self) -> Option<(&Architecture, Storage)> {
        let teacher = self.run.recipe.objective.teacher()?;
        Some((self.run.teacher?, teacher.storage()))
    }

    /// Its weights, all of them frozen.
    pub(super) fn teacher_weights(&self) -> f64 {
        let Some((architecture, storage)) = self.teacher() else { return 0.0 };
        base::frozen(architecture, &storage, |_| true).bytes
    }

    /// The largest of them before it is packed.
    pub(super) fn teacher_unpacked(&self) -> f64 {
        let Some((architecture, storage)) = self.teacher() else { return 0.0 };
        base::frozen(architecture, &storage, |_| true).largest_unpacked
    }

    /// What it takes to read the rows of a pass, one block at a time.
    pub(super) fn taught(&self, pass: &Pass<'_>) -> f64 {
        let Some((architecture, storage)) = self.teacher() else { return 0.0 };
        let block = pass.rows * base::width(storage.dtype) * widest(architecture);
        block + self.teacher_unpacked()
    }

    /// It reads before the one that learns, of which nothing is kept yet.
    pub(super) fn teaching(&self) -> Option<Memory> {
        self.teacher()?;
        let pass = self.pass(self.rows());
        let (notes, gradients) = (pass.rows * PER_TOKEN, self.trained());
        Some(self.memory(Moment::Teaching, gradients, 0.0, self.taught(&pass) + notes))
    }

    /// What the divergence takes beside what is kept: as the cross-entropy does, for both.
    pub(super) fn divergence(&self, pass: &Pass<'_>) -> f64 {
        let Some(settings) = self.run.recipe.objective.distillation() else { return 0.0 };
        // Of what is stored, next to nothing is held.
        let (hidden, width) = self.teacher().map_or((0.0, 0.0), |(architecture, storage)| {
            (architecture.hidden_size as f64, base::width(storage.dtype))
        });
        let chunk = DIVERGENCE_ROWS.min(pass.rows) * self.run.architecture.vocab_size as f64;
        let (always, beside) = DIVERGENCE_NUMBERS;
        let numbers = always + if settings.kd_ratio < 1.0 { beside } else { 0.0 };
        let table = if self.is_full() {
            2.0 * self.run.architecture.vocab_size as f64 * pass.hidden * F32
        } else {
            0.0
        };
        3.0 * pass.rows(pass.hidden)
            + pass.rows * hidden * width
            + chunk * (numbers * F32 + pass.width + width)
            + table
    }
}
