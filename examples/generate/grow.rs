//! `data/grow`: the general chats on which the seedling grows.

use std::error::Error;
use std::path::Path;

use crate::Turn;
use crate::general::{self, Lesson};
use crate::parquet_out::{self, Row, Said};
use crate::words::Rng;

/// Seed of the data set; each file is a stream of its own.
const SEED: u64 = 0x5EED_1E55;
/// For each file after the first, how many rows in a hundred are exercises in copying. Files
/// are read in order: a model that has found out how to copy learns the rest sooner. The
/// first file holds nothing but the plainest exercise, [`general::litany`].
const DRILLS: &[usize] = &[90, 40, 15, 15, 15];
/// Most things in an exercise. In the second file it grows from one to this.
const LONGEST: usize = 7;
/// Rows in each file.
const ROWS: usize = 13_000;
/// The stream of the validation rows, and of the rows that the tokenizer learns from.
const ASIDE: u64 = 1000;
const ASIDE_LESSON: Lesson = Lesson { drills: 15, longest: LONGEST };
const ROWS_PER_GROUP: usize = 5_000;
/// Rows whose loss is watched.
const VALIDATION_ROWS: usize = 400;

/// Writes the data set into `folder`.
pub(crate) fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    fs_err::create_dir_all(folder)?;
    let mut rng = Rng::new(SEED, 0);
    let litanies =
        (0..ROWS).map(|index| row(0, index, general::litany(&mut rng))).collect::<Vec<_>>();
    let path = folder.join("train-00000.parquet");
    parquet_out::write(&path, &litanies, ROWS_PER_GROUP, &footer())?;
    for (file, &drills) in (1_u64..).zip(DRILLS) {
        let path = folder.join(format!("train-{file:05}.parquet"));
        let lesson = |row: usize| {
            let longest = if file == 1 { (1 + row * LONGEST / ROWS).min(LONGEST) } else { LONGEST };
            Lesson { drills, longest }
        };
        parquet_out::write(&path, &rows(file, ROWS, lesson), ROWS_PER_GROUP, &footer())?;
    }
    let rows = rows(ASIDE, VALIDATION_ROWS, |_| ASIDE_LESSON);
    parquet_out::write(&folder.join("validation.parquet"), &rows, ROWS_PER_GROUP, &footer())
}

/// Rows like those of the data set, yet none of them: what the tokenizer learns from.
pub(crate) fn sample(count: usize) -> Vec<Row> {
    rows(ASIDE + 1, count, |_| ASIDE_LESSON)
}

/// The first `count` rows of a stream.
fn rows(stream: u64, count: usize, lesson: impl Fn(usize) -> Lesson) -> Vec<Row> {
    let mut rng = Rng::new(SEED, stream);
    let chat = |index| row(stream, index, general::chat(&mut rng, lesson(index)));
    (0..count).map(chat).collect()
}

/// A row about nobody: names are drawn from syllables, so there is no one to ask.
fn row(stream: u64, index: usize, messages: Vec<Turn>) -> Row {
    Row {
        record_id: format!("{stream:02}-{index:06}"),
        said: Said::Chat(messages),
        subject_ref: None,
        basis: Some("not_personal_data".to_owned()),
        status: Some("not_applicable".to_owned()),
        purposes: Some(vec!["dpv:ResearchAndDevelopment", "dpv:ServiceProvision"]),
        processing: Some(vec!["ai:ModelFineTuning", "dpv:MakeAvailable"]),
        given_at: None,
        expires_at: None,
        withdrawn_at: None,
        consent_record_id: None,
        source_id: "generator",
        license: "CC0-1.0",
    }
}

/// What the data set says of itself, keys in the order of JCS (RFC 8785).
fn footer() -> serde_json::Value {
    serde_json::json!({
        "controller": "The Heirloom project",
        "dataset_id": "urn:uuid:0b8f3f52-6a0e-8f0f-9d55-2f4a3c0e1d01",
        "defaults": { "expiry": "endless", "license": "CC0-1.0" },
        "dpv_version": "2.3",
        "jurisdictions": [],
        "schema": "consent/v1",
        "snapshot_at": "2026-11-01T00:00:00Z",
        "sources": { "generator": "Written by examples/generate from a seed; names are drawn \
            from syllables and belong to no one." },
    })
}
