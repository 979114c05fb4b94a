//! What a model is asked: one prompt, or a file of them.
//!
//! Owns reading JSONL and the shape of a request; Parquet is `parquet`. These files are the
//! user's own input, like a prompt that is typed: no consent is asked of them, and none of
//! their text goes into an error.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;

use fs_err as fs;
use serde_json::Value;

use super::{GenerationError, parquet};
use crate::dataset::conversation::Message;

/// Longest prompt in a file of its own, and longest line of JSONL, in bytes.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// One thing to be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What the file calls it: `id` or `record_id`.
    pub id: Option<Value>,
    /// Its line or row in the file, from 1.
    pub number: u64,
    /// What is said.
    pub prompt: Prompt,
}

/// What is said.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// One message of the user or, raw, plain text to go on from.
    Text(String),
    /// A conversation.
    Messages(Vec<Message>),
}

impl Request {
    /// The only request, from the command line.
    pub fn single(text: String) -> Self {
        Self { id: None, number: 1, prompt: Prompt::Text(text) }
    }
}

/// The text of a file that is one prompt; `-` is the standard input.
pub fn read_prompt(path: &Path) -> Result<String, GenerationError> {
    let bytes = if path == Path::new("-") {
        limited(io::stdin().lock(), path, MAX_PROMPT_BYTES)?
    } else {
        read_limited(path, MAX_PROMPT_BYTES)?
    };
    String::from_utf8(bytes).map_err(|_| not_utf8(path))
}

fn not_utf8(path: &Path) -> GenerationError {
    let source = io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8");
    GenerationError::Read { path: path.to_owned(), source }
}

/// A file of at most `limit` bytes.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, GenerationError> {
    let file = fs::File::open(path)
        .map_err(|source| GenerationError::Read { path: path.to_owned(), source })?;
    limited(file, path, limit)
}

fn limited(from: impl io::Read, path: &Path, limit: u64) -> Result<Vec<u8>, GenerationError> {
    let mut bytes = Vec::new();
    let read = from.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|source| GenerationError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > limit {
        return Err(GenerationError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

/// The requests of a `.jsonl` or `.parquet` file, in its order.
pub fn read_requests(path: &Path) -> Result<Vec<Request>, GenerationError> {
    let requests = match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl" | "ndjson") => read_jsonl(path),
        Some("parquet") => parquet::read(path),
        _ => return Err(GenerationError::UnknownFormat { path: path.to_owned() }),
    }?;
    if requests.is_empty() {
        return Err(GenerationError::NoRows { path: path.to_owned() });
    }
    Ok(requests)
}

fn read_jsonl(path: &Path) -> Result<Vec<Request>, GenerationError> {
    let unread = |source| GenerationError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(fs::File::open(path).map_err(unread)?);
    let (mut requests, mut line, mut number) = (Vec::new(), Vec::new(), 0);
    loop {
        line.clear();
        let read = (&mut reader).take(MAX_PROMPT_BYTES + 1).read_until(b'\n', &mut line);
        if read.map_err(unread)? == 0 {
            return Ok(requests);
        }
        number += 1;
        let wrong = |reason| GenerationError::Line { path: path.to_owned(), line: number, reason };
        if line.len() as u64 > MAX_PROMPT_BYTES {
            return Err(wrong(format!("it is longer than {MAX_PROMPT_BYTES} bytes")));
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
            requests.push(request(&line, number).map_err(wrong)?);
        }
    }
}

/// One line as a request; the error never quotes it.
fn request(line: &[u8], number: u64) -> Result<Request, String> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| format!("it is not JSON at its column {}", error.column()))?;
    let id = value.get("id").or(value.get("record_id")).cloned();
    if id.as_ref().is_some_and(|id| !id.is_string() && !id.is_number()) {
        return Err("its `id` is neither a text nor a number".to_owned());
    }
    let prompt = match (value.get("prompt"), value.get("messages")) {
        (Some(_), Some(_)) => return Err("it has both `prompt` and `messages`".to_owned()),
        (None, None) => return Err("it has neither `prompt` nor `messages`".to_owned()),
        (Some(prompt), None) => {
            Prompt::Text(prompt.as_str().ok_or("its `prompt` is not a text")?.to_owned())
        }
        (None, Some(messages)) => {
            let messages = messages.as_array().ok_or("its `messages` is not a list")?;
            Prompt::Messages(messages.iter().enumerate().map(message).collect::<Result<_, _>>()?)
        }
    };
    Ok(Request { id, number, prompt })
}

fn message((index, value): (usize, &Value)) -> Result<Message, String> {
    let text = |key: &str| {
        let value = value.get(key).and_then(Value::as_str);
        value.map(str::to_owned).ok_or_else(|| format!("its message {index} has no text `{key}`"))
    };
    Ok(Message { role: text("role")?, content: text("content")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<Request>, GenerationError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        read_requests(&path)
    }

    #[test]
    fn lines_keep_their_ids_and_numbers() {
        let lines = "{\"id\": \"a\", \"prompt\": \"hi\"}\r\n\n\
            {\"record_id\": 7, \"messages\": [{\"role\": \"user\", \"content\": \"yo\"}]}";
        let requests = read("in.jsonl", lines).unwrap();
        let message = Message { role: "user".to_owned(), content: "yo".to_owned() };
        let expected = [
            Request { id: Some(json!("a")), number: 1, prompt: Prompt::Text("hi".to_owned()) },
            Request { id: Some(json!(7)), number: 3, prompt: Prompt::Messages(vec![message]) },
        ];
        assert_eq!(requests, expected);
    }

    #[test]
    fn a_line_that_is_no_request_is_named_and_not_quoted() {
        for (line, reason) in [
            ("{\"prompt\": \"secret", "it is not JSON at its column 18"),
            ("{\"promt\": \"secret\"}", "it has neither `prompt` nor `messages`"),
            ("{\"prompt\": [\"secret\"]}", "its `prompt` is not a text"),
            ("{\"prompt\": \"secret\", \"messages\": []}", "it has both `prompt` and `messages`"),
            ("{\"messages\": \"secret\"}", "its `messages` is not a list"),
            ("{\"messages\": [{\"role\": \"user\"}]}", "its message 0 has no text `content`"),
            ("{\"id\": [], \"prompt\": \"\"}", "its `id` is neither a text nor a number"),
            ("[\"secret\"]", "it has neither `prompt` nor `messages`"),
        ] {
            let refused = read("in.jsonl", format!("{{\"prompt\": \"\"}}\n{line}")).unwrap_err();
            let GenerationError::Line { line: 2, reason: found, .. } = &refused else {
                panic!("{refused}")
            };
            assert_eq!(found, reason);
            assert!(!refused.to_string().contains("secret"));
        }
    }

    #[test]
    fn files_of_other_kinds_and_empty_ones_are_refused() {
        let refused = |name, content: &str| read(name, content).unwrap_err();
        assert!(matches!(refused("in.txt", "hi"), GenerationError::UnknownFormat { .. }));
        assert!(matches!(refused("in.jsonl", "\n\n"), GenerationError::NoRows { .. }));
        assert!(matches!(refused("in.parquet", "PAR1"), GenerationError::NotParquet { .. }));
        let nowhere = read_requests(Path::new("nowhere.jsonl")).unwrap_err();
        assert!(matches!(nowhere, GenerationError::Read { .. }));
    }
}
