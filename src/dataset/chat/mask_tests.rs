//! Which tokens of which rows carry loss, and how much.

use serde_json::json;

use super::super::fixture::{self, TEMPLATE, special};
use super::super::sample::Sample;
use super::*;

/// The fixture's folder with other words in its `tokenizer_config.json`.
fn configured(template: &str, more: serde_json::Value) -> ChatEncoder {
    let folder = tempfile::tempdir().unwrap();
    fixture::base_folder(folder.path(), template);
    let mut config = json!({"bos_token": "<|begin|>", "eos_token": "<|end|>",
                            "chat_template": template});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    fixture::write(&folder.path().join("tokenizer_config.json"), config.to_string().as_bytes());
    ChatEncoder::open(folder.path()).unwrap()
}

fn encoder() -> ChatEncoder {
    configured(TEMPLATE, json!({}))
}

/// `role: content` lines; a weight stands before the role, as in `0.5 assistant: b`.
fn chat(lines: &[&str]) -> Conversation {
    let message = |line: &&str| {
        let (head, content) = line.split_once(": ").unwrap();
        let (weight, role) = head.split_once(' ').unwrap_or(("", head));
        let mut message = json!({"role": role, "content": content});
        if !weight.is_empty() {
            message["weight"] = serde_json::from_str(weight).unwrap();
        }
        message
    };
    let messages: Vec<_> = lines.iter().map(message).collect();
    serde_json::from_value(json!({"messages": messages})).unwrap()
}

/// Tokens as text, special ones as `<`, `S`, `U`, `A`, `.` and `+`, line feeds as `/`; those
/// that carry loss in brackets, square ones where the weight is 1.
fn shown(document: &Document) -> String {
    let character = |token: u32| match token.checked_sub(special("<|begin|>")) {
        Some(index) => ['<', 'S', 'U', 'A', '.', '+'][index as usize],
        None if token == 256 => 'h',
        None if token == u32::from(b'\n') => '/',
        None => char::from_u32(token).unwrap(),
    };
    let pairs: Vec<_> = document.tokens.iter().zip(&document.weights).collect();
    let runs = pairs.chunk_by(|a, b| a.1 == b.1).map(|run| {
        let words: String = run.iter().map(|(token, _)| character(**token)).collect();
        match *run[0].1 {
            0.0 => words,
            1.0 => format!("[{words}]"),
            0.5 => format!("({words})"),
            other => panic!("{other}"),
        }
    });
    runs.collect()
}

#[track_caller]
fn check(found: Result<Document, ChatError>, expected: &str) {
    assert_eq!(shown(&found.unwrap()), expected);
}

#[test]
fn the_last_turn_alone_is_learned() {
    let talk = chat(&["user: a", "assistant: b", "user: c", "assistant: d"]);
    check(encoder().encode(&talk, TrainOn::Last), "<U/a./A/b./U/c./A/[d.]/");
}

#[test]
fn the_turns_after_the_last_question_are_the_completion() {
    let lines = ["user: a", "assistant: b", "user: c", "assistant: d", "other: e", "assistant: f"];
    let encoder = encoder();
    let mut talk = chat(&lines);
    check(encoder.encode(&talk, TrainOn::Completion), "<U/a./A/b./U/c./A/[d.]/+/e./A/[f.]/");
    talk.completion_from = Some(1);
    check(encoder.encode(&talk, TrainOn::Completion), "<U/a./A/[b.]/U/c./A/[d.]/+/e./A/[f.]/");
    talk.completion_from = Some(5);
    check(encoder.encode(&talk, TrainOn::Completion), "<U/a./A/b./U/c./A/d./+/e./A/[f.]/");
    for from in [6, usize::MAX] {
        talk.completion_from = Some(from);
        let refused = encoder.encode(&talk, TrainOn::Completion);
        assert!(matches!(refused, Err(ChatError::NothingTrained)), "{refused:?}");
    }
    let refused = encoder.encode(chat(&["assistant: a", "user: b"]), TrainOn::Completion);
    assert!(matches!(refused, Err(ChatError::NothingTrained)), "{refused:?}");
}

#[test]
fn a_message_counts_as_much_as_it_says() {
    let talk = chat(&["0 user: a", "0 assistant: b", "user: c", "0.5 assistant: d"]);
    check(encoder().encode(&talk, TrainOn::Assistant), "<U/a./A/b./U/c./A/(d.)/");
    check(encoder().encode(&talk, TrainOn::Last), "<U/a./A/b./U/c./A/(d.)/");
    check(encoder().encode(&talk, TrainOn::All), "<[U/]a[./A/]b.[/U/c./A/](d.)[/]");
    let none = chat(&["user: a", "0 assistant: b"]);
    let refused = encoder().encode(&none, TrainOn::Assistant);
    assert!(matches!(refused, Err(ChatError::NothingTrained)), "{refused:?}");
    // The template never sees a weight.
    let seen = configured("{{ messages[0].weight is defined }}<|end|>", json!({}));
    assert_eq!(seen.render(&talk, false).unwrap(), "False<|end|>");
}

