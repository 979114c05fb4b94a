//! The record tree: a commitment to the records that a run used, which tells nobody else
//! anything about them, and proofs about single records.
//!
//! Owns the tokens and leaves of records ([`Key`], [`record_digest`]), the tree over them,
//! its making in bounded memory ([`TreeWriter`]), the private index of all rows ([`Index`])
//! and the proofs ([`Proof`]). Does not own which rows are used (the gate says so), nor the
//! manifest that carries the commitment.
//!
//! ```text
//! token  = HMAC-SHA256(key, "consent/v1 token\0" || record_id)
//! digest = SHA-256(JCS(content))
//! leaf   = token || SHA-256("consent/v1 leaf\0" || salt || digest)
//! ```
//!
//! Leaves are sorted by token, so that a missing token has two neighbours that prove it
//! missing. A record that occurs several times with the same content has one leaf; with
//! different contents, a leaf for each, in the order of their digests.
//!
//! References: RFC 6962 section 2.1 (the tree), RFC 9162 section 2.1.3.2 (checking a path),
//! RFC 8785 (canonical JSON), RFC 2104 (HMAC).

use std::fmt;
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

mod check;
mod commit;
mod content;
mod data;
mod error;
pub(super) mod hexed;
mod index;
mod merkle;
mod proof;
mod prove;
mod sort;
mod writer;

#[cfg(test)]
mod tests;

pub use check::{Expected, Fault, check};
pub use commit::commit;
pub use content::record_digest;
pub use data::each_digest;
pub use error::TreeError;
pub use hexed::{hash_from_hex, token_from_hex};
pub use index::{Index, IndexRow};
pub use proof::{Beside, Evidence, MAX_PROOF_BYTES, Opened, PROOF_SCHEMA, Proof};
pub use prove::{check_index, prove};
pub use writer::{Row, TreeWriter};

use crate::files::{hex, read_bounded, write_atomically, write_privately_with};

/// A SHA-256.
pub type Hash = [u8; 32];

/// A leaf: a token, and the salted digest of a content.
pub type Leaf = [u8; 64];

/// How the root follows from the leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// The Merkle tree hash of RFC 6962 with SHA-256.
    #[serde(rename = "rfc6962-sha256")]
    Rfc6962Sha256,
}

/// What is said of a tree outside the run: nothing about any record follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Commitment {
    /// How the root follows from the leaves.
    pub algorithm: Algorithm,
    /// Number of leaves.
    pub size: u64,
    /// The root.
    #[serde(with = "hexed")]
    pub root: Hash,
    /// Which key the tokens were made with: [`Key::id`].
    pub key_id: String,
}

/// Largest `record_tree.json` or `record_key` that is read.
const MAX_SMALL_BYTES: u64 = 4096;

impl Commitment {
    /// Reads a `record_tree.json`.
    pub fn read(path: &Path) -> Result<Self, TreeError> {
        let bytes = read_bounded(path, MAX_SMALL_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|error| TreeError::Commitment {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
            what: error.to_string(),
        })
    }

    fn write(&self, path: &Path) -> Result<(), TreeError> {
        // Numbers and strings alone: this cannot fail but by a defect.
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::other)?;
        Ok(write_atomically(path, format!("{text}\n").as_bytes())?)
    }
}

/// Whether `text` may be the name of a key.
pub fn is_key_id(text: &str) -> bool {
    text.len() == KEY_ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

const KEY_ID_DIGITS: usize = 16;

/// The secret that makes the tokens of one run. Who holds it can tell whether a record that
/// they know of is in the tree, so it stays with the run.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Hash);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

impl Key {
    /// A new key from the system's random bytes.
    pub fn random() -> Result<Self, TreeError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|_| TreeError::Random)?;
        Ok(Self(key))
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: Hash) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Hash {
        &self.0
    }

    /// Reads a `record_key`: 64 hexadecimal digits.
    pub fn read(path: &Path) -> Result<Self, TreeError> {
        let bytes = read_bounded(path, MAX_SMALL_BYTES)?;
        let text = String::from_utf8(bytes).ok();
        let key = text.and_then(|text| hash_from_hex(text.trim_end()));
        key.map(Self).ok_or_else(|| TreeError::Key { path: path.to_owned() })
    }

    /// Writes it where only its owner can read it.
    pub fn write(&self, path: &Path) -> Result<(), TreeError> {
        let text = format!("{}\n", hex(&self.0));
        Ok(write_privately_with(path, |file| file.write_all(text.as_bytes()))?)
    }

    /// A name for the key that says nothing about it.
    pub fn id(&self) -> String {
        let digest = Sha256::new().chain_update(b"consent/v1 key\0").chain_update(self.0);
        let mut id = hex(&digest.finalize());
        id.truncate(KEY_ID_DIGITS);
        id
    }

    /// The token of a record.
    pub fn token(&self, record_id: &str) -> Hash {
        // HMAC fills a key up to its block with zeros; done here, it is always of one size.
        let mut block = [0; 64];
        block.split_at_mut(32).0.copy_from_slice(&self.0);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        mac.update(b"consent/v1 token\0");
        mac.update(record_id.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

/// The leaf of a token and a salted content.
fn leaf(token: &Hash, salt: &Hash, digest: &Hash) -> Leaf {
    let hidden = Sha256::new().chain_update(b"consent/v1 leaf\0").chain_update(salt);
    let mut leaf = [0; 64];
    let (left, right) = leaf.split_at_mut(32);
    left.copy_from_slice(token);
    right.copy_from_slice(&hidden.chain_update(digest).finalize());
    leaf
}

/// The token half of a leaf.
fn token_of(leaf: &Leaf) -> Hash {
    let mut token = [0; 32];
    token.copy_from_slice(leaf.split_at(32).0);
    token
}
