//! The words of a proof about one record.

use serde::{Deserialize, Serialize};

use super::{Commitment, Hash, Leaf, hexed};

/// `schema` of every proof.
pub const PROOF_SCHEMA: &str = "heirloom-record-proof/v1";

/// Largest proof that is read: one of a few kilobytes is large.
pub const MAX_PROOF_BYTES: u64 = 1 << 20;

/// A proof that a record is, or is not, in a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// [`PROOF_SCHEMA`].
    pub schema: String,
    /// Which record it is about.
    pub record_id: String,
    /// Its token.
    #[serde(with = "hexed")]
    pub token: Hash,
    /// Which tree it is about.
    pub tree: Commitment,
    /// What proves it.
    pub proof: Evidence,
    /// The key of the tokens, where the proof brings it along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyText>,
}

/// A key in a proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyText(#[serde(with = "hexed")] pub Hash);

/// What proves that a record is in a tree, or that it is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Its leaves: one, unless the record came with several contents.
    Inclusion(Vec<Opened>),
    /// The leaves on either side of where it would be.
    Exclusion {
        /// The last leaf with a smaller token, if there is one.
        before: Option<Beside>,
        /// The first leaf with a larger token, if there is one.
        after: Option<Beside>,
    },
}

/// A leaf with what it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opened {
    /// Its place, from 0.
    pub leaf_index: u64,
    /// The salt of the content's digest.
    #[serde(with = "hexed")]
    pub salt: Hash,
    /// The content's digest.
    #[serde(with = "hexed")]
    pub digest: Hash,
    /// From the leaf up.
    #[serde(with = "hexed::list")]
    pub path: Vec<Hash>,
}

/// A leaf of another record: which one, and with what content, does not follow from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beside {
    /// Its place, from 0.
    pub leaf_index: u64,
    /// Token and hidden content.
    #[serde(with = "hexed")]
    pub leaf: Leaf,
    /// From the leaf up.
    #[serde(with = "hexed::list")]
    pub path: Vec<Hash>,
}
