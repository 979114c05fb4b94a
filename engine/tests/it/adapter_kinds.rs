//! Every kind of adapter against PEFT's numbers (`tests/fixtures/adapters`), and against itself:
//! wrapped, merged, written and read again, it is the same model.

use std::collections::BTreeMap;
use std::path::Path;

use heirloom::base::BaseFolder;
use heirloom::dataset::stream::MicroBatch;
use heirloom::recipe::{
    ActivationCheckpointing, Adapter, Bias, Dtype, Lora, Pattern, Quantization, Start, Storage,
    Targets,
};
use heirloom_engine::adapter::{self, peft, start};
use heirloom_engine::model::{Decoder, Linear, Weight, weights};
use heirloom_engine::train::loss;
use heirloom_engine::train::parameters::Parameters;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::support::{
    Golden, SAME, check_computed_again, check_numbers, course, difference, fixture, furthest,
    logits, mean_gradient, model, with_adapter,
};

/// Fixtures with their bases.
const CASES: [(&str, &str); 6] = [
    ("patterns", "tiny-llama"),
    ("layers", "tiny-llama"),
    ("bias-all", "families/llama-bias"),
    ("bias-lora-only", "families/llama-bias"),
    ("dora", "tiny-llama"),
    ("dora-bias", "families/llama-bias"),
];

fn golden(case: &str) -> Golden {
    Golden::open(&format!("adapters/{case}/golden.safetensors"))
}

fn adapted(case: &str, base: &str) -> (Decoder, Parameters) {
    let folder = fixture(&format!("adapters/{case}/adapter"));
    with_adapter(model(base, Dtype::Float32), &folder)
}

#[test]
fn logits_gradients_and_losses_of_every_kind_equal_peft() {
    for (case, base) in CASES {
        check_numbers(case, &golden(case), adapted(case, base), 1e-2);
    }
}

#[test]
fn merged_weights_and_biases_of_every_kind_equal_peft() {
    for (case, base) in CASES {
        let (model, _) = adapted(case, base);
        let golden = Golden::open(&format!("adapters/{case}/merged.safetensors"));
        let mut compared = 0;
        for linear in model.linears() {
            if linear.low_rank.is_some() {
                let expected = golden.tensor(&format!("{}.weight", linear.name));
                let apart = difference(&linear.merged().unwrap().detach(), &expected);
                assert!(apart <= 1e-6, "{case} {}: {apart:e}", linear.name);
                compared += 1;
            }
            if linear.trained_bias.is_some() {
                let expected = golden.tensor(&format!("{}.bias", linear.name));
                let apart = difference(&linear.merged_bias().unwrap().unwrap(), &expected);
                assert!(apart <= 1e-6, "{case} bias of {}: {apart:e}", linear.name);
                compared += 1;
            }
        }
        assert_eq!(compared, golden.names("").len(), "{case}");
    }
}

#[test]
fn settings_of_every_kind_survive_reading_and_writing() {
    for (case, base) in CASES {
        let (model, _) = adapted(case, base);
        let folder = tempfile::tempdir().unwrap();
        let described = peft::describe(&fixture(&format!("adapters/{case}/adapter"))).unwrap();
        peft::save(folder.path(), &model, &described.lora, Path::new(base)).unwrap();
        assert_eq!(peft::describe(folder.path()).unwrap().lora, described.lora, "{case}");
        check_same(&model, &read_again(base, folder.path()), 0.0);
    }
}

/// What PEFT wrote is where training starts: the same logits, gradients and losses.
#[test]
fn training_goes_on_from_what_peft_wrote() {
    for (case, base) in CASES {
        let folder = fixture(&format!("adapters/{case}/adapter"));
        let settings = serde_json::json!({ "from": folder });
        let mut adapter: Adapter = serde_json::from_value(settings).unwrap();
        assert!(adapter.is_unread());
        adapter.resolve().unwrap();
        let Adapter::Lora(lora) = &adapter else { panic!("{adapter:?}") };
        let text = serde_json::to_string(&adapter).unwrap();
        assert_eq!(serde_json::from_str::<Adapter>(&text).unwrap(), adapter, "{case}");

        let mut model = model(base, Dtype::Float32);
        let initial = peft::resume(&mut model, lora).unwrap().unwrap();
        let mut parameters = Parameters::new(initial, Device::Cpu).unwrap();
        adapter::attach(&mut model, lora, |key, _| Ok(parameters.get(key).unwrap())).unwrap();
        let golden = golden(case);
        let losses = course(&model, &mut parameters, &golden.packed(), 1e-2, 3);
        assert!(furthest(&losses, &golden.numbers("losses")) <= SAME, "{case}: {losses:?}");
    }
}

