//! Writes the text that the bundled model and data are made of:
//!
//! ```text
//! cargo run --release --example generate -- grow        # data/grow: general chats, for growing
//! cargo run --release --example generate -- tokenizer   # data/seedling: all but the weights
//! cargo run --release --example generate -- catalogue   # data/catalogue: the domain
//! cargo run --release --example generate -- preference  # data/preference: answers that are judged
//! ```
//!
//! Everything comes from fixed seeds: the same command writes the same bytes. The folder
//! `data` is taken from the current directory, or named as a second argument.

mod catalogue;
mod forms;
mod general;
mod grow;
mod judged;
mod orders;
mod parquet_out;
mod scenes;
mod tokenizer;
mod words;

use std::error::Error;
use std::path::Path;

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turn {
    pub(crate) role: &'static str,
    pub(crate) content: String,
}

pub(crate) fn system(content: String) -> Turn {
    Turn { role: "system", content }
}

pub(crate) fn user(content: String) -> Turn {
    Turn { role: "user", content }
}

pub(crate) fn assistant(content: String) -> Turn {
    Turn { role: "assistant", content }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let data = words.next().unwrap_or_else(|| "data".to_owned());
    let data = Path::new(&data);
    match command.as_str() {
        "grow" => grow::write(&data.join("grow")),
        "tokenizer" => tokenizer::write(&data.join("seedling")),
        "catalogue" => catalogue::write(&data.join("catalogue")),
        "preference" => judged::write(&data.join("preference")),
        _ => Err("say what to generate: `grow`, `tokenizer`, `catalogue` or `preference`".into()),
    }
}
