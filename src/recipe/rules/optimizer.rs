//! What optimisers, groups of weights and schedules must keep to.

use super::Check;
use crate::recipe::{
    Adafactor, Adamw, Adapter, Lion, Muon, Optimizer, Recipe, Schedule, WarmupStableDecay,
};

/// Largest ratio of learning rates that is believed.
const MAX_LR_RATIO: f64 = 1e6;

/// Most Newton–Schulz iterations: PyTorch refuses more.
const MAX_NS_STEPS: u64 = 99;

/// Most times that a schedule restarts.
const MAX_CYCLES: u64 = 100_000;

impl Check<'_> {
    pub(super) fn optimizer(&mut self, recipe: &Recipe) {
        let optimizer = &recipe.train.optimizer;
        let key = format!("train.optimizer.{}", optimizer.word());
        match optimizer {
            Optimizer::Adamw(adamw) | Optimizer::Adamw8bit(adamw) => self.adamw(adamw, &key),
            Optimizer::Adafactor(adafactor) => self.adafactor(adafactor, &key),
            Optimizer::Lion(lion) => self.lion(lion, &key),
            Optimizer::Muon(muon) => self.muon(muon, &recipe.adapter, &key),
        }
    }

    fn adamw(&mut self, adamw: &Adamw, key: &str) {
        self.positive(adamw.lr, &format!("{key}.lr"), "2.0e-4");
        self.positive(adamw.eps, &format!("{key}.eps"), "1.0e-8");
        self.not_negative(adamw.weight_decay, &format!("{key}.weight_decay"));
        self.betas(adamw.betas, key, "[0.9, 0.999]");
    }

    fn adafactor(&mut self, adafactor: &Adafactor, key: &str) {
        self.positive(adafactor.lr, &format!("{key}.lr"), "1.0e-3");
        let (first, second) = adafactor.eps;
        self.positive(first, &format!("{key}.eps[0]"), "1.0e-30");
        self.positive(second, &format!("{key}.eps[1]"), "1.0e-3");
        self.positive(adafactor.clip_threshold, &format!("{key}.clip_threshold"), "1.0");
        self.rule(
            adafactor.decay_rate < 0.0,
            &format!("{key}.decay_rate"),
            "must be less than 0",
            "write, for example, -0.8, or leave it out",
        );
        if let Some(beta1) = adafactor.beta1 {
            self.beta(beta1, &format!("{key}.beta1"), "0.9");
        }
        self.not_negative(adafactor.weight_decay, &format!("{key}.weight_decay"));
    }

    fn lion(&mut self, lion: &Lion, key: &str) {
        self.positive(lion.lr, &format!("{key}.lr"), "3.0e-5");
        self.not_negative(lion.weight_decay, &format!("{key}.weight_decay"));
        self.betas(lion.betas, key, "[0.9, 0.99]");
    }

    fn muon(&mut self, muon: &Muon, adapter: &Adapter, key: &str) {
        self.rule(
            matches!(adapter, Adapter::Full(_)),
            key,
            "is for the matrices of a base, and an adapter's are parts of them",
            "write `adapter: full`, or `optimizer: { adamw: { lr: 2.0e-4 } }`",
        );
        self.positive(muon.lr, &format!("{key}.lr"), "0.02");
        self.not_negative(muon.weight_decay, &format!("{key}.weight_decay"));
        self.beta(muon.momentum, &format!("{key}.momentum"), "0.95");
        self.positive(muon.eps, &format!("{key}.eps"), "1.0e-7");
        let steps = u64::from(muon.ns_steps);
        self.at_least_one(steps, &format!("{key}.ns_steps"));
        self.at_most(steps, MAX_NS_STEPS, &format!("{key}.ns_steps"));
        self.adamw(&muon.adamw, &format!("{key}.adamw"));
    }

    fn betas(&mut self, (first, second): (f64, f64), key: &str, example: &str) {
        for (index, beta) in [first, second].into_iter().enumerate() {
            let hint = format!("write `betas: {example}`, or leave it out");
            self.within(beta, &format!("{key}.betas[{index}]"), hint);
        }
    }

    fn beta(&mut self, beta: f64, key: &str, example: &str) {
        self.within(beta, key, format!("write, for example, {example}, or leave it out"));
    }

    fn within(&mut self, beta: f64, key: &str, hint: String) {
        self.rule((0.0..1.0).contains(&beta), key, "must be at least 0 and less than 1", hint);
    }

    pub(super) fn param_groups(&mut self, recipe: &Recipe) {
        for (index, group) in recipe.train.param_groups.iter().enumerate() {
            let key = format!("train.param_groups[{index}]");
            self.rule(
                !group.params.is_empty(),
                &format!("{key}.params"),
                "is empty",
                "write parts of names, such as `[lora_B]` or `[layers.0, embed_tokens]`",
            );
            for (index, pattern) in group.params.iter().enumerate() {
                self.rule(
                    pattern.split('.').all(|part| !part.trim().is_empty()),
                    &format!("{key}.params[{index}]"),
                    "has an empty part",
                    "write parts of a name with dots between them, such as `layers.0.mlp`",
                );
            }
            self.lr_ratio(group.lr_ratio, &format!("{key}.lr_ratio"));
            if let Some(decay) = group.weight_decay {
                self.not_negative(decay, &format!("{key}.weight_decay"));
            }
        }
        let Some(ratio) = recipe.train.loraplus_lr_ratio else { return };
        let key = "train.loraplus_lr_ratio";
        self.lr_ratio(ratio, key);
        self.rule(
            !matches!(recipe.adapter, Adapter::Full(_)),
            key,
            "is about the two matrices of LoRA, and `adapter: full` has none",
            "leave it out, or train an adapter: `adapter: { lora: { rank: 16, alpha: 32 } }`",
        );
    }

    /// What is done to losses and to embedded tokens.
    pub(super) fn noise(&mut self, recipe: &Recipe) {
        self.rule(
            (0.0..1.0).contains(&recipe.train.label_smoothing_factor),
            "train.label_smoothing_factor",
            "must be at least 0 and less than 1",
            "write, for example, 0.1, or leave it out",
        );
        if let Some(alpha) = recipe.train.neftune_noise_alpha {
            self.positive(alpha, "train.neftune_noise_alpha", "5.0");
        }
    }

    fn lr_ratio(&mut self, ratio: f64, key: &str) {
        self.rule(
            ratio > 0.0 && ratio <= MAX_LR_RATIO,
            key,
            format!("must be greater than 0 and at most {MAX_LR_RATIO}"),
            "write, for example, 16.0",
        );
    }

    pub(super) fn schedule(&mut self, recipe: &Recipe) {
        let schedule = &recipe.train.schedule;
        let key = format!("train.schedule.{}", schedule.word());
        self.share(schedule.warmup().0, &format!("{key}.warmup_ratio"));
        match schedule {
            Schedule::Cosine(cosine) => {
                self.share(cosine.min_lr_ratio, &format!("{key}.min_lr_ratio"));
            }
            Schedule::CosineWithRestarts(restarts) => {
                let cycles = u64::from(restarts.num_cycles);
                self.at_least_one(cycles, &format!("{key}.num_cycles"));
                self.at_most(cycles, MAX_CYCLES, &format!("{key}.num_cycles"));
            }
            Schedule::WarmupStableDecay(stable) => self.warmup_stable_decay(stable, &key),
            Schedule::InverseSqrt(inverse) => {
                if let Some(timescale) = inverse.timescale {
                    self.at_least_one(timescale, &format!("{key}.timescale"));
                }
            }
            Schedule::Constant(_) | Schedule::Linear(_) => {}
        }
    }

    fn warmup_stable_decay(&mut self, stable: &WarmupStableDecay, key: &str) {
        self.share(stable.decay_ratio, &format!("{key}.decay_ratio"));
        self.share(stable.min_lr_ratio, &format!("{key}.min_lr_ratio"));
        let both = stable.warmup_ratio + stable.decay_ratio;
        self.rule(
            stable.warmup_steps.is_some() || stable.decay_steps.is_some() || both <= 1.0,
            &format!("{key}.decay_ratio"),
            "and `warmup_ratio` are more than all steps together",
            "write shares that are at most 1 together",
        );
    }
}
