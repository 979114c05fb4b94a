//! What the words of `data` have to say.

use super::{Check, MAX_TOKENS, MIN_SEQUENCE_LENGTH};
use crate::dataset::consent::purposes;
use crate::recipe::{Recipe, Source};

impl Check<'_> {
    pub(super) fn data(&mut self, recipe: &Recipe) {
        let data = &recipe.data;
        type Known = fn(&str) -> bool;
        type Nearest = fn(&str) -> Option<&'static str>;
        let purpose: (Known, Nearest) = (purposes::is_known, purposes::nearest);
        let processing: (Known, Nearest) =
            (purposes::is_known_processing, purposes::nearest_processing);
        for (key, terms, example, (is_known, nearest)) in [
            ("data.purpose", &data.purpose, "dpv:ServiceProvision", purpose),
            ("data.processing", &data.processing, "ai:ModelFineTuning", processing),
        ] {
            self.rule(!terms.is_empty(), key, "is empty", format!("write `[{example}]`"));
            for (index, term) in terms.iter().enumerate() {
                let key = format!("{key}[{index}]");
                self.rule(
                    is_curie(term),
                    &key,
                    "is not a term of the form `prefix:Term`",
                    format!("write a term of the Data Privacy Vocabulary, such as `{example}`"),
                );
                self.rule(
                    !is_curie(term) || is_known(term),
                    &key,
                    format!("is `{term}`, which is no such term of DPV 2.3"),
                    match nearest(term) {
                        Some(alike) => format!("did you mean `{alike}`?"),
                        None => format!("write a term such as `{example}`"),
                    },
                );
            }
        }
        self.at_least_one(u64::from(data.max_hours), "data.max_hours");
        self.rule(
            !data.train.is_empty(),
            "data.train",
            "is empty",
            "add `- { path: FILE.parquet, format: chat }`",
        );
        self.rule(
            data.sequence_length >= MIN_SEQUENCE_LENGTH,
            "data.sequence_length",
            format!("must be at least {MIN_SEQUENCE_LENGTH}"),
            "write, for example, 512",
        );
        self.at_most(data.sequence_length as u64, MAX_TOKENS, "data.sequence_length");
        self.rule(
            (0.0..1.0).contains(&data.validation_split),
            "data.validation_split",
            "must be at least 0 and less than 1",
            "write a share, such as 0.05 for 5 %",
        );
        self.rule(
            data.validation_split == 0.0 || data.validation.is_empty(),
            "data.validation_split",
            "takes validation rows from `train`, beside those of `data.validation`",
            "keep one of the two",
        );
        self.weights(&data.train);
        for (index, source) in data.validation.iter().enumerate() {
            self.rule(
                source.weight.is_none(),
                &format!("data.validation[{index}].weight"),
                "has no meaning: every validation row is measured once",
                "leave it out",
            );
        }
    }

    /// All sources are weighed, or none.
    fn weights(&mut self, sources: &[Source]) {
        let weighed = sources.iter().any(|source| source.weight.is_some());
        for (index, source) in sources.iter().enumerate() {
            let key = format!("data.train[{index}]");
            match source.weight {
                Some(weight) => self.positive(weight, &format!("{key}.weight"), "1.0"),
                None => self.rule(
                    !weighed,
                    &key,
                    "has no weight, and other sources have one",
                    "give every source a `weight`, or none",
                ),
            }
        }
    }
}

/// Whether a term is `prefix:Term`, a compact form of an address in a vocabulary.
fn is_curie(term: &str) -> bool {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    term.split_once(':').is_some_and(|(prefix, term)| word(prefix) && word(term))
}
