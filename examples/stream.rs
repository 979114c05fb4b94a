//! Goes through the data of a recipe as a run does, and says what it took, for
//! `benches/stream` and `benches/scale`:
//!
//! ```text
//! stream RECIPE [--set KEY=VALUE]... [--do check|judge|tree|steps] [--row ROW] [--steps STEPS] [--digest]
//! ```
//!
//! `check` surveys the rows as a plan does, `judge` looks at their consent alone, `tree` makes
//! the record tree in a temporary folder, and `steps` takes the steps of the stream: all of
//! them, or so many from about a row on. Prints one JSON object, with the most memory that the
//! process held. `--digest` adds a digest of all documents and their masks that does not
//! depend on their order; it keeps them all, and its time is not counted.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use heirloom::allocator;
use heirloom::dataset::batch::RowFile;
use heirloom::dataset::chat::ChatEncoder;
use heirloom::dataset::gate::Gate;
use heirloom::dataset::spec::Spec;
use heirloom::dataset::stream::{Cursor, MicroBatch, Place, Position, Step, Stream};
use heirloom::dataset::survey::{judge_again, survey};
use heirloom::diagnose::Diagnose;
use heirloom::provenance::tree::commit;
use heirloom::recipe;
use heirloom::recipe::plan::ask;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Row groups of a block of the stream, where rows are shuffled.
const BLOCK_GROUPS: u64 = 16;

struct Arguments {
    recipe: String,
    sets: Vec<String>,
    what: String,
    row: u64,
    steps: u64,
    digest: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    allocator::settle();
    let arguments = arguments()?;
    let literal = recipe::read(Path::new(&arguments.recipe), &arguments.sets)?;
    let (recipe, now) = (&literal.recipe, Timestamp::now());
    let gate = Gate::open(ask(&recipe.data, now), &recipe.data.consent.ledgers)?;
    let spec = Spec::new(recipe, Arc::new(gate))?;
    let encoder = Arc::new(ChatEncoder::open_for_texts(&recipe.base.model)?.with_clock(now));
    let began = Instant::now();
    let mut found = match arguments.what.as_str() {
        "check" => {
            let size = survey(&spec, &encoder, usize::MAX, &|_| {}).map_err(named)?.size;
            json!({"size": size})
        }
        "judge" => {
            json!({"rows": judge_again(&spec, &|_| {})?.iter().map(|file| file.rows.seen).sum::<u64>()})
        }
        "tree" => {
            let folder = tempfile::tempdir()?;
            let leaves =
                commit(folder.path(), &spec, &|_| {}).map_err(|error| error.to_string())?.size;
            let bytes =
                |name: &str| fs_err::metadata(folder.path().join(name)).map_or(0, |m| m.len());
            json!({"leaves": leaves, "index_bytes": bytes("record_index.parquet")})
        }
        "steps" => steps(&arguments, spec, encoder)?,
        other => return Err(format!("unknown: {other}").into()),
    };
    let seconds = began.elapsed().as_secs_f64();
    if let Value::Object(found) = &mut found {
        found.entry("seconds").or_insert_with(|| json!(seconds));
        found.insert("peak_mib".to_owned(), json!(peak_mib()));
    }
    writeln!(io::stdout(), "{found}")?;
    Ok(())
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut given = std::env::args().skip(1);
    let recipe = given.next().ok_or("give a recipe")?;
    let (sets, what) = (Vec::new(), "steps".to_owned());
    let mut arguments = Arguments { recipe, sets, what, row: 0, steps: u64::MAX, digest: false };
    while let Some(option) = given.next() {
        let mut value = || given.next().ok_or(format!("{option} needs a value"));
        match option.as_str() {
            "--set" => arguments.sets.push(value()?),
            "--do" => arguments.what = value()?,
            "--row" => arguments.row = value()?.parse()?,
            "--steps" => arguments.steps = value()?.parse()?,
            "--digest" => arguments.digest = true,
            _ => return Err(format!("unknown option {option}").into()),
        }
    }
    Ok(arguments)
}

