use super::super::fixture::{self, TEMPLATE as ENDS, special, write};
use super::*;

const CHATML: &str = "{% for m in messages %}\
    {{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A base folder and, beside it, the template of a recipe.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.base()).unwrap();
        fixture::base_folder(&place.base(), ENDS);
        write(&place.template(), CHATML.as_bytes());
        place
    }

    fn base(&self) -> PathBuf {
        self.0.path().join("base")
    }

    fn template(&self) -> PathBuf {
        self.0.path().join("chatml.jinja")
    }

    fn open(&self, template: bool, tokens: &[&str]) -> Result<Vocabulary, VocabularyError> {
        let mut words: recipe::Base = serde_json::from_value(json!({"model": "base"})).unwrap();
        words.chat_template = template.then(|| self.template());
        words.added_tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
        Vocabulary::open(&self.base(), &words)
    }
}

fn hello() -> Vec<Message> {
    vec![Message { role: "user".to_owned(), content: "hi".to_owned() }]
}

#[test]
fn without_words_of_its_own_a_recipe_uses_the_files_as_they_are() {
    let vocabulary = Place::new().open(false, &[]).unwrap();
    assert!(vocabulary.files.is_none() && vocabulary.added.is_empty());
}

#[test]
fn added_tokens_get_ids_from_the_end_on_and_are_one_token_each() {
    let place = Place::new();
    let vocabulary = place.open(true, &["<|im_start|>", "<|im_end|>"]).unwrap();
    assert_eq!(vocabulary.added, [264, 265]);
    assert_eq!(vocabulary.encoder.vocab_size(), 266);
    let prompt = vocabulary.encoder.prompt(hello().as_slice()).unwrap();
    assert_eq!(prompt.iter().filter(|id| **id == 264).count(), 2);
    // The template closes the answer with it, so answers end there.
    assert!(vocabulary.encoder.stop_ids().contains(&265));
    assert!(vocabulary.split_markers().is_empty());
}

/// What is written is what was used.
#[test]
fn the_written_files_give_the_same_tokens() {
    let place = Place::new();
    let vocabulary = place.open(true, &["<|im_start|>", "<|im_end|>"]).unwrap();
    let release = tempfile::tempdir().unwrap();
    super::write(vocabulary.files.as_ref().unwrap(), release.path()).unwrap();
    let again = ChatEncoder::open(release.path()).unwrap();
    let messages = hello();
    assert_eq!(
        again.prompt(messages.as_slice()).unwrap(),
        vocabulary.encoder.prompt(messages.as_slice()).unwrap()
    );
    assert_eq!(again.stop_ids(), vocabulary.encoder.stop_ids());
    let read = |name: &str| fs::read_to_string(release.path().join(name)).unwrap();
    assert_eq!(read(TEMPLATE), CHATML);
    assert!(!read(TOKENIZER_CONFIG).contains("chat_template"));
    // Everything else of the tokenizer is there: the post-processor that we do not use.
    assert!(read(TOKENIZER).contains("TemplateProcessing"));
    let generation: Value = serde_json::from_str(&read(GENERATION_CONFIG)).unwrap();
    assert_eq!(generation["eos_token_id"], json!(again.stop_ids()));
}

#[test]
fn a_token_that_is_there_already_stays_what_it_is() {
    let place = Place::new();
    let vocabulary = place.open(false, &["<|user|>", "<|new|>", "<|new|>", "hi"]).unwrap();
    assert_eq!(vocabulary.added, [264, 264]);
    assert_eq!(vocabulary.encoder.tokenizer().token_to_id("<|user|>"), Some(special("<|user|>")));
    // A word of the vocabulary becomes a special token with the id that it had.
    assert_eq!(vocabulary.encoder.tokenizer().token_to_id("hi"), Some(256));
    let none = place.open(false, &["<|user|>"]).unwrap();
    assert!(none.added.is_empty());
    assert_eq!(none.encoder.vocab_size(), 264);
}

#[test]
fn older_lists_of_added_tokens_get_the_new_ones_too() {
    let place = Place::new();
    let config = json!({"eos_token": "<|end|>", "chat_template": ENDS, "added_tokens_decoder": {
        "262": {"content": "<|end|>", "special": true}}});
    write(&place.base().join(TOKENIZER_CONFIG), config.to_string().as_bytes());
    let vocabulary = place.open(false, &["<|end|>", "<|new|>"]).unwrap();
    let files = vocabulary.files.unwrap();
    let config: Value = serde_json::from_slice(&files[TOKENIZER_CONFIG]).unwrap();
    assert_eq!(config["added_tokens_decoder"]["264"]["content"], "<|new|>");
    assert_eq!(config["added_tokens_decoder"].as_object().unwrap().len(), 2);
    assert_eq!(config["chat_template"], ENDS);
}

/// What only `tokenizer_config.json` names has its id before anything is added.
#[test]
fn tokens_of_the_configuration_come_first() {
    let place = Place::new();
    let config = json!({"eos_token": "<|end|>", "chat_template": ENDS, "added_tokens_decoder": {
        "264": {"content": "<|old|>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}}});
    write(&place.base().join(TOKENIZER_CONFIG), config.to_string().as_bytes());
    let vocabulary = place.open(false, &["<|new|>"]).unwrap();
    assert_eq!(vocabulary.added, [265]);
    let id_of = |token| vocabulary.encoder.tokenizer().token_to_id(token);
    assert_eq!([id_of("<|old|>"), id_of("<|new|>")], [Some(264), Some(265)]);
}

#[test]
fn markers_that_are_read_as_text_are_found() {
    let place = Place::new();
    // Nothing closes an answer: that is an error of its own when rows are read.
    let vocabulary = place.open(true, &[]).unwrap();
    assert_eq!(vocabulary.split_markers(), ["<|im_end|>", "<|im_start|>"]);
    assert!(place.open(false, &[]).unwrap().split_markers().is_empty());
}

#[test]
fn markers_are_words_between_bars() {
    let found = |text| markers(text).collect::<Vec<_>>();
    assert_eq!(found("<|a|>b<|c_d|><|<|e|>"), ["<|a|>", "<|c_d|>", "<|e|>"]);
    assert_eq!(found("a <| b |> <||> <|a b|> <|é"), Vec::<&str>::new());
    assert_eq!(found("<end_of_turn>"), ["<end_of_turn>"]);
    let long = format!("<|{}|>", "a".repeat(MAX_MARKER_BYTES));
    assert_eq!(found(&long), Vec::<&str>::new());
}

#[test]
fn a_template_that_is_missing_or_wrong_or_huge_is_named() {
    let place = Place::new();
    write(&place.template(), b"{% for %}");
    let error = place.open(true, &[]).unwrap_err().to_string();
    assert!(error.contains("chatml.jinja"), "{error}");
    write(&place.template(), &vec![b' '; 1 + MAX_TEMPLATE_BYTES as usize]);
    let error = place.open(true, &[]).unwrap_err();
    assert!(matches!(error, VocabularyError::Template { .. }), "{error}");
    fs::remove_file(place.template()).unwrap();
    let error = place.open(true, &[]).unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("base.chat_template")), "{error}");
}