#[test]
fn a_weight_that_is_none_is_refused() {
    for weight in [json!(-1), json!("1"), json!(true), json!([1]), json!(1e300)] {
        let mut talk = chat(&["user: a", "assistant: b"]);
        talk.messages[0].insert("weight".to_owned(), weight);
        let refused = encoder().encode(&talk, TrainOn::Assistant);
        assert!(matches!(refused, Err(ChatError::Weight { message: 0 })), "{refused:?}");
    }
}

#[test]
fn the_ends_of_other_turns_than_the_last_can_be_left_out() {
    let talk = chat(&["user: a", "assistant: b", "user: c", "assistant: d"]);
    let mask = |train_on| LossMask { train_on, end_of_turn: EndOfTurn::Last };
    check(encoder().encode(&talk, mask(TrainOn::Assistant)), "<U/a./A/[b]./U/c./A/[d.]/");
    check(encoder().encode(&talk, mask(TrainOn::All)), "<[U/a./A/b].[/U/c./A/d./]");
}

#[test]
fn padding_carries_no_loss_and_an_end_that_is_also_padding_does() {
    // `<|other|>` inside an answer looks like padding and is.
    let pad = |token: &str| configured(TEMPLATE, json!({"pad_token": token}));
    let talk = chat(&["user: a", "assistant: b<|other|>c"]);
    check(pad("<|other|>").encode(&talk, TrainOn::Assistant), "<U/a./A/[b]+[c.]/");
    check(pad("<|other|>").encode(&talk, TrainOn::All), "<[U/a./A/b]+[c./]");
    // The same id ends the turn, and stands in it: it is told by its place.
    let talk = chat(&["user: a", "assistant: b<|end|>c"]);
    check(pad("<|end|>").encode(&talk, TrainOn::Assistant), "<U/a./A/[b].[c.]/");
    let text = Sample::Text("ab<|end|><|end|><|end|>".to_owned());
    check(pad("<|end|>").encode_sample(&text, TrainOn::All), "<[ab.]..");
}

#[test]
fn the_first_token_is_never_there_twice() {
    let talk = chat(&["user: a", "assistant: b"]);
    let begun = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}");
    let once = encoder().encode(&talk, TrainOn::Assistant).unwrap();
    let encoder = configured(&begun, json!({}));
    assert_eq!(encoder.encode(&talk, TrainOn::Assistant).unwrap(), once);
    let prompt = encoder.prompt(chat(&["user: a"])).unwrap();
    assert_eq!(prompt[..2], [special("<|begin|>"), special("<|user|>")]);
}

#[test]
fn a_text_is_learned_whole_and_ends_with_the_end_of_sequence() {
    let text = |text: &str| Sample::Text(text.to_owned());
    check(encoder().encode_sample(&text("ab"), TrainOn::All), "<[ab.]");
    // Neither end is doubled where the text brings it along.
    check(encoder().encode_sample(&text("<|begin|>ab<|end|>"), TrainOn::All), "<[ab.]");
    for train_on in [TrainOn::Assistant, TrainOn::Last, TrainOn::Completion] {
        let refused = encoder().encode_sample(&text("ab"), train_on);
        assert!(matches!(refused, Err(ChatError::NoTurns)), "{refused:?}");
    }
    let refused = encoder().encode_sample(&text(""), TrainOn::All);
    assert!(matches!(refused, Err(ChatError::EmptyText)), "{refused:?}");
    let endless = configured(TEMPLATE, json!({"eos_token": null}));
    let refused = endless.encode_sample(&text("ab"), TrainOn::All);
    assert!(matches!(refused, Err(ChatError::NoEos)), "{refused:?}");
}

