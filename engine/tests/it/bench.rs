//! `heirloom bench` with the real programs: the report holds together and is documented.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::runs::{heirloom, root};

/// Two passes over few rows hold fewer steps than are asked for.
const RECIPE: &str = "\
heirloom: 1
name: small
base: { model: data/seedling }
adapter:
  lora: { rank: 4, alpha: 8, targets: all-linear }
data:
  purpose: [dpv:ServiceProvision]
  train:
    - { path: data/catalogue/validation.parquet, format: chat }
  sequence_length: 256
train:
  epochs: 1
  tokens_per_step: 512
  optimizer: { adamw: { lr: 1.0e-3 } }
  seed: 3
";

fn bench(place: &TempDir, more: &[&str]) -> String {
    let recipe = place.path().join("small.yaml");
    heirloom::files::write_atomically(&recipe, RECIPE.as_bytes()).unwrap();
    let mut command = Command::new(heirloom());
    command.current_dir(root()).arg("bench").arg(&recipe).args(more);
    command.env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", place.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn the_report_adds_up_and_nothing_is_left_behind() {
    let place = TempDir::new().unwrap();
    let text = bench(&place, &["--steps", "3", "--format", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let of = |key: &str| number(&report[key]);
    let step = of("step_seconds");
    let speed = of("tokens_per_step") / step;
    assert!((of("tokens_per_second") / speed - 1.0).abs() < 1e-9, "{text}");
    let range = [&report["step_seconds_range"][0], &report["step_seconds_range"][1]].map(number);
    assert!(range[0] <= step && step <= range[1], "{text}");
    assert!((256.0..=512.0).contains(&of("tokens_per_step")), "{text}");
    assert!(of("trained_tokens_per_step") < of("tokens_per_step"));
    assert_eq!((of("steps"), of("warm_up_steps")), (3.0, 3.0));
    assert!(of("peak_memory_bytes") > 50e6 && of("peak_memory_bytes") < 4e9, "{text}");

    let operations = report["operations"].as_array().unwrap();
    let sum = |key: &str| operations.iter().map(|operation| number(&operation[key])).sum::<f64>();
    assert!((sum("seconds") / step - 1.0).abs() < 1e-3, "{text}");
    assert!((sum("share") - 1.0).abs() < 1e-3, "{text}");
    let calls = |name: &str| {
        let its = operations.iter().find(|operation| operation["name"] == name);
        number(&its.unwrap_or_else(|| panic!("no `{name}`: {text}"))["calls"])
    };
    let config = fs_err::read_to_string(root().join("data/seedling/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let (layers, batches) = (number(&config["num_hidden_layers"]), calls("output projection"));
    assert_eq!(calls("attention"), layers * batches);
    assert_eq!(calls("norm"), (2.0 * layers + 1.0) * batches);
    assert_eq!((calls("rows"), calls("optimizer")), (1.0, 2.0));

    // Two and four times its weights for each token are below and above what it can be.
    let weights = 2.6e6;
    let per_token = of("model_flops_per_step") / of("tokens_per_step") / weights;
    assert!((2.0..6.0).contains(&per_token), "{per_token}: {text}");
    let rate = number(&report["matrix_rate"]["gflops"]) * 1e9;
    let share = of("model_flops_per_step") / step / rate;
    assert!((of("matrix_share") / share - 1.0).abs() < 1e-9, "{text}");
    assert_eq!(report["matrix_rate"]["dtype"], "float32");
    assert_eq!(report["machine"]["threads"], 1);

    let left: Vec<_> = fs_err::read_dir(place.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_base_without_weights_is_measured_with_drawn_ones() {
    let place = TempDir::new().unwrap();
    let base = place.path().join("base");
    fs_err::create_dir(&base).unwrap();
    for entry in fs_err::read_dir(root().join("data/seedling")).unwrap().flatten() {
        if !entry.file_name().to_string_lossy().ends_with(".safetensors") {
            fs_err::copy(entry.path(), base.join(entry.file_name())).unwrap();
        }
    }
    let model = format!("base.model={}", base.display());
    for quantization in ["none", "nf4-double", "fp8"] {
        let quantization = format!("base.quantization={quantization}");
        let asked = ["--steps", "1", "--format", "json", "--set", &model, "--set", &quantization];
        let text = bench(&place, &[&asked[..], &["--random-weights"]].concat());
        let report: Value = serde_json::from_str(&text).unwrap();
        assert!(number(&report["tokens_per_second"]) > 0.0, "{text}");
        assert_eq!(report["machine"]["device"], "cpu");
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error_of_the_users() {
    let place = TempDir::new().unwrap();
    let recipe = place.path().join("small.yaml");
    heirloom::files::write_atomically(&recipe, RECIPE.as_bytes()).unwrap();
    let mut command = Command::new(heirloom());
    command.current_dir(root()).arg("bench").arg(&recipe).args(["--device", "cuda:97"]);
    let output = command.env("HEIRLOOM_HOME", place.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no device `cuda:97`"), "{said}");
}

#[test]
fn people_get_a_table() {
    let place = TempDir::new().unwrap();
    let text = bench(&place, &["--steps", "1", "--set", "base.dtype=bfloat16"]);
    for word in
        ["tokens per second", "at most", "GFLOP/s in bfloat16", "other backward", "optimizer"]
    {
        assert!(text.contains(word), "no `{word}` in:\n{text}");
    }
}

#[test]
fn the_reference_has_every_field_and_operation() {
    let place = TempDir::new().unwrap();
    let report: Value =
        serde_json::from_str(&bench(&place, &["--steps", "1", "--format", "json"])).unwrap();
    let reference = fs_err::read_to_string(root().join("docs/reference/bench.md")).unwrap();
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let names = report["operations"].as_array().unwrap().iter();
    let names = names.map(|operation| operation["name"].as_str().unwrap().to_owned());
    // The backward pass of any operation has a line of its own.
    let names = names.filter(|name| !name.ends_with(" backward") || name == "other backward");
    let known = [
        fields(&report),
        fields(&report["machine"]),
        fields(&report["matrix_rate"]),
        fields(&report["operations"][0]),
        names.collect(),
    ];
    for word in known.concat() {
        assert!(reference.contains(&format!("`{word}`")), "`{word}` is not in the reference");
    }
}