/// Gradients by name of the weights that `adapter` trains, with blocks computed again or not.
fn gradients_of_full(
    adapter: &Adapter,
    checkpointing: ActivationCheckpointing,
) -> BTreeMap<String, Tensor> {
    let base = BaseFolder::open(&fixture("families/llama-bias"), false).unwrap();
    let checkpoint = base.checkpoint().unwrap();
    let load = |name: &str| weights::load_as(checkpoint, name, Kind::Float).unwrap();
    let trained = base.architecture.tensors().into_iter().filter(|(name, _)| adapter.trains(name));
    let initial = trained.map(|(name, _)| (name.clone(), load(&name))).collect();
    let parameters = Parameters::new(initial, Device::Cpu).unwrap();
    let mut model = Decoder::build(&base.architecture, Kind::Float, |name, _| {
        Ok(parameters.get(name).unwrap_or_else(|| load(name)).into())
    })
    .unwrap();
    model.checkpointing = checkpointing;
    let (_, gradient) = mean_gradient(&model, &parameters, &small());
    let all = parameters.split(&gradient);
    all.map(|(name, gradient)| (name.to_owned(), gradient.copy())).collect()
}

/// Training some of the weights gives them the gradients that training all of them does, which
/// equal those of Transformers (`goldens`).
#[test]
fn weights_that_are_trained_by_name_have_the_gradients_of_full_training() {
    let none = ActivationCheckpointing::None;
    let all = gradients_of_full(&Adapter::Full(Vec::new()), none);
    for (names, count) in [
        (vec!["model.layers.1.mlp"], 6),
        (vec!["q_proj.bias", "down_proj.bias"], 4),
        (vec!["norm"], 1),
        (vec!["input_layernorm", "layers.1.self_attn.o_proj"], 4),
        (vec!["embed_tokens"], 1),
    ] {
        let adapter = Adapter::Full(names.iter().map(|name| (*name).to_owned()).collect());
        for checkpointing in
            [none, ActivationCheckpointing::Selective, ActivationCheckpointing::Block]
        {
            let found = gradients_of_full(&adapter, checkpointing);
            assert_eq!(found.len(), count, "{names:?}: {:?}", found.keys());
            for (name, gradient) in &found {
                let apart = difference(gradient, &all[name]);
                assert!(apart <= 1e-5, "{names:?} {checkpointing:?} {name}: {apart:e}");
            }
        }
    }
}

/// Blocks without anything trained, magnitudes and biases, computed again: the same bits.
#[test]
fn blocks_that_are_computed_again_give_every_kind_the_same_gradient() {
    for (case, base) in CASES {
        check_computed_again(case, &golden(case), adapted(case, base));
    }
}

/// Fifty steps, from PEFT's own start.
#[test]
fn the_losses_of_fifty_steps_of_dora_equal_peft() {
    let (golden, (model, mut parameters)) =
        (golden("dora-curve"), adapted("dora-curve", "tiny-llama"));
    let losses = course(&model, &mut parameters, &golden.packed(), 5e-3, 50);
    let apart = furthest(&losses, &golden.numbers("losses"));
    println!("dora, 50 steps: {:.4} to {:.4}, {apart:.1e}", losses[0], losses[49]);
    assert!(apart <= 1e-3, "{apart:e}");
}

/// `lora` over `base` from where it starts, with its weights as trained leaves.
fn begin(base: &str, storage: &Storage, lora: &Lora) -> (Decoder, Parameters) {
    let base = BaseFolder::open(&fixture(base), false).unwrap();
    let mut model = Decoder::open_as(&base, storage, Device::Cpu).unwrap();
    let stored = |linear: &Linear| {
        let key = format!("{}.weight", linear.name);
        weights::load_as(base.checkpoint().unwrap(), &key, Kind::Float)
    };
    let initial = adapter::initial(&model, lora, stored).unwrap();
    let parameters = Parameters::new(initial, Device::Cpu).unwrap();
    adapter::attach(&mut model, lora, |key, _| Ok(parameters.get(key).unwrap())).unwrap();
    start::keep(&mut model, lora).unwrap();
    (model, parameters)
}

fn lora_of_starts(start: Start) -> Lora {
    let modules = ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec();
    Lora { init_lora_weights: start, targets: Targets::Modules(modules), ..Lora::new(4, 8.0) }
}

