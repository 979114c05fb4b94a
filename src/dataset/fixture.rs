//! Test inputs: a tiny base folder and Parquet files of rows, made when a test runs.

use std::path::{Path, PathBuf};

use serde_json::json;

/// Opens every turn by its role and closes it by `<|end|>`, as our own seedling does.
pub(super) const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}\
    {{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

/// Special tokens, with the ids 258 and up.
pub(super) const SPECIAL: [&str; 6] =
    ["<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|other|>"];

/// Id of a special token.
pub(super) fn special(token: &str) -> u32 {
    258 + SPECIAL.iter().position(|name| *name == token).unwrap() as u32
}

/// GPT-2's printable character for each byte.
fn byte_characters() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut spell = |byte| {
        if printable(byte) {
            return char::from_u32(byte).unwrap();
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    };
    (0..256).map(&mut spell).collect()
}

/// Writes a base folder: byte-level BPE whose ids are the bytes, two merges, six special
/// tokens, and a post-processor that would add `<|begin|>` again.
pub(super) fn base_folder(folder: &Path, template: &str) {
    let spelt = byte_characters();
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        spelt.iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    for (offset, merged) in ["hi", "ĊĊ"].iter().enumerate() {
        vocab.insert((*merged).to_owned(), json!(256 + offset));
    }
    let added: Vec<_> = SPECIAL
        .iter()
        .map(|token| {
            json!({"id": special(token), "content": token, "single_word": false,
                   "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
                          "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [258],
                                             "tokens": ["<|begin|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["h", "i"], ["Ċ", "Ċ"]]}
    });
    let config = json!({"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"},
                        "chat_template": template, "model_max_length": 512});
    write(&folder.join("tokenizer.json"), tokenizer.to_string().as_bytes());
    write(&folder.join("tokenizer_config.json"), config.to_string().as_bytes());
}

/// Writes a small file.
pub(super) fn write(path: &Path, bytes: &[u8]) -> PathBuf {
    fs_err::write(path, bytes).unwrap();
    path.to_owned()
}
