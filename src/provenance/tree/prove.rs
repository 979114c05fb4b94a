//! Making a proof from the files of a run.

use super::merkle::{Growing, Path, leaf_hash};
use super::proof::KeyText;
use super::{
    Beside, Commitment, Evidence, Hash, Index, IndexRow, Key, Leaf, Opened, PROOF_SCHEMA, Proof,
    TreeError, leaf, token_of,
};
use crate::files::hex;
use crate::run::RunFolder;

/// Proves what the tree of `run` says of a record; the rows are what its index holds of it.
///
/// With `reveal_key`, the proof brings the key along. The whole index is read, and must give
/// the root that the run committed to.
pub fn prove(
    run: &RunFolder,
    record_id: &str,
    reveal_key: bool,
) -> Result<(Proof, Vec<IndexRow>), TreeError> {
    let (tree, key, index) = open(run)?;
    let token = key.token(record_id);
    let rows = index.find(&token)?;
    let around = Around::find(&index, &token, &tree)?;
    let proof = around.paths(&index, &token, tree.size, &rows)?;
    let key = reveal_key.then(|| KeyText(*key.bytes()));
    let record_id = record_id.to_owned();
    Ok((Proof { schema: PROOF_SCHEMA.to_owned(), record_id, token, tree, proof, key }, rows))
}

/// Checks that the index of `run` gives the root that the run committed to, and that every
/// row in it bears the id that its token was made of.
///
/// Whom a row is about is not in the tree, and neither are rows that were not used.
pub fn check_index(run: &RunFolder) -> Result<(), TreeError> {
    let (tree, key, index) = open(run)?;
    let mut grown = Growing::default();
    index.each_leaf(|leaf| grown.push(leaf_hash(&leaf)))?;
    is_of(&index, &grown, &tree)?;
    index.each(|row| {
        if row.token == key.token(&row.record_id) {
            return Ok(());
        }
        let what = "a row bears another id than its token was made of".to_owned();
        Err(TreeError::Index { path: index.path().to_owned(), what })
    })
}

/// What a run keeps of its tree.
fn open(run: &RunFolder) -> Result<(Commitment, Key, Index), TreeError> {
    let tree = Commitment::read(&run.record_tree())?;
    let key = Key::read(&run.record_key())?;
    if key.id() != tree.key_id {
        let (found, expected) = (key.id(), tree.key_id);
        return Err(TreeError::OtherKey { path: run.record_key(), found, expected });
    }
    Ok((tree, key, Index::open(&run.record_index())?))
}

/// Whether the leaves of an index are those of a tree.
fn is_of(index: &Index, grown: &Growing, tree: &Commitment) -> Result<(), TreeError> {
    if (grown.size(), grown.root()) == (tree.size, tree.root) {
        return Ok(());
    }
    let said = |size, root: &Hash| format!("{size} leaves with the root {}", hex(root));
    Err(TreeError::OtherTree {
        path: index.path().to_owned(),
        found: said(grown.size(), &grown.root()),
        expected: said(tree.size, &tree.root),
    })
}

/// Where a token is, or would be.
struct Around {
    /// Leaves with a smaller token.
    below: u64,
    /// Leaves with this very token.
    equal: u64,
}

impl Around {
    fn find(index: &Index, token: &Hash, tree: &Commitment) -> Result<Self, TreeError> {
        let (mut below, mut equal, mut grown) = (0, 0, Growing::default());
        index.each_leaf(|leaf| {
            let found = token_of(&leaf);
            below += u64::from(found < *token);
            equal += u64::from(found == *token);
            grown.push(leaf_hash(&leaf));
        })?;
        is_of(index, &grown, tree)?;
        Ok(Self { below, equal })
    }

    /// The leaves that prove it, with their paths.
    fn paths(
        &self,
        index: &Index,
        token: &Hash,
        size: u64,
        rows: &[IndexRow],
    ) -> Result<Evidence, TreeError> {
        let wanted = match self.equal {
            0 => self.below.saturating_sub(1)..(self.below + 1).min(size),
            equal => self.below..self.below + equal,
        };
        let mut leaves: Vec<(u64, Leaf, Path)> = Vec::new();
        let mut paths: Vec<Path> = wanted.clone().map(|at| Path::new(at, size)).collect();
        let mut found = Vec::new();
        let mut at = 0;
        index.each_leaf(|leaf| {
            if wanted.contains(&at) {
                found.push((at, leaf));
            }
            let hash = leaf_hash(&leaf);
            paths.iter_mut().for_each(|path| path.see(at, hash));
            at += 1;
        })?;
        leaves.extend(found.into_iter().zip(paths).map(|((at, leaf), path)| (at, leaf, path)));
        if self.equal > 0 {
            return opened(leaves, rows).ok_or_else(|| TreeError::Index {
                path: index.path().to_owned(),
                what: "it changed while it was read".to_owned(),
            });
        }
        let (mut before, mut after) = (None, None);
        for (leaf_index, leaf, path) in leaves {
            let smaller = token_of(&leaf) < *token;
            let beside = Some(Beside { leaf_index, leaf, path: path.finish() });
            if smaller { before = beside } else { after = beside }
        }
        Ok(Evidence::Exclusion { before, after })
    }
}

/// The leaves of a record with what they are made of, from its rows.
fn opened(leaves: Vec<(u64, Leaf, Path)>, rows: &[IndexRow]) -> Option<Evidence> {
    let open = |(leaf_index, found, path): (u64, Leaf, Path)| {
        let digested = rows.iter().filter_map(|row| Some((row, row.digest?)));
        let mut digested = digested.filter(|(row, _)| row.used);
        let (row, digest) =
            digested.find(|(row, digest)| leaf(&row.token, &row.salt, digest) == found)?;
        Some(Opened { leaf_index, salt: row.salt, digest, path: path.finish() })
    };
    leaves.into_iter().map(open).collect::<Option<Vec<_>>>().map(Evidence::Inclusion)
}
