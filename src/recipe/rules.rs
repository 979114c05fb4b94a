//! What a recipe must keep to that its types cannot say, and that needs no input to be read.

mod adapter;
mod data;
mod distillation;
mod objective;
mod optimizer;
mod safety;
mod track;

use std::collections::BTreeSet;

use super::problem::{Fault, listed, most_alike};
use super::{ActivationCheckpointing, Adapter, FORMAT, Gate, Quantization, Recipe};
use crate::diagnose::Diagnose as _;
use crate::hub::Address;

/// Longest name of a run or a suite: both become names of files.
const MAX_NAME: usize = 100;

/// Shortest window that can hold a question and an answer.
const MIN_SEQUENCE_LENGTH: usize = 8;

/// Most tokens of a window, a forward pass or a step that are believed.
const MAX_TOKENS: u64 = 1 << 31;

/// Most passes that are believed.
const MAX_EPOCHS: u64 = 100_000;

/// Most tokens that are added to a vocabulary.
const MAX_ADDED_TOKENS: u64 = 4096;

/// Longest token that is added, in bytes.
const MAX_TOKEN_BYTES: u64 = 256;

/// Metrics that a gate can ask for.
pub(super) const METRICS: [&str; 2] = ["exact_match", "loss"];

/// Checks `recipe`; says nothing about values at `holes`, which are reported already.
pub(super) fn check(recipe: &Recipe, holes: &[String]) -> Vec<(String, Fault)> {
    let mut check = Check { holes, faults: Vec::new() };
    check.head(recipe);
    check.quantization(recipe);
    check.added_tokens(&recipe.base.added_tokens);
    match &recipe.adapter {
        Adapter::Lora(lora) => match &lora.vera {
            Some(vectors) => check.vera(recipe, lora, vectors),
            None => check.lora(lora, recipe.base.quantization),
        },
        Adapter::Full(names) => check.unfrozen(names),
    }
    check.objective(recipe);
    check.data(recipe);
    check.suites(recipe);
    check.steps(recipe);
    check.optimizer(recipe);
    check.param_groups(recipe);
    check.noise(recipe);
    check.schedule(recipe);
    check.safety(recipe);
    check.track(recipe);
    for (index, suite) in recipe.eval.suites.iter().enumerate() {
        check.suite_reference(recipe, index, suite);
    }
    for (index, gate) in recipe.eval.gates.iter().enumerate() {
        check.gate(recipe, &format!("eval.gates[{index}]"), gate);
    }
    check.faults
}

struct Check<'a> {
    holes: &'a [String],
    faults: Vec<(String, Fault)>,
}

