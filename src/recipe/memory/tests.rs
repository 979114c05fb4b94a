use super::limit::By;
use super::*;
use crate::diagnose::Diagnose as _;
use crate::recipe::Quantization;

fn recipe() -> Recipe {
    let recipe = serde_json::json!({
        "heirloom": 1, "name": "test", "base": {"model": "base"},
        "adapter": {"lora": {"rank": 2, "alpha": 4}},
        "data": {"purpose": ["dpv:ServiceProvision"], "sequence_length": 128,
                 "train": [{"path": "train.parquet", "format": "chat"}]},
        "train": {"epochs": 1, "tokens_per_step": 1024, "seed": 7,
                  "optimizer": {"adamw": {"lr": 0.001}}}
    });
    serde_json::from_value(recipe).unwrap()
}

/// Everything `width` wide, with a vocabulary of as many tokens.
fn llama(width: usize, layers: usize) -> Architecture {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": width, "hidden_size": width,
        "intermediate_size": width, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": width / 2,
        "max_position_embeddings": 128,
    });
    fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Architecture::open(folder.path()).unwrap()
}

/// Full windows.
fn size() -> Size {
    let windows = 1000;
    let size = serde_json::json!({
        "tokens": windows * 128, "trained_tokens": windows * 128, "windows": windows,
        "dropped_overlong": 0, "cut_overlong": 0, "held_out": 0, "steps_by_epoch": [125], "steps": 125
    });
    serde_json::from_value(size).unwrap()
}

fn predict(recipe: &Recipe, architecture: &Architecture, trained: u64) -> Memory {
    let size = size();
    Memory::predict(&Run {
        recipe,
        architecture,
        trained,
        size: &size,
        held_out: 0,
        suites: &[],
        teacher: None,
    })
}

/// Weights of adapters of rank 2 on the seven layers of each block.
fn trained(width: u64, layers: u64) -> u64 {
    layers * 7 * 2 * (width + width)
}

#[test]
fn the_parts_are_those_of_the_table() {
    let (recipe, model) = (recipe(), llama(64, 3));
    let memory = predict(&recipe, &model, trained(64, 3));
    assert_eq!(memory.weights, 4 * (model.parameter_count() + trained(64, 3)));
    assert_eq!(memory.optimizer, 8 * trained(64, 3));
    assert!(memory.gradients >= 4 * trained(64, 3) && memory.gradients <= 8 * trained(64, 3));
    // The first block keeps no input.
    let rows = 1024 * 4;
    let kept = rows * (3 * 64 * (4 + 2 + 2 + 3) - 64 + 3 * 7 * 2);
    let least = kept..kept + 1024 * 600;
    assert!(least.contains(&memory.activations), "{least:?} {memory:?}");
}

#[test]
fn tokens_of_a_micro_batch_are_what_the_stream_gives() {
    let (mut recipe, model) = (recipe(), llama(256, 6));
    let whole = predict(&recipe, &model, 0).activations;
    recipe.train.micro_batch_tokens = Some(512);
    let half = predict(&recipe, &model, 0).activations;
    assert!((1.9..2.1).contains(&(whole as f64 / half as f64)), "{whole} {half}");
    // Half a window more is no window more.
    recipe.train.micro_batch_tokens = Some(512 + 64);
    assert_eq!(predict(&recipe, &model, 0).activations, half);
    // More than the step has.
    recipe.train.micro_batch_tokens = Some(1 << 20);
    assert_eq!(predict(&recipe, &model, 0).activations, whole);
}

