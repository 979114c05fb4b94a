//! The manifest: an in-toto Statement v1 with the SLSA provenance v1 predicate.
//!
//! Owns the shapes and the seal. The shapes hold nothing beyond what the two standards
//! name, except within the parts that they leave free (parameters and annotations).
//!
//! The seal is the `invocationId`: the SHA-256 of the manifest with the 64 digits of the
//! seal itself as zeros. It makes any damage to the manifest visible; it is no signature,
//! since whoever rewrites a manifest can seal it again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::counts::{Published, Rows};
use super::tree;
use crate::dataset::consent::Reason;
use crate::files::sha256_of_bytes;
use crate::job::ExportKind;
use crate::run::Scores;

/// `_type` of every statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// `predicateType` of every manifest.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// `buildType`: what the parameters of this version mean.
pub const BUILD_TYPE: &str = "https://heirloom.dev/buildtypes/finetune/v1";
/// `builder.id`: a person's own machine, which vouches for nothing.
pub const BUILDER_ID: &str = "https://heirloom.dev/builders/local/v1";
/// `name` of the dependency that describes the base as a whole.
pub const BASE: &str = "base_model";
/// The same of the model whose distributions were learned.
pub const TEACHER: &str = "teacher_model";

/// Digests by algorithm, lower-case hex; releases use `sha256` alone.
pub type Digests = BTreeMap<String, String>;

/// `{"sha256": digest}`.
pub fn sha256(digest: impl Into<String>) -> Digests {
    Digests::from([("sha256".to_owned(), digest.into())])
}

/// Whether `text` is a SHA-256 in lower-case hex.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The statement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// Every file of the release but the manifest, sorted by name.
    pub subject: Vec<Resource>,
    /// [`PREDICATE_TYPE`].
    pub predicate_type: String,
    /// What is said of the files.
    pub predicate: Predicate,
}

/// A file, or something else that can be pointed at: in-toto's `ResourceDescriptor`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// What it is called here.
    pub name: String,
    /// Where it is, or which it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Its bytes.
    #[serde(default, skip_serializing_if = "Digests::is_empty")]
    pub digest: Digests,
    /// Its format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What else is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
}

/// What is known of a [`Resource`]; each part occurs on its own kind of resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Annotations {
    /// Of the base and of a teacher: its licence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<Licence>,
    /// Of a file of rows: `train`, `validation` or `test/SUITE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Of a file of rows: the verdict of the consent gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<Consent>,
    /// Of `metrics.jsonl`: its summary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// Of an evaluation: its numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// Of `record_tree.json`: the commitment to the records that were used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_tree: Option<RecordTree>,
}

/// The commitment to the records of a run, as published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordTree {
    /// How the root follows from the leaves.
    pub algorithm: tree::Algorithm,
    /// Number of leaves.
    pub size: Published,
    /// The root.
    #[serde(with = "tree::hexed")]
    pub root: tree::Hash,
    /// Which key the tokens were made with.
    pub key_id: String,
}

/// The licence of a model, as its own files state it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Licence {
    /// The hub's identifier in the base's model card; `unknown` if there is none.
    pub hub: String,
    /// The card's `license_name`, which goes with `other`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license_name: Option<String>,
    /// The card's `license_link`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license_link: Option<String>,
    /// SHA-256 of its licence and notice files, by name; those of the base are in the release.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub texts: BTreeMap<String, String>,
}

/// The verdict of the consent gate on one file of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Consent {
    /// Version of the columns: `consent/v1`.
    pub schema: String,
    /// The instant of judgement.
    pub evaluated_at: Timestamp,
    /// Consent had to last until then.
    pub required_until: Timestamp,
    /// Rows read.
    pub rows_seen: Published,
    /// Rows used.
    pub rows_used: Published,
    /// Rows left out, by reason.
    pub excluded: BTreeMap<Reason, Published>,
}

impl Consent {
    /// The counts again.
    pub fn rows(&self) -> Rows {
        Rows { used: self.rows_used, excluded: self.excluded.clone() }
    }
}

