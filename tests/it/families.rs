//! `config.json` of every family: as published, and as nobody should have written it.

use std::collections::BTreeMap;
use std::path::Path;

use heirloom::base::{
    Architecture, Attention, BaseError, EmbeddingScale, FeedForward, RopeScaling, supported,
};
use heirloom::diagnose::Diagnose;
use serde_json::{Value, json};

fn fixtures() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/configs"))
}

fn published(name: &str) -> Value {
    let text = fs_err::read_to_string(fixtures().join(name).join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(config: &Value) -> Result<Architecture, BaseError> {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Architecture::open(folder.path())
}

/// A published config with one key changed.
fn changed(name: &str, key: &str, value: Value) -> Result<Architecture, BaseError> {
    let mut config = published(name);
    config[key] = value;
    open(&config)
}

fn refused(name: &str, key: &str, value: Value) -> String {
    changed(name, key, value).unwrap_err().to_string()
}

#[test]
fn published_configs_have_the_parameters_that_transformers_counts() {
    let counts = fs_err::read_to_string(fixtures().join("parameters.json")).unwrap();
    let counts: BTreeMap<String, u64> = serde_json::from_str(&counts).unwrap();
    let mut families = Vec::new();
    for (name, count) in counts {
        let architecture = Architecture::open(&fixtures().join(&name)).unwrap();
        assert_eq!(architecture.parameter_count(), count, "{name}");
        families.push(architecture.model_type);
    }
    for family in supported() {
        assert!(families.contains(&family), "no published config of {family}");
    }
}

#[test]
fn what_published_configs_ask_for_is_what_is_described() {
    let open = |name: &str| Architecture::open(&fixtures().join(name)).unwrap();
    let windows = |architecture: &Architecture| -> Vec<Option<usize>> {
        let window = |attention: &Attention| match attention {
            Attention::Grouped(grouped) => grouped.scores.sliding_window,
            Attention::Latent(latent) => latent.scores.sliding_window,
        };
        architecture.layers.iter().map(|layer| window(&layer.attention)).collect()
    };
    let llama = open("llama-3.1-8b");
    assert!(matches!(llama.ropes[0].scaling, RopeScaling::Llama3 { original: 8192, .. }));
    // Qwen 2.5 carries a window and does not use it.
    assert!(windows(&open("qwen2.5-7b-instruct")).iter().all(Option::is_none));
    let gemma = open("gemma-2-9b");
    assert_eq!(windows(&gemma)[..3], [Some(4096), None, Some(4096)]);
    assert_eq!(gemma.embedding_scale, EmbeddingScale::Rounded(3584f64.sqrt()));
    let gemma = open("gemma-3-1b");
    assert_eq!(windows(&gemma)[4..7], [Some(512), None, Some(512)]);
    assert_eq!((gemma.ropes[0].theta, gemma.ropes[1].theta), (1e6, 1e4));
    let phi = open("phi-4-mini");
    // A published factor that is absent is the ratio of lengths.
    let factor = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt();
    assert!((phi.ropes[0].attention_factor - factor).abs() < 1e-12);
    assert_eq!(phi.ropes[0].dim, 96);
    // Where Phi's own key is absent its default counts, whatever the scaling says.
    let mut config = published("phi-4-mini");
    config.as_object_mut().unwrap().remove("original_max_position_embeddings");
    config["rope_scaling"]["original_max_position_embeddings"] = json!(32);
    let phi = self::open(&config).unwrap();
    assert!(matches!(phi.ropes[0].scaling, RopeScaling::LongRope { original: 4096, .. }));
    let smol = open("smollm3-3b");
    let rotated = |index: usize| match &smol.layers[index].attention {
        Attention::Grouped(grouped) => grouped.rope.is_some(),
        Attention::Latent(_) => false,
    };
    assert_eq!([2, 3, 4].map(rotated), [true, false, true]);
    let deepseek = open("deepseek-v3");
    let sparse =
        |layer: usize| matches!(deepseek.layers[layer].feed_forward, FeedForward::Experts(_));
    assert_eq!([0, 2, 3, 60].map(sparse), [false, false, true, true]);
    assert!(deepseek.leaves_out("model.layers.61.eh_proj.weight"));
    assert!(!deepseek.leaves_out("model.layers.60.eh_proj.weight"));
}

#[test]
fn an_unknown_family_is_told_what_is_supported_and_how_to_add_one() {
    let error = changed("llama-2-7b", "model_type", json!("mamba")).unwrap_err();
    assert!(error.to_string().contains("`mamba`"), "{error}");
    let hint = error.hint().unwrap();
    for family in supported() {
        assert!(hint.contains(&format!("`{family}`")), "{hint}");
    }
    assert!(hint.contains("docs/contributing/adding-a-family.md"), "{hint}");
}

#[test]
fn a_key_that_may_change_the_computation_is_never_ignored() {
    for (name, key, value) in [
        ("llama-2-7b", "attention_sinks", json!(4)),
        ("llama-2-7b", "sliding_window", json!(4096)),
        ("mistral-7b-v0.1", "attn_logit_softcapping", json!(50.0)),
        ("gemma-7b", "use_bidirectional_attention", json!(true)),
        ("qwen3-8b", "logits_scaling", json!(8.0)),
        ("deepseek-v2-lite", "norm_topk_prob", json!(true)),
        ("deepseek-v3", "topk_method", json!("greedy")),
        ("gpt-oss-20b", "hidden_act", json!("gelu")),
        ("llama-2-7b", "partial_rotary_factor", json!(0.5)),
        ("llama-2-7b", "is_causal", json!(false)),
        ("llama-2-7b", "some_flag_that_may_be_true_by_default", json!(false)),
        ("llama-2-7b", "hidden_activation", json!("gelu_pytorch_tanh")),
        ("gemma-7b", "hidden_activation", json!("silu")),
        ("gemma-3-1b", "attn_logit_softcapping", json!(50.0)),
        ("deepseek-v2-lite", "topk_method", json!("noaux_tc")),
        ("llama-2-7b", "rope_scaling", json!({"rope_type": "new", "factor": 2.0})),
        ("llama-2-7b", "rope_scaling", json!({"type": "linear", "factor": 2.0, "base": 7})),
    ] {
        let error = refused(name, key, value);
        assert!(error.contains(key), "{name}: {error}");
    }
    // What asks for nothing is not asked about.
    for nothing in [json!(null), json!([]), json!({})] {
        changed("llama-2-7b", "something_new", nothing).unwrap();
    }
    changed("llama-2-7b", "use_mrope", json!(false)).unwrap();
    changed("llama-2-7b", "use_mrope", json!(true)).unwrap_err();
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let both = |name: &str| {
        let mut config = published(name);
        config["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
        config["rope_parameters"] = json!({"rope_type": "default"});
        open(&config).unwrap_err().to_string()
    };
    for name in ["llama-3.1-8b", "gemma-3-1b"] {
        assert!(both(name).contains("`rope_scaling`"));
    }
    // Groups of two experts, one chosen, and six experts a token.
    let mut config = published("deepseek-v2-lite");
    config["topk_method"] = json!("group_limited_greedy");
    config["n_group"] = json!(32);
    assert!(open(&config).unwrap_err().to_string().contains("`topk_group`"));
}

#[test]
fn keys_whose_absence_means_other_numbers_elsewhere_are_required() {
    for (name, key) in [
        ("llama-2-7b", "max_position_embeddings"),
        ("gpt-oss-20b", "rope_scaling"),
        ("mixtral-8x7b-v0.1", "num_experts_per_tok"),
    ] {
        let mut config = published(name);
        config.as_object_mut().unwrap().remove(key);
        let error = open(&config).unwrap_err();
        assert!(matches!(error, BaseError::MissingKey { .. }), "{name}: {error}");
    }
}

#[test]
fn the_example_of_the_documents_is_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs_err::read_to_string(root.join(path)).unwrap();
    let document = read("docs/contributing/adding-a-family.md");
    let (_, rest) = document.split_once("```rust\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    assert!(read("src/base/families/olmo2.rs").contains(example));
}

#[test]
fn absurd_numbers_are_refused_by_name() {
    for (name, key, value) in [
        ("llama-2-7b", "hidden_size", json!(0)),
        ("llama-2-7b", "hidden_size", json!(-1)),
        ("llama-2-7b", "hidden_size", json!(4096.5)),
        ("llama-2-7b", "hidden_size", json!("4096")),
        ("llama-2-7b", "vocab_size", json!(u64::MAX)),
        ("llama-2-7b", "num_hidden_layers", json!(1_000_000)),
        ("llama-2-7b", "num_key_value_heads", json!(5)),
        ("llama-2-7b", "head_dim", json!(3)),
        ("llama-2-7b", "rope_theta", json!(0.0)),
        ("llama-2-7b", "attention_dropout", json!(1.5)),
        ("mixtral-8x7b-v0.1", "num_experts_per_tok", json!(9)),
        ("mixtral-8x7b-v0.1", "num_local_experts", json!(1_000_000)),
        ("deepseek-v3", "n_group", json!(7)),
        ("smollm3-3b", "no_rope_layers", json!([1, 1, 1])),
        ("smollm3-3b", "layer_types", json!(["full_attention"])),
        ("gpt-oss-20b", "layer_types", json!(vec!["linear_attention"; 24])),
        ("mixtral-8x7b-v0.1", "num_local_experts", json!(10_000)),
        (
            "phi-4-mini",
            "rope_scaling",
            json!({"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}),
        ),
    ] {
        let error = refused(name, key, value);
        assert!(error.contains(key.split('.').next().unwrap()), "{name}: {error}");
    }
    for nonsense in [json!([]), json!("llama"), json!(null)] {
        open(&nonsense).unwrap_err();
    }
    let mut config = published("llama-2-7b");
    config.as_object_mut().unwrap().remove("hidden_size");
    assert!(open(&config).unwrap_err().to_string().contains("no `hidden_size`"));
}

/// Whatever stands at whatever key: an architecture, or an error, in a moment.
#[test]
fn no_value_at_any_key_makes_reading_panic() {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(3),
        json!(-7),
        json!(0.5),
        json!(1e300),
        json!(u64::MAX),
        json!("x"),
        json!([]),
        json!([1, "a"]),
        json!({"rope_type": "yarn"}),
        json!({"type": "longrope", "factor": 2.0}),
        json!({"full_attention": 3}),
        json!({"rope_type": "dynamic", "factor": 1e-9}),
    ];
    for folder in fs_err::read_dir(fixtures()).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        if name == "parameters.json" {
            continue;
        }
        // Small, so that listing what is described takes no time.
        let mut config = published(&name);
        config["num_hidden_layers"] = json!(4);
        for (key, small) in [
            (
                "layer_types",
                json!(["full_attention", "sliding_attention", "full_attention", "full_attention"]),
            ),
            ("no_rope_layers", json!([1, 0, 1, 1])),
            ("n_routed_experts", json!(16)),
            ("num_experts", json!(16)),
        ] {
            if config.get(key).is_some() {
                config[key] = small;
            }
        }
        open(&config).unwrap();
        for key in config.as_object().unwrap().keys() {
            for value in &values {
                let mut config = config.clone();
                config[key] = value.clone();
                if let Ok(architecture) = open(&config) {
                    let linears = architecture.linear_layers().len();
                    assert!(architecture.tensors().len() >= linears);
                }
            }
        }
    }
}
