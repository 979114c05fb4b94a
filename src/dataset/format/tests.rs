use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Builder, ListBuilder, RecordBatch, StringArray, StringBuilder,
    StructBuilder,
};
use arrow::datatypes::{DataType, Field, Fields};
use serde_json::json;

use super::*;
use crate::diagnose::Diagnose as _;

fn read_json(format: Format, row: Value) -> Result<Sample, FormatError> {
    let Value::Object(mut row) = row else { panic!("not an object") };
    read(format, &mut |field| Ok(row.remove(field)))
}

fn conversation(format: Format, row: Value) -> Conversation {
    match read_json(format, row).unwrap() {
        Sample::Conversation(conversation) => conversation,
        other => panic!("{other:?}"),
    }
}

fn as_json(messages: &[Json]) -> Value {
    Value::Array(messages.iter().cloned().map(Value::Object).collect())
}

fn refusal(format: Format, row: Value) -> (String, Option<usize>, Wrong) {
    let error = read_json(format, row).unwrap_err();
    assert!(error.hint().is_some());
    (error.column, error.turn, error.wrong)
}

#[test]
fn a_chat_keeps_tools_reasoning_weights_and_loses_nulls() {
    let chat = conversation(
        Format::Chat,
        json!({
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "ab"}], "weight": null},
                {"role": "assistant", "content": null, "reasoning_content": "r", "weight": 0.5,
                 "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": null}"}}]},
                {"role": "tool", "tool_call_id": "1", "name": "f", "content": "2"},
                {"role": "assistant", "content": "", "tool_calls": []},
            ],
            "tools": "[{\"type\": \"function\"}]",
            "documents": [{"title": "t", "text": "d"}],
        }),
    );
    assert_eq!(
        as_json(&chat.messages),
        json!([
            {"role": "user", "content": [{"type": "text", "text": "ab"}]},
            {"role": "assistant", "reasoning_content": "r", "weight": 0.5,
             "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": null}}}]},
            {"role": "tool", "tool_call_id": "1", "name": "f", "content": "2"},
            {"role": "assistant", "content": ""},
        ])
    );
    assert_eq!(as_json(&chat.tools.unwrap()), json!([{"type": "function"}]));
    assert_eq!(as_json(&chat.documents.unwrap()), json!([{"title": "t", "text": "d"}]));
}

