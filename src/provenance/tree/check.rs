//! Checking a proof, with nothing taken from it on trust.
//!
//! Only the root, the key and the data come from elsewhere; everything between is computed.
//! The size that a proof states needs no outside witness: a leaf's place follows from the
//! turns of its path, and the first, the last and adjacent leaves have turns of their own.

use super::merkle::root_of;
use super::{Beside, Evidence, Hash, Key, Leaf, Opened, PROOF_SCHEMA, Proof, leaf, token_of};
use crate::diagnose::Diagnose;
use crate::files::{hex, sha256_of_bytes};
use crate::provenance::counts::Published;

/// What is known of the tree and of the record from elsewhere.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The root.
    pub root: Hash,
    /// The number of leaves, as far as it is known.
    pub size: Option<Published>,
    /// Which key the tokens were made with.
    pub key_id: Option<String>,
    /// The key.
    pub key: Option<Key>,
    /// Digests of the contents under the record's id in the data at hand.
    pub contents: Option<Vec<Hash>>,
}

/// Why a proof does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a proof of this version.
    #[error("its `schema` is `{found}`, not `{PROOF_SCHEMA}`")]
    Schema {
        /// What it says.
        found: String,
    },
    /// Of another tree.
    #[error("it is about the tree `{found}`, not `{expected}`")]
    Root {
        /// What it says.
        found: String,
        /// What is known.
        expected: String,
    },
    /// Of a tree of another size.
    #[error("it is about a tree of {found} leaves, not {expected}")]
    Size {
        /// What it says.
        found: u64,
        /// What is known.
        expected: Published,
    },
    /// Made with another key.
    #[error("it is about tokens of the key `{found}`, not `{expected}`")]
    KeyId {
        /// What it says.
        found: String,
        /// What is known.
        expected: String,
    },
    /// Nothing shows that the token is the record's.
    #[error("nothing shows that its token is that of `{record_id}`")]
    Unbound {
        /// The record.
        record_id: String,
        /// Whether the data would do instead of the key.
        data_would_do: bool,
    },
    /// The token is another record's.
    #[error("its token is not that of `{record_id}`")]
    Token {
        /// The record.
        record_id: String,
    },
    /// An inclusion without a leaf.
    #[error("it says that the record is in the tree and names no leaf")]
    NoLeaf,
    /// A path that does not lead to the root.
    #[error("the path of leaf {leaf_index} does not lead to the root")]
    Path {
        /// The leaf.
        leaf_index: u64,
    },
    /// The data holds something else.
    #[error("the data has no record `{record_id}` with the content of leaf {leaf_index}")]
    Content {
        /// The record.
        record_id: String,
        /// The leaf.
        leaf_index: u64,
    },
    /// Two neighbours that are not neighbours, or that the token does not lie between.
    #[error("its two leaves are not those on either side of the token")]
    Neighbours,
}

impl Diagnose for Fault {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Schema { .. } => "use the version of the program that made the proof",
                Self::Root { .. } | Self::Size { .. } | Self::KeyId { .. } => {
                    "check it against the release or run that it was made for"
                }
                Self::Unbound { data_would_do: true, .. } => {
                    "give the run's key with `--key`, or the data with `--data`"
                }
                Self::Unbound { .. } => {
                    "give the run's key with `--key`, or ask for a proof made with `--include-key`"
                }
                Self::Content { .. } => "give the file that the record was read from, unchanged",
                _ => "do not trust this proof: ask for it again",
            }
            .to_owned(),
        )
    }
}

/// Whether a proof holds; an inclusion or an exclusion, as it says itself.
pub fn check(proof: &Proof, expected: &Expected) -> Result<(), Fault> {
    check_tree(proof, expected)?;
    let bound = check_token(proof, expected)?;
    let included = matches!(proof.proof, Evidence::Inclusion(_));
    let shown_by_data = included && expected.contents.is_some();
    if !bound && !shown_by_data {
        let record_id = proof.record_id.clone();
        return Err(Fault::Unbound { record_id, data_would_do: included });
    }
    match &proof.proof {
        Evidence::Inclusion(leaves) => check_inclusion(proof, leaves, expected),
        Evidence::Exclusion { before, after } => {
            check_exclusion(proof, before.as_ref(), after.as_ref())
        }
    }
}

