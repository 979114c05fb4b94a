use super::super::fixture::{self, TEMPLATE, special};
use super::*;
use crate::diagnose::Diagnose as _;

fn encoder(template: &str) -> ChatEncoder {
    let folder = tempfile::tempdir().unwrap();
    fixture::base_folder(folder.path(), template);
    ChatEncoder::open(folder.path()).unwrap()
}

fn chat(turns: &[(&str, &str)]) -> Vec<Message> {
    let message = |(role, content): &(&str, &str)| Message {
        role: (*role).to_owned(),
        content: (*content).to_owned(),
    };
    turns.iter().map(message).collect()
}

/// What carries loss, decoded, one string per run of trained tokens, `<|end|>` as `.`.
fn learned(encoder: &ChatEncoder, document: &Document) -> Vec<String> {
    let pairs: Vec<_> = document.tokens.iter().zip(document.trained()).collect();
    pairs
        .chunk_by(|a, b| a.1 == b.1)
        .filter(|run| run[0].1)
        .map(|run| {
            let ids: Vec<u32> = run.iter().map(|pair| *pair.0).collect();
            let end = if ids.last() == Some(&special("<|end|>")) { "." } else { "" };
            encoder.decode(&ids).unwrap() + end
        })
        .collect()
}

#[test]
fn every_answer_carries_loss_through_its_end_of_turn() {
    let encoder = encoder(TEMPLATE);
    let messages = chat(&[
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", "hi there"),
        ("user", "bye"),
        ("assistant", " wide"),
    ]);
    let document = encoder.encode(&messages, TrainOn::Assistant).unwrap();
    assert_eq!(learned(&encoder, &document), ["hi there.", " wide."]);
    // The line feed that the template writes after `<|end|>` is not learned.
    assert_eq!(document.tokens.last(), Some(&u32::from(b'\n')));
    assert_eq!(document.weights.last(), Some(&0.0));
}

#[test]
fn the_first_token_is_not_doubled() {
    let encoder = encoder(TEMPLATE);
    let document = encoder.encode(&chat(&[("assistant", "a")]), TrainOn::All).unwrap();
    assert_eq!(document.tokens[..2], [special("<|begin|>"), special("<|assistant|>")]);
    assert_eq!(document.weights[0], 0.0);
    assert!(document.weights[1..].iter().all(|weight| *weight == 1.0));
}

#[test]
fn characters_split_over_several_tokens_are_learned_whole() {
    let encoder = encoder(TEMPLATE);
    for answer in ["é", "日本語", "🌱🌱", "a\u{301}", "\u{feff}x"] {
        let messages = chat(&[("user", answer), ("assistant", answer)]);
        let document = encoder.encode(&messages, TrainOn::Assistant).unwrap();
        assert_eq!(learned(&encoder, &document), [format!("{answer}.")]);
        let bytes = document.trained_tokens() as usize;
        assert_eq!(bytes, answer.len() + 1, "one token per byte, and `<|end|>`");
    }
}

#[test]
fn a_token_that_the_prompt_already_holds_part_of_is_not_learned() {
    // `\n\n` is one token here; half of it belongs to the generation prompt.
    let encoder = encoder(TEMPLATE);
    let messages = chat(&[("user", "hi"), ("assistant", "\n\nx")]);
    let document = encoder.encode(&messages, TrainOn::Assistant).unwrap();
    assert_eq!(learned(&encoder, &document), ["\nx."]);
}

#[test]
fn the_prompt_is_what_comes_before_the_answer() {
    let encoder = encoder(TEMPLATE);
    let messages = chat(&[("user", "hi"), ("assistant", "yes")]);
    let document = encoder.encode(&messages, TrainOn::Assistant).unwrap();
    let prompt = encoder.prompt(&messages[..1]).unwrap();
    let first = document.trained().position(|trained| trained).unwrap();
    assert_eq!(document.tokens[..first], prompt);
    assert_eq!(encoder.stop_ids(), [special("<|end|>")]);
    assert_eq!(encoder.vocab_size(), 264);
}

#[test]
fn stop_ids_come_from_all_three_places() {
    let folder = tempfile::tempdir().unwrap();
    fixture::base_folder(folder.path(), &TEMPLATE.replace("<|end|>", "<|other|>"));
    let generation = br#"{"eos_token_id": [7, 9]}"#;
    fixture::write(&folder.path().join("generation_config.json"), generation);
    let encoder = ChatEncoder::open(folder.path()).unwrap();
    assert_eq!(encoder.stop_ids(), [7, 9, special("<|end|>"), special("<|other|>")]);
}

#[test]
fn a_chat_with_no_assistant_turn_is_refused() {
    for train_on in [TrainOn::Assistant, TrainOn::All] {
        let refused = encoder(TEMPLATE).encode(&chat(&[("user", "hi")]), train_on);
        assert!(matches!(refused, Err(ChatError::NoAssistant)), "{refused:?}");
    }
}

