//! Which settings of `adapter_config.json` mean the computation that is done here.
//!
//! Follows PEFT 0.21.2: every field of its `LoraConfig` and `VeraConfig` stands in [`LORA`] or [`VERA`]. What is not known
//! is refused, as it may change the computation, unless it asks for nothing. Owns no meaning of
//! the settings that are used: [`super::describe`] reads those.

use std::path::Path;

use serde_json::Value;

use super::PeftError;

/// Longest part of a key or a value that a message repeats, in characters.
const SHOWN: usize = 120;

/// What a setting may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Anything: it is used, and checked where it is read.
    Read,
    /// Anything: it changes nothing once the adapter is trained.
    Inert,
    /// `false`, PEFT's default.
    False,
    /// PEFT's default asks for nothing.
    Nothing,
    /// A start of the weights that leaves the base as it is, or `false`.
    Start,
    /// `none`.
    NoBias,
}

/// Settings by name.
type Fields<const N: usize> = [(&'static str, Rule); N];

/// The fields of PEFT's `LoraConfig`, in its order.
pub(super) const LORA: Fields<44> = [
    ("task_type", Rule::Inert),
    ("peft_type", Rule::Read),
    ("auto_mapping", Rule::Inert),
    ("peft_version", Rule::Inert),
    ("base_model_name_or_path", Rule::Read),
    ("revision", Rule::Inert),
    ("inference_mode", Rule::Inert),
    ("r", Rule::Read),
    ("target_modules", Rule::Read),
    ("exclude_modules", Rule::Read),
    ("lora_alpha", Rule::Read),
    ("lora_dropout", Rule::Read),
    ("fan_in_fan_out", Rule::False),
    ("bias", Rule::Read),
    ("use_rslora", Rule::Read),
    ("modules_to_save", Rule::Read),
    ("init_lora_weights", Rule::Start),
    ("layers_to_transform", Rule::Read),
    ("layers_pattern", Rule::Read),
    ("rank_pattern", Rule::Read),
    ("alpha_pattern", Rule::Read),
    // How another program lays out the layers; there are none of its layers here.
    ("megatron_config", Rule::Inert),
    ("megatron_core", Rule::Inert),
    ("trainable_token_indices", Rule::Read),
    // Settings of a start: `init_lora_weights` decides, and PEFT keeps them when it converts.
    ("loftq_config", Rule::Inert),
    ("eva_config", Rule::Inert),
    ("corda_config", Rule::Inert),
    ("lora_ga_config", Rule::Inert),
    ("use_dora", Rule::Read),
    ("velora_config", Rule::Nothing),
    ("alora_invocation_tokens", Rule::Nothing),
    ("use_qalora", Rule::False),
    // Of `use_qalora`; PEFT's default is 16.
    ("qalora_group_size", Rule::Inert),
    ("monteclora_config", Rule::Nothing),
    ("layer_replication", Rule::Nothing),
    // PEFT drops it from files.
    ("runtime_config", Rule::Inert),
    ("lora_bias", Rule::False),
    ("target_parameters", Rule::Read),
    ("use_bdlora", Rule::Nothing),
    ("arrow_config", Rule::Nothing),
    ("kasa_config", Rule::Nothing),
    ("ensure_weight_tying", Rule::Read),
    // Of the first versions of PEFT; this one: whether it merged when it evaluated.
    ("merge_weights", Rule::Inert),
    ("enable_lora", Rule::Nothing),
];

/// The fields of PEFT's `VeraConfig`, in its order.
pub(super) const VERA: Fields<21> = [
    ("task_type", Rule::Inert),
    ("peft_type", Rule::Read),
    ("auto_mapping", Rule::Inert),
    ("peft_version", Rule::Inert),
    ("base_model_name_or_path", Rule::Read),
    ("revision", Rule::Inert),
    ("inference_mode", Rule::Inert),
    ("r", Rule::Read),
    ("target_modules", Rule::Read),
    ("projection_prng_key", Rule::Read),
    ("save_projection", Rule::Read),
    ("vera_dropout", Rule::Read),
    ("d_initial", Rule::Read),
    ("fan_in_fan_out", Rule::False),
    ("bias", Rule::NoBias),
    ("modules_to_save", Rule::Nothing),
    // Only where training starts.
    ("init_weights", Rule::Inert),
    ("layers_to_transform", Rule::Read),
    ("layers_pattern", Rule::Read),
    ("exclude_modules", Rule::Nothing),
    // PEFT drops it from files.
    ("runtime_config", Rule::Inert),
];

/// Values of `init_lora_weights` with which PEFT leaves the base as it is when it loads an
/// adapter. It changes the base again for `pissa*`, `olora` and `loftq`, and cannot load
/// `corda`.
const STARTS: [&str; 5] = ["gaussian", "eva", "orthogonal", "mica", "lora_ga"];

/// Starts whose adapters PEFT converts to plain ones, by the beginning of the value.
const CONVERTIBLE: [&str; 3] = ["pissa", "olora", "corda"];

impl Rule {
    fn allows(self, value: &Value) -> bool {
        if asks_for_nothing(value) {
            return true;
        }
        match (self, value) {
            (Self::Read | Self::Inert, _) | (Self::Start, Value::Bool(_)) => true,
            (Self::False, value) => *value == Value::Bool(false),
            (Self::Start, Value::String(start)) => {
                STARTS.contains(&start.to_ascii_lowercase().as_str())
            }
            (Self::NoBias, value) => *value == Value::String("none".to_owned()),
            (Self::Nothing | Self::Start, _) => false,
        }
    }
}

/// Whether a value leaves out what its key is for. `false` is no such value: where the default
/// is `true`, it asks for something.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(word) => word.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Refuses a configuration, read from `path`, with a setting that has another meaning than
/// what is done here, or an unknown one.
pub(super) fn check(path: &Path, config: &Value, fields: &[(&str, Rule)]) -> Result<(), PeftError> {
    for (key, value) in config.as_object().into_iter().flatten() {
        let known = fields.iter().find(|(field, _)| field == key);
        if !known.map_or(Rule::Nothing, |(_, rule)| *rule).allows(value) {
            let value = match value {
                Value::String(word) => word.clone(),
                other => other.to_string(),
            };
            return Err(refusal(path, key, &value));
        }
    }
    Ok(())
}

/// The error for a setting.
pub(super) fn refusal(path: &Path, key: &str, value: &str) -> PeftError {
    PeftError::Setting { path: path.to_owned(), key: shown(key), value: shown(value) }
}

/// As much of a text from outside as a message can bear.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars().take(SHOWN) {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// What to do about a refused setting.
pub(super) fn remedy(key: &str, value: &str) -> &'static str {
    if key != "init_lora_weights" {
        return "use a LoRA adapter of this base without it";
    }
    let value = value.to_ascii_lowercase();
    if CONVERTIBLE.iter().any(|start| value.starts_with(start)) {
        "this start changes the base: convert the adapter with PEFT's \
         `save_pretrained(path_initial_model_for_weight_conversion=…)`"
    } else if value == "loftq" {
        "this start changes the base: save the base as PEFT changed it, name that as \
         `base_model_name_or_path`, and set `init_lora_weights` to `true`"
    } else {
        "use an adapter whose start leaves the base as it is, such as `true`"
    }
}

#[cfg(test)]
mod tests {
    use crate::diagnose::Diagnose as _;
    use serde_json::json;

    use super::*;

    fn checked(key: &str, value: Value) -> Result<(), PeftError> {
        check(Path::new("adapter_config.json"), &json!({ key: value }), &LORA)
    }

    #[test]
    fn a_setting_that_would_change_the_computation_is_refused_by_name() {
        for (key, value) in [
            ("fan_in_fan_out", json!(true)),
            ("velora_config", json!({"num_groups": 64})),
            ("alora_invocation_tokens", json!([1])),
            ("use_qalora", json!(true)),
            ("monteclora_config", json!({"num_samples": 8})),
            ("layer_replication", json!([[0, 2]])),
            ("lora_bias", json!(true)),
            ("use_bdlora", json!({"nblocks": 2})),
            ("arrow_config", json!({"top_k": 3})),
            ("kasa_config", json!({"beta": 1.0})),
            ("enable_lora", json!([true, false, true])),
        ] {
            let error = checked(key, value.clone()).unwrap_err();
            let word = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let expected = format!("has `{key}` = `{word}`, which is not supported");
            assert!(error.to_string().contains(&expected), "{error}");
            assert!(error.hint().unwrap().contains("without it"), "{key}");
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_unless_it_asks_for_nothing() {
        for value in [json!(true), json!(false), json!(0), json!("x"), json!([0]), json!({"a": 1})]
        {
            let error = checked("use_foo", value).unwrap_err().to_string();
            assert!(error.contains("`use_foo`"), "{error}");
        }
        for value in [json!(null), json!(""), json!([]), json!({})] {
            checked("use_foo", value).unwrap();
        }
    }

    #[test]
    fn a_start_that_changes_the_base_is_refused_with_a_remedy() {
        for start in ["pissa", "pissa_niter_16", "PiSSA", "olora", "OLoRA", "corda"] {
            let error = checked("init_lora_weights", json!(start)).unwrap_err();
            assert!(error.to_string().contains(&format!("`init_lora_weights` = `{start}`")));
            let hint = error.hint().unwrap();
            assert!(hint.contains("save_pretrained(path_initial_model_for_weight_conversion="));
        }
        let loftq = checked("init_lora_weights", json!("loftq")).unwrap_err();
        assert!(loftq.hint().unwrap().contains("`base_model_name_or_path`"));
        for start in [json!("foo"), json!(1), json!(["pissa"])] {
            checked("init_lora_weights", start).unwrap_err();
        }
    }

    #[test]
    fn a_start_that_leaves_the_base_is_accepted() {
        for start in [json!(true), json!(false), json!(null), json!("Gaussian")] {
            checked("init_lora_weights", start).unwrap();
        }
        for start in STARTS {
            checked("init_lora_weights", json!(start)).unwrap();
        }
    }

    #[test]
    fn what_a_trained_adapter_does_not_depend_on_may_be_anything() {
        for (key, value) in [
            ("task_type", json!("SEQ_CLS")),
            ("revision", json!("main")),
            ("megatron_core", json!("megatron.core")),
            ("eva_config", json!({"rho": 2.0})),
            ("corda_config", json!({"corda_method": "ipm"})),
            ("qalora_group_size", json!(32)),
            ("runtime_config", json!({"ephemeral_gpu_offload": true})),
            ("merge_weights", json!(false)),
        ] {
            checked(key, value).unwrap();
        }
    }

    /// A file of PEFT 0.21.2 has every field but the two that older versions wrote and the one
    /// that it drops, and no other.
    #[test]
    fn the_table_has_the_fields_of_peft() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("engine/tests/fixtures/lora-qv/adapter/adapter_config.json");
        let config: Value = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
        let written = config.as_object().unwrap();
        let elsewhere = ["merge_weights", "enable_lora", "runtime_config"];
        for (field, _) in LORA {
            assert!(written.contains_key(field) != elsewhere.contains(&field), "{field}");
        }
        assert_eq!(written.len() + elsewhere.len(), LORA.len());
    }

    #[test]
    fn a_message_neither_grows_nor_writes_control_characters_with_a_hostile_file() {
        let error = checked("\u{1b}[2J", json!("\u{7}".repeat(100_000))).unwrap_err().to_string();
        assert!(error.len() < 2_000 && !error.contains(char::is_control), "{error}");
    }
}
