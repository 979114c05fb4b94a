//! The digest of what a row holds for the model.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Hash, TreeError};
use crate::dataset::conversation::Conversation;
use crate::dataset::sample::Sample;

/// SHA-256 of the canonical JSON (RFC 8785) of a row's content, under the names that TRL gives
/// its columns: `messages`, `text`, `prompt`, `completion`, `chosen`, `rejected`, `label`.
///
/// The same content has the same digest whatever file it lies in, and whatever its columns
/// are called and ordered there: keys are sorted, and a key that holds null counts as absent
/// (Parquet fills the absent keys of a struct with nulls).
pub fn record_digest(sample: &Sample) -> Result<Hash, TreeError> {
    let content = match sample {
        Sample::Conversation(conversation) => turns(conversation),
        Sample::Text(text) => json!({ "text": text }),
        Sample::Completion { prompt, completion } => {
            json!({ "prompt": prompt, "completion": completion })
        }
        Sample::Preference { chosen, rejected } => {
            json!({ "chosen": turns(chosen), "rejected": turns(rejected) })
        }
        Sample::Labelled { conversation, desirable } => {
            let mut content = turns(conversation);
            content["label"] = Value::from(*desirable);
            content
        }
    };
    digest_of(content)
}

/// A conversation, with prompt and completion told apart where the row did.
fn turns(conversation: &Conversation) -> Value {
    let Conversation { messages, tools, documents, variables, completion_from } = conversation;
    let mut content = Map::new();
    match completion_from.and_then(|from| messages.split_at_checked(from)) {
        Some((prompt, completion)) => {
            content.insert("prompt".to_owned(), json!(prompt));
            content.insert("completion".to_owned(), json!(completion));
        }
        None => {
            content.insert("messages".to_owned(), json!(messages));
        }
    }
    content.insert("tools".to_owned(), json!(tools));
    content.insert("documents".to_owned(), json!(documents));
    if !variables.is_empty() {
        content.insert("variables".to_owned(), json!(variables));
    }
    Value::Object(content)
}

fn digest_of(mut content: Value) -> Result<Hash, TreeError> {
    without_nulls(&mut content);
    let canonical = serde_json_canonicalizer::to_vec(&content)
        // Only the category: the message could quote the row.
        .map_err(|error| TreeError::Content { what: format!("{:?}", error.classify()) })?;
    Ok(Sha256::digest(canonical).into())
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{hex, sha256_of_bytes};

    fn chat(text: &str) -> Sample {
        Sample::Conversation(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn the_digest_is_of_the_canonical_form() {
        // Written by hand after RFC 8785: sorted keys, no spaces, 1.0 as 1, letters as they are.
        for (sample, canonical) in [
            (
                chat(
                    r#"{"messages":[{"weight":1.0,"role":"user","content":"a€\n","name":null}],"tools":null}"#,
                ),
                "{\"messages\":[{\"content\":\"a€\\n\",\"role\":\"user\",\"weight\":1}]}",
            ),
            (
                chat(r#"{"messages":[{"role":"user"},{"role":"assistant"}],"completion_from":1}"#),
                r#"{"completion":[{"role":"assistant"}],"prompt":[{"role":"user"}]}"#,
            ),
            (Sample::Text("x\"".to_owned()), r#"{"text":"x\""}"#),
            (
                Sample::Completion { prompt: "p".to_owned(), completion: String::new() },
                r#"{"completion":"","prompt":"p"}"#,
            ),
            (
                Sample::Labelled { conversation: Conversation::default(), desirable: false },
                r#"{"label":false,"messages":[]}"#,
            ),
            (
                Sample::Preference {
                    chosen: Conversation::default(),
                    rejected: Conversation { tools: Some(vec![]), ..Conversation::default() },
                },
                r#"{"chosen":{"messages":[]},"rejected":{"messages":[],"tools":[]}}"#,
            ),
        ] {
            let digest = hex(&record_digest(&sample).unwrap());
            assert_eq!(digest, sha256_of_bytes(canonical.as_bytes()), "{canonical}");
        }
    }

    #[test]
    fn order_and_nulls_do_not_count_and_anything_else_does() {
        let digest = |text| record_digest(&chat(text)).unwrap();
        let one = digest(r#"{"messages":[{"role":"user","content":"x"}]}"#);
        assert_eq!(
            one,
            digest(r#"{"tools":null,"messages":[{"name":null,"content":"x","role":"user"}]}"#)
        );
        for other in [
            r#"{"messages":[{"role":"user","content":"y"}]}"#,
            r#"{"messages":[{"role":"user","content":"x "}]}"#,
            r#"{"messages":[{"role":"assistant","content":"x"}]}"#,
            r#"{"messages":[{"role":"user","content":"x","weight":0}]}"#,
            r#"{"messages":[{"role":"user","content":"x"}],"tools":[]}"#,
            r#"{"messages":[{"role":"user","content":"x"}],"completion_from":0}"#,
            r#"{"messages":[]}"#,
        ] {
            assert_ne!(one, digest(other), "{other}");
        }
    }
}
