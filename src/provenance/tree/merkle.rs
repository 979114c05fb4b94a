//! The Merkle tree of RFC 6962, leaf after leaf, with memory for one root per level.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::Hash;

/// The hash of a leaf.
pub(super) fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(leaf).finalize().into()
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// A tree that grows to the right.
#[derive(Clone, Debug, Default)]
pub(super) struct Growing {
    size: u64,
    /// Roots of the complete subtrees, the largest first: one for each bit set in `size`.
    roots: Vec<Hash>,
}

impl Growing {
    /// Number of leaves.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf by its hash.
    pub(super) fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.roots.push(hash);
        self.size += 1;
    }

    /// The root of the tree so far.
    pub(super) fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev();
        match roots.next() {
            Some(last) => roots.fold(*last, |right, left| node_hash(left, &right)),
            None => Sha256::digest(b"").into(),
        }
    }
}

/// The path of one leaf, made while all leaves pass by.
#[derive(Debug)]
pub(super) struct Path {
    /// From the leaf up: the leaves of each sibling subtree, and its tree so far.
    siblings: Vec<(Range<u64>, Growing)>,
}

impl Path {
    /// The path of leaf `index` of `size`.
    pub(super) fn new(index: u64, size: u64) -> Self {
        let mut siblings = Vec::new();
        let mut subtree = 0..size;
        while subtree.end - subtree.start > 1 {
            let leaves = subtree.end - subtree.start;
            // The largest power of two below the number of leaves.
            let split = subtree.start + leaves.next_power_of_two() / 2;
            let (left, right) = (subtree.start..split, split..subtree.end);
            let (inside, sibling) = if index < split { (left, right) } else { (right, left) };
            siblings.push((sibling, Growing::default()));
            subtree = inside;
        }
        siblings.reverse();
        Self { siblings }
    }

    /// A leaf passes by.
    pub(super) fn see(&mut self, index: u64, leaf: Hash) {
        if let Some((_, tree)) =
            self.siblings.iter_mut().find(|(leaves, _)| leaves.contains(&index))
        {
            tree.push(leaf);
        }
    }

    /// The path, after the last leaf.
    pub(super) fn finish(self) -> Vec<Hash> {
        self.siblings.iter().map(|(_, tree)| tree.root()).collect()
    }
}

/// The root that a leaf, its place and its path lead to (RFC 9162, section 2.1.3.2); `None`
/// where the path is not as long as that place asks for.
pub(super) fn root_of(leaf: &[u8], index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut place, mut last) = (index, size - 1);
    let mut root = leaf_hash(leaf);
    for sibling in path {
        if last == 0 {
            return None;
        }
        if place & 1 == 1 || place == last {
            root = node_hash(sibling, &root);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            root = node_hash(&root, sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(root)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::files::hex;

    /// The inputs of the reference vectors of Certificate Transparency.
    fn reference() -> Vec<Vec<u8>> {
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        inputs.map(<[u8]>::to_vec).into()
    }

    /// RFC 6962, section 2.1, word for word.
    fn slow_root(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => Sha256::digest(b"").into(),
            [leaf] => leaf_hash(leaf),
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                node_hash(&slow_root(left), &slow_root(right))
            }
        }
    }

    /// RFC 6962, section 2.1.1, word for word.
    fn slow_path(index: usize, leaves: &[Vec<u8>]) -> Vec<Hash> {
        if leaves.len() < 2 {
            return Vec::new();
        }
        let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
        let (mut path, sibling) = match index.checked_sub(left.len()) {
            None => (slow_path(index, left), slow_root(right)),
            Some(index) => (slow_path(index, right), slow_root(left)),
        };
        path.push(sibling);
        path
    }

    fn grown(leaves: &[Vec<u8>]) -> Growing {
        let mut tree = Growing::default();
        leaves.iter().for_each(|leaf| tree.push(leaf_hash(leaf)));
        tree
    }

    fn path(index: usize, leaves: &[Vec<u8>]) -> Vec<Hash> {
        let mut path = Path::new(index as u64, leaves.len() as u64);
        for (at, leaf) in leaves.iter().enumerate() {
            path.see(at as u64, leaf_hash(leaf));
        }
        path.finish()
    }

    #[test]
    fn the_reference_vectors_hold() {
        for (leaves, root) in [
            (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
            (3, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
            (8, "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
        ] {
            assert_eq!(hex(&grown(&reference()[..leaves]).root()), root);
        }
        // The path of the first of eight leaves, of the same vectors.
        let expected = [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ];
        assert_eq!(
            path(0, &reference()).iter().map(|hash| hex(hash)).collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn every_path_of_every_size_leads_to_the_root_and_no_other_does() {
        for size in 0..=70_usize {
            let leaves: Vec<Vec<u8>> = (0..size).map(|leaf| vec![leaf as u8; leaf]).collect();
            let root = slow_root(&leaves);
            assert_eq!(grown(&leaves).root(), root, "{size}");
            for index in 0..size {
                let path = path(index, &leaves);
                assert_eq!(path, slow_path(index, &leaves), "{index} of {size}");
                let (at, of) = (index as u64, size as u64);
                assert_eq!(root_of(&leaves[index], at, of, &path), Some(root));
                for other in 0..size {
                    let found = root_of(&leaves[index], other as u64, of, &path);
                    assert_eq!(found == Some(root), other == index, "{index} as {other} of {size}");
                    let found = root_of(&leaves[other], at, of, &path);
                    assert_eq!(found == Some(root), other == index, "{other} at {index} of {size}");
                }
                for short in 0..path.len() {
                    assert_ne!(root_of(&leaves[index], at, of, &path[..short]), Some(root));
                }
                let long = [path.as_slice(), &[root]].concat();
                assert_eq!(root_of(&leaves[index], at, of, &long), None);
            }
            assert_eq!(root_of(b"", size as u64, size as u64, &[]), None);
        }
    }

    proptest! {
        #[test]
        fn paths_of_larger_trees_lead_to_the_root(size in 71..700_usize, place in any::<usize>()) {
            let leaves: Vec<Vec<u8>> = (0..size).map(|leaf| leaf.to_le_bytes().to_vec()).collect();
            let index = place % size;
            let path = path(index, &leaves);
            prop_assert_eq!(&path, &slow_path(index, &leaves));
            let root = root_of(&leaves[index], index as u64, size as u64, &path);
            prop_assert_eq!(root, Some(grown(&leaves).root()));
        }
    }
}
