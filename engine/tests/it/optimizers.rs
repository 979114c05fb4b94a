//! Optimisers, schedules and groups of weights against those of PyTorch, Transformers,
//! bitsandbytes and PEFT; see `tests/fixtures/README.md`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use heirloom::base::BaseFolder;
use heirloom::dataset::stream::{MicroBatch, Position, Step};
use heirloom::recipe::{Dtype, Recipe, Schedule, Train};
use heirloom::track::{Event, Sink, StepMetrics, ValidationMetrics};
use heirloom_engine::error::EngineError;
use heirloom_engine::ops::{Layout, reference};
use heirloom_engine::train::Trainer;
use heirloom_engine::train::optimizer::{self, Optimizer};
use heirloom_engine::train::parameters::Parameters;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::support::{Golden, difference, fixture, mean_gradient, model, with_adapter};

/// The bar for weights after some steps in f32.
const F32: f64 = 1e-5;
/// That of Muon, whose steps go through bfloat16: what a processor's products round otherwise.
const BFLOAT16: f64 = 1e-2;

fn table(name: &str) -> Value {
    let file = fs_err::File::open(fixture(&format!("optimizers/{name}"))).unwrap();
    serde_json::from_reader(file).unwrap()
}

/// The words of `train` with such an optimiser.
fn train(optimizer: &Value) -> Train {
    let words = json!({ "epochs": 1, "tokens_per_step": 8, "seed": 1, "optimizer": optimizer });
    serde_json::from_value(words).unwrap()
}

/// The tensors of a golden whose names begin so.
fn named(golden: &Golden, prefix: &str) -> Vec<(String, Tensor)> {
    let load = |name: String| {
        let tensor = golden.tensor(&format!("{prefix}{name}"));
        (name, tensor)
    };
    golden.names(prefix).into_iter().map(load).collect()
}

/// A gradient of the golden, laid out as the weights.
fn gradient(golden: &Golden, parameters: &Parameters, step: usize) -> Tensor {
    let flat = parameters.zero_gradient().unwrap();
    for (name, mut place) in parameters.split(&flat) {
        place.copy_(&golden.tensor(&format!("gradient_{step}.{name}")));
    }
    flat
}

/// Takes all steps of a golden.
fn walk(golden: &Golden, train: &Train, lr: f64) -> (Parameters, Optimizer) {
    let mut parameters =
        Parameters::for_recipe(named(golden, "start."), train, Device::Cpu).unwrap();
    let mut optimizer = Optimizer::new(&train.optimizer, &parameters).unwrap();
    let first = golden.names("start.").remove(0);
    for step in (1..).take_while(|step| golden.has(&format!("gradient_{step}.{first}"))) {
        let gradient = gradient(golden, &parameters, step);
        optimizer.update(&mut parameters, &gradient, lr).unwrap();
    }
    (parameters, optimizer)
}

#[test]
fn schedules_equal_transformers_at_every_step() {
    let cases = table("schedules.json");
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 33);
    for case in cases {
        let steps = case["steps"].as_u64().unwrap();
        let schedule: Schedule = serde_json::from_value(case["schedule"].clone()).unwrap();
        let factors = case["factors"].as_array().unwrap();
        assert_eq!(factors.len() as u64, steps);
        for (step, expected) in (0..).zip(factors) {
            let found = optimizer::factor(&schedule, step, steps);
            let expected = expected.as_f64().unwrap();
            assert!((found - expected).abs() < 1e-12, "{schedule:?} {step}: {found} {expected}");
        }
    }
}

#[test]
fn a_share_of_the_steps_is_rounded_up_and_a_longer_run_stays_at_the_end() {
    let of = |text: Value| -> Schedule { serde_json::from_value(text).unwrap() };
    let linear = of(json!({ "linear": { "warmup_ratio": 0.03 } }));
    let factors = [0, 1, 2, 10, 11].map(|done| optimizer::factor(&linear, done, 10));
    assert_eq!(factors, [0.0, 1.0, 8.0 / 9.0, 0.0, 0.0]);
    let stable = of(json!({ "warmup_stable_decay": { "warmup_ratio": 0.0, "min_lr_ratio": 0.5 } }));
    let factors = [0, 89, 90, 95, 100, 200].map(|done| optimizer::factor(&stable, done, 100));
    assert_eq!(factors, [1.0, 1.0, 1.0, 0.75, 0.5, 0.5]);
}

