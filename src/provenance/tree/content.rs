//! The digest of what a row holds for the model.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Hash, TreeError};

/// SHA-256 of the canonical JSON (RFC 8785) of a row's content columns.
///
/// The same content has the same digest whatever file it lies in and in whatever order its
/// columns and keys stand: keys are sorted, and a key that holds null counts as absent
/// (Parquet fills the absent keys of a struct with nulls).
pub fn record_digest(content: &impl Serialize) -> Result<Hash, TreeError> {
    let not_json =
        |error: serde_json::Error| TreeError::Content { what: format!("{:?}", error.classify()) };
    let mut value = serde_json::to_value(content).map_err(not_json)?;
    without_nulls(&mut value);
    let canonical = serde_json_canonicalizer::to_vec(&value).map_err(not_json)?;
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
    use serde_json::json;

    use super::*;
    use crate::files::{hex, sha256_of_bytes};

    #[test]
    fn the_digest_is_of_the_canonical_form() {
        let content =
            json!({"messages": [{"role": "user", "content": "a\u{20ac}"}], "b": 1.0, "a": null});
        // Written by hand after RFC 8785: sorted keys, no spaces, 1.0 as 1, the letter as itself.
        let canonical = "{\"b\":1,\"messages\":[{\"content\":\"a\u{20ac}\",\"role\":\"user\"}]}";
        assert_eq!(hex(&record_digest(&content).unwrap()), sha256_of_bytes(canonical.as_bytes()));
    }

    #[test]
    fn order_and_nulls_do_not_count_and_anything_else_does() {
        let digest =
            |text: &str| record_digest(&serde_json::from_str::<Value>(text).unwrap()).unwrap();
        let one = digest(r#"{"messages":[{"role":"user","content":"x"}],"label":true}"#);
        assert_eq!(
            one,
            digest(
                r#"{"label":true,"tools":null,"messages":[{"name":null,"content":"x","role":"user"}]}"#
            )
        );
        for other in [
            r#"{"messages":[{"role":"user","content":"y"}],"label":true}"#,
            r#"{"messages":[{"role":"user","content":"x"}],"label":false}"#,
            r#"{"messages":[{"role":"user","content":"x"},null],"label":true}"#,
            r#"{"messages":[{"role":"user","content":"x "}],"label":true}"#,
            r#"{"messages":[{"role":"user","content":"x"}]}"#,
        ] {
            assert_ne!(one, digest(other), "{other}");
        }
    }
}
