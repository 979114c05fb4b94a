//! Activation checkpointing changes what is kept, and no bit of what is learnt.

use std::process::Command;

use heirloom::base::BaseFolder;
use heirloom::dataset::stream::MicroBatch;
use heirloom::files::sha256_of_file;
use heirloom::recipe::{ActivationCheckpointing, Dtype, Quantization, Storage};
use heirloom_engine::model::{Decoder, weights};
use heirloom_engine::ops::reference::{self, OPS_VARIABLE};
use heirloom_engine::train::{loss, parameters::Parameters};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

use crate::runs::{heirloom, root};
use crate::support::{Golden, difference, fixture, mean_gradient, with_adapter};

const LESS: [ActivationCheckpointing; 2] =
    [ActivationCheckpointing::Selective, ActivationCheckpointing::Block];

/// Every folder of `tests/fixtures/families` with its numbers.
fn families() -> Vec<String> {
    let entries = fs_err::read_dir(fixture("families")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let named = |name: &String| fixture(&format!("families/{name}/golden.safetensors")).is_file();
    let mut names: Vec<String> = names.filter(named).collect();
    names.sort();
    assert!(names.len() >= 16, "{names:?}");
    names
}

/// Loss and gradient, with everything kept and with less.
fn check(name: &str, model: &mut Decoder, parameters: &Parameters, golden: &Golden) {
    let batch = golden.packed();
    let wanted = mean_gradient(model, parameters, &batch);
    assert!(wanted.1.abs().sum(Kind::Double).double_value(&[]) > 0.0, "{name}");
    for how in LESS {
        model.checkpointing = how;
        let found = mean_gradient(model, parameters, &batch);
        assert!(found.0 == wanted.0 && found.1.equal(&wanted.1), "{name} {how:?}");
    }
    model.checkpointing = ActivationCheckpointing::None;
}

#[test]
fn gradients_of_adapters_are_the_same_bits_in_every_family() {
    for name in families() {
        let folder = format!("families/{name}");
        let golden = Golden::open(&format!("{folder}/golden.safetensors"));
        let adapter = fixture(&format!("{folder}/adapter"));
        for (dtype, quantization) in [
            (Dtype::Float32, Quantization::None),
            (Dtype::Bfloat16, Quantization::None),
            (Dtype::Bfloat16, Quantization::Nf4Double),
        ] {
            let storage = Storage { dtype, quantization, unquantized: Vec::new() };
            let base = BaseFolder::open(&fixture(&folder), false).unwrap();
            let model = Decoder::open_as(&base, &storage, Device::Cpu).unwrap();
            let (mut model, parameters) = with_adapter(model, &adapter);
            check(&format!("{name} {dtype:?} {quantization:?}"), &mut model, &parameters, &golden);
        }
    }
}

/// Every weight as a trained leaf.
fn full(folder: &str, kind: Kind) -> (Decoder, Parameters) {
    let base = BaseFolder::open(&fixture(folder), false).unwrap();
    let load = |(name, _): (String, Vec<usize>)| {
        let stored = weights::load_as(base.checkpoint().unwrap(), &name, Kind::Float).unwrap();
        (name, stored)
    };
    let tensors = base.architecture.tensors().into_iter().map(load).collect();
    let parameters = Parameters::new(tensors, Device::Cpu);
    let parameters = parameters.unwrap();
    let get = |name: &str, _: &[usize]| Ok(parameters.get(name).unwrap().into());
    (Decoder::build(&base.architecture, kind, get).unwrap(), parameters)
}

#[test]
fn gradients_of_all_weights_are_the_same_bits_in_every_family() {
    for name in families() {
        let folder = format!("families/{name}");
        let golden = Golden::open(&format!("{folder}/golden.safetensors"));
        for kind in [Kind::Float, Kind::BFloat16] {
            let (mut model, parameters) = full(&folder, kind);
            check(&format!("{name} {kind:?}"), &mut model, &parameters, &golden);
        }
    }
}

/// Of six experts, two tokens choose four at most: the others have no gradient.
#[test]
fn experts_that_no_token_chose_do_not_move() {
    let batch = MicroBatch {
        tokens: vec![3, 5],
        weights: vec![0.0, 1.0],
        lengths: vec![2],
        ..MicroBatch::default()
    };
    let (mut model, parameters) = full("families/qwen3_moe", Kind::Float);
    for how in [ActivationCheckpointing::None, ActivationCheckpointing::Block] {
        model.checkpointing = how;
        let (_, gradient) = mean_gradient(&model, &parameters, &batch);
        let moves = |(_, part): &(&str, Tensor)| part.abs().max().double_value(&[]) > 0.0;
        let experts = parameters.split(&gradient).filter(|(name, _)| name.contains(".experts."));
        let (moved, still): (Vec<_>, Vec<_>) = experts.partition(moves);
        assert!(!moved.is_empty() && !still.is_empty(), "{how:?} {} {}", moved.len(), still.len());
    }
}

/// What is computed again is computed by the operations that computed it the first time, also
/// where the backward pass is asked for elsewhere.
#[test]
fn plain_operations_stay_plain_in_the_backward_pass() {
    let golden = Golden::open("lora-all-linear/lora.safetensors");
    let batch = golden.packed();
    let model = crate::support::model("tiny-llama", Dtype::Float32);
    let (mut model, parameters) = with_adapter(model, &fixture("lora-all-linear/adapter"));
    let mut found = |how| {
        model.checkpointing = how;
        let sum = reference::only(|| loss::nll_sum(&model, &batch, true)).unwrap().unwrap();
        let gradient = parameters.zero_gradient().unwrap();
        parameters.add_gradient(&sum, &gradient).unwrap();
        gradient
    };
    let wanted = found(ActivationCheckpointing::None);
    for how in LESS {
        assert!(found(how).equal(&wanted), "{how:?}");
    }
}

/// Fused and plain operations compute the same losses and gradients, to a few last digits.
#[test]
fn plain_operations_agree_with_fused_ones_in_every_family() {
    for name in families() {
        let folder = format!("families/{name}");
        let golden = Golden::open(&format!("{folder}/golden.safetensors"));
        let batch = golden.packed();
        let (model, parameters) = with_adapter(
            crate::support::model(&folder, Dtype::Float32),
            &fixture(&format!("{folder}/adapter")),
        );
        let fused = mean_gradient(&model, &parameters, &batch);
        let plain = reference::only(|| mean_gradient(&model, &parameters, &batch));
        assert!((fused.0 / plain.0 - 1.0).abs() < 1e-6, "{name}: {} {}", fused.0, plain.0);
        let apart = difference(&fused.1, &plain.1);
        assert!(apart > 0.0 && apart < 1e-5, "{name}: {apart:e}");
    }
}

/// Dropout, documents of different lengths, and steps of several micro-batches.
const RECIPE: &str = "\
heirloom: 1
name: small
base: { model: data/seedling }
adapter:
  lora: { rank: 4, alpha: 8, dropout: 0.1, targets: all-linear }
data:
  purpose: [dpv:ServiceProvision]
  train:
    - { path: data/catalogue/validation.parquet, format: chat }
  sequence_length: 256
train:
  epochs: 1
  max_steps: 3
  tokens_per_step: 768
  micro_batch_tokens: 256
  optimizer: { adamw: { lr: 1.0e-3 } }
  seed: 3
";

fn run(place: &TempDir, command: &str, arguments: &[&str], operations: &str) -> String {
    let recipe = place.path().join("small.yaml");
    heirloom::files::write_atomically(&recipe, RECIPE.as_bytes()).unwrap();
    let mut program = Command::new(heirloom());
    program.current_dir(root()).arg(command).arg(recipe).args(arguments);
    program.env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", place.path());
    program.env(OPS_VARIABLE, operations);
    let output = program.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Trains; the digest of what was trained, and the loss of every step.
fn trained(place: &TempDir, name: &str, sets: &[&str]) -> (String, Vec<f64>) {
    trained_by(place, name, sets, "")
}

fn trained_by(place: &TempDir, name: &str, sets: &[&str], operations: &str) -> (String, Vec<f64>) {
    let folder = place.path().join(name);
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let arguments = [&["--run", folder.to_str().unwrap()], sets.as_slice()].concat();
    run(place, "train", &arguments, operations);
    let weights = ["adapter/adapter_model.safetensors", "model/model.safetensors"];
    let weights = weights.map(|file| folder.join(file)).into_iter().find(|file| file.is_file());
    let metrics = fs_err::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let losses: Vec<f64> = lines.map(|line| line["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 3);
    (sha256_of_file(&weights.unwrap()).unwrap(), losses)
}

#[test]
fn runs_learn_the_same_bytes() {
    let place = TempDir::new().unwrap();
    for (name, set) in [
        ("lora", "base.dtype=float32"),
        ("bfloat16", "base.dtype=bfloat16"),
        ("qlora", "base.quantization=nf4"),
        ("full", "adapter=full"),
    ] {
        let wanted = trained(&place, name, &[set]);
        for how in ["selective", "block"] {
            let how = format!("train.activation_checkpointing={how}");
            assert_eq!(trained(&place, &format!("{name}-{how}"), &[set, &how]), wanted, "{how}");
        }
    }
    // Without dropout another adapter is learnt: the digests above depend on it.
    let other = trained(&place, "dropless", &["adapter.lora.dropout=0.0"]);
    assert_ne!(other, trained(&place, "dropping", &[]));
    // On a CPU there is nowhere else to keep anything.
    let sets = ["train.activation_checkpointing=block", "train.activation_offload=true"];
    assert_eq!(trained(&place, "offload", &sets), trained(&place, "again", &[]));
}

/// Both draw the same inputs to drop.
#[test]
fn runs_with_plain_operations_learn_nearly_the_same() {
    let place = TempDir::new().unwrap();
    for set in ["base.dtype=float32", "base.quantization=nf4"] {
        let sets = [set, "train.activation_checkpointing=selective"];
        let (_, fused) = trained(&place, &format!("fused-{set}"), &sets);
        let (_, plain) = trained_by(&place, &format!("plain-{set}"), &sets, "reference");
        assert_ne!(fused, plain, "{set}: the same to the last bit");
        for (fused, plain) in fused.iter().zip(&plain) {
            assert!((fused / plain - 1.0).abs() < 1e-4, "{set}: {fused} {plain}");
        }
    }
}

#[test]
fn blocks_are_computed_again_and_selected_operations_alone() {
    let place = TempDir::new().unwrap();
    let calls = |how: &str| {
        let set = format!("train.activation_checkpointing={how}");
        let arguments = ["--steps", "1", "--format", "json", "--set", &set];
        let text = run(&place, "bench", &arguments, "");
        let report: Value = serde_json::from_str(&text).unwrap();
        let operations = report["operations"].as_array().unwrap().clone();
        move |name: &str| {
            let its = operations.iter().find(|operation| operation["name"] == name);
            its.unwrap_or_else(|| panic!("no `{name}`: {text}"))["calls"].as_u64().unwrap()
        }
    };
    let (none, selective, block) = (calls("none"), calls("selective"), calls("block"));
    let both = |name: &str| (none(name), selective(name), block(name));
    let (all, _, _) = both("attention");
    assert_eq!(both("attention"), (all, all, 2 * all));
    assert_eq!(both("gate"), (all, 2 * all, 2 * all));
    let (norms, _, _) = both("norm");
    assert_eq!(both("norm"), (norms, norms + 2 * all, norms + 2 * all));
    assert_eq!(both("attention backward"), (all, all, all));
}