#[test]
fn steps_equal_those_of_the_originals() {
    let golden = Golden::open("optimizers/steps.safetensors");
    let cases = table("cases.json");
    for (case, settings) in cases.as_object().unwrap() {
        let train = train(settings);
        let bar = if case.starts_with("muon") { BFLOAT16 } else { F32 };
        let lr = train.optimizer.lr();
        let by_loops = walk(&golden, &train, lr).0;
        let plainly = reference::only(|| walk(&golden, &train, lr)).0;
        for parameters in [by_loops, plainly] {
            assert_eq!(parameters.split(&parameters.flat).count(), 6);
            for (name, found) in parameters.split(&parameters.flat) {
                let start = golden.tensor(&format!("start.{name}"));
                let expected = golden.tensor(&format!("after.{case}.{name}"));
                // Of the way that the weights have gone; sums with them are rounded twice a step.
                let most = |x: &Tensor| x.abs().max().double_value(&[]);
                let way = most(&(&expected - &start));
                let bar = bar + 2e-7 * most(&start) / way;
                let apart = most(&(found.detach() - &expected)) / way;
                assert!(apart <= bar, "{case} {name}: {apart:e}");
            }
        }
    }
}

#[test]
fn what_is_kept_in_eight_bits_equals_bitsandbytes() {
    let golden = Golden::open("optimizers/steps.safetensors");
    let train = train(&table("cases.json")["adamw_8bit"]);
    let (parameters, optimizer) = walk(&golden, &train, train.optimizer.lr());
    let state = |name: &str| {
        let mut tensors = optimizer.state().into_iter();
        tensors.find(|(known, _)| *known == name).unwrap().1
    };
    let mut start = 0;
    let packed = golden.names("state1.");
    assert_eq!(packed.len(), 2, "{packed:?}");
    for (name, weight) in parameters
        .split(&parameters.flat)
        .filter(|(name, _)| packed.iter().any(|packed| packed == name))
    {
        let count = weight.numel() as i64;
        let blocks = (count + 255) / 256;
        for (ours, theirs) in [("mean", "1"), ("square", "2")] {
            let codes = state(&format!("{ours}_codes")).narrow(0, start * 256, count);
            let expected = golden.tensor(&format!("state{theirs}.{name}"));
            assert!(codes.equal(&expected), "{ours} of {name}");
            let absmax = state(&format!("{ours}_absmax")).narrow(0, start, blocks);
            let expected = golden.tensor(&format!("absmax{theirs}.{name}"));
            let apart = difference(&absmax, &expected);
            assert!(apart <= 1e-6, "{ours} of {name}: {apart:e}");
        }
        start += blocks;
    }
    // What is small, and the embedding, is kept in 32 bits.
    assert_eq!(state("mean").size(), [parameters.flat.numel() as i64 - start * 256]);
}

#[test]
fn learning_rates_of_loraplus_equal_peft() {
    let golden = Golden::open("optimizers/loraplus.safetensors");
    let mut train = train(&json!({ "adamw": { "lr": 1e-2, "weight_decay": 0.1 } }));
    train.loraplus_lr_ratio = Some(16.0);
    let (parameters, _) = walk(&golden, &train, 1e-2);
    // A and B, each in one piece.
    assert_eq!(parameters.segments.len(), 2);
    for (name, found) in parameters.split(&parameters.flat) {
        let apart = difference(&found.detach(), &golden.tensor(&format!("after.{name}")));
        assert!(apart <= 1e-6, "{name}: {apart:e}");
    }
}

#[test]
fn groups_move_at_their_own_pace_with_every_optimiser() {
    let golden = Golden::open("optimizers/steps.safetensors");
    for (case, settings) in table("cases.json").as_object().unwrap() {
        let alone = train(settings);
        let mut grouped = alone.clone();
        let groups = json!([
            { "params": ["k_proj"], "lr_ratio": 1e-6, "weight_decay": 0.0 },
            { "params": ["embed_*", "norm"], "weight_decay": 0.5 },
        ]);
        grouped.param_groups = serde_json::from_value(groups).unwrap();
        let lr = alone.optimizer.lr();
        let (alone, grouped) = (walk(&golden, &alone, lr).0, walk(&golden, &grouped, lr).0);
        for (name, found) in grouped.split(&grouped.flat) {
            let start = golden.tensor(&format!("start.{name}"));
            let wanted = alone.get(name).unwrap().detach();
            let way = |there: &Tensor| (there - &start).abs().max().double_value(&[]);
            let (found, wanted) = (way(&found.detach()), way(&wanted));
            match name.rsplit('.').nth(1).unwrap() {
                "k_proj" => assert!(found <= 2e-5 * wanted, "{case} {name}: {found} {wanted}"),
                "embed_tokens" | "norm" => assert!(found != wanted, "{case} {name}"),
                _ => assert_eq!(found, wanted, "{case} {name}"),
            }
        }
    }
}