#[test]
fn a_completion_is_learned_after_its_prompt() {
    let row = |prompt: &str, completion: &str| Sample::Completion {
        prompt: prompt.to_owned(),
        completion: completion.to_owned(),
    };
    for train_on in [TrainOn::Assistant, TrainOn::Last, TrainOn::Completion] {
        check(encoder().encode_sample(&row("ab", "cd"), train_on), "<ab[cd.]");
    }
    check(encoder().encode_sample(&row("ab", "cd"), TrainOn::All), "<[abcd.]");
    check(encoder().encode_sample(&row("", "cd"), TrainOn::Completion), "<[cd.]");
    // `hi` is one token, and half of it the prompt's.
    check(encoder().encode_sample(&row("ah", "id"), TrainOn::Completion), "<ah[d.]");
    for (prompt, completion) in [("ab", ""), ("ah", "i"), ("", "")] {
        let refused = encoder().encode_sample(&row(prompt, completion), TrainOn::Completion);
        assert!(
            matches!(refused, Err(ChatError::NothingTrained | ChatError::EmptyText)),
            "{refused:?}"
        );
    }
}

#[test]
fn a_base_without_a_template_takes_texts_and_refuses_conversations() {
    let folder = tempfile::tempdir().unwrap();
    fixture::base_folder(folder.path(), TEMPLATE);
    let config = json!({"eos_token": "<|end|>"}).to_string();
    fixture::write(&folder.path().join("tokenizer_config.json"), config.as_bytes());
    let encoder = ChatEncoder::open_for_texts(folder.path()).unwrap();
    let text = Sample::Text("ab".to_owned());
    assert!(encoder.encode_sample(&text, TrainOn::All).is_ok());
    let talk = Sample::Conversation(chat(&["user: a", "assistant: b"]));
    let refused = encoder.encode_sample(&talk, TrainOn::All);
    assert!(matches!(refused, Err(ChatError::NoTemplate { .. })), "{refused:?}");
}

#[test]
fn a_preference_is_two_documents() {
    let (chosen, rejected) =
        (chat(&["user: a", "assistant: b"]), chat(&["user: a", "assistant: c"]));
    let pair = Sample::Preference { chosen, rejected: rejected.clone() };
    let both = encoder().encode_sample(&pair, TrainOn::Last).unwrap();
    let parts: Vec<_> = both.parts().collect();
    assert_eq!(
        parts.iter().map(|(_, verdict)| *verdict).collect::<Vec<_>>(),
        [Some(Verdict::Chosen), Some(Verdict::Rejected)]
    );
    check(Ok(both), "<U/a./A/[b.]/<U/a./A/[c.]/");
    let labelled = Sample::Labelled { conversation: rejected, desirable: false };
    let alone = encoder().encode_sample(&labelled, TrainOn::Last).unwrap();
    assert_eq!(alone.judged, Judged::Alone(Verdict::Rejected));
    check(Ok(alone), "<U/a./A/[c.]/");
}

#[test]
fn answers_that_are_judged_have_no_weights() {
    let weighted = |answer: &str| {
        let conversation = chat(&["user: a", answer]);
        let sample = Sample::Labelled { conversation, desirable: true };
        encoder().encode_sample(&sample, TrainOn::Completion)
    };
    assert!(weighted("1 assistant: b").is_ok());
    assert!(matches!(weighted("0.5 assistant: b"), Err(ChatError::WeightedAnswer)));
}

/// Marks words and ends of the assistant, and nothing else.
const MARKED: &str = "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' }}\
    {% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}\
    {% else %}{{ m.content + '<|end|>' }}{% endif %}{% endfor %}";

#[test]
fn what_a_template_marks_is_chosen_from_like_turns() {
    let encoder = configured(MARKED, json!({}));
    let talk = chat(&["user: a", "assistant: b", "user: c", "0.5 assistant: d"]);
    check(encoder.encode(&talk, TrainOn::Assistant), "<Ua.A[b.]Uc.A(d.)");
    check(encoder.encode(&talk, TrainOn::Last), "<Ua.Ab.Uc.A(d.)");
    let ends = LossMask { train_on: TrainOn::Assistant, end_of_turn: EndOfTurn::Last };
    check(encoder.encode(&talk, ends), "<Ua.A[b].Uc.A(d.)");
}

#[test]
fn a_template_that_marks_no_end_of_turn_is_refused() {
    let unmarked = MARKED.replace(
        "{{ m.content + '<|end|>' }}{% endgeneration %}",
        "{{ m.content }}{% endgeneration %}{{ '<|end|>' }}",
    );
    assert_ne!(unmarked, MARKED);
    let talk = chat(&["user: a", "assistant: b", "user: c", "assistant: d"]);
    for train_on in [TrainOn::Assistant, TrainOn::Last, TrainOn::Completion] {
        let refused = configured(&unmarked, json!({})).encode(&talk, train_on);
        assert!(matches!(refused, Err(ChatError::NoEndOfTurn { .. })), "{refused:?}");
    }
    // It is there, and all of it is learned.
    assert!(configured(&unmarked, json!({})).encode(&talk, TrainOn::All).is_ok());
}

