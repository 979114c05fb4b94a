//! What an objective asks of the rest of a recipe.

use super::Check;
use crate::recipe::{
    Adapter, Dpo, Format, Kto, Lora, LossType, Objective, Overlong, Recipe, RowsOf, Simpo, Start,
    TrainOn,
};

impl Check<'_> {
    pub(super) fn objective(&mut self, recipe: &Recipe) {
        match &recipe.objective {
            Objective::Supervised => {}
            Objective::Dpo(dpo) => self.dpo(dpo),
            Objective::Orpo(orpo) => self.positive(orpo.beta, "objective.orpo.beta", "0.1"),
            Objective::Kto(kto) => self.kto(kto),
            Objective::Simpo(simpo) => self.simpo(simpo),
            Objective::Distillation(distillation) => self.distillation(distillation, recipe),
        }
        if recipe.objective.has_reference() {
            self.reference(recipe);
        }
        self.formats(recipe);
        if recipe.objective.rows() != RowsOf::Examples {
            self.answers(recipe);
        }
    }

    fn dpo(&mut self, dpo: &Dpo) {
        self.positive(dpo.beta, "objective.dpo.beta", "0.1");
        self.smoothing(dpo.label_smoothing, "objective.dpo.label_smoothing");
        self.rule(
            dpo.label_smoothing == 0.0 || dpo.loss_type == LossType::Sigmoid,
            "objective.dpo.label_smoothing",
            format!("has no meaning with `loss_type: {}`", dpo.loss_type.name()),
            "leave it out, or write `loss_type: sigmoid`",
        );
    }

    fn kto(&mut self, kto: &Kto) {
        self.positive(kto.beta, "objective.kto.beta", "0.1");
        self.positive(kto.desirable_weight, "objective.kto.desirable_weight", "1.0");
        self.positive(kto.undesirable_weight, "objective.kto.undesirable_weight", "1.0");
    }

    fn simpo(&mut self, simpo: &Simpo) {
        self.positive(simpo.beta, "objective.simpo.beta", "2.0");
        self.not_negative(simpo.simpo_gamma, "objective.simpo.simpo_gamma");
        self.smoothing(simpo.label_smoothing, "objective.simpo.label_smoothing");
    }

    /// Half the labels the wrong way round would say nothing.
    fn smoothing(&mut self, value: f64, key: &str) {
        self.rule(
            (0.0..0.5).contains(&value),
            key,
            "must be at least 0 and less than 0.5",
            "write, for example, 0.1, or leave it out",
        );
    }

    /// The reference is the model with its adapter switched off, so that must be what training
    /// starts from.
    fn reference(&mut self, recipe: &Recipe) {
        let word = recipe.objective.name();
        let hint = "write `adapter: { lora: { rank: 16, alpha: 32 } }`, or an objective without \
                    a reference, such as `orpo` or `simpo`";
        let Adapter::Lora(Lora { from, init_lora_weights, .. }) = &recipe.adapter else {
            let what = format!(
                "trains the base itself, and `objective: {word}` compares with the base as it was"
            );
            return self.rule(false, "adapter", what, hint);
        };
        self.rule(
            from.is_none(),
            "adapter.from",
            format!(
                "goes on from an adapter, and `objective: {word}` compares with the base without \
                 one"
            ),
            "merge the adapter into its base first (`heirloom export RUN --to merged`), and name \
             that in `base.model`",
        );
        self.rule(
            *init_lora_weights != Start::Loftq,
            "adapter.lora.init_lora_weights",
            format!(
                "is `loftq`, which starts beside the quantised base that `objective: {word}` \
                 compares with"
            ),
            "leave it out, or write `pissa`, which starts as the base",
        );
    }

    /// Verdicts go with the objectives that have a use for them.
    fn formats(&mut self, recipe: &Recipe) {
        if !self.means_something("objective") {
            return;
        }
        let data = &recipe.data;
        let wanted = recipe.objective.rows().format();
        let lists = [("train", &data.train), ("validation", &data.validation)];
        for (list, sources) in lists {
            for (index, source) in sources.iter().enumerate() {
                let key = format!("data.{list}[{index}].format");
                match wanted {
                    Some(wanted) => self.rule(
                        source.format == wanted,
                        &key,
                        format!(
                            "has no rows for `objective: {}`, which learns from `{}`",
                            recipe.objective.name(),
                            word(wanted)
                        ),
                        format!("write `format: {}`", word(wanted)),
                    ),
                    None => self.rule(
                        !is_judged(source.format),
                        &key,
                        "holds answers that are judged, and supervised training has no use for \
                         verdicts",
                        "write an `objective` such as `{ dpo: {} }` or `{ kto: {} }`, or import \
                         the good answers as `prompt-completion`",
                    ),
                }
            }
        }
        for (index, suite) in data.test.iter().enumerate() {
            self.rule(
                !is_judged(suite.format),
                &format!("data.test[{index}].format"),
                "holds answers that are judged, and a suite asks for one answer",
                "import the good answers as `chat`, or choose another source",
            );
        }
    }

    /// What is compared is how likely whole answers are.
    fn answers(&mut self, recipe: &Recipe) {
        let word = recipe.objective.name();
        self.rule(
            recipe.data.train_on == TrainOn::Completion,
            "data.train_on",
            format!("must be `completion`: `objective: {word}` is about what follows a prompt"),
            "write `train_on: completion`",
        );
        self.rule(
            matches!(recipe.data.overlong, Overlong::Refuse | Overlong::Drop),
            "data.overlong",
            format!("cuts answers, and `objective: {word}` judges them as a whole"),
            "write `drop`, or a larger `sequence_length`",
        );
        self.rule(
            recipe.train.label_smoothing_factor == 0.0,
            "train.label_smoothing_factor",
            format!("smooths what tokens are to be, and `objective: {word}` is about answers"),
            "leave it out",
        );
    }
}

fn is_judged(format: Format) -> bool {
    matches!(format, Format::Preference | Format::Kto)
}

/// The two formats that an objective can ask for, as a recipe names them.
fn word(format: Format) -> &'static str {
    if format == Format::Kto { "kto" } else { "preference" }
}
