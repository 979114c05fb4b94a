//! What the settings of an adapter must keep to.

use std::collections::BTreeSet;

use super::Check;
use crate::recipe::{Lora, Module, Quantization, Recipe, Start, Targets, Vectors};

/// Largest rank that is believed: no linear layer of a real model is wider.
const MAX_RANK: u64 = 65_536;

/// Most power iterations of a start: beyond a few dozen nothing changes.
const MAX_ITERATIONS: u64 = 1000;

impl Check<'_> {
    pub(super) fn lora(&mut self, lora: &Lora, quantization: Quantization) {
        self.going_on(lora);
        if lora.from.is_some() && lora.rank == 0 && self.means_something("adapter.from") {
            // Everything else stands in the folder.
            return;
        }
        self.at_least_one(u64::from(lora.rank), "adapter.lora.rank");
        self.at_most(u64::from(lora.rank), MAX_RANK, "adapter.lora.rank");
        self.positive(lora.alpha, "adapter.lora.alpha", "32");
        self.rule(
            (0.0..1.0).contains(&lora.dropout),
            "adapter.lora.dropout",
            "must be at least 0 and less than 1",
            "write, for example, 0.05, or leave it out",
        );
        if let Targets::Modules(names) = &lora.targets {
            self.rule(
                !names.is_empty() || !lora.target_parameters.is_empty(),
                "adapter.lora.targets",
                "is empty",
                "write `all-linear` or names such as `[q_proj, v_proj]`",
            );
        }
        self.target_parameters(lora);
        self.patterns(lora);
        self.start(lora, quantization);
        self.trained_rows(lora);
    }

    pub(super) fn vera(&mut self, recipe: &Recipe, lora: &Lora, vectors: &Vectors) {
        self.at_least_one(u64::from(lora.rank), "adapter.vera.rank");
        self.at_most(u64::from(lora.rank), MAX_RANK, "adapter.vera.rank");
        self.rule(
            // As the vectors hold it.
            vectors.d_initial as f32 != 0.0 && (vectors.d_initial as f32).is_finite(),
            "adapter.vera.d_initial",
            format!("is {}, from which nothing is learned", vectors.d_initial),
            "write, for example, 0.1, or leave it out",
        );
        self.rule(
            (0.0..1.0).contains(&lora.dropout),
            "adapter.vera.dropout",
            "must be at least 0 and less than 1",
            "write, for example, 0.05, or leave it out",
        );
        self.rule(
            lora.targets != Targets::Modules(Vec::new()),
            "adapter.vera.targets",
            "is empty",
            "write `all-linear` or names such as `[q_proj, v_proj]`",
        );
        let blocks: BTreeSet<_> = lora.layers_to_transform.iter().collect();
        self.rule(
            blocks.len() == lora.layers_to_transform.len(),
            "adapter.vera.layers_to_transform",
            "names a block twice",
            "name each block once",
        );
        self.rule(
            recipe.base.added_tokens.is_empty(),
            "base.added_tokens",
            "adds rows that are trained, and PEFT's VeRA has none",
            "leave it out, or train with `adapter: { lora: { rank: 16, alpha: 32 } }`",
        );
    }

    /// A blank name would be one of everything, or of nothing.
    pub(super) fn unfrozen(&mut self, names: &[String]) {
        self.rule(
            names.iter().all(|name| !name.trim().is_empty()),
            "adapter.unfrozen_parameters",
            "has no name, or a blank one",
            "name weights, such as `[layers.11, lm_head]`, or write `adapter: full`",
        );
    }

    /// An adapter that is gone on from has started.
    fn going_on(&mut self, lora: &Lora) {
        let Some(folder) = &lora.from else { return };
        let key = if lora.rank == 0 { "adapter.from" } else { "adapter.lora.from" };
        self.rule(!folder.as_os_str().is_empty(), key, "is empty", "name a folder of PEFT");
        self.rule(
            lora.init_lora_weights == Start::Default,
            "adapter.lora.init_lora_weights",
            "is a start, and the adapter of `from` has begun long ago",
            "leave it out",
        );
    }

    /// PEFT adds the update of a parameter to the weight itself, which knows of no inputs to
    /// drop, and finds neither magnitudes nor parts of it.
    fn target_parameters(&mut self, lora: &Lora) {
        if lora.target_parameters.is_empty() {
            return;
        }
        let beside = "and PEFT has none for `target_parameters`";
        self.rule(
            lora.dropout == 0.0,
            "adapter.lora.dropout",
            format!("drops inputs, {beside}"),
            "leave out one of the two",
        );
        self.rule(
            !lora.use_dora,
            "adapter.lora.use_dora",
            format!("trains lengths of rows, {beside}"),
            "leave out one of the two",
        );
        self.rule(
            matches!(lora.init_lora_weights, Start::Default | Start::Gaussian),
            "adapter.lora.init_lora_weights",
            format!("is a start that decomposes weights, {beside}"),
            "write `true` or `gaussian`",
        );
    }

    fn patterns(&mut self, lora: &Lora) {
        let key = "adapter.lora.rank_pattern";
        for (name, rank) in &lora.rank_pattern.0 {
            self.rule(
                (1..=MAX_RANK).contains(&u64::from(*rank)),
                key,
                format!("gives `{name}` a rank of {rank}"),
                format!("write 1 to {MAX_RANK}; `exclude_modules` leaves a layer out"),
            );
        }
        for (name, alpha) in &lora.alpha_pattern.0 {
            self.rule(
                *alpha > 0.0,
                "adapter.lora.alpha_pattern",
                format!("gives `{name}` an alpha of {alpha}"),
                "write a number greater than 0; `exclude_modules` leaves a layer out",
            );
        }
        let blocks: BTreeSet<_> = lora.layers_to_transform.iter().collect();
        self.rule(
            blocks.len() == lora.layers_to_transform.len(),
            "adapter.lora.layers_to_transform",
            "names a block twice",
            "name each block once",
        );
    }

    fn start(&mut self, lora: &Lora, quantization: Quantization) {
        let key = "adapter.lora.init_lora_weights";
        self.rule(
            lora.init_lora_weights != Start::Loftq || quantization != Quantization::None,
            key,
            "starts from what quantising the base loses, and it is not quantised",
            "write `base.quantization: nf4`, or another start, such as `pissa`",
        );
        if let Start::PissaNiter(iterations) = lora.init_lora_weights {
            self.at_most(u64::from(iterations), MAX_ITERATIONS, key);
        }
    }

    /// A module is trained whole or in some of its rows, and each row once.
    fn trained_rows(&mut self, lora: &Lora) {
        let mut modules = BTreeSet::new();
        for (index, module) in lora.modules_to_save.iter().enumerate() {
            let key = format!("adapter.lora.modules_to_save[{index}]");
            let name = module.name();
            self.rule(
                modules.insert(*module),
                &key,
                format!("is `{name}`, like another before it"),
                "keep one of the two",
            );
            self.rule(
                lora.trainable_token_indices.of(*module).is_empty(),
                &key,
                format!("trains all of `{name}`, of which single rows are named too"),
                "keep it here, or in `trainable_token_indices`",
            );
        }
        for module in Module::ALL {
            let rows = lora.trainable_token_indices.of(module);
            let unique: BTreeSet<_> = rows.iter().collect();
            self.rule(
                unique.len() == rows.len(),
                "adapter.lora.trainable_token_indices",
                format!("names a token of `{}` twice", module.name()),
                "name each token once",
            );
        }
    }
}