#[test]
fn words_that_look_like_a_frame_are_found_where_they_stand() {
    let talk = chat(&[
        "user: <|end|>\n<|assistant|>\nx",
        "assistant:  b \n",
        "user: b",
        "assistant: b<|end|>\n<|user|>\nc",
    ]);
    let encoder = encoder();
    check(encoder.encode(&talk, TrainOn::Assistant), "<U/./A/x./A/[ b /.]/U/b./A/[b./U/c.]/");
}

/// Closes the last turn with another token than those before it, and calls with that one too.
/// Says what is beside a call only where nothing comes after it.
const TWO_ENDS: &str = "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' }}\
    {% if m.tool_calls %}{% if loop.last %}{{ m.content + '<|end|>' }}{% endif %}\
    {{ m.tool_calls[0].function.name + '<|other|>' }}\
    {% else %}{{ m.content }}\
    {{ '<|other|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endif %}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// A question, an answer that calls `f`, what that gives, and an answer.
fn calling(content: serde_json::Value, calls: serde_json::Value) -> Conversation {
    serde_json::from_value(json!({"messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": content, "tool_calls": calls},
        {"role": "system", "content": "t"},
        {"role": "assistant", "content": "d"}]}))
    .unwrap()
}

fn call() -> serde_json::Value {
    json!([{"type": "function", "function": {"name": "f", "arguments": {}}}])
}

#[test]
fn the_last_turn_may_be_closed_with_another_token_than_those_before_it() {
    let encoder = configured(TWO_ENDS, json!({}));
    let talk = chat(&["user: a", "assistant: b", "user: c", "assistant: d"]);
    check(encoder.encode(&talk, TrainOn::Assistant), "<Ua.A[b.]Uc.A[d+]");
    check(encoder.encode(&talk, TrainOn::Last), "<Ua.Ab.Uc.A[d+]");
    let question = chat(&["user: a", "assistant: b", "user: c"]);
    check(encoder.encode(&question, TrainOn::Assistant), "<Ua.A[b.]Uc.");
    let calling = calling(json!("x"), call());
    check(encoder.encode(&calling, TrainOn::Assistant), "<Ua.A[f+]St.A[d+]");
}

#[test]
fn a_call_ends_where_its_answer_begins() {
    // The answer is written in the turn that calls, and what is said beside the call after it.
    let template = "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}\
        {{ '<|assistant|>' + m.tool_calls[0].function.name }}\
        {% if loop.last %}{{ m.content + '<|other|>' }}\
        {% else %}{{ '<|other|>' + messages[loop.index].content + m.content + '<|end|>' }}\
        {% endif %}{% elif m.role != 'system' %}\
        {{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
    let encoder = configured(template, json!({}));
    let learned = encoder.encode(calling(json!("x"), call()), TrainOn::Assistant);
    check(learned, "<Ua.A[f+]tx.A[d.]");
}

#[test]
fn what_opens_the_next_turn_closes_none() {
    let talk = chat(&["user: a", "assistant: b", "user: c", "assistant: d"]);
    let open = TWO_ENDS.replace("else '<|end|>'", "else ''");
    assert_ne!(open, TWO_ENDS);
    let named = open.replace("'<|' + m.role", "'<|begin|>' + m.role");
    let named = named.replace("'<|assistant|>'", "'<|begin|>assistant|>'");
    for template in [open, named] {
        let refused = configured(&template, json!({})).encode(&talk, TrainOn::Assistant);
        assert!(matches!(refused, Err(ChatError::NoEndOfTurn { message: 1 })), "{refused:?}");
    }
}

#[test]
fn a_call_that_the_template_leaves_out_is_refused() {
    let refused = |template: &str, talk: Conversation| {
        let refused = configured(template, json!({})).encode(talk, TrainOn::Assistant);
        assert!(matches!(refused, Err(ChatError::NotVerbatim { message: 1 })), "{refused:?}");
    };
    for nothing in [json!(""), json!(" \n"), json!([])] {
        refused(&TEMPLATE.replace("m.content", "m.content|string"), calling(nothing, call()));
    }
    // Words beside it are learned.
    let said = encoder().encode(calling(json!("x"), call()), TrainOn::Assistant);
    check(said, "<U/a./A/[x.]/S/t./A/[d.]/");
    // No call is none that could have been left out.
    let none = encoder().encode(calling(json!("x"), json!([])), TrainOn::Assistant);
    check(none, "<U/a./A/[x.]/S/t./A/[d.]/");
    let silent = TEMPLATE.replace("m.content", "(m.content if m.role != 'assistant' else '')");
    refused(&silent, calling(json!("x"), json!([])));
}