#[test]
fn starts_that_are_taken_out_equal_peft_and_are_written_as_it_converts_them() {
    for (case, start, bar) in [
        ("pissa", Start::Pissa, SAME),
        // From a random projection: another one finds other parts, as large as these.
        ("pissa-niter", Start::PissaNiter(8), 1.0),
        ("olora", Start::Olora, SAME),
    ] {
        let (golden, lora) = (golden(case), lora_of_starts(start));
        tch::manual_seed(61);
        let (mut model, mut parameters) =
            begin("tiny-llama", &Storage::plain(Dtype::Float32), &lora);
        for linear in model.linears().filter(|linear| linear.low_rank.is_some()) {
            let low_rank = linear.low_rank.as_ref().unwrap();
            let found = low_rank.b.matmul(&low_rank.a).detach();
            let apart = difference(&found, &golden.tensor(&format!("start.{}", linear.name)));
            assert!(apart <= bar, "{case} {}: {apart:e}", linear.name);
            let [ours, theirs] = [found, golden.tensor(&format!("start.{}", linear.name))]
                .map(|product| product.norm().double_value(&[]));
            assert!((ours / theirs - 1.0).abs() < 0.1, "{case}: {ours} {theirs}");
        }
        let batch = golden.packed();
        let losses = course(&model, &mut parameters, &batch, 1e-2, 3);
        let of_losses = furthest(&losses, &golden.numbers("losses"));
        let trained = tch::no_grad(|| logits(&model, &batch));
        let of_logits = difference(&trained, &golden.logits("logits."));
        println!("{case}: losses {of_losses:.1e}, logits after 3 steps {of_logits:.1e}");
        assert!(of_losses <= bar && of_logits <= 10.0 * bar, "{case}: {of_losses:e} {of_logits:e}");

        // What PEFT converted, over the base as it is.
        let (converted, _) = adapted(case, "tiny-llama");
        let apart =
            difference(&tch::no_grad(|| logits(&converted, &batch)), &golden.logits("logits."));
        assert!(apart <= SAME, "{case} converted: {apart:e}");

        // What is written here, over the base as it is.
        let folder = tempfile::tempdir().unwrap();
        peft::save(folder.path(), &model, &lora, Path::new("tiny-llama")).unwrap();
        let written = peft::describe(folder.path()).unwrap().lora;
        let theirs = peft::describe(&fixture(&format!("adapters/{case}/adapter"))).unwrap().lora;
        assert_eq!((written.rank, written.alpha), (theirs.rank, theirs.alpha), "{case}");
        check_same(&model, &read_again("tiny-llama", folder.path()), 1e-5);

        // And without the adapter, the base is the base.
        let plain = crate::support::model("tiny-llama", Dtype::Float32);
        let off = model.without_adapter(|model| tch::no_grad(|| logits(model, &batch))).unwrap();
        assert_eq!(off, tch::no_grad(|| logits(&plain, &batch)), "{case}");
    }
}

/// LoftQ starts nearer to the weights as they are stored than the quantised base is.
#[test]
fn loftq_restores_some_of_what_quantising_loses() {
    let storage = Storage { quantization: Quantization::Nf4, ..Storage::plain(Dtype::Float32) };
    let stored = crate::support::model("tiny-llama", Dtype::Float32);
    let (model, _) = begin("tiny-llama", &storage, &lora_of_starts(Start::Loftq));
    let mut compared = 0;
    for (linear, stored) in model.linears().zip(stored.linears()) {
        let Some(_) = &linear.low_rank else { continue };
        let stored = stored.weight.dense(Kind::Float).unwrap();
        let lost = difference(&linear.weight.dense(Kind::Float).unwrap(), &stored);
        let norm = |found: &Tensor| (found - &stored).norm().double_value(&[]);
        let (before, after) = (
            norm(&linear.weight.dense(Kind::Float).unwrap()),
            norm(&linear.merged().unwrap().detach()),
        );
        assert!(lost > 0.0 && after < 0.85 * before, "{}: {before} {after}", linear.name);
        compared += 1;
    }
    assert_eq!(compared, 6);
}

/// A dropout that drops nothing takes another way to the same numbers.
#[test]
fn parts_that_see_other_inputs_than_the_rest_add_up() {
    for (start, use_dora) in [(Start::Default, true), (Start::Pissa, false), (Start::Olora, true)] {
        let lora = Lora { use_dora, ..lora_of_starts(start) };
        let [plain, dropping] = [0.0, 1e-12].map(|dropout| {
            let lora = Lora { dropout, ..lora.clone() };
            tch::manual_seed(5);
            let (model, mut parameters) =
                begin("tiny-llama", &Storage::plain(Dtype::Float32), &lora);
            course(&model, &mut parameters, &small(), 1e-2, 2);
            mean_gradient(&model, &parameters, &small())
        });
        let apart = difference(&dropping.1, &plain.1);
        assert!(apart <= SAME && (dropping.0 / plain.0 - 1.0).abs() <= SAME, "{start}: {apart:e}");
    }
}