/// Steps far below what bfloat16 can tell apart add up.
#[test]
fn weights_of_an_adapter_are_kept_in_float32_over_a_bfloat16_base() {
    let folder = fixture("lora-all-linear/adapter");
    let (model, mut parameters) = with_adapter(model("tiny-llama", Dtype::Bfloat16), &folder);
    assert_eq!((model.kind, parameters.flat.kind()), (Kind::BFloat16, Kind::Float));
    let batch = Golden::open("lora-all-linear/lora.safetensors").packed();
    let (_, gradient) = mean_gradient(&model, &parameters, &batch);
    assert_eq!(gradient.kind(), Kind::Float);
    let settings = train(&json!({ "adamw": { "lr": 1e-5 } })).optimizer;
    let mut adamw = Optimizer::new(&settings, &parameters).unwrap();
    let before = parameters.flat.detach().copy();
    for _ in 0..10 {
        adamw.update(&mut parameters, &gradient, 1e-5).unwrap();
    }
    let moved = (parameters.flat.detach() - &before).abs();
    let way = moved.masked_select(&gradient.abs().gt(1e-5)).mean(Kind::Double).double_value(&[]);
    assert!((way / 1e-4 - 1.0).abs() < 0.01, "{way:e}");
    let rounded = parameters.flat.detach().to_kind(Kind::BFloat16);
    let still =
        rounded.eq_tensor(&before.to_kind(Kind::BFloat16)).to_kind(Kind::Float).mean(Kind::Float);
    assert!(still.double_value(&[]) > 0.5, "{still}");
}

#[test]
fn noise_on_embedded_tokens_equals_transformers() {
    let golden = Golden::open("optimizers/neftune.safetensors");
    let model = model("tiny-llama", Dtype::Float32);
    let ids = Vec::<i64>::try_from(golden.tensor("ids")).unwrap();
    let embedded = model.embedding.index_select(0, &Tensor::from_slice(&ids));
    let layout = |lengths: &[u32]| Layout::new(lengths, Device::Cpu).unwrap();
    let expected = golden.tensor("noisy") - &embedded;
    // The generator is one for all threads, and others may draw from it in between.
    let noise = || {
        tch::manual_seed(6);
        model.noisy(&embedded, &layout(&[9]), 5.0).unwrap() - &embedded
    };
    let found = (0..100).map(|_| noise()).find(|found| difference(found, &expected) <= 1e-5);
    assert!(found.is_some(), "{:e}", difference(&noise(), &expected));
    // Each by the length of its own document.
    let noisy = model.noisy(&embedded, &layout(&[1, 8]), 5.0).unwrap() - &embedded;
    for (start, length) in [(0, 1i64), (1, 8)] {
        let most = noisy.narrow(0, start, length).abs().max().double_value(&[]);
        let bound = 5.0 / (length as f64 * 32.0).sqrt();
        assert!(most <= bound * 1.000_001 && most > 0.8 * bound, "{length}: {most} {bound}");
    }
}

/// Sets the flag once so many steps are done.
struct StopAfter<'a>(u64, &'a AtomicBool);

impl Sink for StopAfter<'_> {
    fn step(&mut self, metrics: &StepMetrics) -> std::io::Result<()> {
        self.1.store(metrics.step == self.0, Ordering::Relaxed);
        Ok(())
    }

    fn validation(&mut self, _: &ValidationMetrics) -> std::io::Result<()> {
        Ok(())
    }

    fn event(&mut self, _: &Event) -> std::io::Result<()> {
        Ok(())
    }
}

/// A run of six steps on two documents.
struct Course {
    recipe: Recipe,
    base: BaseFolder,
}

impl Course {
    const STEPS: u64 = 6;

