//! Renders and tokenises conversations from stdin to stdout, one JSON object a line, for
//! `scripts/interop`: `{"folder", "conversation", "add_generation_prompt"}` gives `{"text"}`,
//! and with `"mask": true` also `{"tokens", "trained"}` or `{"mask_refused"}`; or `{"refused"}`.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

use heirloom::dataset::chat::{ChatEncoder, ChatError, Conversation};
use heirloom::recipe::TrainOn;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Request {
    folder: PathBuf,
    conversation: Conversation,
    #[serde(default)]
    add_generation_prompt: bool,
    #[serde(default)]
    mask: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let clock = std::env::args().nth(1).ok_or("give the time that the templates shall see")?;
    let clock = clock.parse()?;
    let mut encoders: BTreeMap<PathBuf, Result<ChatEncoder, ChatError>> = BTreeMap::new();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let open = |folder: &Path| ChatEncoder::open(folder).map(|e| e.with_clock(clock));
        let encoder =
            encoders.entry(request.folder.clone()).or_insert_with_key(|folder| open(folder));
        let answer = match encoder {
            Ok(encoder) => answer(encoder, &request),
            Err(error) => json!({"refused": error.to_string()}),
        };
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn answer(encoder: &ChatEncoder, request: &Request) -> Value {
    let refused = |error: ChatError| json!({"refused": error.to_string()});
    let text = match encoder.render(&request.conversation, request.add_generation_prompt) {
        Ok(text) => text,
        Err(error) => return refused(error),
    };
    if !request.mask {
        return json!({"text": text});
    }
    match encoder.encode(&request.conversation, TrainOn::Assistant) {
        Ok(found) => {
            json!({"text": text, "tokens": found.tokens, "trained": found.trained().collect::<Vec<_>>()})
        }
        Err(error) => json!({"text": text, "mask_refused": error.to_string()}),
    }
}
