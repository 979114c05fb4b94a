//! Our numbers against those of Transformers and PEFT; see `tests/fixtures/README.md`.

use heirloom::base::BaseFolder;
use heirloom::dataset::stream::MicroBatch;
use heirloom::recipe::{self, Adamw, Dtype};
use heirloom_engine::adapter::peft;
use heirloom_engine::model::Decoder;
use heirloom_engine::ops::reference;
use heirloom_engine::train::optimizer::{self, Optimizer};
use heirloom_engine::train::{loss, parameters::Parameters};
use tch::Kind;

use crate::support::{Golden, difference, fixture, logits, mean_gradient, model};

/// The bar for logits and losses in f32.
const LOGITS: f64 = 1e-5;
/// The bar for gradients in f32, and for updated weights where every operation is rounded as
/// PyTorch rounds it.
const GRADIENTS: f64 = 1e-4;
/// The bar for updated weights with fused operations. AdamW's step is g / (|g| + ε), which
/// enlarges the last digits of the few gradients that are as small as ε.
const UPDATES: f64 = 5e-4;

#[test]
fn logits_of_packed_documents_equal_transformers_in_float32() {
    for name in ["tiny-llama", "tiny-llama-tied-sharded"] {
        let golden = Golden::open(&format!("{name}.logits.safetensors"));
        let (model, batch) = (model(name, Dtype::Float32), golden.packed());
        let found = tch::no_grad(|| logits(&model, &batch));
        let difference = difference(&found, &golden.logits("logits."));
        assert!(difference <= LOGITS, "{name}: {difference:e}");
        let nll = tch::no_grad(|| loss::nll_sum(&model, &batch, false)).unwrap().unwrap();
        let mean = nll.double_value(&[]) / batch.trained_tokens() as f64;
        let expected = golden.numbers("loss")[0];
        assert!((mean / expected - 1.0).abs() <= LOGITS, "{name}: {mean} {expected}");
    }
}

/// bfloat16 may differ from Transformers' bfloat16 by no more than that differs from f32.
#[test]
fn logits_in_bfloat16_are_as_close_as_transformers_own() {
    for name in ["tiny-llama", "tiny-llama-tied-sharded"] {
        let golden = Golden::open(&format!("{name}.logits.safetensors"));
        let mut batch = golden.packed();
        // The longest document has no bfloat16 numbers.
        let kept: u32 = batch.lengths[..3].iter().sum();
        batch.lengths.truncate(3);
        batch.tokens.truncate(kept as usize);
        batch.weights.truncate(kept as usize);
        let model = model(name, Dtype::Bfloat16);
        let found = tch::no_grad(|| logits(&model, &batch));
        assert_eq!(found.kind(), Kind::BFloat16);
        let exact = golden.logits("logits.").narrow(0, 0, i64::from(kept));
        let theirs = difference(&golden.logits("logits_bfloat16."), &exact);
        let ours = difference(&found, &exact);
        assert!(ours <= 1.5 * theirs, "{name}: {ours:e} against {theirs:e}");
    }
}

/// A model with a fixture's adapter as trained leaves.
fn with_adapter(folder: &str) -> (Decoder, Parameters) {
    crate::support::with_adapter(
        model("tiny-llama", Dtype::Float32),
        &fixture(&format!("{folder}/adapter")),
    )
}

#[test]
fn logits_gradients_and_steps_of_lora_equal_peft() {
    check_lora(UPDATES);
}

#[test]
fn plain_operations_give_logits_gradients_and_steps_of_peft() {
    reference::only(|| check_lora(GRADIENTS));
}

/// `updates` is the bar for weights after a step.
fn check_lora(updates: f64) {
    for folder in ["lora-all-linear", "lora-qv"] {
        let golden = Golden::open(&format!("{folder}/lora.safetensors"));
        let batch = golden.packed();
        let (model, mut parameters) = with_adapter(folder);
        let found = tch::no_grad(|| logits(&model, &batch));
        let apart = difference(&found, &golden.logits("logits."));
        assert!(apart <= LOGITS, "{folder} logits: {apart:e}");

        let settings = Adamw { lr: 1e-2, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01 };
        let settings = recipe::Optimizer::Adamw(settings);
        let mut adamw = Optimizer::new(&settings, &parameters).unwrap();
        let keys = golden.names("grad.");
        assert_eq!(keys.len(), parameters.split(&parameters.flat).count());
        for step in 1..=3 {
            let (loss, mut gradient) = mean_gradient(&model, &parameters, &batch);
            let expected = golden.numbers("losses")[step - 1];
            assert!((loss / expected - 1.0).abs() <= GRADIENTS, "{folder} loss {step}");
            if step == 1 {
                for (key, found) in parameters.split(&gradient) {
                    let apart = difference(&found, &golden.tensor(&format!("grad.{key}")));
                    assert!(apart <= GRADIENTS, "{folder} gradient of {key}: {apart:e}");
                }
            }
            let norm = optimizer::clip(&mut gradient, 1.0).unwrap();
            let expected = golden.numbers("grad_norms")[step - 1];
            assert!((norm / expected - 1.0).abs() <= GRADIENTS, "{folder} norm {step}");
            adamw.update(&mut parameters, &gradient, 1e-2).unwrap();
            if step == 1 || step == 3 {
                for (key, found) in parameters.split(&parameters.flat) {
                    let expected = golden.tensor(&format!("after_{step}.{key}"));
                    let apart = difference(&found.detach(), &expected);
                    assert!(apart <= updates, "{folder} {key} after {step}: {apart:e}");
                }
            }
        }
    }
}

