//! Counts in words.

use crate::cli::check::grouped;
use crate::dataset::consent::Counts;

/// `1 row`, `2 rows`.
pub(super) fn plural(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// `2 expired, 1 withdrawn`
pub(super) fn verdicts(counts: &Counts) -> String {
    let reasons = counts.excluded.iter();
    let reasons = reasons.map(|(reason, rows)| format!("{} {reason}", grouped(*rows)));
    reasons.collect::<Vec<_>>().join(", ")
}
