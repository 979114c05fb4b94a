//! Trained rows of embedding and output against PEFT; see `tests/fixtures/README.md`.

use std::path::Path;

use heirloom::base::BaseFolder;
use heirloom::recipe::{Dtype, Module};
use heirloom_engine::adapter::{self, peft, tokens};
use heirloom_engine::error::EngineError;
use heirloom_engine::model::{Decoder, Replacement};
use heirloom_engine::train::{loss, parameters::Parameters};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::support::{Golden, difference, fixture, logits};

/// The bar for logits and losses in f32.
const LOGITS: f64 = 1e-5;
/// The bar for gradients in f32.
const GRADIENTS: f64 = 1e-4;

const CASES: [(&str, &str); 10] = [
    ("rows-embedding", PLAIN),
    ("rows-each", PLAIN),
    ("rows-tied", TIED),
    ("whole", PLAIN),
    ("whole-tied", TIED),
    ("resized", PLAIN),
    ("resized-tied", TIED),
    ("resized-mixed", PLAIN),
    ("rows-gemma2", "families/gemma2"),
    ("rows-granite", "families/granite"),
];
const PLAIN: &str = "tiny-llama";
const TIED: &str = "tiny-llama-tied-sharded";

/// The base with as many rows as the adapter needs, and the adapter on it.
fn adapted(base: &str, folder: &Path) -> Result<(Decoder, peft::Described), EngineError> {
    let mut base = BaseFolder::open(&fixture(base), false).unwrap();
    base.grow(peft::rows(folder)?)?;
    let mut model = Decoder::open(&base, Dtype::Float32)?;
    let described = peft::attach(&mut model, folder)?;
    Ok((model, described))
}

#[test]
fn logits_and_gradients_equal_peft() {
    for (name, base) in CASES {
        let golden = Golden::open(&format!("tokens/{name}/golden.safetensors"));
        let batch = golden.packed();
        let (mut model, described) =
            adapted(base, &fixture(&format!("tokens/{name}/adapter"))).unwrap();
        let found = tch::no_grad(|| logits(&model, &batch));
        let apart = difference(&found, &golden.logits("logits."));
        assert!(apart <= LOGITS, "{name} logits: {apart:e}");

        let parameters = Parameters::new(adapter::weights(&model), tch::Device::Cpu).unwrap();
        adapter::attach(&mut model, &described.lora, |key, _| Ok(parameters.get(key).unwrap()))
            .unwrap();
        let gradient = parameters.zero_gradient().unwrap();
        let sum = loss::nll_sum(&model, &batch, true).unwrap().unwrap();
        let mean = sum / batch.trained_tokens() as f64;
        let expected = golden.numbers("loss")[0];
        assert!((mean.double_value(&[]) / expected - 1.0).abs() <= LOGITS, "{name} loss");
        parameters.add_gradient(&mean, &gradient).unwrap();
        let keys = golden.names("grad.");
        assert_eq!(keys.len(), parameters.split(&parameters.flat).count(), "{name}");
        let mut largest = 0.0_f64;
        for (key, found) in parameters.split(&gradient) {
            let apart = difference(&found, &golden.tensor(&format!("grad.{key}")));
            assert!(apart <= GRADIENTS, "{name} gradient of {key}: {apart:e}");
            largest = largest.max(apart);
        }
        println!("{name}: logits {:.1e}, gradients {largest:.1e}", {
            difference(&tch::no_grad(|| logits(&model, &batch)), &golden.logits("logits."))
        });
    }
}

#[test]
fn merged_tables_equal_peft() {
    for (name, base) in CASES {
        let golden = Golden::open(&format!("tokens/{name}/merged.safetensors"));
        let (model, _) = adapted(base, &fixture(&format!("tokens/{name}/adapter"))).unwrap();
        for module in Module::ALL {
            let table = model.table(module);
            let merged = match model.replaced.of(module) {
                Some(replacement) => replacement.merged(table).unwrap(),
                None => table.shallow_clone(),
            };
            let expected = golden.tensor(module.name());
            assert_eq!(merged, expected, "{name} {}", module.name());
        }
        assert_eq!(tokens::stay_tied(&model), !name.contains("whole") && name != "resized-mixed");
    }
}

