//! VeRA against PEFT's numbers (`tests/fixtures/vera`), and against itself.

use std::path::Path;

use heirloom::base::BaseFolder;
use heirloom::recipe::{self, Adapter, Dtype, Lora, Quantization, Storage};
use heirloom_engine::adapter::{self, peft};
use heirloom_engine::model::{Decoder, Weight};
use heirloom_engine::train::parameters::Parameters;
use proptest::prelude::*;
use tch::{Device, Tensor};

use crate::support::{
    Golden, SAME, check_computed_again, check_numbers, difference, fixture, logits, with_adapter,
};

/// Fixtures with their bases.
const CASES: [(&str, &str); 3] =
    [("all", "tiny-llama"), ("drawn-again", "tiny-llama"), ("biased", "families/llama-bias")];

fn golden(case: &str) -> Golden {
    Golden::open(&format!("vera/{case}/golden.safetensors"))
}

fn adapted(case: &str, base: &str) -> (Decoder, Parameters) {
    let folder = fixture(&format!("vera/{case}/adapter"));
    with_adapter(plain(base), &folder)
}

#[test]
fn logits_gradients_and_losses_of_vera_equal_peft() {
    for (case, base) in CASES {
        check_numbers(case, &golden(case), adapted(case, base), 1e-2);
    }
}

/// From the same key, bit for bit, and whatever else is drawn stays what it is.
#[test]
fn shared_matrices_are_drawn_as_peft_draws_them() {
    for (case, base) in CASES {
        let lora = peft::describe(&fixture(&format!("vera/{case}/adapter"))).unwrap().lora;
        tch::manual_seed(3);
        let mut model = plain(base);
        let initial = adapter::initial(&model, &lora, |_| unreachable!()).unwrap();
        let parameters = Parameters::new(initial, Device::Cpu).unwrap();
        adapter::attach(&mut model, &lora, |key, _| Ok(parameters.get(key).unwrap())).unwrap();
        let after = Tensor::rand([4], tch::kind::FLOAT_CPU);
        let vectors = model.linears().find_map(|it| it.low_rank.as_ref()?.vectors.as_ref());
        let (a, b) = &vectors.unwrap().shared;
        assert_eq!(a, &golden(case).tensor("vera_A"), "{case}");
        assert_eq!(b, &golden(case).tensor("vera_B"), "{case}");
        // The seed of the run is what decides of the rest.
        let other = Lora {
            vera: lora.vera.map(|it| recipe::Vectors { projection_prng_key: 1, ..it }),
            ..lora.clone()
        };
        tch::manual_seed(3);
        let mut again = plain(base);
        adapter::attach(&mut again, &other, |key, _| Ok(parameters.get(key).unwrap())).unwrap();
        assert_eq!(Tensor::rand([4], tch::kind::FLOAT_CPU), after, "{case}");
    }
}

fn plain(base: &str) -> Decoder {
    crate::support::model(base, Dtype::Float32)
}

#[test]
fn merged_weights_of_vera_equal_peft() {
    for (case, base) in CASES {
        let (model, _) = adapted(case, base);
        let golden = Golden::open(&format!("vera/{case}/merged.safetensors"));
        let mut compared = 0;
        for linear in model.linears().filter(|linear| linear.low_rank.is_some()) {
            let expected = golden.tensor(&format!("{}.weight", linear.name));
            let apart = difference(&linear.merged().unwrap().detach(), &expected);
            assert!(apart <= 1e-6, "{case} {}: {apart:e}", linear.name);
            compared += 1;
        }
        assert_eq!(compared, golden.names("").len(), "{case}");
    }
}

/// What PEFT wrote is where training starts, with the matrices of the file.
#[test]
fn training_goes_on_from_vera_of_peft() {
    for (case, base) in CASES {
        let folder = fixture(&format!("vera/{case}/adapter"));
        let settings = serde_json::json!({ "from": folder });
        let mut adapter: Adapter = serde_json::from_value(settings).unwrap();
        adapter.resolve().unwrap();
        let Adapter::Lora(lora) = &mut adapter else { panic!("{adapter:?}") };
        if lora.vera.is_some_and(|vera| vera.save_projection) {
            // Then nothing is drawn from it.
            lora.vera.as_mut().unwrap().projection_prng_key += 1;
        }
        let text = serde_json::to_string(&adapter).unwrap();
        assert_eq!(serde_json::from_str::<Adapter>(&text).unwrap(), adapter, "{case}");
        let Adapter::Lora(lora) = &adapter else { panic!("{adapter:?}") };
        let mut model = plain(base);
        let initial = peft::resume(&mut model, lora).unwrap().unwrap();
        let parameters = Parameters::new(initial, Device::Cpu).unwrap();
        adapter::attach(&mut model, lora, |key, _| Ok(parameters.get(key).unwrap())).unwrap();
        let batch = golden(case).packed();
        let found = tch::no_grad(|| logits(&model, &batch));
        let apart = difference(&found, &golden(case).logits("logits."));
        assert!(apart <= SAME, "{case}: {apart:e}");
    }
}

