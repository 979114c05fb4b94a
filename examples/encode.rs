//! Tokenises the conversations of Parquet files with their masks on all threads, for
//! `benches/stream`: `encode BASE FILE...` prints seconds, rows, tokens and a digest of all
//! tokens and masks as JSON. The seconds are those of reading, rendering, tokenising and
//! masking; opening the base folder is not among them.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Instant;

use arrow::array::{Array, AsArray, ListArray};
use heirloom::dataset::chat::{ChatEncoder, ChatError, Document, Message};
use heirloom::recipe::TrainOn;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Rows that are read together.
const BATCH: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let base = arguments.next().ok_or("give the base folder")?;
    let encoder = ChatEncoder::open(Path::new(&base))?;
    let began = Instant::now();
    let mut documents = Vec::new();
    for path in arguments {
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(fs_err::File::open(path)?.into_file())?;
        for batch in reader.with_batch_size(BATCH).build()? {
            let batch = batch?;
            let rows = batch.column_by_name("messages").ok_or("no column `messages`")?;
            let rows = rows.as_list_opt().ok_or("`messages` is no list")?;
            let encoded: Result<Vec<Document>, ChatError> = (0..rows.len())
                .into_par_iter()
                .map(|row| encoder.encode(&messages(rows, row), TrainOn::Assistant))
                .collect();
            documents.extend(encoded?);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut digest = Sha256::new();
    for document in &documents {
        document.tokens.iter().for_each(|token| digest.update(token.to_le_bytes()));
        digest.update([0]);
        let mask: Vec<u8> = document.trained().skip(1).map(u8::from).collect();
        digest.update(mask);
    }
    let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let tokens: usize = documents.iter().map(|document| document.tokens.len()).sum();
    let found = json!({"seconds": seconds, "rows": documents.len(), "tokens": tokens,
                       "digest": digest});
    writeln!(io::stdout(), "{found}")?;
    Ok(())
}

fn messages(rows: &ListArray, row: usize) -> Vec<Message> {
    let turns = rows.value(row);
    let turns = turns.as_struct();
    let texts = |name| turns.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    let (Some(roles), Some(contents)) = (texts("role"), texts("content")) else {
        return Vec::new();
    };
    let pairs = roles.iter().zip(contents.iter());
    pairs
        .map(|(role, content)| Message {
            role: role.unwrap_or_default().to_owned(),
            content: content.unwrap_or_default().to_owned(),
        })
        .collect()
}