/// What we write is what we read, and without the base's own rows it still has all that was
/// trained.
#[test]
fn adapters_survive_writing_and_reading() {
    for (name, base) in CASES.into_iter().filter(|(name, _)| !name.starts_with("resized")) {
        let (model, described) =
            adapted(base, &fixture(&format!("tokens/{name}/adapter"))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        peft::save(folder.path(), &model, &described.lora, Path::new(base)).unwrap();
        let (again, described_again) = adapted(base, folder.path()).unwrap();
        assert_eq!(
            described_again.lora.trainable_token_indices,
            described.lora.trainable_token_indices
        );
        for ((key, before), (key_again, after)) in
            adapter::weights(&model).into_iter().zip(adapter::weights(&again))
        {
            assert_eq!((key, before), (key_again, after), "{name}");
        }
        let batch = Golden::open(&format!("tokens/{name}/golden.safetensors")).packed();
        let [one, other] = [&model, &again].map(|model| tch::no_grad(|| logits(model, &batch)));
        assert_eq!(one, other, "{name}");
    }
}

#[test]
fn without_the_adapter_the_base_is_as_it_was() {
    for (name, base) in CASES.into_iter().filter(|(name, _)| !name.starts_with("resized")) {
        let (mut model, _) = adapted(base, &fixture(&format!("tokens/{name}/adapter"))).unwrap();
        let batch = Golden::open(&format!("tokens/{name}/golden.safetensors")).packed();
        let adapted = tch::no_grad(|| logits(&model, &batch));
        let bare = model.without_adapter(|base| tch::no_grad(|| logits(base, &batch))).unwrap();
        let expected =
            tch::no_grad(|| logits(&crate::support::model(base, Dtype::Float32), &batch));
        assert_eq!(bare, expected, "{name}");
        assert_eq!(tch::no_grad(|| logits(&model, &batch)), adapted, "{name}");
    }
}

/// New rows begin as the mean of those there are, in both modules.
#[test]
fn new_rows_are_the_mean_of_the_others() {
    for name in [PLAIN, TIED] {
        let mut base = BaseFolder::open(&fixture(name), false).unwrap();
        base.grow(99).unwrap();
        let model = Decoder::open(&base, Dtype::Float32).unwrap();
        for module in Module::ALL {
            let table = model.table(module);
            assert_eq!(table.size(), [99, 32]);
            let mean = table.narrow(0, 0, 97).mean_dim([0i64].as_slice(), false, Kind::Float);
            for row in [97, 98] {
                // The tied base is stored in bfloat16, and so is its mean.
                let apart = difference(&table.get(row), &mean);
                assert!(apart <= if name == TIED { 4e-3 } else { 1e-6 }, "{name} {apart:e}");
            }
        }
    }
}

/// A folder with a fixture's adapter whose configuration has been changed.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture(&format!("tokens/{name}/adapter"));
    fs_err::copy(from.join(peft::WEIGHTS), folder.path().join(peft::WEIGHTS)).unwrap();
    let text = fs_err::read_to_string(from.join(peft::CONFIG)).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    change(&mut config);
    fs_err::write(folder.path().join(peft::CONFIG), config.to_string()).unwrap();
    folder
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let indices =
        |value: Value| changed("rows-tied", |config| config["trainable_token_indices"] = value);
    for (folder, expected) in [
        (indices(json!([96, 2, 5, 7])), "has shape [3, 32] instead of [4, 32]"),
        (indices(json!([])), "is unexpected"),
        (indices(json!([96, 2, 96])), "`trainable_token_indices`"),
        (indices(json!([96, -2, 5])), "is not valid"),
        (indices(json!([96, 2, 4_294_967_295_u32])), "cannot grow to 4294967296"),
        (indices(json!({"lm_head": [96, 2, 5]})), "`trainable_token_indices`"),
        (indices(json!({"embed_tokens": [96, 2, 5], "lm_head": [1]})), "`trainable_token_indices`"),
        (indices(json!({"q_proj": [96, 2, 5]})), "`trainable_token_indices`"),
        (
            changed("whole", |config| config["modules_to_save"] = json!(["norm"])),
            "`modules_to_save`",
        ),
        (
            changed("whole-tied", |config| config["ensure_weight_tying"] = json!(true)),
            "`ensure_weight_tying`",
        ),
        (
            changed("rows-tied", |config| config["modules_to_save"] = json!(["embed_tokens"])),
            "`trainable_token_indices`",
        ),
    ] {
        let said = adapted(TIED, folder.path()).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    // Where the embedding of another base is smaller.
    let base = BaseFolder::open(&fixture(PLAIN), false).unwrap();
    let mut model = Decoder::open(&base, Dtype::Float32).unwrap();
    let folder = fixture("tokens/resized/adapter");
    assert!(peft::attach(&mut model, &folder).is_err());
    let lora = peft::describe(&folder).unwrap().lora;
    let error = tokens::initial(&model, &lora).unwrap_err();
    assert!(matches!(error, EngineError::NoSuchToken { id: 97, rows: 97 }), "{error}");
}

/// In bfloat16 the trained rows stay f32 and are rounded where they are used.
#[test]
fn trained_rows_compute_in_bfloat16() {
    let base = BaseFolder::open(&fixture(TIED), false).unwrap();
    let mut model = Decoder::open(&base, Dtype::Bfloat16).unwrap();
    let folder = fixture("tokens/rows-tied/adapter");
    peft::attach(&mut model, &folder).unwrap();
    let Some(Replacement::Rows(rows)) = model.replaced.of(Module::EmbedTokens) else { panic!() };
    assert_eq!(rows.values.kind(), Kind::Float);
    let golden = Golden::open("tokens/rows-tied/golden.safetensors");
    let found: Tensor = tch::no_grad(|| logits(&model, &golden.packed()));
    assert_eq!(found.kind(), Kind::BFloat16);
    let apart = difference(&found, &golden.logits("logits."));
    assert!(apart <= 5e-2, "{apart:e}");
}