#[test]
fn a_template_that_writes_nothing_gives_no_prompt() {
    for template in ["", "{% for m in messages %}{% endfor %}"] {
        let refused = encoder(template).prompt(&chat(&[("user", "hi")]));
        assert!(matches!(refused, Err(ChatError::EmptyPrompt)), "{refused:?}");
    }
}

#[test]
fn a_template_that_never_closes_the_answer_is_refused() {
    let open = TEMPLATE.replace("<|end|>", "");
    let messages = chat(&[("user", "hi"), ("assistant", "yes")]);
    // Text after the special token would be learned by nobody.
    let trailing =
        TEMPLATE.replace("<|end|>\\n", "<|end|>bye\\n").replace("<|end|>\n", "<|end|>bye\n");
    for template in [open, trailing] {
        for train_on in [TrainOn::Assistant, TrainOn::All] {
            let refused = encoder(&template).encode(&messages, train_on);
            assert!(matches!(refused, Err(ChatError::NoEndOfTurn { message: 1 })), "{refused:?}");
        }
    }
}

#[test]
fn a_template_that_rewrites_earlier_turns_is_refused() {
    // Drops what the assistant said in all turns but the last, as templates do that strip
    // earlier reasoning.
    let source = "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}\
        {% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}{{ '<|end|>' }}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";
    let messages = chat(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let refused = encoder(source).encode(&messages, TrainOn::Assistant);
    assert!(matches!(refused, Err(ChatError::NotVerbatim { message: 1 })), "{refused:?}");
    assert!(encoder(source).encode(&messages, TrainOn::All).is_ok());
}

#[test]
fn errors_of_the_template_do_not_quote_the_conversation() {
    let source = "{{ raise_exception('no: ' + messages[0].content) }}";
    let messages = chat(&[("user", "my secret"), ("assistant", "b")]);
    let refused = encoder(source).encode(&messages, TrainOn::Assistant).unwrap_err();
    assert!(!format!("{refused:?} {refused}").contains("secret"), "{refused:?}");
}

#[test]
fn a_refusal_a_limit_and_a_construct_have_their_own_words() {
    let messages = chat(&[("user", "hi"), ("assistant", "b")]);
    let told = |source: &str| {
        let error = encoder(source).render(&messages, false).unwrap_err();
        (error.to_string(), error.hint().unwrap())
    };
    let (refused, hint) = told("{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}");
    assert_eq!(refused, "the chat template, line 1, refuses the conversation: no");
    assert!(hint.contains("order and roles"), "{hint}");
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let forever = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    for limit in [endless, forever, "{{ range(10**9) | list }}"] {
        let (limit, hint) = told(limit);
        assert!(limit.contains("goes beyond a limit"), "{limit}");
        assert!(hint.contains("broken or hostile"), "{hint}");
    }
    for construct in ["{{ 'a' | nofilter }}", "{{ messages[0].a.b }}", "{{ 1 + [] }}"] {
        let (construct, hint) = told(construct);
        assert!(construct.contains("cannot be rendered"), "{construct}");
        assert!(hint.contains("not supported"), "{hint}");
    }
}

#[test]
fn a_folder_without_its_parts_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = || ChatEncoder::open(folder.path()).unwrap_err();
    assert!(
        matches!(open(), ChatError::Read(error) if error.to_string().contains("tokenizer.json"))
    );
    fixture::base_folder(folder.path(), TEMPLATE);
    let config = folder.path().join("tokenizer_config.json");
    fixture::write(&config, b"{\n  \"eos_token\": }");
    assert!(matches!(open(), ChatError::Json { line: 2, .. }));
    fixture::write(&config, b"{\"chat_template\": \"\\n{% if %}\"}");
    assert!(matches!(open(), ChatError::TemplateSyntax { line: 2, .. }));
    fixture::write(&config, b"{}");
    assert!(matches!(open(), ChatError::NoTemplate { .. }));
    fixture::write(&folder.path().join("tokenizer.json"), b"{\"version\": \"1.0\"");
    assert!(matches!(open(), ChatError::Tokenizer { .. }));
}

#[test]
fn a_named_list_of_templates_uses_the_default() {
    let folder = tempfile::tempdir().unwrap();
    fixture::base_folder(folder.path(), TEMPLATE);
    let config = serde_json::json!({"bos_token": "<|begin|>", "chat_template": [
        {"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]});
    fixture::write(&folder.path().join("tokenizer_config.json"), config.to_string().as_bytes());
    let encoder = ChatEncoder::open(folder.path()).unwrap();
    let prompt = encoder.prompt(&chat(&[("user", "a")])).unwrap();
    assert_eq!(prompt.first(), Some(&special("<|begin|>")));
    assert!(matches!(encoder.prompt(&Vec::new()), Err(ChatError::Empty)));
}
