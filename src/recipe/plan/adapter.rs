//! What of a base is trained, and what of a recipe's adapter cannot be done on it.

use std::collections::BTreeSet;

use super::Looking;
use crate::base::{
    Architecture, BaseFolder, Checkpoint, ExpertParameter, ExpertWeights, FeedForward, Layer,
    Linear,
};
use crate::dataset::vocabulary::Vocabulary;
use crate::peft;
use crate::recipe::adapter::{
    Adapter, Bias, FEED_FORWARD_AS_PARAMETERS, Lora, Start, Targets, names_key,
};
use crate::recipe::is_tail;
use crate::recipe::problem::most_alike;

impl Looking<'_> {
    /// How many weights are trained.
    pub(super) fn trainable(
        &mut self,
        base: &BaseFolder,
        vocabulary: Option<&Vocabulary>,
    ) -> Option<u64> {
        let lora = match &self.literal.recipe.adapter {
            Adapter::Lora(lora) => lora,
            Adapter::Full(names) => return Some(self.unfrozen(names, &base.architecture)),
        };
        let layers = base.architecture.linear_layers();
        self.going_on(lora, &base.architecture, &layers);
        self.names(lora, &base.architecture, &layers);
        self.blocks(lora, base.architecture.layers.len());
        let chosen: Vec<&Linear> =
            layers.iter().filter(|layer| lora.chooses(&layer.name)).collect();
        let parameters = base.architecture.expert_parameters().into_iter();
        let of_experts: Vec<ExpertParameter> =
            parameters.filter(|parameter| lora.chooses_parameter(&parameter.name)).collect();
        if chosen.is_empty() && of_experts.is_empty() && self.problems.is_empty() {
            let hint = "name more in `targets`, or fewer in `exclude_modules` and \
                        `layers_to_transform`";
            self.rule("adapter.lora.targets", "leaves no layer".to_owned(), hint.to_owned());
        }
        self.ranks(lora, &chosen);
        self.biases(lora, &base.architecture, &layers);
        self.magnitudes(lora, &base.architecture, &chosen);
        let of_layer = |layer: &Linear| {
            let wrapped = lora.chooses(&layer.name);
            let (inputs, outputs) = (layer.in_features as u64, layer.out_features as u64);
            let rank = u64::from(lora.rank_of(&layer.name));
            let pair = match lora.vera {
                Some(_) => rank + outputs,
                None => rank.saturating_mul(inputs + outputs),
            };
            let lengths = if lora.use_dora { outputs } else { 0 };
            let bias = if layer.bias && lora.trains_bias(&layer.name) { outputs } else { 0 };
            bias.saturating_add(if wrapped { pair.saturating_add(lengths) } else { 0 })
        };
        let of_parameter = |parameter: &ExpertParameter| {
            let pairs = u64::from(lora.rank_of(&parameter.name)) * parameter.experts as u64;
            pairs.saturating_mul((parameter.in_features + parameter.out_features) as u64)
        };
        let layers = layers.iter().map(of_layer).chain(of_experts.iter().map(of_parameter));
        let layers = layers.fold(0, u64::saturating_add);
        Some(layers.saturating_add(self.trained_rows(base, lora, vocabulary?)?))
    }

    /// How many weights of the base itself are trained.
    fn unfrozen(&mut self, names: &[String], architecture: &Architecture) -> u64 {
        let tensors = architecture.tensors();
        for (index, name) in names.iter().enumerate() {
            if !tensors.iter().any(|(key, _)| names_key(name, key)) {
                let parts = tensors.iter().flat_map(|(key, _)| key.split('.'));
                let hint = match most_alike(name, parts) {
                    Some(alike) => format!("did you mean `{alike}`?"),
                    None => "write a key of the checkpoint, or its first or last parts".to_owned(),
                };
                let what = format!("names `{name}`, which is no weight of the base");
                self.rule(&format!("adapter.unfrozen_parameters[{index}]"), what, hint);
            }
        }
        let adapter = &self.literal.recipe.adapter;
        let trained = tensors.iter().filter(|(key, _)| adapter.trains(key));
        let count = |(_, shape): &(String, Vec<usize>)| {
            shape.iter().fold(1, |count: u64, size| count.saturating_mul(*size as u64))
        };
        trained.map(count).fold(0, u64::saturating_add)
    }

    /// What is gone on from has the pairs that are trained.
    fn going_on(&mut self, lora: &Lora, architecture: &Architecture, layers: &[Linear]) {
        let Some(folder) = &lora.from else { return };
        let key = "adapter.from";
        let path = folder.join(peft::WEIGHTS);
        let Some(stored) = self.take(key, Checkpoint::open_file(&path)) else { return };
        let layers = layers.iter().filter(|layer| lora.chooses(&layer.name)).map(|layer| {
            let (prefix, rank) = (&layer.name, lora.rank_of(&layer.name) as usize);
            let (part, shape) = match lora.vera {
                Some(_) => ("vera_lambda_d", vec![rank]),
                None => ("lora_A.weight", vec![rank, layer.in_features]),
            };
            (&layer.name, format!("base_model.model.{prefix}.{part}"), shape)
        });
        let parameters: Vec<_> =
            architecture.layers.iter().filter_map(Layer::expert_parameters).collect();
        let parameters = parameters.iter().flat_map(|both| {
            let keys = both.iter().zip(lora.parameter_keys(both));
            keys.filter_map(|(parameter, keys)| {
                let [key, _] = keys?;
                let rank = lora.rank_of(&parameter.name) as usize * parameter.experts;
                Some((&parameter.name, key, vec![rank, parameter.in_features]))
            })
        });
        let lacking = layers
            .chain(parameters)
            .find(|(_, key, shape)| stored.get(key).is_none_or(|view| view.shape != *shape));
        if let Some((name, ..)) = lacking {
            let what = format!(
                "is `{}`, which has no update of rank {} for `{}`",
                folder.display(),
                lora.rank_of(name),
                name
            );
            self.rule(key, what, "name an adapter of this base".to_owned());
        }
    }

    /// Every name is that of a layer.
    fn names(&mut self, lora: &Lora, architecture: &Architecture, layers: &[Linear]) {
        let parameters = architecture.expert_parameters();
        self.parameters(lora, &parameters);
        if let Targets::Modules(names) = &lora.targets {
            self.layers("adapter.lora.targets", names, layers, is_tail);
        }
        let key = "adapter.lora.exclude_modules";
        self.layers(key, &lora.exclude_modules, layers, is_tail);
        let of_experts = |name: &String| {
            let chosen = |it: &ExpertParameter| lora.chooses_parameter(&it.name);
            parameters.iter().any(|it| chosen(it) && is_tail(&it.name, name))
        };
        let ranks = lora.rank_pattern.0.iter().map(|(name, _)| name);
        let ranks: Vec<String> = ranks.filter(|name| !of_experts(name)).cloned().collect();
        self.layers("adapter.lora.rank_pattern", &ranks, layers, is_tail);
        let alphas = lora.alpha_pattern.0.iter().map(|(name, _)| name);
        let alphas: Vec<String> = alphas.filter(|name| !of_experts(name)).cloned().collect();
        self.layers("adapter.lora.alpha_pattern", &alphas, layers, is_tail);
    }

    /// Every name of `target_parameters` is that of a weight of routed experts.
    fn parameters(&mut self, lora: &Lora, parameters: &[ExpertParameter]) {
        for (index, name) in lora.target_parameters.iter().enumerate() {
            if parameters.iter().any(|parameter| is_tail(&parameter.name, name)) {
                continue;
            }
            let hint = match parameters.is_empty() {
                true => "leave it out: the base has no routed experts",
                false => "write `mlp.experts.gate_up_proj` or `mlp.experts.down_proj`",
            };
            let what = format!("names `{name}`, which is no weight of routed experts");
            let key = format!("adapter.lora.target_parameters[{index}]");
            self.rule(&key, what, hint.to_owned());
        }
    }

    fn blocks(&mut self, lora: &Lora, count: usize) {
        for (index, block) in lora.layers_to_transform.iter().enumerate() {
            if *block as usize >= count {
                self.rule(
                    &format!("adapter.lora.layers_to_transform[{index}]"),
                    format!("is {block}, and the base has {count} blocks"),
                    format!("write 0 to {}", count.saturating_sub(1)),
                );
            }
        }
    }

    /// A start that decomposes a weight finds no more parts than the weight has.
    fn ranks(&mut self, lora: &Lora, chosen: &[&Linear]) {
        if matches!(lora.init_lora_weights, Start::Default | Start::Gaussian) {
            return;
        }
        let parts = |layer: &Linear| layer.in_features.min(layer.out_features);
        let small = chosen.iter().find(|layer| lora.rank_of(&layer.name) as usize > parts(layer));
        if let Some(layer) = small {
            let what = format!(
                "is `{}`, which finds {} parts of `{}`, fewer than its rank",
                lora.init_lora_weights,
                parts(layer),
                layer.name
            );
            let hint = "lower the rank, there by `rank_pattern`, or write `true`".to_owned();
            self.rule("adapter.lora.init_lora_weights", what, hint);
        }
    }

    fn biases(&mut self, lora: &Lora, architecture: &Architecture, layers: &[Linear]) {
        let key = "adapter.lora.bias";
        let elsewhere = architecture.layers.iter().any(|layer| match &layer.feed_forward {
            FeedForward::Gated(_) => false,
            FeedForward::Experts(experts) => {
                let stacked = matches!(experts.experts, ExpertWeights::Stacked { .. });
                experts.router.bias.is_some() || stacked
            }
        });
        if lora.bias == Bias::All && elsewhere {
            let what = "is `all`, and this base has biases outside of its linear layers";
            self.rule(key, what.to_owned(), "write `lora_only`".to_owned());
        }
        let trained = |layer: &Linear| layer.bias && lora.trains_bias(&layer.name);
        if lora.bias != Bias::None && !layers.iter().any(trained) {
            let what = format!("is `{}`, and there are no such biases", lora.bias.name());
            self.rule(key, what, "leave it out".to_owned());
        }
    }

    /// PEFT has neither DoRA nor VeRA for weights that it finds as parameters.
    fn magnitudes(&mut self, lora: &Lora, architecture: &Architecture, chosen: &[&Linear]) {
        let other = lora.use_dora || lora.vera.is_some();
        if !other || !FEED_FORWARD_AS_PARAMETERS.contains(&architecture.model_type) {
            return;
        }
        let outside = chosen.iter().filter(|layer| !layer.name.contains(".self_attn."));
        let lasts: BTreeSet<&str> =
            outside.filter_map(|layer| layer.name.rsplit('.').next()).collect();
        if let Some(last) = lasts.first() {
            let method = lora.method();
            let what = format!("reaches `{last}`, for which PEFT has no {method} in this family");
            let key = if lora.use_dora { "adapter.lora.use_dora" } else { "adapter.lora.targets" };
            let hint = "name layers of the attention alone in `targets`".to_owned();
            self.rule(key, what, hint);
        }
    }
}