#[test]
fn sharegpt_knows_who_speaks_and_who_calls() {
    let chat = conversation(
        Format::Sharegpt,
        json!({
            "system": "s", "tools": "",
            "conversations": [
                {"from": "human", "value": "q", "markdown": null},
                {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
                {"from": "observation", "value": "7"},
                {"role": "gpt", "content": "a", "weight": 2},
            ],
        }),
    );
    assert_eq!(
        as_json(&chat.messages),
        json!([
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls":
                [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "7"},
            {"role": "assistant", "content": "a", "weight": 2},
        ])
    );
    assert!(chat.tools.is_none());
}

#[test]
fn alpaca_puts_the_input_on_a_line_of_its_own() {
    let chat = conversation(
        Format::Alpaca,
        json!({"instruction": "i", "input": "x", "output": "o", "system": "s",
               "history": [["a", "b"]]}),
    );
    let said = json!([
        {"role": "system", "content": "s"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}, {"role": "user", "content": "i\nx"},
        {"role": "assistant", "content": "o"},
    ]);
    assert_eq!(as_json(&chat.messages), said);
    let chat = conversation(
        Format::Alpaca,
        json!({"instruction": "i", "input": "", "output": "o", "system": null}),
    );
    assert_eq!(chat.messages.len(), 2);
    assert_eq!(chat.messages[0]["content"], "i");
}

#[test]
fn prompts_and_completions_are_texts_or_messages() {
    let row = json!({"prompt": "p", "completion": "c"});
    let Sample::Completion { prompt, completion } =
        read_json(Format::PromptCompletion, row).unwrap()
    else {
        panic!()
    };
    assert_eq!((prompt.as_str(), completion.as_str()), ("p", "c"));
    let user = json!([{"role": "user", "content": "p"}]);
    let assistant = json!([{"role": "assistant", "content": "c"}]);
    let chat =
        conversation(Format::PromptCompletion, json!({"prompt": user, "completion": assistant}));
    assert_eq!((chat.messages.len(), chat.completion_from), (2, Some(1)));
    assert_eq!(
        refusal(Format::PromptCompletion, json!({"prompt": "p", "completion": assistant})),
        ("completion".into(), None, Wrong::Mixed)
    );
}

fn sides(row: Value) -> [(Value, Option<usize>); 2] {
    let Sample::Preference { chosen, rejected } = read_json(Format::Preference, row).unwrap()
    else {
        panic!()
    };
    [chosen, rejected].map(|side| (as_json(&side.messages), side.completion_from))
}

#[test]
fn a_preference_has_its_prompt_beside_it_or_within() {
    let (user, good, bad) = (
        json!({"role": "user", "content": "p"}),
        json!({"role": "assistant", "content": "g"}),
        json!({"role": "assistant", "content": "b"}),
    );
    let expected = [(json!([user, good]), Some(1)), (json!([user, bad]), Some(1))];
    for row in [
        json!({"prompt": [user], "chosen": [good], "rejected": [bad]}),
        json!({"prompt": "p", "chosen": [good], "rejected": [bad]}),
        json!({"prompt": "p", "chosen": "g", "rejected": "b"}),
        json!({"chosen": [user, good], "rejected": [user, bad]}),
        // As in ultrafeedback_binarized: the prompt is there twice.
        json!({"prompt": "p", "chosen": [user, good], "rejected": [user, bad]}),
    ] {
        assert_eq!(sides(row.clone()), expected, "{row}");
    }
    let [chosen, rejected] =
        sides(json!({"chosen": "The sky is blue.", "rejected": "The sky is green."}));
    let said = |end: &str| json!([{"role": "user", "content": "The sky is"}, {"role": "assistant", "content": end}]);
    assert_eq!([chosen.0, rejected.0], [said(" blue."), said(" green.")]);
    assert_eq!(
        refusal(Format::Preference, json!({"chosen": "é", "rejected": "è"})),
        ("prompt".into(), None, Wrong::Absent)
    );
}

#[test]
fn a_label_is_yes_or_no_and_nothing_else() {
    for (label, expected) in
        [(json!(true), true), (json!(0), false), (json!("False"), false), (json!("1"), true)]
    {
        let row = json!({"prompt": "p", "completion": "c", "label": label});
        let Sample::Labelled { conversation, desirable } = read_json(Format::Kto, row).unwrap()
        else {
            panic!()
        };
        assert_eq!((desirable, conversation.completion_from), (expected, Some(1)));
    }
    for label in [json!(2), json!("yes?"), json!([true]), json!(0.5)] {
        let row = json!({"prompt": "p", "completion": "c", "label": label});
        assert_eq!(refusal(Format::Kto, row), ("label".into(), None, Wrong::NotLabel));
    }
}

#[test]
fn what_is_wrong_is_said_without_what_is_written() {
    let chat = |message: Value| json!({"messages": [{"role": "user", "content": "x"}, message]});
    let user = |content: Value| json!({"role": "user", "content": content});
    for (message, wrong) in [
        (json!({"role": "SECRET", "content": "SECRET"}), Wrong::UnknownRole),
        (json!({"role": ["user"], "content": "SECRET"}), Wrong::NotText("a list")),
        (json!({"content": "SECRET"}), Wrong::NoRole),
        (json!("SECRET"), Wrong::NotObject("a text")),
        (user(json!(7)), Wrong::NotText("a number")),
        (user(json!(null)), Wrong::NoContent),
        (user(json!([{"type": "image", "image": "SECRET"}])), Wrong::Part),
        (json!({"role": "user", "content": "", "weight": -1}), Wrong::Weight),
        (json!({"role": "user", "content": "", "weight": "SECRET"}), Wrong::Weight),
        (json!({"role": "user", "content": "", "name": 7}), Wrong::NotText("a number")),
        (json!({"role": "assistant", "tool_calls": "SECRET"}), Wrong::NotJson),
        (json!({"role": "assistant", "tool_calls": [7]}), Wrong::NotObject("a number")),
    ] {
        let error = read_json(Format::Chat, chat(message.clone())).unwrap_err();
        assert_eq!((error.turn, error.wrong), (Some(1), wrong), "{message}");
        assert!(!error.to_string().contains("SECRET"), "{error}");
        assert!(error.to_string().contains("column `messages`, message 1 (counted from 0),"));
    }
    for (format, row, column, wrong) in [
        (Format::Chat, json!({"messages": []}), "messages", Wrong::Empty),
        (Format::Chat, json!({"messages": null}), "messages", Wrong::Absent),
        (Format::Chat, json!({"messages": "x"}), "messages", Wrong::NotList("a text")),
        (Format::Chat, chat(user(json!("y"))), "", Wrong::Empty),
        (Format::Sharegpt, json!({"conversations": []}), "conversations", Wrong::Empty),
        (Format::Text, json!({"text": ["x"]}), "text", Wrong::NotText("a list")),
        (Format::Alpaca, json!({"instruction": "i", "output": null}), "output", Wrong::Absent),
        (
            Format::Alpaca,
            json!({"instruction": "i", "output": "o", "history": [["a"]]}),
            "history",
            Wrong::NotPairs,
        ),
    ] {
        if column.is_empty() {
            read_json(format, row).unwrap();
        } else {
            assert_eq!(refusal(format, row), (column.into(), None, wrong));
        }
    }
}

/// Role, content and weight.
type Turn<'a> = (Option<&'a str>, Option<&'a str>, Option<f64>);

/// A column of lists of messages; the weight may be null throughout.
fn messages_column(rows: &[&[Turn<'_>]]) -> ArrayRef {
    let fields = Fields::from(vec![
        Field::new("role", DataType::Utf8, true),
        Field::new("content", DataType::Utf8, true),
        Field::new("weight", DataType::Float64, true),
    ]);
    let mut column = ListBuilder::new(StructBuilder::from_fields(fields, 0));
    for row in rows {
        for (role, content, weight) in *row {
            let turn = column.values();
            turn.field_builder::<StringBuilder>(0).unwrap().append_option(*role);
            turn.field_builder::<StringBuilder>(1).unwrap().append_option(*content);
            turn.field_builder::<Float64Builder>(2).unwrap().append_option(*weight);
            turn.append(true);
        }
        column.append(true);
    }
    Arc::new(column.finish())
}

fn layout(format: Format, pairs: &[(&str, &str)], rows: &RecordBatch) -> Result<Layout, String> {
    let pairs = pairs.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned()));
    let columns: BTreeMap<String, String> = pairs.collect();
    Layout::new(Path::new("a.parquet"), format, &columns, rows.schema().fields())
        .map_err(|error| format!("{error}; {}", error.hint().unwrap()))
}

#[test]
fn plain_rows_are_read_as_those_with_more_to_them() {
    let said = [(Some("user"), Some("q"), None), (Some("assistant"), Some("a"), None)];
    let mut weighted = said;
    weighted[1].2 = Some(0.5);
    let plain = messages_column(&[&[], &said, &said]);
    let rows = RecordBatch::try_from_iter([("chat", plain)]).unwrap();
    // A slice begins in the middle of the values.
    let rows = rows.slice(1, 2);
    let layout_of = layout(Format::Chat, &[("messages", "chat")], &rows).unwrap();
    assert_eq!(layout_of.columns().collect::<Vec<_>>(), ["chat"]);
    let fast = layout_of.plain(&rows, 1).unwrap();
    let slow = {
        let mut take = |field: &'static str| match layout_of.column(&rows, field) {
            Some(column) => value(column, 1),
            None => Ok(None),
        };
        read(Format::Chat, &mut take).unwrap()
    };
    let Sample::Conversation(slow) = slow else { panic!() };
    assert_eq!(as_json(&fast.messages), as_json(&slow.messages));
    let rows = RecordBatch::try_from_iter([("chat", messages_column(&[&weighted]))]).unwrap();
    assert!(layout_of.plain(&rows, 0).is_none());
    let Sample::Conversation(read) = layout_of.sample(&rows, 0).unwrap() else { panic!() };
    assert_eq!(
        as_json(&read.messages),
        json!([{"role": "user", "content": "q"},
               {"role": "assistant", "content": "a", "weight": 0.5}])
    );
}

