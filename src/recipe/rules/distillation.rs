//! What distillation asks of the rest of a recipe.

use super::Check;
use crate::diagnose::Diagnose as _;
use crate::hub::Address;
use crate::recipe::{Distillation, Quantization, Recipe, Teacher};

/// Logits divided by less are those of the likeliest token alone, and beyond all numbers.
const LEAST_TEMPERATURE: f64 = 0.01;

/// Logits divided by more are all alike.
const MOST_TEMPERATURE: f64 = 100.0;

impl Check<'_> {
    pub(super) fn distillation(&mut self, distillation: &Distillation, recipe: &Recipe) {
        let Distillation { teacher, logits, beta, temperature, kd_ratio } = distillation;
        let within = "objective.distillation";
        self.share(*beta, &format!("{within}.beta"));
        self.rule(
            (LEAST_TEMPERATURE..=MOST_TEMPERATURE).contains(temperature),
            &format!("{within}.temperature"),
            format!("must lie between {LEAST_TEMPERATURE} and {MOST_TEMPERATURE}"),
            "write, for example, 1.0",
        );
        self.rule(
            *kd_ratio > 0.0 && *kd_ratio <= 1.0,
            &format!("{within}.kd_ratio"),
            "must be greater than 0 and at most 1",
            "write 1.0 to follow the teacher alone, 0.5 to learn as much from the rows, or leave \
             `objective` out to learn from the rows alone",
        );
        self.rule(
            recipe.train.label_smoothing_factor == 0.0 || *kd_ratio < 1.0,
            "train.label_smoothing_factor",
            "smooths what rows say, and with `kd_ratio: 1.0` only the teacher is listened to",
            "leave it out, or write a smaller `kd_ratio`",
        );
        self.rule(
            teacher.is_some() || logits.is_some(),
            within,
            "names nobody to learn from",
            "add `teacher: { model: DIR }`, or `logits: FILE` with what a teacher said",
        );
        if let Some(logits) = logits {
            self.rule(
                !logits.as_os_str().is_empty(),
                &format!("{within}.logits"),
                "is empty",
                "name a file that `heirloom logits` wrote, or leave it out",
            );
        }
        if let Some(teacher) = teacher {
            self.teacher(teacher, &format!("{within}.teacher"));
        }
    }

    fn teacher(&mut self, teacher: &Teacher, within: &str) {
        let key = format!("{within}.model");
        self.rule(
            !teacher.model.as_os_str().is_empty(),
            &key,
            "is empty",
            "name the folder of a model with the tokenizer of the base",
        );
        match Address::of(&teacher.model) {
            Some(Err(error)) => {
                let hint = error.hint().unwrap_or_default();
                self.rule(false, &key, format!("is no model: {error}"), hint);
            }
            Some(Ok(address)) => self.rule(
                address.is_pinned(),
                &key,
                format!("is `{address}`, which may be another model tomorrow"),
                "write the commit: `hf://org/name@` and the 40 digits that the hub shows",
            ),
            None => {}
        }
        let key = format!("{within}.unquantized");
        self.rule(
            teacher.quantization != Quantization::None || teacher.unquantized.is_empty(),
            &key,
            "leaves layers out of a quantisation that there is none of",
            "write `quantization: nf4`, or another, or leave `unquantized` out",
        );
        for (index, part) in teacher.unquantized.iter().enumerate() {
            self.rule(
                !part.trim().is_empty(),
                &format!("{key}[{index}]"),
                "is blank",
                "name a layer, such as `down_proj`, or leave it out",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::recipe::read::parse;

    const RECIPE: &str = "\
heirloom: 1
name: small
base: { model: base }
adapter: { lora: { rank: 4, alpha: 8 } }
objective: { distillation: { teacher: { model: teacher } } }
data:
  purpose: [dpv:ServiceProvision]
  train: [{ path: rows.parquet, format: chat }]
  sequence_length: 512
train:
  epochs: 1
  tokens_per_step: 512
  optimizer: { adamw: { lr: 1.0e-3 } }
  seed: 1
";

    fn problems(set: &str) -> Vec<String> {
        match parse(Path::new("r.yaml"), RECIPE, &[set.to_owned()]) {
            Ok(_) => Vec::new(),
            Err(error) => crate::diagnose::Diagnose::details(&error)
                .into_iter()
                .chain([error.to_string()])
                .collect(),
        }
    }

    #[test]
    fn what_teaches_nothing_is_refused() {
        for (set, expected) in [
            ("objective.distillation.beta=1.5", "must lie between 0 and 1"),
            ("objective.distillation.beta=-0.1", "must lie between 0 and 1"),
            ("objective.distillation.temperature=0", "must lie between 0.01 and 100"),
            ("objective.distillation.temperature=1e300", "must lie between 0.01 and 100"),
            ("objective.distillation.kd_ratio=0", "must be greater than 0 and at most 1"),
            ("objective.distillation.kd_ratio=1.1", "must be greater than 0 and at most 1"),
            ("objective.distillation.teacher=null", "names nobody to learn from"),
            ("objective.distillation.logits=''", "is empty"),
            ("objective.distillation.teacher.model=''", "is empty"),
            ("objective.distillation.teacher.model=hf://org/name@main", "another model tomorrow"),
            ("objective.distillation.teacher.unquantized=[down_proj]", "that there is none of"),
            ("train.label_smoothing_factor=0.1", "only the teacher is listened to"),
        ] {
            let found = problems(set);
            assert!(found.iter().any(|found| found.contains(expected)), "{set}: {found:?}");
        }
        for set in [
            "objective.distillation.beta=1",
            "objective={distillation: {logits: said.parquet}}",
            "objective.distillation.teacher={model: t, quantization: nf4, unquantized: [down_proj]}",
            "objective={distillation: {teacher: {model: t}, kd_ratio: 0.5}}",
        ] {
            assert_eq!(problems(set), Vec::<String>::new(), "{set}");
        }
    }
}
