//! Merged releases of bases that are not plain.

use std::path::{Path, PathBuf};

use heirloom::base::{BaseFolder, Checkpoint};
use heirloom::recipe::Dtype;
use heirloom::run::RunFolder;
use heirloom_engine::adapter::peft;
use heirloom_engine::export;
use heirloom_engine::model::{Decoder, weights};
use serde_json::{Value, json};

use crate::support::{Golden, difference, fixture, logits};

/// A run folder with a fixture's adapter, and a release of it merged into `base`.
fn merge(base: &Path, adapter: &Path) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let run = RunFolder::new(place.path().join("run"));
    let release = place.path().join("release");
    for folder in [run.adapter(), release.clone()] {
        fs_err::create_dir_all(folder).unwrap();
    }
    for name in [peft::CONFIG, peft::WEIGHTS] {
        fs_err::copy(adapter.join(name), run.adapter().join(name)).unwrap();
    }
    export::merged(&run, &mut BaseFolder::open(base, false).unwrap(), &release).unwrap();
    (place, release)
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&fs_err::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

/// Every tensor that an adapter does not wrap passes through to the byte, biases among them,
/// and the merged model computes what base and adapter do.
#[test]
fn what_is_not_wrapped_passes_through_merges_untouched() {
    for case in ["llama-bias", "qwen2", "gpt_oss", "phi3"] {
        let folder = fixture(&format!("families/{case}"));
        let (_place, release) = merge(&folder, &folder.join("adapter"));
        let base = BaseFolder::open(&folder, false).unwrap();
        let (before, after) = (
            base.checkpoint().unwrap(),
            Checkpoint::open_file(&release.join("model.safetensors")).unwrap(),
        );
        let mut model = Decoder::open(&base, Dtype::Float32).unwrap();
        peft::attach(&mut model, &folder.join("adapter")).unwrap();
        let mut biases = 0;
        for (name, _) in base.architecture.tensors() {
            let wrapped = model.linears().any(|linear| {
                linear.low_rank.is_some() && name == format!("{}.weight", linear.name)
            });
            let [one, other] = [before, &after].map(|file| weights::load(file, &name).unwrap());
            assert_eq!(one == other, !wrapped, "{case} {name}");
            biases += usize::from(name.ends_with("bias"));
        }
        assert!(biases > 0 || case == "phi3", "{case}");
        let batch = Golden::open(&format!("families/{case}/golden.safetensors")).packed();
        let whole = BaseFolder::open(&release, false).unwrap();
        let whole = Decoder::open(&whole, Dtype::Float32).unwrap();
        let [one, other] = [&model, &whole].map(|model| tch::no_grad(|| logits(model, &batch)));
        // Merged weights are rounded to the bfloat16 of the base.
        let apart = difference(&other, &one);
        assert!(apart <= 5e-2, "{case}: {apart:e}");
        // Nothing about the model has changed but its weights.
        let [one, other] =
            [&folder, &release].map(|folder| fs_err::read(folder.join("config.json")).unwrap());
        assert_eq!(one, other, "{case}");
    }
}

/// Weights that were dequantised are no longer what `quantization_config` says.
#[test]
fn a_merged_model_is_no_longer_quantised() {
    let place = tempfile::tempdir().unwrap();
    let base = place.path().join("base");
    fs_err::create_dir(&base).unwrap();
    let mut said = config(&fixture("tiny-llama"));
    said["quantization_config"] =
        json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]});
    said["torch_dtype"] = json!("float32");
    fs_err::write(base.join("config.json"), said.to_string()).unwrap();
    fs_err::copy(fixture("tiny-llama").join("model.safetensors"), base.join("model.safetensors"))
        .unwrap();
    let (_place, release) = merge(&base, &fixture("lora-qv/adapter"));
    let said = config(&release);
    assert_eq!(said.get("quantization_config"), None);
    assert_eq!(said.get("torch_dtype"), None);
    assert_eq!(said["dtype"], "bfloat16");
}
