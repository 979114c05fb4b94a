//! Weights of routed experts that an adapter reaches: `target_parameters`.
//!
//! Owns which of them are chosen, and the keys of their updates in `adapter_model.safetensors`.
//!
//! Reference: `inject_adapter` and `lora.ParamWrapper` of PEFT 0.21.2, which wraps the module of
//! all experts once for each of its weights, so that the first one stands within the second.

use super::Lora;
use crate::base::ExpertParameter;
use crate::recipe::is_tail;

/// Keys of an update's A and B.
pub type PairKeys = [String; 2];

impl Lora {
    /// Whether the weight `name` of routed experts gets an adapter. Neither `exclude_modules` nor
    /// `layers_to_transform` is asked, as in PEFT.
    pub fn chooses_parameter(&self, name: &str) -> bool {
        self.target_parameters.iter().any(|parameter| is_tail(name, parameter))
    }

    /// The keys of the updates of a block's experts, where they have some.
    pub fn parameter_keys(&self, parameters: &[ExpertParameter; 2]) -> [Option<PairKeys>; 2] {
        let chosen = parameters.each_ref().map(|parameter| self.chooses_parameter(&parameter.name));
        parameter_keys(parameters, chosen)
    }
}

/// The keys of the updates of those of a block's experts' weights that are `chosen`.
pub fn parameter_keys(
    parameters: &[ExpertParameter; 2],
    chosen: [bool; 2],
) -> [Option<PairKeys>; 2] {
    let within = [if chosen == [true, true] { ".base_layer" } else { "" }, ""];
    let keys = |index: usize| {
        let parameter: &ExpertParameter = &parameters[index];
        let module = parameter.name.rsplit_once('.').map_or("", |(module, _)| module);
        let prefix = format!("base_model.model.{module}{}", within[index]);
        chosen[index].then(|| ["lora_A", "lora_B"].map(|part| format!("{prefix}.{part}.weight")))
    };
    [keys(0), keys(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(block: usize) -> [ExpertParameter; 2] {
        ["gate_up_proj", "down_proj"].map(|part| ExpertParameter {
            name: format!("model.layers.{block}.mlp.experts.{part}"),
            experts: 4,
            in_features: 8,
            out_features: 8,
        })
    }

    #[test]
    fn the_first_weight_stands_within_the_second_where_both_are_chosen() {
        let keys = |targets: &[&str], block| {
            let target_parameters = targets.iter().map(|name| (*name).to_owned()).collect();
            let lora = Lora { target_parameters, ..Lora::new(2, 4.0) };
            lora.parameter_keys(&parameters(block)).map(|pair| pair.map(|[a, _]| a))
        };
        let plain = "base_model.model.model.layers.1.mlp.experts.lora_A.weight".to_owned();
        let within = plain.replace(".lora_A", ".base_layer.lora_A");
        assert_eq!(keys(&["experts.down_proj"], 1), [None, Some(plain.clone())]);
        assert_eq!(keys(&["experts.gate_up_proj"], 1), [Some(plain.clone()), None]);
        let both = ["mlp.experts.down_proj", "layers.1.mlp.experts.gate_up_proj"];
        assert_eq!(keys(&both, 1), [Some(within), Some(plain.clone())]);
        assert_eq!(keys(&both, 0), [None, Some(plain.replace("layers.1", "layers.0"))]);
        assert_eq!(keys(&["up_proj"], 1), [None, None]);
    }
}
