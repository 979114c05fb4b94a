//! What the statistics of a row group prove of all its rows.
//!
//! Owns skipping what the gate would refuse anyway, before it is read. Every fact is given all
//! the values that minimum, maximum and null count leave open, and the rules are asked about
//! every combination: only where all of them end in one and the same refusal is there
//! anything to say. Statistics that lie can thereby cost rows, and never let one in.

use std::iter;

use arrow::datatypes::{DataType, Fields};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;

use super::judge::{Basis, Facts, Rule, Standing, decide};
use super::purposes;
use super::texts::{Limit, nanoseconds};
use super::{Ask, COLUMNS, Dataset, InLedger, Reason, SOURCE, SUBJECT};

/// The reason for which every row of a row group is left out, if its statistics prove one.
///
/// `fields` are those of the file, `ledger` is what the ledgers may say of a row: which rows
/// their events are about is not in the statistics.
pub fn prune(
    group: &RowGroupMetaData,
    fields: &Fields,
    ask: &Ask,
    dataset: &Dataset,
    ledger: &[InLedger],
) -> Option<Reason> {
    if group.num_rows() <= 0 {
        return None;
    }
    let possible = Possible::of(group, fields, ask, dataset, ledger);
    let mut verdicts =
        possible.facts().map(|facts| decide(&facts, ask, dataset).map_err(Rule::reason));
    let first = verdicts.next()?.err()?;
    verdicts.all(|verdict| verdict == Err(first)).then_some(first)
}

/// The values that each of the [`Facts`] may have in a row group.
struct Possible {
    complete: bool,
    in_ledger: Vec<InLedger>,
    basis: Vec<Option<Basis>>,
    status: Vec<Option<Standing>>,
    purposes: Vec<Option<bool>>,
    processing: Vec<Option<bool>>,
    has_record: Vec<bool>,
    has_subject: Vec<bool>,
    justified: Vec<bool>,
    given_later: Vec<bool>,
    ends: Vec<Option<bool>>,
    withdrawn: Vec<bool>,
}

impl Possible {
    fn of(
        group: &RowGroupMetaData,
        fields: &Fields,
        ask: &Ask,
        dataset: &Dataset,
        ledger: &[InLedger],
    ) -> Self {
        let column = |name| Column::new(group, fields, name);
        let (at, until) = (Limit::new(ask.at), Limit::new(ask.until));
        let record = column("consent_record_id");
        let subject = column(SUBJECT);
        let truth = |column: Column<'_>, limit| -> Vec<bool> {
            // Null is neither before nor after.
            column.is_by(limit).into_iter().map(|is_by| is_by == Some(true)).collect()
        };
        let later = |column: Column<'_>, limit| -> Vec<bool> {
            column.is_by(limit).into_iter().map(|is_by| is_by == Some(false)).collect()
        };
        Self {
            complete: COLUMNS.iter().all(|name| fields.find(name).is_some()),
            in_ledger: ledger.to_vec(),
            basis: column("consent_basis").words(&Basis::WORDS, Basis::of),
            status: column("consent_status").words(&Standing::WORDS, Standing::of),
            purposes: column("consent_purposes").allows(
                &ask.purpose,
                purposes::includes,
                purposes::allowing,
            ),
            processing: column("consent_processing").allows(
                &ask.processing,
                purposes::includes_processing,
                purposes::allowing_processing,
            ),
            has_record: options(record.may_hold_text(), record.may_lack_text()),
            has_subject: options(subject.may_be_value(), subject.may_be_null()),
            justified: {
                let source = column(SOURCE);
                let named = |name: &str| source.may_be(name);
                let all_named = source.only().is_some_and(|only| dataset.justifies(only));
                let lacks = source.may_be_null() || !all_named;
                options(dataset.justified().any(named), lacks)
            },
            given_later: later(column("consent_given_at"), at),
            ends: column("consent_expires_at").is_by(until),
            withdrawn: truth(column("consent_withdrawn_at"), until),
        }
    }

    /// Every combination, one at a time.
    fn facts(&self) -> impl Iterator<Item = Facts> {
        let first = Facts {
            in_ledger: InLedger::Nothing,
            complete: self.complete,
            basis: None,
            status: None,
            purposes: None,
            processing: None,
            has_record: false,
            has_subject: false,
            justified: false,
            given_later: false,
            ends: None,
            withdrawn: false,
        };
        iter::once(first)
            .flat_map(|f| self.in_ledger.iter().map(move |v| Facts { in_ledger: *v, ..f }))
            .flat_map(|f| self.basis.iter().map(move |v| Facts { basis: *v, ..f }))
            .flat_map(|f| self.status.iter().map(move |v| Facts { status: *v, ..f }))
            .flat_map(|f| self.purposes.iter().map(move |v| Facts { purposes: *v, ..f }))
            .flat_map(|f| self.processing.iter().map(move |v| Facts { processing: *v, ..f }))
            .flat_map(|f| self.has_record.iter().map(move |v| Facts { has_record: *v, ..f }))
            .flat_map(|f| self.has_subject.iter().map(move |v| Facts { has_subject: *v, ..f }))
            .flat_map(|f| self.justified.iter().map(move |v| Facts { justified: *v, ..f }))
            .flat_map(|f| self.given_later.iter().map(move |v| Facts { given_later: *v, ..f }))
            .flat_map(|f| self.ends.iter().map(move |v| Facts { ends: *v, ..f }))
            .flat_map(|f| self.withdrawn.iter().map(move |v| Facts { withdrawn: *v, ..f }))
    }
}

