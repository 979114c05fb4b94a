//! `data/preference`: letters with two lines each, a right one and one that a tired clerk might
//! have written, and letters with one line that is right or not.

use std::error::Error;
use std::path::Path;

use crate::catalogue::{REFUSALS, REFUSED_NAME, ROWS_PER_GROUP, consenting, footer};
use crate::orders::{self, HOUSE, Split};
use crate::parquet_out::{self, Row, Said};
use crate::words::Rng;

/// Seed of the data set; each file is a stream of its own.
const SEED: u64 = 0x0DD5_B0A7;
/// Usable rows of each file.
const FILES: [(&str, Split, usize, bool); 4] = [
    ("train.parquet", Split::Train, 1200, false),
    ("validation.parquet", Split::Validation, 120, false),
    ("labelled-train.parquet", Split::Train, 2000, true),
    ("labelled-validation.parquet", Split::Validation, 200, true),
];
/// In a hundred wrong lines, those that are no line at all.
const PROSE: usize = 30;

/// Writes the data set into `folder`.
pub(crate) fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    fs_err::create_dir_all(folder)?;
    let mut footer = footer();
    if let Some(footer) = footer.as_object_mut() {
        let id = "urn:uuid:5d1c4a64-0f3b-8b0e-8a53-6f3f0f7f2a03";
        footer.insert("dataset_id".to_owned(), id.into());
    }
    for (stream, (name, split, usable, labelled)) in FILES.into_iter().enumerate() {
        let mut rng = Rng::new(SEED, stream as u64);
        let row = |rng: &mut Rng, letter: &str, line: String| {
            let said = if labelled { judged(rng, letter, line) } else { pair(rng, letter, line) };
            consenting(rng, said)
        };
        let mut rows: Vec<Row> = Vec::new();
        for _ in 0..usable {
            let (letter, line) = orders::letter(&mut rng, split);
            rows.push(row(&mut rng, &letter, line));
        }
        // One of each kind that must be refused.
        for refuse in REFUSALS {
            let first = HOUSE.name(&mut rng, 9);
            let customer = format!("{first} {REFUSED_NAME}");
            let (letter, line) = orders::letter_of(&mut rng, split, &customer);
            let mut row = row(&mut rng, &letter, line);
            refuse(&mut row);
            rows.push(row);
        }
        rng.shuffle(&mut rows);
        parquet_out::write(&folder.join(name), &rows, ROWS_PER_GROUP, &footer)?;
    }
    Ok(())
}

fn pair(rng: &mut Rng, letter: &str, line: String) -> Said {
    let rejected = wrong(rng, &line);
    Said::Pair { prompt: letter.to_owned(), chosen: line, rejected }
}

fn judged(rng: &mut Rng, letter: &str, line: String) -> Said {
    let label = rng.percent(50);
    let completion = if label { line } else { wrong(rng, &line) };
    Said::Labelled { prompt: letter.to_owned(), completion, label }
}

/// Another answer than the line: with a mistake in it, or none of the house's lines.
fn wrong(rng: &mut Rng, line: &str) -> String {
    if rng.percent(PROSE) {
        let customer = line.split(" # ").next().and_then(|head| head.split_once("@ "));
        let customer = customer.map_or("", |(_, customer)| customer);
        return match rng.below(3) {
            0 => format!("Thank you for your letter, {customer}. We will see to it."),
            1 => format!("Dear {customer}, your letter has reached us."),
            _ => format!("{customer} wrote to us."),
        };
    }
    loop {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let place = rng.below(words.len());
        if let Some(slip) = orders::slip(rng, &words[place]) {
            words[place] = slip;
            return words.join(" ");
        }
    }
}
