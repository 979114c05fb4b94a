//! Our templates and tokenizers against what Transformers made of them
//! (`scripts/goldens/templates.py`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::super::fixture;
use super::*;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read<T: serde::de::DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&fs_err::read(fixtures().join(path)).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Goldens {
    conversations: Vec<Talk>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Talk {
    name: String,
    messages: Json,
    others: serde_json::Map<String, Json>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: usize,
    prompt: bool,
    text: Option<String>,
    mask_runs: Option<Vec<usize>>,
}

impl Talk {
    fn conversation(&self) -> Conversation {
        let mut variables = self.others.clone();
        let tools = variables.remove("tools");
        let documents = variables.remove("documents");
        serde_json::from_value(json!({"messages": self.messages, "tools": tools,
                                      "documents": documents, "variables": variables}))
        .unwrap()
    }
}

/// One encoder for each template, all with the byte-level tokenizer.
fn encoders(goldens: &Goldens) -> BTreeMap<String, ChatEncoder> {
    let tokenizer = fixtures().join("tokenizers/byte_level");
    let names: BTreeSet<&String> = goldens.cases.iter().map(|case| &case.template).collect();
    let open = |name: &String| {
        let folder = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs_err::copy(tokenizer.join(file), folder.path().join(file)).unwrap();
        }
        let source = fs_err::read(fixtures().join("templates").join(name)).unwrap();
        fixture::write(&folder.path().join("chat_template.jinja"), &source);
        let encoder = ChatEncoder::open(folder.path()).unwrap();
        (name.clone(), encoder.with_clock("2026-03-04T05:06:07Z".parse().unwrap()))
    };
    names.into_iter().map(open).collect()
}

#[test]
fn every_template_renders_as_in_transformers_or_is_refused_as_there() {
    let goldens: Goldens = read("templates/goldens.json");
    let encoders = encoders(&goldens);
    let mut wrong = Vec::new();
    for case in &goldens.cases {
        let talk = &goldens.conversations[case.conversation];
        let ours = encoders[&case.template].render(talk.conversation(), case.prompt);
        if ours.as_ref().ok() != case.text.as_ref() {
            wrong.push(format!(
                "{} on {}, prompt {}:\n  theirs {:?}\n  ours   {ours:?}",
                case.template, talk.name, case.prompt, case.text
            ));
        }
    }
    assert!(goldens.cases.len() > 800 && encoders.len() >= 20);
    let few = wrong.iter().take(3).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {}\n{few}", wrong.len(), goldens.cases.len());
}

/// The mask of Transformers, token by token.
fn unrolled(runs: &[usize]) -> Vec<bool> {
    let runs = runs.iter().enumerate();
    runs.flat_map(|(at, length)| std::iter::repeat_n(at % 2 == 1, *length)).collect()
}

#[test]
fn masks_of_marked_templates_are_those_of_transformers() {
    let goldens: Goldens = read("templates/goldens.json");
    let encoders = encoders(&goldens);
    let mut compared = 0;
    for case in &goldens.cases {
        let Some(runs) = &case.mask_runs else { continue };
        let conversation = goldens.conversations[case.conversation].conversation();
        if !conversation.messages.iter().any(spans::is_assistant) {
            continue;
        }
        let ours = encoders[&case.template].encode(conversation, TrainOn::Assistant).unwrap();
        let trained: Vec<bool> = ours.trained().collect();
        assert_eq!(trained, unrolled(runs), "{} {}", case.template, case.conversation);
        compared += 1;
    }
    assert!(compared >= 30, "{compared}");
}

#[test]
fn spans_found_without_marks_agree_with_the_marks() {
    let goldens: Goldens = read("templates/goldens.json");
    let encoders = encoders(&goldens);
    let (mut same, mut refused) = (0, 0);
    for case in &goldens.cases {
        let Some(runs) = &case.mask_runs else { continue };
        let encoder = &encoders[&case.template];
        let conversation = goldens.conversations[case.conversation].conversation();
        let values = Values::new(&conversation);
        let template = encoder.template_for(&conversation).unwrap();
        let text = template.render(&values.others, &values.messages, Ask::Nothing).unwrap();
        let tokens = encoder.tokens(&text).unwrap();
        let Ok(wanted) = mask::wanted(&conversation, TrainOn::Assistant) else { continue };
        let turns = spans::turns(template, &conversation, &values, &text, &wanted);
        match encoder.weigh_turns(&text, tokens, Found::Turns(turns), &wanted, LossMask::default())
        {
            Ok(document) => {
                let trained: Vec<bool> = document.trained().collect();
                assert_eq!(trained, unrolled(runs), "{} {text}", case.template);
                same += 1;
            }
            Err(_) => refused += 1,
        }
    }
    // Some of the refused have calls that the template leaves out.
    assert!(same >= 30 && refused * 4 < same, "{same} the same, {refused} refused");
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[test]
fn ids_and_texts_are_those_of_the_tokenizers_library() {
    for kind in ["byte_level", "byte_fallback_bpe", "unigram", "word_piece"] {
        let folder = fixtures().join("tokenizers").join(kind);
        let tokenizer = super::super::tokenizer::open(&folder).unwrap();
        let texts: Vec<Text> = read(&format!("tokenizers/{kind}/ids.json"));
        assert!(texts.len() > 30);
        for Text { text, ids, decoded } in texts {
            let encoding = tokenizer.encode(text.as_str(), false).unwrap();
            assert_eq!(encoding.get_ids(), ids, "{kind} {text:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), decoded, "{kind} {text:?}");
        }
    }
}