/// The truth values that are possible.
fn options(yes: bool, no: bool) -> Vec<bool> {
    [(yes, true), (no, false)].into_iter().filter(|(may, _)| *may).map(|(_, v)| v).collect()
}

/// What is known of a column in a row group. A column that is absent is null throughout.
struct Column<'g> {
    chunk: Option<&'g ColumnChunkMetaData>,
    /// Nanoseconds of its unit, if it holds instants.
    nanoseconds: Option<i128>,
}

impl<'g> Column<'g> {
    fn new(group: &'g RowGroupMetaData, fields: &Fields, name: &str) -> Self {
        let mut chunks = group.columns().iter();
        let chunk = chunks
            .find(|chunk| chunk.column_path().parts().first().is_some_and(|root| root == name));
        let nanoseconds = match fields.find(name).map(|(_, field)| field.data_type()) {
            Some(DataType::Timestamp(unit, Some(_))) => Some(nanoseconds(*unit)),
            _ => None,
        };
        Self { chunk, nanoseconds }
    }

    fn statistics(&self) -> Option<&'g Statistics> {
        self.chunk?.statistics()
    }

    /// In a list, an empty one counts as null.
    fn may_be_null(&self) -> bool {
        self.chunk.is_none() || self.statistics().and_then(|s| s.null_count_opt()) != Some(0)
    }

    fn may_be_value(&self) -> bool {
        let Some(chunk) = self.chunk else { return false };
        let nulls = chunk.statistics().and_then(Statistics::null_count_opt);
        let values = u64::try_from(chunk.num_values()).ok();
        nulls.is_none() || nulls < values
    }

    /// The least and the greatest text, or bounds of them.
    fn range(&self) -> Option<(&'g [u8], &'g [u8])> {
        // The order of deprecated ones is that of signed bytes.
        let texts = self.statistics().filter(|texts| !texts.is_min_max_deprecated())?;
        let is_text = matches!(texts, Statistics::ByteArray(_));
        is_text.then_some((texts.min_bytes_opt()?, texts.max_bytes_opt()?))
    }

    /// Whether a text may occur.
    fn may_be(&self, text: &str) -> bool {
        let within = |(min, max): (&[u8], &[u8])| min <= text.as_bytes() && text.as_bytes() <= max;
        self.may_be_value() && self.range().is_none_or(within)
    }

    /// The only text, if there are no two.
    fn only(&self) -> Option<&'g str> {
        let (min, max) = self.range()?;
        (min == max).then(|| std::str::from_utf8(min).ok())?
    }

    fn may_hold_text(&self) -> bool {
        self.may_be_value() && self.only() != Some("")
    }

    fn may_lack_text(&self) -> bool {
        self.may_be_null() || self.may_be("")
    }

    fn words<A>(&self, words: &[&str], meaning: fn(&str) -> A) -> Vec<Option<A>> {
        let mut found = Vec::new();
        if self.may_be_null() {
            found.push(None);
        }
        if let Some(only) = self.only().filter(|_| self.may_be_value()) {
            found.push(Some(meaning(only)));
        } else if self.may_be_value() {
            found.extend(words.iter().filter(|word| self.may_be(word)).map(|w| Some(meaning(w))));
            // Between any two words there are words that nobody defined.
            found.push(Some(meaning("")));
        }
        found
    }

    fn allows(
        &self,
        asked: &[String],
        includes: fn(&str, &str) -> bool,
        allowing: fn(&str) -> Vec<&str>,
    ) -> Vec<Option<bool>> {
        let mut found = Vec::new();
        if self.may_be_null() {
            found.extend([None, Some(asked.is_empty())]);
        }
        if let Some(only) = self.only().filter(|_| self.may_be_value()) {
            found.push(Some(asked.iter().all(|wanted| includes(only, wanted))));
        } else if self.may_be_value() {
            let may = |wanted: &String| allowing(wanted).iter().any(|term| self.may_be(term));
            let may_all = asked.iter().all(may);
            found.extend(options(may_all, !asked.is_empty()).into_iter().map(Some));
        }
        found
    }

    /// Whether instants are `limit` or before it.
    fn is_by(&self, limit: Limit) -> Vec<Option<bool>> {
        let mut found = Vec::new();
        if self.may_be_null() {
            found.push(None);
        }
        if self.may_be_value() {
            let range = match (self.statistics(), self.nanoseconds) {
                (Some(Statistics::Int64(values)), Some(nanoseconds)) => {
                    values.min_opt().zip(values.max_opt()).zip(Some(nanoseconds))
                }
                _ => None,
            };
            let (yes, no) = match range {
                Some(((min, max), nanoseconds)) => {
                    (limit.holds(*min, nanoseconds), !limit.holds(*max, nanoseconds))
                }
                None => (true, true),
            };
            found.extend(options(yes, no).into_iter().map(Some));
        }
        found
    }
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;
