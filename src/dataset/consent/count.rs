//! The gate over whole files, reading the consent columns alone: who only judges reads no
//! text.

use super::{
    Ask, ConsentColumns, ConsentRow, Counts, Dataset, InLedger, Reason, SUBJECT_WIDTH, judge_rows,
    prune,
};
use crate::dataset::source::{Columns, SourceError, SourceFile};

/// Rows judged at a time.
const ROWS: usize = 8192;

/// Finds withdrawals by a record or whom it is about.
pub type Ledger<'l> = &'l dyn Fn(&str, Option<&[u8; SUBJECT_WIDTH]>) -> InLedger;

/// Judges every row of a file; `may` is all that `ledger` may answer.
pub fn count(
    file: &SourceFile,
    ask: &Ask,
    may: &[InLedger],
    ledger: Ledger<'_>,
) -> Result<Counts, SourceError> {
    let dataset = file.defaults();
    let mut counts = Counts::default();
    for (group, rows) in file.group_rows().iter().enumerate() {
        if let Some(reason) = pruned(file, group, ask, may) {
            counts.add(&Counts { seen: *rows, used: 0, excluded: [(reason, *rows)].into() });
            continue;
        }
        for columns in consent(file, group) {
            for verdict in judge_rows(&columns?, ask, dataset, ledger) {
                counts.count(verdict);
            }
        }
    }
    Ok(counts)
}

/// What `found` makes of every row with one id, with what is said of its data set.
pub fn find<F>(
    file: &SourceFile,
    record_id: &str,
    mut found: impl FnMut(&ConsentRow<'_>, Option<&[u8; SUBJECT_WIDTH]>, &Dataset) -> F,
) -> Result<Vec<F>, SourceError> {
    let mut all = Vec::new();
    for group in 0..file.group_rows().len() {
        for columns in consent(file, group) {
            let columns = columns?;
            let named = (0..columns.len()).filter(|row| columns.record_id(*row) == record_id);
            all.extend(
                named.map(|row| found(&columns.row(row), columns.subject(row), file.defaults())),
            );
        }
    }
    Ok(all)
}

/// As [`prune`], of a row group of a file.
pub fn pruned(file: &SourceFile, group: usize, ask: &Ask, may: &[InLedger]) -> Option<Reason> {
    prune(&file.row_group(group)?, file.fields(), ask, file.defaults(), may)
}

/// The consent columns of a row group, some rows at a time.
fn consent(
    file: &SourceFile,
    group: usize,
) -> impl Iterator<Item = Result<ConsentColumns, SourceError>> {
    file.slices(group, 0, ROWS, Columns::Consent).map(|rows| {
        let wrong = |source| SourceError::Consent { path: file.path().to_owned(), source };
        ConsentColumns::new(&rows?).map_err(wrong)
    })
}

#[cfg(test)]
#[path = "count_tests.rs"]
mod tests;