#[test]
fn merged_weights_equal_peft() {
    for folder in ["lora-all-linear", "lora-qv"] {
        let golden = Golden::open(&format!("{folder}/merged.safetensors"));
        let (model, _) = with_adapter(folder);
        let mut compared = 0;
        for linear in model.linears().filter(|linear| linear.low_rank.is_some()) {
            let expected = golden.tensor(&format!("{}.weight", linear.name));
            let apart = difference(&linear.merged().unwrap().detach(), &expected);
            assert!(apart <= 1e-6, "{folder} {}: {apart:e}", linear.name);
            compared += 1;
        }
        assert_eq!(compared, golden.names("").len());
    }
}

#[test]
fn an_adapter_names_a_base_on_the_hub_as_peft_does() {
    let (model, _) = with_adapter("lora-qv");
    let described = peft::describe(&fixture("lora-qv/adapter")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let base = format!("hf://org/name@{commit}");
    peft::save(folder.path(), &model, &described.lora, base.as_ref()).unwrap();
    let text = fs_err::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/name");
    assert_eq!(config["revision"], commit);
}

#[test]
fn an_adapter_written_here_is_read_back_with_the_same_logits() {
    let (model, _) = with_adapter("lora-qv");
    let described = peft::describe(&fixture("lora-qv/adapter")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft::save(folder.path(), &model, &described.lora, "tiny-llama".as_ref()).unwrap();
    let mut again = crate::support::model("tiny-llama", Dtype::Float32);
    peft::attach(&mut again, folder.path()).unwrap();
    let batch = Golden::open("lora-qv/lora.safetensors").packed();
    let (first, second) = tch::no_grad(|| (logits(&model, &batch), logits(&again, &batch)));
    assert_eq!(first, second);
}

#[test]
fn gradients_of_full_training_equal_transformers() {
    let golden = Golden::open("tiny-llama-tied-sharded.full.safetensors");
    let base = BaseFolder::open(&fixture("tiny-llama-tied-sharded"), false).unwrap();
    let loaded = Decoder::open(&base, Dtype::Float32).unwrap();
    drop(loaded);
    let mut initial = Vec::new();
    for (name, _) in base.architecture.tensors() {
        let tensor =
            heirloom_engine::model::weights::load(base.checkpoint().unwrap(), &name).unwrap();
        initial.push((name, tensor.to_kind(Kind::Float)));
    }
    let parameters = Parameters::new(initial, tch::Device::Cpu).unwrap();
    let model = Decoder::build(&base.architecture, Kind::Float, |name, _| {
        Ok(parameters.get(name).unwrap().into())
    })
    .unwrap();
    let (_, mut gradient) = mean_gradient(&model, &parameters, &golden.packed());
    for (key, found) in parameters.split(&gradient) {
        let apart = difference(&found, &golden.tensor(&format!("grad.{key}")));
        assert!(apart <= GRADIENTS, "gradient of {key}: {apart:e}");
    }
    let norm = optimizer::clip(&mut gradient, 0.0).unwrap();
    assert!((norm / golden.numbers("grad_norm")[0] - 1.0).abs() <= GRADIENTS);
}

#[test]
fn one_batch_and_many_give_the_same_gradient() {
    let golden = Golden::open("lora-all-linear/lora.safetensors");
    let (model, parameters) = with_adapter("lora-all-linear");
    let batch = golden.packed();
    let (_, together) = mean_gradient(&model, &parameters, &batch);
    let apart = parameters.zero_gradient().unwrap();
    let mut start = 0;
    for length in &batch.lengths {
        let end = start + *length as usize;
        let alone = MicroBatch {
            tokens: batch.tokens[start..end].to_vec(),
            weights: batch.weights[start..end].to_vec(),
            lengths: vec![*length],
            ..MicroBatch::default()
        };
        let sum = loss::nll_sum(&model, &alone, true).unwrap().unwrap();
        parameters.add_gradient(&(sum / batch.trained_tokens() as f64), &apart).unwrap();
        start = end;
    }
    let apart = difference(&apart, &together);
    assert!(apart <= 1e-5, "{apart:e}");
}

/// The cache and the batch change nothing: every continuation is what running the whole
/// sequence again for each token gives.
#[test]
fn cached_greedy_decoding_equals_running_everything_again() {
    let model = model("tiny-llama", Dtype::Float32);
    let prompts: Vec<Vec<u32>> = vec![vec![5, 9, 2], vec![7; 20], (0..33).collect(), vec![1]];
    let stops = [3];
    let found = heirloom_engine::generate::greedy(&model, &prompts, &stops, 12, |_| {}).unwrap();
    for (prompt, answer) in prompts.iter().zip(&found) {
        let mut tokens = prompt.clone();
        let mut expected = Vec::new();
        while expected.len() < 12 {
            let batch = MicroBatch {
                weights: vec![0.0; tokens.len()],
                lengths: vec![tokens.len() as u32],
                tokens: tokens.clone(),
                ..MicroBatch::default()
            };
            let all = tch::no_grad(|| logits(&model, &batch));
            let next = all.get(-1).argmax(-1, false).int64_value(&[]) as u32;
            if stops.contains(&next) {
                break;
            }
            expected.push(next);
            tokens.push(next);
        }
        assert_eq!(*answer, expected, "prompt of {} tokens", prompt.len());
    }
}