fn named(error: impl Diagnose + 'static) -> Box<dyn Error> {
    let hint = error.hint().unwrap_or_default();
    format!("{error} ({hint})").into()
}

/// Takes steps, and adds up what they hold.
fn steps(
    arguments: &Arguments,
    spec: Spec,
    encoder: Arc<ChatEncoder>,
) -> Result<Value, Box<dyn std::error::Error>> {
    let window = spec.sequence_length as u64;
    let from = position(&spec, arguments.row)?;
    let at = from.rows.clone();
    let (mut documents, mut tokens, mut trained, mut windows) = (0_u64, 0_u64, 0_u64, 0_u64);
    let (mut first, mut kept, mut steps) = (None, Vec::new(), 0_u64);
    let per_step = spec.windows_per_step as u64;
    let began = Instant::now();
    let stream = Stream::open(spec, encoder, from)?;
    let opened = began.elapsed().as_secs_f64();
    for step in stream.take(usize::try_from(arguments.steps).unwrap_or(usize::MAX)) {
        let step: Step = step?;
        first.get_or_insert_with(|| began.elapsed().as_secs_f64());
        (steps, windows) = (steps + 1, windows + per_step);
        for batch in &step.micro_batches {
            documents += batch.lengths.len() as u64;
            tokens += batch.tokens.len() as u64;
            trained += batch.trained_tokens();
        }
        if arguments.digest {
            kept.push(step);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let digest = arguments.digest.then(|| digest(&kept));
    Ok(json!({
        "seconds": seconds, "open_seconds": opened, "first_step_seconds": first,
        "rows": documents, "tokens": tokens, "trained_tokens": trained, "steps": steps,
        // The last step of a pass may have fewer windows: the figure is a lower bound.
        "efficiency": tokens as f64 / (windows * window).max(1) as f64,
        "rows_per_second": documents as f64 / seconds, "from": at, "digest": digest,
    }))
}

/// Where about so many rows of the training files are done, all being of one strand.
fn position(spec: &Spec, row: u64) -> Result<Position, Box<dyn std::error::Error>> {
    if row == 0 {
        return Ok(Position::default());
    }
    let mut groups = Vec::new();
    for file in &spec.files {
        groups.extend_from_slice(RowFile::open(file, &spec.gate)?.source().group_rows());
    }
    let in_block = if spec.shuffle_seed.is_some() { BLOCK_GROUPS } else { 1 };
    let of_group = groups.iter().sum::<u64>() / (groups.len() as u64).max(1);
    let of_block = (of_group * in_block).max(1);
    let cursor = Cursor { turn: 0, block: row / of_block, row: row % of_block };
    let rows = Place { draws: row, strands: vec![cursor] };
    // No pool is half used: all the time until the first step is the seeking and one pool.
    Ok(Position { epoch: 0, pool: 1, windows: 0, rows })
}

/// The sum of the digests of all documents.
fn digest(steps: &[Step]) -> String {
    let mut sum = 0_u128;
    for MicroBatch { tokens, weights, lengths, .. } in steps.iter().flat_map(|s| &s.micro_batches) {
        let (mut tokens, mut weights) = (tokens.iter(), weights.iter());
        for length in lengths.iter().map(|length| *length as usize) {
            let mut digest = Sha256::new();
            tokens.by_ref().take(length).for_each(|token| digest.update(token.to_le_bytes()));
            digest.update([0]);
            let trained = weights.by_ref().take(length).map(|weight| u8::from(*weight > 0.0));
            digest.update(trained.skip(1).collect::<Vec<_>>());
            let first = digest.finalize().first_chunk().copied().unwrap_or_default();
            sum = sum.wrapping_add(u128::from_le_bytes(first));
        }
    }
    format!("{sum:032x}")
}

/// The most memory that this process held, in MiB.
fn peak_mib() -> Option<f64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some((kib / 1024.0 * 10.0).round() / 10.0)
}