/// Summary of a training run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Training {
    /// Optimiser steps taken.
    pub steps: u64,
    /// Tokens processed.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Most memory in use, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Rows that were withdrawn while training went on, and left out from then on.
    #[serde(default, skip_serializing_if = "Published::is_zero")]
    pub withdrawn_rows: Published,
}

/// Numbers of one suite: no text of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evaluation {
    /// Name of the suite.
    pub suite: String,
    /// Rows that it was measured on.
    pub rows: Published,
    /// The adapted model.
    pub target: Scores,
    /// The base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Scores>,
}

/// SLSA provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicate {
    /// What was asked for, and made of what.
    pub build_definition: BuildDefinition,
    /// How it went.
    pub run_details: RunDetails,
}

/// What was asked for, and made of what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    /// [`BUILD_TYPE`].
    pub build_type: String,
    /// What the user said.
    pub external_parameters: External,
    /// What the program and the machine added.
    pub internal_parameters: Internal,
    /// Every input.
    pub resolved_dependencies: Vec<Resource>,
}

/// What the user said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct External {
    /// The recipe with every default filled in.
    pub recipe: Value,
    /// The recipe file as the user wrote it.
    pub recipe_source: Resource,
    /// Shape of the release.
    pub export: ExportKind,
    /// What every row had to allow.
    pub intended_use: IntendedUse,
}

/// What every row had to allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IntendedUse {
    /// DPV purposes.
    pub purposes: Vec<String>,
    /// DPV processing.
    pub processing: Vec<String>,
}

/// What the program and the machine added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Internal {
    /// The extent that the plan found.
    pub resolved: Resolved,
    /// Where it was computed, in PyTorch's words.
    pub device: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Whether the same inputs give the same bytes again on this device.
    pub deterministic: bool,
}

/// The extent that the plan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens of one pass.
    pub tokens_per_epoch: u64,
    /// Of these, tokens that carry loss.
    pub trained_tokens_per_epoch: u64,
    /// Seed of everything random.
    pub seed: u64,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunDetails {
    /// Who ran it.
    pub builder: Builder,
    /// When.
    pub metadata: Metadata,
    /// What else came out, and stayed in the run folder.
    pub byproducts: Vec<Resource>,
}

/// Who ran it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// [`BUILDER_ID`].
    pub id: String,
    /// Versions by program or library.
    pub version: BTreeMap<String, String>,
}

/// When it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The seal: `sha256:` and 64 digits.
    pub invocation_id: String,
    /// Start of the run.
    pub started_on: Timestamp,
    /// End of training.
    pub finished_on: Timestamp,
}

const SEAL: &str = "sha256:";

/// The digits that stand in for the seal while it is computed.
fn open_seal() -> String {
    format!("{SEAL}{}", "0".repeat(64))
}

/// The place of a seal in the bytes of a manifest. The quotes make it unmistakable: inside
/// a JSON string they would be escaped.
fn sealed_member(seal: &str) -> String {
    format!("\"invocationId\": \"{seal}\"")
}

impl Statement {
    /// The bytes of the manifest, sealed.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut open = self.clone();
        open.predicate.run_details.metadata.invocation_id = open_seal();
        let mut text = serde_json::to_string_pretty(&open)?;
        text.push('\n');
        let seal = format!("{SEAL}{}", sha256_of_bytes(text.as_bytes()));
        Ok(text.replacen(&sealed_member(&open_seal()), &sealed_member(&seal), 1).into_bytes())
    }
}

/// Whether `seal`, as read from the manifest `text`, is the seal of it.
pub fn seal_holds(text: &str, seal: &str) -> bool {
    let Some(digest) = seal.strip_prefix(SEAL).filter(|digest| is_sha256(digest)) else {
        return false;
    };
    let member = sealed_member(seal);
    text.matches(&member).count() == 1
        && sha256_of_bytes(text.replacen(&member, &sealed_member(&open_seal()), 1).as_bytes())
            == digest
}