/// What is dropped is not what the base sees.
#[test]
fn everything_dropped_leaves_the_base() {
    let base = crate::support::model("tiny-llama", Dtype::Float32);
    let batch = small();
    let plain = loss::nll_sum(&base, &batch, false).unwrap().unwrap().double_value(&[]);
    let mut lora = Lora { dropout: 0.999_999, use_dora: true, ..lora_of_starts(Start::Default) };
    for bias in [false, true] {
        lora.use_dora = bias;
        let (model, _) = begin("tiny-llama", &Storage::plain(Dtype::Float32), &lora);
        let dropped = loss::nll_sum(&model, &batch, true).unwrap().unwrap().double_value(&[]);
        assert!((dropped / plain - 1.0).abs() < 1e-5, "{dropped} {plain}");
    }
}

/// The model with a written adapter.
fn read_again(base: &str, folder: &Path) -> Decoder {
    let mut model = model(base, Dtype::Float32);
    peft::attach(&mut model, folder).unwrap();
    model
}

fn small() -> MicroBatch {
    let tokens: Vec<u32> = (0..24).map(|place| (place * 7 + 3) % 90).collect();
    let weights = vec![1.0; tokens.len()];
    MicroBatch { tokens, weights, lengths: vec![10, 14], ..MicroBatch::default() }
}

fn check_same(one: &Decoder, other: &Decoder, bar: f64) {
    let batch = small();
    let (one, other) = tch::no_grad(|| (logits(one, &batch), logits(other, &batch)));
    let apart = difference(&one, &other);
    assert!(apart <= bar, "{apart:e}");
}

/// A model whose linear layers are the merged ones of another.
fn merged(model: &Decoder, mut merged: Decoder) -> Decoder {
    for (place, linear) in merged.linears_mut().unwrap().zip(model.linears()) {
        place.weight = Weight::Dense(linear.merged().unwrap().detach());
        place.bias = linear.merged_bias().unwrap();
    }
    merged
}

fn settings() -> impl Strategy<Value = Lora> {
    let start = prop_oneof![
        Just(Start::Default),
        Just(Start::Gaussian),
        Just(Start::Pissa),
        Just(Start::PissaNiter(2)),
        Just(Start::Olora)
    ];
    let bias = prop_oneof![Just(Bias::None), Just(Bias::All), Just(Bias::LoraOnly)];
    let blocks = prop_oneof![Just(vec![]), Just(vec![0]), Just(vec![1]), Just(vec![0, 1])];
    let targets = prop_oneof![
        Just(Targets::AllLinear),
        Just(Targets::Modules(vec!["q_proj".to_owned(), "mlp.down_proj".to_owned()]))
    ];
    let more = (any::<bool>(), any::<bool>(), any::<bool>(), 1u32..6);
    (1u32..8, 1u32..32, start, bias, blocks, targets, more).prop_map(
        |(rank, alpha, init_lora_weights, bias, layers_to_transform, targets, more)| {
            let (use_rslora, use_dora, patterns, other) = more;
            let mut lora = Lora {
                init_lora_weights,
                bias,
                layers_to_transform,
                targets,
                use_rslora,
                use_dora,
                ..Lora::new(rank, f64::from(alpha))
            };
            if patterns {
                lora.rank_pattern = Pattern(vec![("q_proj".to_owned(), other)]);
                lora.alpha_pattern = Pattern(vec![("self_attn.q_proj".to_owned(), 3.0)]);
                lora.exclude_modules = vec!["layers.0.mlp.up_proj".to_owned()];
            }
            lora
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Wrapped, merged, and written and read again: the same logits. At the start they are those
    /// of the base, whatever the start.
    #[test]
    fn any_adapter_is_the_same_wrapped_merged_and_read_again(
        lora in settings(),
        seed in 0i64..1000,
        packed: bool,
    ) {
        let (base, quantization) = ("families/llama-bias", match packed {
            true => Quantization::Nf4,
            false => Quantization::None,
        });
        let storage = Storage { quantization, ..Storage::plain(Dtype::Float32) };
        let open = || {
            let base = BaseFolder::open(&fixture(base), false).unwrap();
            Decoder::open_as(&base, &storage, Device::Cpu).unwrap()
        };
        tch::manual_seed(seed);
        let (model, parameters) = begin(base, &storage, &lora);
        check_same(&model, &open(), 2e-5);
        tch::no_grad(|| {
            let mut flat = parameters.flat.shallow_clone();
            let noise = flat.randn_like() * 0.05;
            let _ = flat.g_add_(&noise);
        });
        check_same(&model, &merged(&model, open()), 1e-4);
        let folder = tempfile::tempdir().unwrap();
        peft::save(folder.path(), &model, &lora, Path::new(base)).unwrap();
        let mut again = open();
        peft::attach(&mut again, folder.path()).unwrap();
        check_same(&model, &again, 2e-5);
        again.settle(Device::Cpu).unwrap();
        check_same(&model, &again, 2e-5);
    }
}
