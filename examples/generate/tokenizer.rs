//! `data/seedling` but for its weights: the tokenizer, trained here on general text, and the
//! small files that Transformers wants beside it.

use std::error::Error;
use std::path::Path;

use heirloom::files::write_atomically;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

use crate::grow;

/// Tokens of the model: small, so that every token is seen often while it grows.
const VOCABULARY: usize = 1024;
/// Chats that the tokenizer learns from.
const CHATS: usize = 20_000;
/// Longest conversation.
const CONTEXT: usize = 2048;

/// What merges may not cross. A space belongs to a word in lower case only: capitalised names
/// and codes are then the same tokens wherever they stand, and digits stand alone, so that
/// both can be copied.
const PIECES: &str = r" ?\p{Ll}+|\p{Lu}?\p{Ll}+|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s";

/// The marks of the chat template; the place in the list is the token's id.
const SPECIALS: &[&str] = &["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"];
const PAD: usize = 0;
const END: usize = 1;

const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}";

/// Writes the files into `folder`.
pub(crate) fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    fs_err::create_dir_all(folder)?;
    let tokenizer = trained().map_err(|error| error.to_string())?;
    let text = tokenizer.to_string(true).map_err(|error| error.to_string())?;
    write_atomically(&folder.join("tokenizer.json"), text.as_bytes())?;
    write_atomically(&folder.join("chat_template.jinja"), CHAT_TEMPLATE.as_bytes())?;
    for (name, value) in [
        ("config.json", config()),
        ("generation_config.json", generation_config()),
        ("tokenizer_config.json", tokenizer_config()),
        ("special_tokens_map.json", special_tokens_map()),
    ] {
        let text = format!("{}\n", serde_json::to_string_pretty(&value)?);
        write_atomically(&folder.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// Byte-level BPE over the contents of general chats.
fn trained() -> tokenizers::Result<Tokenizer> {
    let specials: Vec<AddedToken> =
        SPECIALS.iter().map(|&mark| AddedToken::from(mark, true)).collect();
    let mut trainer = TrainerWrapper::BpeTrainer(
        BpeTrainerBuilder::new()
            .vocab_size(VOCABULARY)
            .show_progress(false)
            .special_tokens(specials)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build(),
    );
    let mut tokenizer = Tokenizer::new(BPE::default());
    let bytes = ByteLevel::new(false, true, false);
    let pieces = SplitPattern::Regex(PIECES.to_owned());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(Split::new(pieces, SplitDelimiterBehavior::Isolated, false)?),
        PreTokenizerWrapper::ByteLevel(bytes),
    ])));
    tokenizer.with_decoder(Some(bytes));
    let rows = grow::sample(CHATS);
    let contents = rows.into_iter().flat_map(|row| row.said.turns()).map(|turn| turn.content);
    tokenizer.train(&mut trainer, contents)?;
    Ok(tokenizer)
}

/// The architecture, in Transformers' words.
///
/// Wide heads, so that a query can tell a thousand tokens apart in the dimensions that rotate
/// slowly. Initial weights as large as one over the square root of the width: from the usual
/// 0.02, which suits models ten times wider, the loss fell more slowly. A rotary base of 500
/// rather than 10,000, because prompts are short: more dimensions tell neighbours apart.
fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": null,
        "dtype": "bfloat16",
        "eos_token_id": END,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.06,
        "intermediate_size": 512,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "pad_token_id": PAD,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": { "rope_theta": 500.0, "rope_type": "default" },
        "tie_word_embeddings": true,
        "transformers_version": "5.23.0",
        "use_cache": true,
        "vocab_size": VOCABULARY,
    })
}

fn generation_config() -> Value {
    json!({
        "do_sample": false,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "transformers_version": "5.23.0",
    })
}

fn tokenizer_config() -> Value {
    json!({
        "clean_up_tokenization_spaces": false,
        "eos_token": SPECIALS[END],
        "model_max_length": CONTEXT,
        "pad_token": SPECIALS[PAD],
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

fn special_tokens_map() -> Value {
    json!({ "eos_token": SPECIALS[END], "pad_token": SPECIALS[PAD] })
}
