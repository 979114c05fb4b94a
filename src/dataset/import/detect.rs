//! Which format rows have, from the keys of the first of them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::dataset::conversation::Json;
use crate::recipe::Format;

/// Rows that are looked at.
pub(super) const ROWS: usize = 16;

/// The format of rows, and the columns that have another name in it. Where the keys fit
/// several, the most particular one.
pub(super) fn detect(
    rows: &[Json],
    columns: &BTreeMap<String, String>,
) -> Option<(Format, BTreeMap<String, String>)> {
    let mut columns = columns.clone();
    let keys: BTreeSet<&str> = rows.iter().flat_map(|row| row.keys()).map(String::as_str).collect();
    let has = |columns: &BTreeMap<String, String>, field: &str| {
        keys.contains(columns.get(field).map_or(field, String::as_str))
    };
    let all = |fields: &[&str]| fields.iter().all(|field| has(&columns, field));
    let format = if all(&["chosen", "rejected"]) {
        Format::Preference
    } else if all(&["prompt", "completion", "label"]) {
        Format::Kto
    } else if all(&["prompt", "completion"]) {
        Format::PromptCompletion
    } else if all(&["messages"]) {
        // Turns of ShareGPT under the name of OpenAI's.
        if !turns_have(rows, &columns, "messages", "from") {
            Format::Chat
        } else {
            let column = columns.remove("messages").unwrap_or_else(|| "messages".to_owned());
            columns.insert("conversations".to_owned(), column);
            Format::Sharegpt
        }
    } else if all(&["conversations"]) {
        Format::Sharegpt
    } else if all(&["instruction", "output"]) {
        Format::Alpaca
    } else if all(&["text"]) {
        Format::Text
    } else {
        return None;
    };
    Some((format, columns))
}

fn turns_have(rows: &[Json], columns: &BTreeMap<String, String>, field: &str, key: &str) -> bool {
    let column = columns.get(field).map_or(field, String::as_str);
    let turns = rows.iter().filter_map(|row| row.get(column)?.as_array()).flatten();
    turns.filter_map(Value::as_object).any(|turn| turn.contains_key(key))
}
