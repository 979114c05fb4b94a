//! Adapters of PEFT that are refused, and that are read, by their settings.

use heirloom::peft::PeftError;
use heirloom_engine::adapter::peft;
use serde_json::{Value, json};

use crate::support::fixture;

/// A folder with the settings of PEFT's adapter `lora-qv`, one of them changed.
fn with(key: &str, value: Value) -> tempfile::TempDir {
    let text = fs_err::read_to_string(fixture("lora-qv/adapter").join(peft::CONFIG)).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config[key] = value;
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join(peft::CONFIG), config.to_string()).unwrap();
    folder
}

#[test]
fn adapters_that_peft_computes_otherwise_are_refused() {
    for (key, value) in [
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("use_foo", json!(true)),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({".*q_proj": 8})),
        ("alpha_pattern", json!({"q_proj|v_proj": 8})),
        ("exclude_modules", json!(".*q_proj")),
        ("layers_pattern", json!("h")),
        ("target_modules", json!(".*q_proj")),
        ("peft_type", json!("ADALORA")),
        ("r", json!(0)),
    ] {
        let folder = with(key, value.clone());
        match peft::describe(folder.path()) {
            Err(PeftError::Setting { key: refused, .. }) => assert_eq!(refused, key),
            other => panic!("{key} = {value}: {other:?}"),
        }
    }
    peft::describe(with("init_lora_weights", json!("gaussian")).path()).unwrap();
}

/// PEFT scales by `alpha / √r` then.
#[test]
fn rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank() {
    let lora = peft::describe(with("use_rslora", json!(true)).path()).unwrap().lora;
    assert_eq!((lora.rank, lora.scaling_of("q_proj")), (4, 8.0 / 2.0));
    let plain = peft::describe(with("use_rslora", json!(null)).path()).unwrap().lora;
    assert_eq!(plain.scaling_of("q_proj"), 2.0);
}

/// Nothing is read of a list, and nothing is indexed in it.
#[test]
fn settings_that_are_no_object_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for text in ["[]", "null", "[[1]]", "3"] {
        fs_err::write(folder.path().join(peft::CONFIG), text).unwrap();
        let error = peft::describe(folder.path()).unwrap_err();
        assert!(matches!(error, PeftError::Json { .. }), "{text}: {error}");
    }
}
