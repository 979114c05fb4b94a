//! Committing to the rows of a run, as it begins.

use std::path::Path;

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::content::record_digest;
use super::writer::{Row, TreeWriter};
use super::{Commitment, Hash, Key};
use crate::dataset::batch::{Batch, Read, RowFile};
use crate::dataset::spec::{Spec, SplitFile};
use crate::diagnose::Failure;
use crate::recipe::lock::Split;
use crate::recipe::plan::Tick;

/// Rows that are digested together.
const ROWS: usize = 4096;

/// Writes the record tree of a run, its index and its key into `folder`, the run folder.
///
/// The leaves are the rows that training may use: what the gate lets through of `data.train`
/// and is not held out. Rows that are too long for a window count as used, since only the
/// tokenizer knows them. All other rows are in the index with the reason why not.
pub fn commit(folder: &Path, spec: &Spec, tick: Tick<'_>) -> Result<Commitment, Failure> {
    let mut tree = TreeWriter::new(folder, Key::random()?)?;
    for file in &spec.files {
        let rows = RowFile::open(file, &spec.gate)?;
        // What is not learned from needs no digest.
        let read = if file.split == Split::Train { Read::Content } else { Read::Consent };
        for batch in rows.all(ROWS, read) {
            let batch = batch?;
            add(&mut tree, spec, file, &batch)?;
            tick(batch.len() as u64);
        }
    }
    Ok(tree.finish()?)
}

/// What a row is to the tree: a leaf's digest, or the word for why it is none.
type Fate = Result<Hash, String>;

fn add(tree: &mut TreeWriter, spec: &Spec, file: &SplitFile, batch: &Batch) -> Result<(), Failure> {
    let fate = |row| fate(spec, file, batch, row);
    let fates: Vec<Result<Fate, Failure>> = (0..batch.len()).into_par_iter().map(fate).collect();
    for (row, fate) in fates.into_iter().enumerate() {
        let fate = fate?;
        tree.add(&Row {
            record_id: batch.record_id(row),
            subject: batch.subject(row).copied(),
            salt: batch.salt(row),
            digest: fate.as_ref().ok().copied(),
            left_out: fate.as_ref().err().map(String::as_str),
        })?;
    }
    Ok(())
}

fn fate(spec: &Spec, file: &SplitFile, batch: &Batch, row: usize) -> Result<Fate, Failure> {
    if let Err(reason) = batch.verdict(row) {
        return Ok(Err(reason.key().to_owned()));
    }
    let held_out = match &file.split {
        Split::Train => None,
        Split::Validation => Some("validation".to_owned()),
        Split::Test(suite) => Some(format!("test {suite}")),
    };
    if let Some(word) = held_out {
        return Ok(Err(word));
    }
    let sample = batch.sample(row)?;
    if spec.holds_out(&sample) {
        return Ok(Err("validation".to_owned()));
    }
    Ok(Ok(record_digest(&sample)?))
}
