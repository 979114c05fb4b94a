//! Perplexity against the loop of Transformers' guide.

use std::path::Path;

use heirloom::base::BaseFolder;
use heirloom::dataset::text;
use heirloom::job::Device;
use heirloom::recipe::Dtype;
use heirloom_engine::error::EngineError;
use heirloom_engine::eval::perplexity::perplexity;
use heirloom_engine::model::Decoder;
use serde_json::Value;

use crate::support::{fixture, model};

fn expected(name: &str) -> (Vec<u32>, Vec<Value>) {
    let text = fs_err::read_to_string(fixture("perplexity/expected.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let ids = all[name]["ids"].as_array().unwrap();
    let ids = ids.iter().map(|id| id.as_u64().unwrap() as u32).collect();
    (ids, all[name]["cases"].as_array().unwrap().clone())
}

/// Scores every case in both precisions; float32 must be within 1e-5.
fn compare(name: &str, open: impl Fn(Dtype) -> Decoder) {
    let (ids, cases) = expected(name);
    for (dtype, allowed) in [(Dtype::Float32, 1e-5), (Dtype::Bfloat16, 2e-2)] {
        let model = open(dtype);
        for case in &cases {
            let size = |key: &str| case[key].as_u64().unwrap() as usize;
            let score = perplexity(&model, &ids, size("window"), size("stride"), |_| {}).unwrap();
            assert_eq!(score.tokens, size("tokens") as u64, "{case}");
            assert_eq!(score.windows, size("windows") as u64, "{case}");
            let nll = case["nll"].as_f64().unwrap();
            let error = (score.nll - nll).abs() / nll;
            assert!(error <= allowed, "{dtype:?} {case}: {} is {error:e} away", score.nll);
        }
    }
}

#[test]
fn windows_of_every_kind_give_the_figures_of_the_guide() {
    compare("tiny-llama", |dtype| model("tiny-llama", dtype));
}

#[test]
fn a_text_gives_the_tokens_and_the_figures_of_the_reference() {
    let seedling = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/seedling");
    let tokens = text::tokens(&fixture("perplexity/text.txt"), &seedling).unwrap();
    assert_eq!(tokens, expected("seedling").0);
    let base = BaseFolder::open(&seedling, false).unwrap();
    compare("seedling", |dtype| Decoder::open(&base, dtype).unwrap());
}

#[test]
fn windows_that_cannot_be_run_are_refused() {
    let model = model("tiny-llama", Dtype::Float32);
    let run = |window, stride| perplexity(&model, &[1, 2, 3], window, stride, |_| {}).unwrap_err();
    assert!(matches!(run(257, 257), EngineError::Window { window: 257, limit: 256 }));
    assert!(matches!(run(8, 9), EngineError::Stride { stride: 9, window: 8 }));
}

#[test]
fn a_loss_that_is_no_number_is_refused() {
    let mut model = model("tiny-llama", Dtype::Float32);
    model.output = model.output.full_like(f64::NAN);
    let error = perplexity(&model, &[1, 2, 3], 2, 2, |_| {}).unwrap_err();
    assert!(matches!(error, EngineError::NoNumber { first: 0, last: 3 }), "{error:?}");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    assert_eq!(heirloom_engine::device::open(Device::Cpu).unwrap(), tch::Device::Cpu);
    let error = heirloom_engine::device::open(Device::Cuda(4096)).unwrap_err();
    assert!(error.to_string().starts_with("there is no device `cuda:4096`: "), "{error}");
}