impl Check<'_> {
    /// Whether the value at `key` is what the user wrote, or a default.
    fn means_something(&self, key: &str) -> bool {
        !self.holes.iter().any(|hole| {
            key.strip_prefix(hole.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// Reports the value at `key` unless `holds`.
    fn rule(&mut self, holds: bool, key: &str, what: impl Into<String>, hint: impl Into<String>) {
        if !holds && self.means_something(key) {
            let fault = Fault::Rule { key: key.to_owned(), what: what.into(), hint: hint.into() };
            self.faults.push((key.to_owned(), fault));
        }
    }

    fn positive(&mut self, value: f64, key: &str, example: &str) {
        self.rule(
            value > 0.0,
            key,
            "must be greater than 0",
            format!("write, for example, {example}"),
        );
    }

    fn not_negative(&mut self, value: f64, key: &str) {
        self.rule(value >= 0.0, key, "must not be negative", "write 0 or more");
    }

    fn share(&mut self, value: f64, key: &str) {
        let within = (0.0..=1.0).contains(&value);
        self.rule(within, key, "must lie between 0 and 1", "write a share, such as 0.03 for 3 %");
    }

    fn at_least_one(&mut self, value: u64, key: &str) {
        self.rule(value >= 1, key, "must be at least 1", "write 1 or more");
    }

    fn at_most(&mut self, value: u64, most: u64, key: &str) {
        self.rule(
            value <= most,
            key,
            format!("is {value}, more than the {most} that are possible"),
            format!("write {most} or less"),
        );
    }

    fn name(&mut self, name: &str, key: &str) {
        let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let holds = name.chars().all(safe)
            && !name.starts_with(['.', '-'])
            && (1..=MAX_NAME).contains(&name.len());
        self.rule(
            holds,
            key,
            "cannot be the name of a file",
            "use letters, digits, `.`, `_` and `-`, with a letter or digit first",
        );
    }

    fn head(&mut self, recipe: &Recipe) {
        self.rule(
            recipe.heirloom == FORMAT,
            "heirloom",
            format!("is {}, and this version reads format {FORMAT}", recipe.heirloom),
            format!("write `heirloom: {FORMAT}`, or use the version that wrote this recipe"),
        );
        self.name(&recipe.name, "name");
        self.rule(
            !recipe.base.model.as_os_str().is_empty(),
            "base.model",
            "is empty",
            "name the folder of a base model",
        );
        if let Some(Err(error)) = Address::of(&recipe.base.model) {
            let hint = error.hint().unwrap_or_default();
            self.rule(false, "base.model", format!("is no model: {error}"), hint);
        }
        self.rule(
            recipe.base.chat_template.as_ref().is_none_or(|file| !file.as_os_str().is_empty()),
            "base.chat_template",
            "is empty",
            "name a Jinja file, or leave it out",
        );
        self.rule(
            !recipe.base.from_scratch || recipe.adapter == Adapter::Full(Vec::new()),
            "base.from_scratch",
            "draws new weights, over which an adapter is of no use to anyone",
            "write `adapter: full`, or leave `from_scratch` out",
        );
    }

    fn quantization(&mut self, recipe: &Recipe) {
        self.rule(
            recipe.base.quantization == Quantization::None
                || !matches!(recipe.adapter, Adapter::Full(_)),
            "base.quantization",
            "is for frozen weights, and `adapter: full` trains every one",
            "write `quantization: none`, or train an adapter: `adapter: { lora: { rank: 16, \
             alpha: 32 } }`",
        );
        self.rule(
            recipe.base.quantization != Quantization::None || recipe.base.unquantized.is_empty(),
            "base.unquantized",
            "leaves layers out of a quantisation that there is none of",
            "write `quantization: nf4`, or another, or leave `unquantized` out",
        );
        for (index, part) in recipe.base.unquantized.iter().enumerate() {
            self.rule(
                !part.trim().is_empty(),
                &format!("base.unquantized[{index}]"),
                "is blank",
                "name a layer, such as `down_proj`, or leave it out",
            );
        }
    }

    fn added_tokens(&mut self, tokens: &[String]) {
        self.at_most(tokens.len() as u64, MAX_ADDED_TOKENS, "base.added_tokens");
        let mut seen = BTreeSet::new();
        for (index, token) in tokens.iter().enumerate() {
            let key = format!("base.added_tokens[{index}]");
            self.rule(
                !token.trim().is_empty(),
                &key,
                "is blank",
                "write a token such as `<|im_start|>`, or leave it out",
            );
            self.at_most(token.len() as u64, MAX_TOKEN_BYTES, &key);
            self.rule(
                seen.insert(token),
                &key,
                format!("is `{token}`, like another before it"),
                "name each token once",
            );
        }
    }

    fn suites(&mut self, recipe: &Recipe) {
        let mut seen = BTreeSet::new();
        for (index, suite) in recipe.data.test.iter().enumerate() {
            let key = format!("data.test[{index}]");
            let name = format!("{key}.name");
            self.name(&suite.name, &name);
            self.rule(
                seen.insert(&suite.name),
                &name,
                format!("is `{}`, like another suite before it", suite.name),
                "give each suite its own name",
            );
            self.at_least_one(suite.max_new_tokens as u64, &format!("{key}.max_new_tokens"));
        }
    }

    fn steps(&mut self, recipe: &Recipe) {
        let (train, window) = (&recipe.train, recipe.data.sequence_length);
        self.at_least_one(u64::from(train.epochs), "train.epochs");
        self.at_most(u64::from(train.epochs), MAX_EPOCHS, "train.epochs");
        self.at_most(train.tokens_per_step as u64, MAX_TOKENS, "train.tokens_per_step");
        if let Some(tokens) = train.micro_batch_tokens {
            self.at_most(tokens as u64, MAX_TOKENS, "train.micro_batch_tokens");
        }
        if let Some(steps) = train.max_steps {
            self.at_least_one(steps, "train.max_steps");
        }
        let checkpointed = train.activation_checkpointing == ActivationCheckpointing::Block
            || !self.means_something("train.activation_checkpointing");
        self.rule(
            !train.activation_offload || checkpointed,
            "train.activation_offload",
            "moves the inputs of checkpointed blocks, and no block is checkpointed",
            "write `activation_checkpointing: block`, or leave it out",
        );
        self.not_negative(train.clip_grad_norm, "train.clip_grad_norm");
        self.at_least_one(train.keep_checkpoints as u64, "train.keep_checkpoints");
        if window == 0 || !self.means_something("data.sequence_length") {
            return;
        }
        let step = train.tokens_per_step;
        self.rule(
            step >= window && step.is_multiple_of(window),
            "train.tokens_per_step",
            format!("is {step}, not a multiple of `data.sequence_length` ({window})"),
            format!("write {}", nearest_multiple(step, window)),
        );
        let micro = train.micro_batch_tokens.unwrap_or(window);
        self.rule(
            micro >= window,
            "train.micro_batch_tokens",
            format!("is {micro}, less than one window of `data.sequence_length` ({window})"),
            format!("write {window} or more, or leave it out"),
        );
    }

    fn suite_reference(&mut self, recipe: &Recipe, index: usize, suite: &str) {
        let known = || recipe.data.test.iter().map(|suite| suite.name.as_str());
        if !self.means_something("data.test") {
            return;
        }
        let hint = match most_alike(suite, known()) {
            Some(alike) => format!("did you mean `{alike}`?"),
            None if recipe.data.test.is_empty() => {
                format!("add `data.test: [{{ name: {suite}, path: FILE.parquet, format: chat }}]`")
            }
            None => format!("`data.test` has {}", listed(known())),
        };
        self.rule(
            known().any(|name| name == suite),
            &format!("eval.suites[{index}]"),
            format!("names `{suite}`, which is not in `data.test`"),
            hint,
        );
    }

    fn gate(&mut self, recipe: &Recipe, key: &str, gate: &Gate) {
        let metric = format!("{key}.metric");
        match gate.metric.split_once('/') {
            Some((suite, name)) => {
                let suites = || recipe.eval.suites.iter().map(String::as_str);
                let hint = match most_alike(suite, suites()) {
                    Some(alike) => format!("did you mean `{alike}/{name}`?"),
                    None => format!("add `{suite}` to `eval.suites`"),
                };
                let measured = suites().any(|measured| measured == suite);
                let what = format!("is about `{suite}`, which is not in `eval.suites`");
                self.rule(measured || !self.means_something("eval.suites"), &metric, what, hint);
                self.rule(
                    METRICS.contains(&name),
                    &metric,
                    format!("asks for `{name}`, which is not measured"),
                    super::problem::offer(name, METRICS.into_iter()),
                );
            }
            None => self.rule(
                false,
                &metric,
                "is not of the form `SUITE/METRIC`",
                "write, for example, `catalogue/exact_match`",
            ),
        }
        let conditions = [gate.at_least_baseline, gate.at_least.is_some(), gate.at_most.is_some()];
        self.rule(
            conditions.into_iter().filter(|given| *given).count() == 1,
            key,
            "needs one condition, no more and no less",
            "write one of `at_least_baseline: true`, `at_least: NUMBER` and `at_most: NUMBER`",
        );
        self.rule(
            !gate.at_least_baseline || !matches!(recipe.adapter, Adapter::Full(_)),
            &format!("{key}.at_least_baseline"),
            "has nothing to compare with: `adapter: full` leaves no base beside the new weights",
            "write `at_least: NUMBER` or `at_most: NUMBER` instead",
        );
    }
}

fn nearest_multiple(number: usize, of: usize) -> usize {
    let times = (number as f64 / of as f64).round().max(1.0);
    of.saturating_mul(times as usize)
}
