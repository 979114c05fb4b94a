//! Adapters of routed experts against PEFT's numbers (`tests/fixtures/experts`), and against
//! themselves: wrapped, merged, written and read again, they are the same model.

use std::collections::BTreeMap;
use std::path::Path;

use heirloom::base::BaseFolder;
use heirloom::dataset::stream::MicroBatch;
use heirloom::recipe::{Dtype, Lora, Pattern, Quantization, Start, Storage, Targets};
use heirloom_engine::adapter::{self, peft};
use heirloom_engine::model::{Decoder, weights};
use heirloom_engine::train::parameters::Parameters;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::support::{
    Golden, check_computed_again, check_numbers, difference, fixture, logits, mean_gradient,
    with_adapter,
};

/// Fixtures with their families.
const CASES: [(&str, &str); 5] = [
    ("mixtral", "mixtral"),
    ("qwen3_moe", "qwen3_moe"),
    ("gpt_oss", "gpt_oss"),
    ("deepseek_v3", "deepseek_v3"),
    ("down", "mixtral"),
];

const GATE_UP: &str = "mlp.experts.gate_up_proj";
const DOWN: &str = "mlp.experts.down_proj";

fn golden(case: &str) -> Golden {
    Golden::open(&format!("experts/{case}/golden.safetensors"))
}

fn folder(case: &str) -> std::path::PathBuf {
    fixture(&format!("experts/{case}/adapter"))
}

fn base(family: &str) -> String {
    format!("families/{family}")
}

fn adapted(case: &str, family: &str) -> (Decoder, Parameters) {
    with_adapter(plain(family), &folder(case))
}

#[test]
fn logits_gradients_and_losses_of_experts_equal_peft() {
    for (case, family) in CASES {
        check_numbers(case, &golden(case), adapted(case, family), 1e-3);
    }
}

#[test]
fn merged_experts_equal_peft() {
    for (case, family) in CASES {
        let (model, _) = adapted(case, family);
        let golden = Golden::open(&format!("experts/{case}/merged.safetensors"));
        let mut merged = merged_weights(&model);
        for name in golden.names("") {
            let found = merged.remove(&name).unwrap();
            let apart = difference(&found, &golden.tensor(&name));
            assert!(apart <= 1e-6, "{case} {name}: {apart:e}");
        }
        assert!(merged.is_empty(), "{case}: {:?}", merged.keys());
    }
}

#[test]
fn settings_of_experts_survive_reading_and_writing() {
    for (case, family) in CASES {
        let (model, _) = adapted(case, family);
        let written = tempfile::tempdir().unwrap();
        let described = peft::describe(&folder(case)).unwrap();
        peft::save(written.path(), &model, &described.lora, Path::new(family)).unwrap();
        assert_eq!(peft::describe(written.path()).unwrap().lora, described.lora, "{case}");
        let again = read_again(plain(family), written.path());
        assert_eq!(of(&model), of(&again), "{case}");
    }
}

#[test]
fn blocks_of_experts_that_are_computed_again_give_the_same_gradient() {
    for (case, family) in CASES {
        check_computed_again(case, &golden(case), adapted(case, family));
    }
}

/// Without its adapter the model is the base, and with it again what it was.
#[test]
fn experts_without_their_adapter_are_those_of_the_base() {
    for (case, family) in CASES {
        let (mut model, parameters) = adapted(case, family);
        drop(parameters);
        let with = of(&model);
        let off = model.without_adapter(of).unwrap();
        assert_eq!(off, of(&plain(family)), "{case}");
        assert_eq!(of(&model), with, "{case}");
    }
}

/// As in f32 over the weights as they are unpacked.
#[test]
fn experts_of_a_quantised_base_have_the_gradients_of_their_unpacked_weights() {
    for (case, family) in CASES {
        let storage = Storage { quantization: Quantization::Nf4, ..Storage::plain(Dtype::Float32) };
        let (packed, parameters) = with_adapter(open(family, &storage), &folder(case));
        let batch = golden(case).packed();
        let (_, found) = mean_gradient(&packed, &parameters, &batch);
        let (unpacked, parameters) = with_adapter(unpacked(family, &packed), &folder(case));
        let (_, expected) = mean_gradient(&unpacked, &parameters, &batch);
        let apart = difference(&found, &expected);
        assert!(apart <= 1e-5, "{case}: {apart:e}");
    }
}

/// As far as its rounding lets it: the updates are made in bfloat16.
#[test]
fn experts_in_bfloat16_are_near_those_in_float32() {
    for (case, family) in CASES {
        let mut model = open(family, &Storage::plain(Dtype::Bfloat16));
        peft::attach(&mut model, &folder(case)).unwrap();
        let batch = golden(case).packed();
        let found = tch::no_grad(|| logits(&model, &batch));
        let golden = golden(case).logits("logits.");
        // A token whose experts change places is another; most keep them.
        let apart = (found.to_kind(Kind::Float) - &golden).abs().mean(Kind::Float);
        let size = golden.abs().mean(Kind::Float);
        let share = (apart / size).double_value(&[]);
        assert!(share < 0.05, "{case}: {share}");
    }
}

fn plain(family: &str) -> Decoder {
    open(family, &Storage::plain(Dtype::Float32))
}

fn open(family: &str, storage: &Storage) -> Decoder {
    let base = BaseFolder::open(&fixture(&base(family)), false).unwrap();
    Decoder::open_as(&base, storage, Device::Cpu).unwrap()
}