#[test]
fn a_number_that_is_not_finite_is_no_weight() {
    for weight in [f64::NAN, f64::INFINITY] {
        let column = messages_column(&[&[(Some("user"), Some("q"), Some(weight))]]);
        let rows = RecordBatch::try_from_iter([("chat", column)]).unwrap();
        let layout = layout(Format::Chat, &[("messages", "chat")], &rows).unwrap();
        let error = layout.sample(&rows, 0).unwrap_err();
        assert_eq!((error.column.as_str(), error.wrong), ("chat", Wrong::NotFinite));
    }
}

#[test]
fn a_null_in_a_plain_row_is_refused_like_anywhere() {
    let unknown = [(Some("wizard"), Some("q"), None)];
    let silent = [(Some("user"), None, None)];
    let nobody = [(None, Some("q"), None)];
    let column = messages_column(&[&unknown, &silent, &nobody, &[]]);
    let rows = RecordBatch::try_from_iter([("messages", column)]).unwrap();
    let layout = layout(Format::Chat, &[], &rows).unwrap();
    let wrong = [0, 1, 2, 3].map(|row| layout.sample(&rows, row).unwrap_err().wrong);
    assert_eq!(wrong, [Wrong::UnknownRole, Wrong::NoContent, Wrong::NoRole, Wrong::Empty]);
}

#[test]
fn a_file_without_the_columns_of_its_format_is_refused() {
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let flag: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
    let rows = RecordBatch::try_from_iter([("text", text), ("flag", flag)]).unwrap();
    assert!(layout(Format::Text, &[], &rows).is_ok());
    assert_eq!(
        layout(Format::Chat, &[], &rows).unwrap_err(),
        "`a.parquet` has no column `messages`; say with `columns: {messages: NAME}` which it \
         is; it has `flag` and `text`"
    );
    assert_eq!(
        layout(Format::Chat, &[("messages", "text")], &rows).unwrap_err(),
        "column `text` of `a.parquet` is Utf8, not LIST<STRUCT<role STRING, content STRING>>; \
         write the column again as LIST<STRUCT<role STRING, content STRING>>"
    );
    assert_eq!(
        layout(Format::Text, &[("text", "flag")], &rows).unwrap_err(),
        "column `flag` of `a.parquet` is Boolean, not STRING; write the column again as STRING"
    );
    assert_eq!(
        layout(Format::Alpaca, &[("imput", "text")], &rows).unwrap_err(),
        "`imput` is no field of the format; did you mean `input`?"
    );
    // An optional column that is named is meant.
    let pairs = [("instruction", "text"), ("output", "text"), ("input", "more")];
    let error = layout(Format::Alpaca, &pairs, &rows).unwrap_err();
    assert!(error.starts_with("`a.parquet` has no column `more`"), "{error}");
}