#[test]
fn fewer_bits_take_less() {
    let (mut recipe, model) = (recipe(), llama(512, 3));
    recipe.base.dtype = Dtype::Bfloat16;
    let table = 2 * 2 * 512 * 512;
    let of = |recipe: &Recipe, quantization| {
        let mut recipe = recipe.clone();
        recipe.base.quantization = quantization;
        predict(&recipe, &model, 0).weights - table
    };
    let values = 3 * 7 * 512 * 512;
    let norms = 7 * 512 * 2;
    assert_eq!(of(&recipe, Quantization::None), 2 * values + norms);
    assert_eq!(of(&recipe, Quantization::Nf4), values / 2 + values / 64 * 4 + norms);
    assert_eq!(
        of(&recipe, Quantization::Nf4Double),
        values / 2 + values / 64 + 21 * (512 * 512 / 64 / 256 * 4 + 1024) + norms
    );
    assert_eq!(of(&recipe, Quantization::Int8), values + 21 * 512 * 4 + norms);
    recipe.base.unquantized = vec!["down_proj".to_owned()];
    // Two bytes for each of these instead of one.
    let kept = 3 * 512 * 512;
    assert_eq!(of(&recipe, Quantization::Fp8), values + kept + 18 * 512 * 4 + norms);
}

/// The updates of routed experts are counted with those of linear layers.
#[test]
fn updates_of_experts_take_memory() {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "mixtral", "vocab_size": 64, "hidden_size": 512, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 128, "num_local_experts": 4, "num_experts_per_tok": 2,
    });
    fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let model = Architecture::open(folder.path()).unwrap();
    let mut recipe = recipe();
    recipe.adapter =
        serde_json::from_str(r#"{"lora": {"rank": 2, "alpha": 4, "targets": ["q_proj"]}}"#)
            .unwrap();
    let plain = predict(&recipe, &model, 0);
    recipe.adapter = serde_json::from_str(
        r#"{"lora": {"rank": 2, "alpha": 4, "targets": ["q_proj"],
                     "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}}"#,
    )
    .unwrap();
    let adapted = predict(&recipe, &model, 0);
    // For each token and each of its two experts the inputs, 512 and 256, and what is between.
    let kept = 2 * 1024 * 4 * 2 * (512 + 256 + 2 * 2 * 2);
    let more = adapted.activations - plain.activations;
    // And B, laid out anew.
    let anew = 2 * 4 * 4 * 2 * (512 + 512);
    assert!((kept..=kept + anew + 2).contains(&more), "{more} {kept}");
    let shapes = 2 * (4 * 2 * (512 + 512) + 4 * 2 * (256 + 512));
    let eight = r#"{"adamw_8bit": {"lr": 1}}"#;
    recipe.train.optimizer = serde_json::from_str(eight).unwrap();
    let state = |recipe: &Recipe| optimizer::state(recipe, &model, f64::from(shapes));
    let with = state(&recipe);
    recipe.adapter =
        serde_json::from_str(r#"{"lora": {"rank": 2, "alpha": 4, "targets": ["o"]}}"#).unwrap();
    // In 32 bits where the shapes are not known.
    assert!(with < state(&recipe), "{with}");
}

#[test]
fn numbers_beyond_all_memory_stay_the_largest_number() {
    let mut recipe = recipe();
    recipe.train.tokens_per_step = usize::MAX;
    recipe.train.micro_batch_tokens = Some(usize::MAX);
    let mut size = size();
    (size.tokens, size.windows) = (u64::MAX, u64::MAX);
    let architecture = llama(1 << 24, 4096);
    let run = Run {
        recipe: &recipe,
        architecture: &architecture,
        trained: u64::MAX,
        size: &size,
        held_out: u64::MAX,
        suites: &[Asked { rows: 1, tokens: u64::MAX, max_new_tokens: u64::MAX }],
        teacher: None,
    };
    assert_eq!(Memory::predict(&run).total(), u64::MAX);
}

#[test]
fn what_does_not_fit_is_refused_with_settings_that_do() {
    let (recipe, model, size) = (recipe(), llama(1024, 4), size());
    let run = Run {
        recipe: &recipe,
        architecture: &model,
        trained: trained(1024, 4),
        size: &size,
        held_out: 0,
        suites: &[],
        teacher: None,
    };
    let memory = Memory::predict(&run);
    let limit = |bytes| Limit { bytes, by: By::Variable };
    assert!(run.fit(&memory, limit(memory.total())).is_ok());
    for share in [99, 90, 80, 70, 60] {
        let bytes = memory.total() * share / 100;
        let refused = run.fit(&memory, limit(bytes)).unwrap_err();
        assert!(!refused.fitting.is_empty(), "{share}");
        for setting in &refused.fitting {
            assert!(setting.memory_bytes <= bytes, "{share} {setting:?}");
        }
        let sets = |setting: &Setting| setting.set.len();
        assert!(refused.fitting.is_sorted_by_key(sets), "{refused:?}");
        assert_eq!(refused.details().len(), refused.fitting.len());
    }
    let most = run.fit(&memory, limit(memory.total() - 1)).unwrap_err();
    assert_eq!(most.fitting[0].set, ["train.micro_batch_tokens=512"]);
    let none = run.fit(&memory, limit(1)).unwrap_err();
    assert!(none.fitting.is_empty() && none.hint().unwrap().contains("another machine"));
}

#[test]
fn full_windows_have_no_more_rows_than_tokens() {
    for rows in [64, 512, 1024, 2048, 8192, 3 * 512, 5 * 1024] {
        assert_eq!(rounded_rows(rows), rows);
    }
    assert_eq!([1, 17, 513, 2049, 8000].map(rounded_rows), [16, 32, 544, 2176, 8192]);
    let more = (1..8192).map(|rows| rounded_rows(rows) as f64 / rows as f64 - 1.0);
    assert!(more.skip(256).sum::<f64>() / 7935.0 < 1.0 / 16.0);
}

#[test]
fn an_optimiser_takes_what_it_remembers() {
    let (mut recipe, model) = (recipe(), llama(64, 3));
    let mut state = |adapter: &str, optimizer: &str, trained: u64| {
        recipe.adapter = serde_json::from_str(adapter).unwrap();
        recipe.train.optimizer = serde_json::from_str(optimizer).unwrap();
        optimizer::state(&recipe, &model, trained as f64)
    };
    let lora = r#"{"lora": {"rank": 64, "alpha": 4, "targets": ["q_proj", "down_proj"]}}"#;
    // Of three blocks two layers, of each two matrices of 64 × 64.
    let (pairs, all) = (3 * 2 * 2 * 64 * 64, model.parameter_count());
    let eight = r#"{"adamw_8bit": {"lr": 1}}"#;
    assert_eq!(state(lora, r#"{"lion": {"lr": 1}}"#, pairs), 4.0 * pairs as f64);
    assert_eq!(state(lora, eight, pairs), 2.0 * pairs as f64 + 2.0 * 4.0 * 3.0 * 2.0 * 2.0 * 16.0);
    // Weights beside them, of shapes that are not known, in 32 bits.
    assert_eq!(state(lora, eight, pairs + 10) - state(lora, eight, pairs), 80.0);
    let adafactor = r#"{"adafactor": {"lr": 1}}"#;
    assert_eq!(state(lora, adafactor, pairs), 3.0 * 2.0 * 2.0 * (64.0 + 64.0) * 4.0);
    let with_mean = r#"{"adafactor": {"lr": 1, "beta1": 0.9}}"#;
    let mean = state(r#""full""#, with_mean, all) - state(r#""full""#, adafactor, all);
    assert_eq!(mean, 4.0 * all as f64);
    // Seven matrices of each block go by Muon; tables and norms by AdamW.
    let muon = r#"{"muon": {"lr": 1, "adamw": {"lr": 1}}}"#;
    let matrices = 3 * 7 * 64 * 64;
    let expected = 4 * matrices + 8 * (all - matrices);
    assert_eq!(state(r#""full""#, muon, all), expected as f64);
}
