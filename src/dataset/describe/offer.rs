//! What the rows of some files permit at most: the boundary that an offer can state.

use std::collections::BTreeSet;
use std::path::Path;

use arrow::array::{Array, AsArray, ListArray, RecordBatch};
use arrow::datatypes::{Fields, TimestampMicrosecondType};
use fs_err as fs;
use jiff::Timestamp;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use serde_json::{Value, json};

use super::DescribeError;
use crate::dataset::contain::contain;

/// Rows decoded at a time.
const BATCH_ROWS: usize = 8192;
/// Most terms of either kind that an offer states; rows could name any number.
const MAX_TERMS: usize = 256;
/// Columns that are read.
const COLUMNS: [&str; 3] = ["consent_purposes", "consent_processing", "consent_expires_at"];

/// What the rows permit at most. Each row narrows it by its own columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    purposes: BTreeSet<String>,
    processing: BTreeSet<String>,
    /// The latest end of a consent.
    until: Option<Timestamp>,
    /// Whether some consent has no recorded end.
    endless: bool,
}

impl Offer {
    pub(super) fn none() -> Self {
        let none = BTreeSet::new;
        Self { purposes: none(), processing: none(), until: None, endless: false }
    }

    /// Widens the offer by the rows of a file; returns the file's columns.
    pub(super) fn widen(&mut self, path: &Path) -> Result<Fields, DescribeError> {
        let wrong = |what: String| DescribeError::NotParquet { path: path.to_owned(), what };
        let damaged = || wrong("its contents are damaged".to_owned());
        let file = fs::File::open(path)?.into_parts().0;
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = contain(|| ArrowReaderMetadata::load(&file, options))
            .ok_or_else(damaged)?
            .map_err(|error| wrong(error.to_string()))?;
        let fields = metadata.schema().fields().clone();
        let roots = fields.iter().enumerate();
        let roots = roots.filter(|(_, field)| COLUMNS.contains(&field.name().as_str()));
        let roots: Vec<usize> = roots.map(|(at, _)| at).collect();
        let mut reader = contain(|| {
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
            let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
            builder.with_projection(mask).with_batch_size(BATCH_ROWS).build()
        })
        .ok_or_else(damaged)?
        .map_err(|error| wrong(error.to_string()))?;
        while let Some(rows) = contain(|| reader.next()).ok_or_else(damaged)? {
            self.add(&rows.map_err(|error| wrong(error.to_string()))?);
        }
        Ok(fields)
    }

    fn add(&mut self, rows: &RecordBatch) {
        let [purposes, processing, expiry] = COLUMNS.map(|name| rows.column_by_name(name));
        let lists = |column: Option<&arrow::array::ArrayRef>| column?.as_list_opt::<i32>().cloned();
        gather(&mut self.purposes, lists(purposes));
        gather(&mut self.processing, lists(processing));
        let expiry =
            expiry.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        // A column that is absent or of another kind bounds nothing.
        self.endless |= expiry.is_none_or(|column| column.null_count() > 0);
        let latest = expiry.and_then(arrow::compute::max);
        let latest = latest.and_then(|at| Timestamp::from_microsecond(at).ok());
        self.until = self.until.max(latest);
    }

    /// As an ODRL offer with one permission for each processing.
    pub(super) fn document(&self) -> Value {
        let id = |term: &String| json!({ "@id": term });
        let constraint = |left: &str, operator: &str, right: Value| {
            json!({
                "@type": "odrl:Constraint",
                "odrl:leftOperand": { "@id": left },
                "odrl:operator": { "@id": operator },
                "odrl:rightOperand": right,
            })
        };
        let purposes: Vec<Value> = self.purposes.iter().map(id).collect();
        let mut constraints = vec![constraint("odrl:purpose", "odrl:isAnyOf", json!(purposes))];
        if let Some(until) = self.until.filter(|_| !self.endless) {
            constraints.push(constraint("odrl:dateTime", "odrl:lt", json!(until)));
        }
        let permission = |action: &String| {
            json!({
                "@type": "odrl:Permission",
                "odrl:action": { "@id": action },
                "odrl:constraint": constraints,
            })
        };
        let permissions: Vec<Value> = self.processing.iter().map(permission).collect();
        json!({
            "@type": ["CreativeWork", "odrl:Offer"],
            "name": "Consent boundary",
            "description": "No row permits more than this. Most rows permit less: the consent_ \
                            columns of a row say what it permits.",
            "odrl:permission": permissions,
        })
    }
}

/// Terms of the vocabularies that the context declares; anything else is no name of a purpose.
fn gather(terms: &mut BTreeSet<String>, column: Option<ListArray>) {
    let Some(values) = column.as_ref().and_then(|column| column.values().as_string_opt::<i32>())
    else {
        return;
    };
    for term in values.iter().flatten() {
        let name = term.strip_prefix("dpv:").or_else(|| term.strip_prefix("ai:"));
        let plain = name.is_some_and(|name| {
            !name.is_empty() && name.len() < 64 && name.chars().all(|c| c.is_ascii_alphanumeric())
        });
        if plain && !terms.contains(term) && terms.len() < MAX_TERMS {
            terms.insert(term.to_owned());
        }
    }
}