#[test]
fn blocks_of_vera_that_are_computed_again_give_the_same_gradient() {
    for (case, base) in CASES {
        check_computed_again(case, &golden(case), adapted(case, base));
    }
}

/// PEFT computes something else with biases that it trains, or without a table of its own.
#[test]
fn settings_of_vera_that_mean_something_else_are_refused() {
    let folder = fixture("vera/all/adapter");
    let text = fs_err::read_to_string(folder.join(peft::CONFIG)).unwrap();
    for (key, value) in [
        ("bias", serde_json::json!("vera_only")),
        ("fan_in_fan_out", serde_json::json!(true)),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("target_modules", serde_json::json!(".*q_proj")),
        ("use_dora", serde_json::json!(true)),
        ("r", serde_json::json!(0)),
    ] {
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[key] = value;
        let other = tempfile::tempdir().unwrap();
        fs_err::write(other.path().join(peft::CONFIG), config.to_string()).unwrap();
        let error = peft::describe(other.path()).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Wrapped, merged, and written and read again: the same logits. At the start they are those
    /// of the base.
    #[test]
    fn any_vera_is_the_same_wrapped_merged_and_read_again(
        rank in 1u32..12,
        key: u32,
        save_projection: bool,
        packed: bool,
        targets in prop_oneof![Just("all-linear"), Just("[q_proj, mlp.down_proj]")],
        block in prop_oneof![Just("[]"), Just("[1]")],
    ) {
        let targets = targets.replace('[', "[\"").replace(", ", "\", \"").replace(']', "\"]");
        let targets = if targets.starts_with('[') { targets } else { format!("\"{targets}\"") };
        let adapter: Adapter = serde_json::from_str(&format!(
            r#"{{"vera": {{"rank": {rank}, "targets": {targets}, "projection_prng_key": {key},
                 "layers_to_transform": {block}, "save_projection": {save_projection}}}}}"#
        )).unwrap();
        let Adapter::Lora(lora) = &adapter else { panic!("{adapter:?}") };
        let base = "families/llama-bias";
        let quantization = if packed { Quantization::Nf4 } else { Quantization::None };
        let storage = Storage { quantization, ..Storage::plain(Dtype::Float32) };
        let open = || {
            let base = BaseFolder::open(&fixture(base), false).unwrap();
            Decoder::open_as(&base, &storage, Device::Cpu).unwrap()
        };
        let batch = golden("biased").packed();
        let of = |model: &Decoder| tch::no_grad(|| logits(model, &batch));
        let (mut model, before) = (open(), of(&open()));
        let initial = adapter::initial(&model, lora, |_| unreachable!()).unwrap();
        let parameters = Parameters::new(initial, Device::Cpu).unwrap();
        adapter::attach(&mut model, lora, |key, _| Ok(parameters.get(key).unwrap())).unwrap();
        assert!(difference(&of(&model), &before) <= 1e-6);
        tch::no_grad(|| {
            let mut flat = parameters.flat.shallow_clone();
            let noise = flat.randn_like() * 0.3;
            let _ = flat.g_add_(&noise);
        });
        let found = of(&model);
        assert!(difference(&found, &before) > 1e-4);
        let mut merged = open();
        for (place, linear) in merged.linears_mut().unwrap().zip(model.linears()) {
            place.weight = Weight::Dense(linear.merged().unwrap().detach());
        }
        assert!(difference(&of(&merged), &found) <= 1e-4);
        let folder = tempfile::tempdir().unwrap();
        peft::save(folder.path(), &model, lora, Path::new(base)).unwrap();
        let mut again = open();
        peft::attach(&mut again, folder.path()).unwrap();
        assert_eq!(of(&again), found);
        again.settle(Device::Cpu).unwrap();
        assert_eq!(of(&again), found);
    }
}
