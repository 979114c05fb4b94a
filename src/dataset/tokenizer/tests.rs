use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::super::chat::{ChatEncoder, ChatError};
use super::super::fixture::{self, TEMPLATE};
use super::*;
use crate::diagnose::Diagnose as _;

/// A folder whose `tokenizer_config.json` says `config`.
fn folder(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fixture::base_folder(folder.path(), TEMPLATE);
    let path = folder.path().join("tokenizer_config.json");
    fixture::write(&path, config.to_string().as_bytes());
    folder
}

/// The tokens with ids after those of `tokenizer.json` (264 and up), in their order.
fn added(config: &Value) -> Vec<AddedToken> {
    let tokenizer = open(folder(config).path()).unwrap();
    let tokens = tokenizer.get_added_tokens_decoder();
    let mut tokens: Vec<_> = tokens.into_iter().filter(|(id, _)| *id >= 264).collect();
    tokens.sort_by_key(|(id, _)| *id);
    let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, (264..264 + ids.len() as u32).collect::<Vec<_>>());
    tokens.into_iter().map(|(_, token)| token).collect()
}

fn special(content: &str) -> AddedToken {
    AddedToken::from(content, true)
}

/// What Transformers 5.23 does with each of these (`AutoTokenizer.from_pretrained`, its
/// `added_tokens_decoder`).
#[test]
fn extra_special_tokens_get_the_ids_and_flags_of_transformers() {
    let both = [special("<j>"), special("<i>")];
    for config in [
        json!({"extra_special_tokens": ["<j>", "<i>"]}),
        json!({"additional_special_tokens": ["<j>", "<i>", "<|end|>"]}),
        json!({"extra_special_tokens": [], "additional_special_tokens": ["<j>", "<i>"]}),
        json!({"extra_special_tokens": {"j_token": "<j>", "i_token": "<i>"}}),
        json!({"z_token": "<j>", "a_token": "<i>", "eos_token": "<|end|>"}),
        json!({"z_token": "<j>", "extra_special_tokens": {"a_token": "<i>"}}),
        json!({"extra_special_tokens": ["<i>"], "cls_token": "<j>"}),
        json!({"extra_special_tokens": ["<i>", "<j>"],
               "added_tokens_decoder": {"300": {"content": "<j>", "special": true}}}),
    ] {
        assert_eq!(added(&config), both, "{config}");
    }
    let newer = json!({"extra_special_tokens": ["<j>"], "additional_special_tokens": ["<i>"]});
    assert_eq!(added(&newer), [special("<j>")]);
    assert!(added(&json!({"extra_special_tokens": null, "add_bos_token": true})).is_empty());
    // With flags: special where it has a name, and in a list only where it says so.
    let flagged = json!({"__type": "AddedToken", "content": "<i>", "lstrip": true});
    let listed = added(&json!({"extra_special_tokens": [flagged]}));
    assert_eq!(listed, [AddedToken::from("<i>", false).lstrip(true)]);
    for named in [json!({"cls_token": flagged}), json!({"extra_special_tokens": {"i": flagged}})] {
        assert_eq!(added(&named), [special("<i>").lstrip(true)], "{named}");
    }
}

#[test]
fn a_template_can_call_a_models_own_tokens() {
    let config = json!({"extra_special_tokens": {"image_token": "<i>"},
                        "chat_template": "{{ image_token }}"});
    let encoder = ChatEncoder::open(folder(&config).path()).unwrap();
    let said = [crate::dataset::chat::Message { role: "user".into(), content: "a".into() }];
    assert_eq!(encoder.prompt(said.as_slice()).unwrap(), [264]);
}

#[test]
fn malformed_declarations_of_tokens_are_refused() {
    for (key, value) in [
        ("added_tokens_decoder", json!({"300": "<j>"})),
        ("added_tokens_decoder", json!({"x": {"content": "<j>"}})),
        ("added_tokens_decoder", json!({"300": {"contents": "<j>"}})),
        ("added_tokens_decoder", json!(["<j>"])),
        ("added_tokens_decoder", json!(null)),
        ("extra_special_tokens", json!("<j>")),
        ("extra_special_tokens", json!([1])),
        ("additional_special_tokens", json!([{"lstrip": true}])),
        ("eos_token", json!(["<j>"])),
    ] {
        let config = Value::Object([(key.to_owned(), value)].into_iter().collect());
        let refused = open(folder(&config).path()).unwrap_err();
        let ChatError::Config { reason, .. } = &refused else { panic!("{refused}") };
        assert!(reason.starts_with(&format!("`{key}` is not ")), "{reason}");
        assert!(refused.hint().is_some());
    }
    let refused = open(folder(&json!({"split_special_tokens": "yes"})).path()).unwrap_err();
    assert!(matches!(refused, ChatError::Json { .. }), "{refused}");
}

#[test]
fn special_tokens_are_split_where_the_file_says_so() {
    let ids = |split: bool| {
        let tokenizer = open(folder(&json!({"split_special_tokens": split})).path()).unwrap();
        tokenizer.encode("<|end|>", false).unwrap().get_ids().to_vec()
    };
    assert_eq!(ids(false), [fixture::special("<|end|>")]);
    // One token for each byte.
    assert_eq!(ids(true), b"<|end|>".map(u32::from));
}

#[cfg(unix)]
#[test]
fn a_pipe_or_a_folder_in_the_place_of_any_file_is_refused_at_once() {
    for name in
        ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    {
        for make in ["mkfifo", "mkdir"] {
            let folder = folder(&json!({"chat_template": TEMPLATE}));
            let path = folder.path().join(name);
            let _absent = fs_err::remove_file(&path);
            let made = std::process::Command::new(make).arg(&path).status().unwrap();
            assert!(made.success());
            let refused = ChatEncoder::open(folder.path()).unwrap_err();
            let ChatError::Read(error) = &refused else { panic!("{name}: {refused}") };
            assert!(
                error.to_string().ends_with(&format!("{name}` is there and is not a regular file"))
            );
            assert!(refused.hint().unwrap().contains("regular file"));
        }
    }
}

#[test]
fn files_beyond_their_limits_are_not_read() {
    for (name, limit) in [
        ("tokenizer.json", MAX_TOKENIZER_BYTES),
        ("tokenizer_config.json", MAX_CONFIG_BYTES),
        ("generation_config.json", MAX_GENERATION_BYTES),
        ("chat_template.jinja", MAX_TEMPLATE_BYTES),
    ] {
        let folder = folder(&json!({"chat_template": TEMPLATE}));
        // Sparse: it takes no room.
        fs_err::File::create(folder.path().join(name)).unwrap().set_len(limit + 1).unwrap();
        let refused = ChatEncoder::open(folder.path()).unwrap_err();
        let ChatError::Read(error) = &refused else { panic!("{name}: {refused}") };
        assert!(error.to_string().contains("that are read"), "{error}");
    }
}
