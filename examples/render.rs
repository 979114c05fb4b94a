//! Renders and tokenises conversations from stdin to stdout, one JSON object a line, for
//! `scripts/interop`: `{"folder", "conversation", "add_generation_prompt"}` gives `{"text"}`,
//! and with `"masks": ["assistant", "last"]` also `{"masks": {"last": {"tokens", "trained"}}}`,
//! where a mask may be `{"refused"}`; or `{"refused"}`.

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
    masks: Vec<TrainOn>,
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
    let mask = |train_on: &TrainOn| {
        let mask = match encoder.encode(&request.conversation, *train_on) {
            Ok(found) => {
                let trained: Vec<bool> = found.trained().collect();
                json!({"tokens": found.tokens, "trained": trained})
            }
            Err(error) => refused(error),
        };
        (json!(train_on).as_str().unwrap_or_default().to_owned(), mask)
    };
    let masks: BTreeMap<String, Value> = request.masks.iter().map(mask).collect();
    json!({"text": text, "masks": masks})
}