fn read_again(mut model: Decoder, folder: &Path) -> Decoder {
    peft::attach(&mut model, folder).unwrap();
    model
}

/// Logits of a small batch.
fn of(model: &Decoder) -> Tensor {
    let tokens: Vec<u32> = (0..24).map(|place| (place * 7 + 3) % 90).collect();
    let (weights, lengths) = (vec![1.0; 24], vec![10, 14]);
    let batch = MicroBatch { weights, lengths, tokens, ..MicroBatch::default() };
    tch::no_grad(|| logits(model, &batch))
}

/// Every weight that an adapter changes, merged, by checkpoint key.
fn merged_weights(model: &Decoder) -> BTreeMap<String, Tensor> {
    let wrapped = model.linears().filter(|linear| linear.low_rank.is_some());
    let linears = wrapped.map(|it| (format!("{}.weight", it.name), it.merged().unwrap().detach()));
    let experts = model.adapted_experts().into_iter();
    let experts = experts.map(|it| (it.key.clone(), it.merged().unwrap().detach()));
    linears.chain(experts).collect()
}

/// A model of dense weights: those of `changed`, and of the folder's else.
fn dense(family: &str, mut changed: BTreeMap<String, Tensor>) -> Decoder {
    let base = BaseFolder::open(&fixture(&base(family)), false).unwrap();
    let checkpoint = base.checkpoint().unwrap();
    let model = Decoder::build(&base.architecture, Kind::Float, |name, _| {
        let stored = || weights::load_as(checkpoint, name, Kind::Float).unwrap();
        Ok(changed.remove(name).unwrap_or_else(stored).into())
    });
    assert!(changed.is_empty(), "{:?}", changed.keys());
    model.unwrap()
}

/// The model with its weights as they are unpacked.
fn unpacked(family: &str, packed: &Decoder) -> Decoder {
    let mut lora = Lora::new(1, 1.0);
    lora.target_parameters = vec![GATE_UP.to_owned(), DOWN.to_owned()];
    // Merged with updates that are zero, they are what is unpacked.
    let mut model = open(
        family,
        &Storage { quantization: Quantization::Nf4, ..Storage::plain(Dtype::Float32) },
    );
    adapter::attach(&mut model, &lora, |_, shape| {
        Ok(Tensor::zeros(shape, (Kind::Float, Device::Cpu)))
    })
    .unwrap();
    let of_packed = packed.linears().map(|linear| {
        (format!("{}.weight", linear.name), linear.weight.dense(Kind::Float).unwrap())
    });
    let of_experts = merged_weights(&model);
    dense(family, of_packed.chain(of_experts).collect())
}

fn settings() -> impl Strategy<Value = Lora> {
    let parameters = prop_oneof![
        Just(vec![GATE_UP, DOWN]),
        Just(vec![DOWN]),
        Just(vec![GATE_UP]),
        Just(vec!["layers.1.mlp.experts.gate_up_proj", DOWN]),
    ];
    let targets = prop_oneof![
        Just(Targets::AllLinear),
        Just(Targets::Modules(Vec::new())),
        Just(Targets::Modules(vec!["q_proj".to_owned()])),
    ];
    let start = prop_oneof![Just(Start::Default), Just(Start::Gaussian)];
    (1u32..6, 1u32..16, parameters, targets, start, any::<bool>(), any::<bool>()).prop_map(
        |(rank, alpha, parameters, targets, init_lora_weights, use_rslora, patterns)| {
            let target_parameters = parameters.into_iter().map(str::to_owned).collect();
            let mut lora = Lora {
                target_parameters,
                targets,
                init_lora_weights,
                use_rslora,
                ..Lora::new(rank, f64::from(alpha))
            };
            if patterns {
                lora.rank_pattern = Pattern(vec![(DOWN.to_owned(), 3)]);
                lora.alpha_pattern = Pattern(vec![("experts.gate_up_proj".to_owned(), 2.0)]);
            }
            lora
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Wrapped, merged, and written and read again: the same logits. At the start they are those
    /// of the base.
    #[test]
    fn any_adapter_of_experts_is_the_same_wrapped_merged_and_read_again(
        lora in settings(),
        family in prop_oneof![Just("mixtral"), Just("qwen3_moe"), Just("gpt_oss"), Just("deepseek_v3")],
        seed in 0i64..1000,
    ) {
        tch::manual_seed(seed);
        let mut model = plain(family);
        let before = of(&model);
        let initial = adapter::initial(&model, &lora, |_| unreachable!()).unwrap();
        let parameters = Parameters::new(initial, Device::Cpu).unwrap();
        adapter::attach(&mut model, &lora, |key, _| Ok(parameters.get(key).unwrap())).unwrap();
        assert!(difference(&of(&model), &before) <= 1e-6);
        tch::no_grad(|| {
            let mut flat = parameters.flat.shallow_clone();
            let noise = flat.randn_like() * 0.02;
            let _ = flat.g_add_(&noise);
        });
        let found = of(&model);
        assert!(difference(&found, &before) > 1e-4);
        let merged = dense(family, merged_weights(&model));
        assert!(difference(&of(&merged), &found) <= 2e-4);
        let folder = tempfile::tempdir().unwrap();
        peft::save(folder.path(), &model, &lora, Path::new(family)).unwrap();
        let mut again = read_again(plain(family), folder.path());
        assert_eq!(of(&again), found);
        again.settle(Device::Cpu).unwrap();
        assert_eq!(of(&again), found);
    }
}
