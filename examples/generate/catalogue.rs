//! `data/catalogue`: the domain's rows, most of which may be used and some of which may not.

use std::error::Error;
use std::path::Path;

use heirloom::dataset::describe;
use sha2::{Digest, Sha256};

use crate::orders::{self, Split};
use crate::parquet_out::{self, Row, Said};
use crate::words::Rng;

/// Seed of the data set; each split is a stream of its own.
const SEED: u64 = 0x7408_AE5E;
const TRAIN_FILES: usize = 3;
pub(crate) const ROWS_PER_GROUP: usize = 250;
/// Usable rows of each split.
const TRAIN_ROWS: usize = 2600;
const VALIDATION_ROWS: usize = 200;
const TEST_ROWS: usize = 300;
/// Refused rows of each kind in the training split; the others have one of each kind.
const REFUSED_TRAIN_ROWS: usize = 12;
/// The family name of everyone whose row must be refused: where it turns up, a row got past
/// the gate.
pub(crate) const REFUSED_NAME: &str = "Nevermore";

/// Microseconds since 1970 of 2025-03-01, 2099-01-01, 2021-01-01 and 2025-09-01, all UTC.
const GIVEN_AT: i64 = 1_740_787_200_000_000;
const EXPIRES_AT: i64 = 4_070_908_800_000_000;
const LONG_AGO: i64 = 1_609_459_200_000_000;
const WITHDRAWN_AT: i64 = 1_756_684_800_000_000;

/// Writes the data set into `folder`.
pub(crate) fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    fs_err::create_dir_all(folder)?;
    let mut files = Vec::new();
    let train = rows(Split::Train, TRAIN_ROWS, REFUSED_TRAIN_ROWS);
    for (file, rows) in train.chunks(train.len().div_ceil(TRAIN_FILES)).enumerate() {
        let path = folder.join(format!("train-{file:05}.parquet"));
        parquet_out::write(&path, rows, ROWS_PER_GROUP, &footer())?;
        files.push(path);
    }
    for (name, split, count) in [
        ("validation.parquet", Split::Validation, VALIDATION_ROWS),
        ("test.parquet", Split::Test, TEST_ROWS),
    ] {
        let path = folder.join(name);
        parquet_out::write(&path, &rows(split, count, 1), ROWS_PER_GROUP, &footer())?;
        files.push(path);
    }
    // Written anew, so that nothing of an older description stays.
    for sidecar in [describe::CROISSANT, describe::CONSENT] {
        if folder.join(sidecar).exists() {
            fs_err::remove_file(folder.join(sidecar))?;
        }
    }
    Ok(describe::write(folder, &files, &about())?)
}

/// What is said of the data set beside its files.
fn about() -> describe::About {
    let one = |text: &str| vec![text.to_owned()];
    describe::About {
        name: "catalogue".to_owned(),
        description: "Letters to a seed firm that does not exist, and the clerk's line for each: \
                      rows with their consent, of which some may not be used."
            .to_owned(),
        url: Some("https://github.com/heirloom-ml/heirloom/tree/main/data/catalogue".to_owned()),
        version: Some("1.0.0".to_owned()),
        cite_as: Some(
            "@misc{catalogue, title={The catalogue: letters to a seed firm}, \
             author={Heirloom}, year={2026}}"
                .to_owned(),
        ),
        collection: Some("Written by a program from a fixed seed".to_owned()),
        use_cases: one("Fine tuning"),
        limitations: one("Every letter follows one of a few dozen forms"),
        personal_information: one("None: customers, varieties and the firm are fictional"),
        consent: footer().as_object().cloned().unwrap_or_default(),
        ..describe::About::default()
    }
}