/// Whether the proof is about the tree that is known.
fn check_tree(proof: &Proof, expected: &Expected) -> Result<(), Fault> {
    if proof.schema != PROOF_SCHEMA {
        return Err(Fault::Schema { found: proof.schema.clone() });
    }
    let tree = &proof.tree;
    if tree.root != expected.root {
        return Err(Fault::Root { found: hex(&tree.root), expected: hex(&expected.root) });
    }
    if let Some(size) = expected.size.filter(|size| !size.may_be(tree.size)) {
        return Err(Fault::Size { found: tree.size, expected: size });
    }
    match &expected.key_id {
        Some(expected) if *expected != tree.key_id => {
            Err(Fault::KeyId { found: tree.key_id.clone(), expected: expected.clone() })
        }
        _ => Ok(()),
    }
}

/// Whether a key shows that the token is the record's; no key shows nothing.
fn check_token(proof: &Proof, expected: &Expected) -> Result<bool, Fault> {
    let brought = proof.key.as_ref().map(|key| Key::from_bytes(key.0));
    let keys = [expected.key.as_ref(), brought.as_ref()];
    for key in keys.into_iter().flatten() {
        if key.id() != proof.tree.key_id {
            let (found, expected) = (key.id(), proof.tree.key_id.clone());
            return Err(Fault::KeyId { found, expected });
        }
        if key.token(&proof.record_id) != proof.token {
            return Err(Fault::Token { record_id: proof.record_id.clone() });
        }
    }
    Ok(keys.into_iter().flatten().next().is_some())
}

fn check_inclusion(proof: &Proof, leaves: &[Opened], expected: &Expected) -> Result<(), Fault> {
    if leaves.is_empty() {
        return Err(Fault::NoLeaf);
    }
    for opened in leaves {
        let leaf = leaf(&proof.token, &opened.salt, &opened.digest);
        check_path(proof, opened.leaf_index, &leaf, &opened.path)?;
        if expected.contents.as_ref().is_some_and(|contents| !contents.contains(&opened.digest)) {
            let (record_id, leaf_index) = (proof.record_id.clone(), opened.leaf_index);
            return Err(Fault::Content { record_id, leaf_index });
        }
    }
    Ok(())
}

fn check_exclusion(
    proof: &Proof,
    before: Option<&Beside>,
    after: Option<&Beside>,
) -> Result<(), Fault> {
    for beside in [before, after].into_iter().flatten() {
        check_path(proof, beside.leaf_index, &beside.leaf, &beside.path)?;
    }
    let smaller = before.is_none_or(|before| token_of(&before.leaf) < proof.token);
    let larger = after.is_none_or(|after| token_of(&after.leaf) > proof.token);
    let size = proof.tree.size;
    let adjacent =
        match (before.map(|before| before.leaf_index), after.map(|after| after.leaf_index)) {
            (Some(before), Some(after)) => before.checked_add(1) == Some(after),
            (Some(last), None) => last.checked_add(1) == Some(size),
            (None, Some(first)) => first == 0,
            // The root of the empty tree is the digest of nothing.
            (None, None) => size == 0 && hex(&proof.tree.root) == sha256_of_bytes(b""),
        };
    if smaller && larger && adjacent { Ok(()) } else { Err(Fault::Neighbours) }
}

fn check_path(proof: &Proof, leaf_index: u64, leaf: &Leaf, path: &[Hash]) -> Result<(), Fault> {
    let root = root_of(leaf, leaf_index, proof.tree.size, path);
    if root == Some(proof.tree.root) { Ok(()) } else { Err(Fault::Path { leaf_index }) }
}
