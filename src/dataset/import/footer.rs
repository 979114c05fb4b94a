//! What is said of the whole data set: the footer `consent.v1`, in canonical JSON (RFC 8785).

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::declared::Declared;
use super::error::ImportError;
use crate::dataset::describe::About;

/// The version of DPV whose terms the columns hold.
const DPV_VERSION: &str = "2.3";

/// The footer of a declaration; `now` is the instant of the snapshot where it has none.
pub(super) fn write(declared: &Declared, now: Timestamp) -> Result<String, ImportError> {
    let mut sources = declared.sources.clone();
    if let Some(default) = &declared.default
        && default.basis == "not_personal_data"
        && let Some(source) = sources.get_mut(&default.source)
    {
        // The gate asks the source of a row why it is about nobody.
        source.justification.get_or_insert_with(|| default.justification.clone());
    }
    let snapshot_at = match &declared.snapshot_at {
        Some(text) => super::terms::instant(text).unwrap_or(now),
        None => now,
    };
    let mut defaults = json!({ "license": declared.license });
    let said = [("notice", &declared.notice), ("expiry", &declared.expiry)];
    set(&mut defaults, &said);
    let mut footer = json!({
        "schema": "consent/v1",
        "dataset_id": declared.dataset_id,
        "controller": declared.controller,
        "jurisdictions": declared.jurisdictions,
        "dpv_version": DPV_VERSION,
        "snapshot_at": snapshot_at.to_string(),
        "defaults": defaults,
        "sources": sources,
    });
    set(
        &mut footer,
        &[
            ("withdrawal", &declared.withdrawal),
            ("ledger", &declared.ledger),
            ("max_snapshot_age", &declared.max_snapshot_age),
        ],
    );
    if let Some(default) = &declared.default
        && let Some(object) = footer.as_object_mut()
    {
        let said = json!({"basis": default.basis, "justification": default.justification});
        object.insert("consent_default".to_owned(), said);
    }
    serde_json_canonicalizer::to_string(&footer)
        .map_err(|error| ImportError::Columns { reason: error.to_string() })
}

fn set(object: &mut Value, said: &[(&str, &Option<String>)]) {
    let Some(object) = object.as_object_mut() else { return };
    for (key, value) in said {
        object.extend(value.iter().map(|value| ((*key).to_owned(), json!(value))));
    }
}

/// What the sidecars beside `output` say of the data set.
pub(super) fn about(declared: &Declared, output: &Path, footer: &str) -> About {
    let stem = || output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let origins = || {
        let origins =
            declared.sources.iter().map(|(name, source)| format!("{name}: {}", source.origin));
        origins.collect::<Vec<_>>().join("; ")
    };
    About {
        name: declared.name.clone().unwrap_or_else(stem),
        description: declared.description.clone().unwrap_or_else(origins),
        consent: serde_json::from_str(footer).unwrap_or_default(),
        ..About::default()
    }
}

/// The namespace of the ids of a data set's records.
pub(super) fn namespace(dataset_id: &str) -> Uuid {
    let own = dataset_id.strip_prefix("urn:uuid:").unwrap_or(dataset_id);
    Uuid::parse_str(own)
        .unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_URL, dataset_id.as_bytes()))
}