/// `used` rows that may be used and `refused` of every kind that may not, mixed.
fn rows(split: Split, used: usize, refused: usize) -> Vec<Row> {
    let mut rng = Rng::new(SEED, split as u64);
    let mut rows: Vec<Row> = (0..used)
        .map(|_| {
            let chat = orders::chat(&mut rng, split);
            consenting(&mut rng, Said::Chat(chat))
        })
        .collect();
    for refuse in REFUSALS {
        for _ in 0..refused {
            let first = orders::HOUSE.name(&mut rng, 9);
            let chat = orders::chat_of(&mut rng, split, &format!("{first} {REFUSED_NAME}"));
            let mut row = consenting(&mut rng, Said::Chat(chat));
            refuse(&mut row);
            rows.push(row);
        }
    }
    rng.shuffle(&mut rows);
    rows
}

/// A row whose subject agreed to everything that this project does.
pub(crate) fn consenting(rng: &mut Rng, said: Said) -> Row {
    Row {
        record_id: uuid(rng),
        said,
        subject_ref: Some(subject(rng.next())),
        basis: Some("consent".to_owned()),
        status: Some(if rng.percent(90) { "given" } else { "renewed" }.to_owned()),
        purposes: Some(vec!["dpv:ServiceProvision", "dpv:ResearchAndDevelopment"]),
        processing: Some(vec!["ai:ModelFineTuning", "dpv:MakeAvailable"]),
        given_at: Some(GIVEN_AT),
        expires_at: Some(EXPIRES_AT),
        withdrawn_at: None,
        consent_record_id: Some(format!("urn:uuid:{}", uuid(rng))),
        source_id: "letters",
        license: "Apache-2.0",
    }
}

/// Every way in which a row may not be used.
pub(crate) const REFUSALS: &[fn(&mut Row)] = &[
    |row| {
        row.status = Some("withdrawn".to_owned());
        row.withdrawn_at = Some(WITHDRAWN_AT);
    },
    |row| {
        row.status = Some("revoked".to_owned());
        row.withdrawn_at = Some(WITHDRAWN_AT);
    },
    |row| row.status = Some("refused".to_owned()),
    |row| row.status = Some("invalidated".to_owned()),
    |row| row.status = Some("objected".to_owned()),
    |row| row.status = Some("requested".to_owned()),
    |row| row.status = Some("deferred".to_owned()),
    |row| row.status = Some("expired".to_owned()),
    // Says that it is given, but it has run out.
    |row| row.expires_at = Some(LONG_AGO),
    |row| row.purposes = Some(vec!["dpv:CustomerCare"]),
    |row| row.purposes = Some(Vec::new()),
    |row| row.processing = Some(vec!["dpv:MakeAvailable"]),
    |row| row.status = Some("unknown".to_owned()),
    |row| row.basis = Some("unknown".to_owned()),
    // A word that nobody defined.
    |row| row.status = Some("probably".to_owned()),
    |row| row.status = None,
    |row| row.basis = None,
    |row| row.purposes = None,
    |row| row.processing = None,
    // Consent without a record of it.
    |row| row.consent_record_id = None,
];

/// A UUID of version 8: its bits are the generator's.
fn uuid(rng: &mut Rng) -> String {
    let (high, low) = (rng.next(), rng.next());
    format!(
        "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xFFFF,
        high & 0xFFF,
        0x8000 | (low >> 50),
        low & 0xFFFF_FFFF_FFFF
    )
}

/// A keyed digest of a fictional person, as the data's keeper would have made it.
fn subject(person: u64) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"thornmere subjects\0");
    hasher.update(person.to_le_bytes());
    hasher.finalize().into()
}

/// What the data set says of itself, keys in the order of JCS (RFC 8785).
pub(crate) fn footer() -> serde_json::Value {
    serde_json::json!({
        "controller": "Thornmere Seeds (fictional)",
        "dataset_id": "urn:uuid:5d1c4a64-0f3b-8b0e-8a53-6f3f0f7f2a02",
        "defaults": { "expiry": "endless", "license": "Apache-2.0" },
        "dpv_version": "2.3",
        "jurisdictions": [],
        "schema": "consent/v1",
        "snapshot_at": "2026-11-01T00:00:00Z",
        "sources": { "letters": "Written by examples/generate from a seed; customers, \
            varieties and the firm are fictional." },
    })
}