    fn new(adapter: &Value, optimizer: &Value) -> Self {
        let recipe = json!({
            "heirloom": 1, "name": "course", "base": { "model": "tiny-llama" }, "adapter": adapter,
            "data": { "purpose": ["dpv:ServiceProvision"], "sequence_length": 64,
                      "train": [{ "path": "none.parquet", "format": "chat" }] },
            "train": { "epochs": 1, "tokens_per_step": 64, "seed": 5, "optimizer": optimizer,
                       "label_smoothing_factor": 0.1,
                       "param_groups": [{ "params": ["layers.1"], "lr_ratio": 0.5 }],
                       "schedule": { "linear": { "warmup_steps": 2 } } },
        });
        let base = BaseFolder::open(&fixture("tiny-llama"), false).unwrap();
        Self { recipe: serde_json::from_value(recipe).unwrap(), base }
    }

    fn open(&self, checkpoints: &Path) -> Trainer {
        let size = json!({ "tokens": 1, "trained_tokens": 1, "windows": 1, "dropped_overlong": 0,
            "cut_overlong": 0, "held_out": 0, "steps_by_epoch": [Self::STEPS], "steps": Self::STEPS });
        let size = serde_json::from_value(size).unwrap();
        let checkpoints = Some(checkpoints.to_owned());
        Trainer::open(&self.recipe, &self.base, &size, checkpoints, Device::Cpu).unwrap()
    }

    /// Goes on to the end, or until so many steps are done.
    fn go(trainer: &mut Trainer, until: u64) {
        let done = trainer.progress.step;
        let steps = (done..Self::STEPS).map(|number| {
            let tokens = (0..24).map(|place| (place * 7 + number as u32 * 5) % 97).collect();
            let weights = (0..24).map(|place| f32::from(u8::from(place % 12 > 2))).collect();
            let batch =
                MicroBatch { tokens, weights, lengths: vec![12, 12], ..MicroBatch::default() };
            let position = Position::default();
            Ok::<_, EngineError>(Step {
                micro_batches: vec![batch],
                epoch: 0,
                ends_epoch: false,
                position,
            })
        });
        let stop = AtomicBool::new(false);
        let mut sink = StopAfter(until, &stop);
        trainer.run(steps, || Ok(None), |_| Ok(()), &[Self::STEPS], &mut sink, &stop).unwrap();
        assert_eq!(trainer.progress.step, until);
    }
}

#[test]
fn every_optimiser_goes_on_from_any_step_to_the_same_bits() {
    let lora = json!({ "lora": { "rank": 128, "alpha": 8 } });
    let full = json!("full");
    let cases = table("cases.json");
    for (case, optimizer) in cases.as_object().unwrap() {
        for adapter in [&full, &lora]
            .into_iter()
            .filter(|adapter| **adapter == full || !case.starts_with("muon"))
        {
            let course = Course::new(adapter, optimizer);
            let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let [mut whole, mut broken] = [0, 1].map(|place| course.open(folders[place].path()));
            // Both begin alike, whatever other threads draw in between.
            tch::no_grad(|| broken.parameters.flat.copy_(&whole.parameters.flat));
            let start = whole.parameters.flat.detach().copy();
            Course::go(&mut whole, Course::STEPS);
            for until in [1, 4, Course::STEPS] {
                Course::go(&mut broken, until);
                broken = course.open(folders[1].path());
                assert_eq!(broken.progress.step, until);
            }
            assert!(whole.parameters.flat.equal(&broken.parameters.flat), "{case} {adapter}");
            assert!(!whole.parameters.flat.equal(&start), "{case} {adapter}");
        }
    }
}

#[test]
fn a_checkpoint_of_another_optimiser_is_refused() {
    let lora = json!({ "lora": { "rank": 128, "alpha": 8 } });
    let folder = tempfile::tempdir().unwrap();
    let lion = Course::new(&lora, &json!({ "lion": { "lr": 1e-3 } }));
    Course::go(&mut lion.open(folder.path()), 2);
    let size = json!({ "tokens": 1, "trained_tokens": 1, "windows": 1, "dropped_overlong": 0,
        "cut_overlong": 0, "held_out": 0, "steps_by_epoch": [6], "steps": 6 });
    for other in [json!({ "adamw": { "lr": 1e-3 } }), json!({ "adamw_8bit": { "lr": 1e-3 } })] {
        let Course { recipe, base } = Course::new(&lora, &other);
        let (size, folder) = (serde_json::from_value(size.clone()).unwrap(), folder.path());
        let opened = Trainer::open(&recipe, &base, &size, Some(folder.to_owned()), Device::Cpu);
        assert!(opened.is_err(), "{other}");
    }
}
