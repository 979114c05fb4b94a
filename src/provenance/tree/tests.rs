//! Trees as runs make them, and every way to lie about them.

use std::collections::BTreeMap;
use std::path::Path;

use fs_err as fs;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::merkle::{Growing, leaf_hash};
use super::*;
use crate::files::hex;
use crate::run::RunFolder;

const KEY: Hash = [7; 32];

fn digest(text: &str) -> Hash {
    Sha256::digest(text).into()
}

fn id(number: usize) -> String {
    format!("0198f2c0-{number:04}")
}

fn used(record_id: &str) -> Row<'_> {
    let digest = Some(digest(record_id));
    Row { record_id, subject: None, salt: None, digest, left_out: None }
}

/// A run folder with the tree of these rows.
struct Made {
    place: tempfile::TempDir,
    commitment: Commitment,
}

impl Made {
    fn of(rows: &[Row<'_>]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut writer = TreeWriter::new(place.path(), Key::from_bytes(KEY)).unwrap();
        rows.iter().for_each(|row| writer.add(row).unwrap());
        let commitment = writer.finish().unwrap();
        Self { place, commitment }
    }

    fn sized(size: usize) -> Self {
        let ids: Vec<String> = (0..size).map(id).collect();
        Self::of(&ids.iter().map(|id| used(id)).collect::<Vec<_>>())
    }

    fn run(&self) -> RunFolder {
        RunFolder::new(self.place.path())
    }

    fn prove(&self, record_id: &str) -> Proof {
        prove(&self.run(), record_id, false).unwrap().0
    }

    fn rows(&self) -> Vec<IndexRow> {
        let mut rows = Vec::new();
        let index = Index::open(&self.run().record_index()).unwrap();
        index
            .each(|row| {
                rows.push(row);
                Ok(())
            })
            .unwrap();
        rows
    }

    /// What an auditor knows who holds the key.
    fn expected(&self) -> Expected {
        let Commitment { size, root, key_id, .. } = self.commitment.clone();
        Expected {
            root,
            size: Some(crate::provenance::counts::Published::of(size)),
            key_id: Some(key_id),
            key: Some(Key::from_bytes(KEY)),
            contents: None,
        }
    }
}

fn is_inclusion(proof: &Proof) -> bool {
    matches!(proof.proof, Evidence::Inclusion(_))
}

#[test]
fn every_record_of_every_size_is_proven_in_or_out() {
    for size in 0..=70 {
        let made = Made::sized(size);
        assert_eq!(made.commitment.size, size as u64);
        for number in 0..size + 3 {
            let proof = made.prove(&id(number));
            assert_eq!(is_inclusion(&proof), number < size, "{number} of {size}");
            assert_eq!(check(&proof, &made.expected()), Ok(()), "{number} of {size}");
            // The same root alone is enough.
            let expected = Expected { size: None, key_id: None, ..made.expected() };
            assert_eq!(check(&proof, &expected), Ok(()));
            let other = Expected { root: [1; 32], ..made.expected() };
            assert!(matches!(check(&proof, &other), Err(Fault::Root { .. })));
        }
    }
}

#[test]
fn the_tree_is_that_of_the_sorted_leaves() {
    let made = Made::sized(100);
    let rows = made.rows();
    let mut leaves: Vec<Leaf> =
        rows.iter().map(|row| leaf(&row.token, &row.salt, &row.digest.unwrap())).collect();
    assert!(leaves.is_sorted());
    for row in &rows {
        assert_eq!(row.token, Key::from_bytes(KEY).token(&row.record_id));
        assert_eq!(row.digest, Some(digest(&row.record_id)));
    }
    let salts: std::collections::BTreeSet<Hash> = rows.iter().map(|row| row.salt).collect();
    assert_eq!(salts.len(), 100);
    leaves.sort();
    let mut tree = Growing::default();
    leaves.iter().for_each(|leaf| tree.push(leaf_hash(leaf)));
    assert_eq!(tree.root(), made.commitment.root);
}

#[test]
fn the_token_and_the_leaf_are_those_of_the_specification() {
    // Computed with Python's hmac and hashlib.
    let key = Key::from_bytes(KEY);
    assert_eq!(
        hex(&key.token("rec-1")),
        "491d9ca303e000600c843f1a0a7d5b4460200e45b291da8adebe972e3dbf2d35"
    );
    assert_eq!(
        hex(&leaf(&[1; 32], &[2; 32], &[3; 32])[32..]),
        "d9be6b5ff667f7c8f4cc563071184d2b36b7e7df03907f6687b500ba043fc951"
    );
    assert_eq!(key.id(), "e24da4b619055b9b");
    assert!(is_key_id(&key.id()) && !is_key_id("9C1A") && !is_key_id(&"g".repeat(16)));
}

#[test]
fn the_index_tells_of_every_row_and_the_tree_only_of_the_used() {
    let subject = Some([9; 32]);
    let made = Made::of(&[
        Row { subject, salt: Some([4; 32]), ..used("a") },
        Row { left_out: Some("withdrawn"), ..used("b") },
        Row { digest: None, left_out: Some("overlong"), ..used("c") },
    ]);
    assert_eq!(made.commitment.size, 1);
    let rows: BTreeMap<String, IndexRow> =
        made.rows().into_iter().map(|row| (row.record_id.clone(), row)).collect();
    assert_eq!((rows["a"].subject_ref, rows["a"].salt, rows["a"].used), (subject, [4; 32], true));
    assert_eq!((rows["b"].used, rows["b"].reason.as_deref()), (false, Some("withdrawn")));
    assert_eq!((rows["c"].digest, rows["c"].reason.as_deref()), (None, Some("overlong")));
    for (id, in_it) in [("a", true), ("b", false), ("c", false), ("d", false)] {
        let (proof, rows) = prove(&made.run(), id, false).unwrap();
        assert_eq!((is_inclusion(&proof), rows.len()), (in_it, usize::from(id != "d")));
        assert_eq!(check(&proof, &made.expected()), Ok(()));
    }
}

#[test]
fn a_record_that_comes_again_is_one_leaf_for_each_content() {
    let other = Row { digest: Some(digest("edited")), ..used("a") };
    let out = Row { left_out: Some("expired"), ..used("a") };
    let made = Made::of(&[out, used("a"), other, used("b"), used("a"), out, other]);
    assert_eq!((made.commitment.size, made.rows().len()), (3, 7));
    let proof = made.prove("a");
    assert_eq!(check(&proof, &made.expected()), Ok(()));
    let Evidence::Inclusion(leaves) = &proof.proof else { panic!("{proof:?}") };
    assert_eq!(leaves.len(), 2);
    assert!(leaves.iter().any(|leaf| leaf.digest == digest("edited")));
    // A token that is there twice does not hide its neighbours.
    for absent in 0..40 {
        let proof = made.prove(&id(absent));
        assert_eq!((is_inclusion(&proof), check(&proof, &made.expected())), (false, Ok(())));
    }
}

#[test]
fn a_used_row_without_a_digest_is_our_defect() {
    let place = tempfile::tempdir().unwrap();
    let mut writer = TreeWriter::new(place.path(), Key::from_bytes(KEY)).unwrap();
    let refused = writer.add(&Row { digest: None, ..used("a") }).unwrap_err();
    assert!(matches!(&refused, TreeError::NoDigest { record_id } if record_id == "a"));
    assert_eq!(crate::diagnose::Diagnose::blame(&refused), crate::diagnose::Blame::Defect);
}

#[cfg(unix)]
#[test]
fn what_stays_with_the_run_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let made = Made::sized(3);
    let run = made.run();
    for (path, private) in
        [(run.record_key(), true), (run.record_index(), true), (run.record_tree(), false)]
    {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o077;
        assert_eq!(mode == 0, private, "{}", path.display());
    }
    assert_eq!(fs::read_dir(made.place.path()).unwrap().count(), 3);
    assert!(!format!("{:?}", Key::from_bytes(KEY)).contains("07"));
    let public = fs::read_to_string(run.record_tree()).unwrap();
    assert!(!public.contains(&hex(&KEY)));
}

#[test]
fn an_index_has_a_page_index_and_finds_records_in_one_row_group() {
    let made = Made::sized(2500);
    let path = made.run().record_index();
    let file = fs::File::open(&path).unwrap().into_parts().0;
    let options = parquet::arrow::arrow_reader::ArrowReaderOptions::new()
        .with_page_index_policy(parquet::file::metadata::PageIndexPolicy::Required);
    let metadata = parquet::arrow::arrow_reader::ArrowReaderMetadata::load(&file, options).unwrap();
    let group = metadata.metadata().row_group(0);
    assert!(group.columns().iter().all(|column| column.column_index_offset().is_some()));
    let index = Index::open(&path).unwrap();
    let key = Key::from_bytes(KEY);
    for number in [0, 17, 2499] {
        assert_eq!(index.find(&key.token(&id(number))).unwrap()[0].record_id, id(number));
    }
    assert!(index.find(&key.token("absent")).unwrap().is_empty());
}

fn proof_of(text: &[u8]) -> Option<Proof> {
    serde_json::from_slice(text).ok()
}

#[test]
fn any_flipped_byte_of_a_proof_is_found() {
    let made = Made::sized(5);
    for record_id in [id(2), id(77)] {
        for reveal_key in [false, true] {
            let (proof, _) = prove(&made.run(), &record_id, reveal_key).unwrap();
            for text in [serde_json::to_vec(&proof), serde_json::to_vec_pretty(&proof)] {
                let text = text.unwrap();
                for at in 0..text.len() {
                    for bit in 0..8 {
                        let mut flipped = text.clone();
                        flipped[at] ^= 1 << bit;
                        let holds = proof_of(&flipped)
                            .is_some_and(|proof| check(&proof, &made.expected()).is_ok());
                        assert!(!holds, "{}", String::from_utf8_lossy(&flipped));
                    }
                }
            }
        }
    }
}

#[test]
fn a_proof_whose_token_nobody_can_check_does_not_hold() {
    let made = Made::sized(5);
    let expected = Expected { key: None, ..made.expected() };
    for (record_id, data_would_do) in [(id(2), true), (id(77), false)] {
        let unbound = check(&made.prove(&record_id), &expected);
        assert_eq!(unbound, Err(Fault::Unbound { record_id: record_id.clone(), data_would_do }));
        let (proof, _) = prove(&made.run(), &record_id, true).unwrap();
        assert_eq!(check(&proof, &expected), Ok(()));
    }
    let with = |contents| Expected { contents: Some(contents), ..expected.clone() };
    let (inside, outside) = (made.prove(&id(2)), made.prove(&id(77)));
    assert_eq!(check(&inside, &with(vec![digest(&id(2))])), Ok(()));
    for contents in [vec![], vec![digest("other")]] {
        let wrong = check(&inside, &with(contents));
        assert!(matches!(wrong, Err(Fault::Content { .. })), "{wrong:?}");
    }
    assert!(matches!(check(&outside, &with(vec![])), Err(Fault::Unbound { .. })));
}

#[test]
fn a_forged_exclusion_of_a_record_that_is_in_the_tree_fails() {
    let made = Made::sized(9);
    let rows = made.rows();
    let beside = |at: usize| {
        let Evidence::Inclusion(mut leaves) = made.prove(&rows[at].record_id).proof else {
            panic!("leaf {at} is missing")
        };
        let opened = leaves.remove(0);
        let leaf = leaf(&rows[at].token, &opened.salt, &opened.digest);
        Beside { leaf_index: opened.leaf_index, leaf, path: opened.path }
    };
    let honest = made.prove(&rows[4].record_id);
    let claim = |before: Option<usize>, after: Option<usize>, size: u64| {
        let proof = Evidence::Exclusion { before: before.map(beside), after: after.map(beside) };
        let tree = Commitment { size, ..honest.tree.clone() };
        check(&Proof { proof, tree, ..honest.clone() }, &Expected { size: None, ..made.expected() })
    };
    // Neighbours at a distance, its own leaf as a neighbour, one side or none, swapped sides;
    // whatever size is claimed.
    for size in 0..20 {
        for before in [None, Some(0), Some(3), Some(4), Some(5), Some(8)] {
            for after in [None, Some(0), Some(3), Some(4), Some(5), Some(8)] {
                assert!(claim(before, after, size).is_err(), "{before:?} {after:?} {size}");
            }
        }
    }
    let none = Evidence::Inclusion(Vec::new());
    assert_eq!(check(&Proof { proof: none, ..honest }, &made.expected()), Err(Fault::NoLeaf));
}

#[test]
fn indices_of_leaves_cannot_be_forged_to_look_adjacent() {
    // The true leaves 3 and 5 of nine, given with every pair of places and every size.
    let made = Made::sized(9);
    let rows = made.rows();
    let honest = made.prove(&rows[4].record_id);
    let of = |at: usize| match made.prove(&rows[at].record_id).proof {
        Evidence::Inclusion(leaves) => leaves[0].clone(),
        other => panic!("{other:?}"),
    };
    let (three, five) = (of(3), of(5));
    for size in 0..40 {
        for index in 0..size {
            let side = |opened: &Opened, row: &IndexRow, leaf_index| {
                let leaf = leaf(&row.token, &opened.salt, &opened.digest);
                Some(Beside { leaf_index, leaf, path: opened.path.clone() })
            };
            let (before, after) = (side(&three, &rows[3], index), side(&five, &rows[5], index + 1));
            let tree = Commitment { size, ..honest.tree.clone() };
            let forged =
                Proof { proof: Evidence::Exclusion { before, after }, tree, ..honest.clone() };
            assert!(check(&forged, &Expected { size: None, ..made.expected() }).is_err());
        }
    }
}

#[test]
fn a_proof_of_another_run_or_key_fails() {
    let (made, other) = (Made::sized(5), Made::sized(5));
    assert_ne!(made.commitment.root, other.commitment.root, "salts are random");
    let proof = made.prove(&id(1));
    assert!(matches!(check(&proof, &other.expected()), Err(Fault::Root { .. })));
    let key = Some(Key::from_bytes([8; 32]));
    let wrong = check(&proof, &Expected { key, ..made.expected() });
    assert!(matches!(wrong, Err(Fault::KeyId { .. })));
    let renamed = Proof { record_id: id(2), ..proof };
    assert!(matches!(check(&renamed, &made.expected()), Err(Fault::Token { .. })));
}

#[test]
fn an_index_that_was_changed_proves_nothing() {
    let (made, other) = (Made::sized(40), Made::sized(40));
    let run = made.run();
    fs::copy(other.run().record_index(), run.record_index()).unwrap();
    let refused = prove(&run, &id(1), false).unwrap_err();
    assert!(matches!(refused, TreeError::OtherTree { .. }), "{refused}");
    fs::copy(made.run().record_tree(), run.record_index()).unwrap();
    let refused = prove(&run, &id(1), false).unwrap_err();
    assert!(matches!(refused, TreeError::Index { .. }), "{refused}");
}

#[test]
fn a_damaged_index_is_an_error_and_no_crash() {
    let made = Made::sized(40);
    let run = made.run();
    let whole = fs::read(run.record_index()).unwrap();
    let honest = made.prove(&id(1));
    for at in (0..whole.len()).step_by(13) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        overwrite(&run.record_index(), &bytes);
        if let Ok((proof, _)) = prove(&run, &id(1), false) {
            // What was hit is not needed for the proof.
            assert_eq!(proof, honest, "{at}");
        }
        overwrite(&run.record_index(), &whole[..at]);
        prove(&run, &id(1), false).unwrap_err();
    }
}

#[test]
fn damaged_keys_and_commitments_are_named() {
    let made = Made::sized(2);
    let run = made.run();
    for key in ["", "07", &"0g".repeat(32), &hex(&KEY).to_uppercase().replace('7', "A")] {
        overwrite(&run.record_key(), key.as_bytes());
        let refused = prove(&run, &id(1), false).unwrap_err();
        assert!(matches!(refused, TreeError::Key { .. }), "{refused}");
    }
    overwrite(&run.record_key(), "00".repeat(32).as_bytes());
    assert!(matches!(prove(&run, &id(1), false).unwrap_err(), TreeError::OtherKey { .. }));
    let good = fs::read_to_string(run.record_tree()).unwrap();
    for (from, to) in
        [("sha256", "sha1"), ("\"size\"", "\"sise\""), ("\"root\": \"", "\"root\": \"A")]
    {
        overwrite(&run.record_tree(), good.replace(from, to).as_bytes());
        let refused = prove(&run, &id(1), false).unwrap_err();
        assert!(matches!(refused, TreeError::Commitment { .. }), "{refused}");
    }
    overwrite(&run.record_tree(), &[b' '; 5000]);
    assert!(matches!(prove(&run, &id(1), false).unwrap_err(), TreeError::Io(_)));
}

fn overwrite(path: &Path, bytes: &[u8]) {
    crate::files::write_atomically(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_rows_give_proofs_that_hold(
        rows in proptest::collection::vec((0..60_usize, 0..3_u8, any::<bool>()), 0..120),
    ) {
        let ids: Vec<String> = (0..60).map(id).collect();
        let rows: Vec<Row<'_>> = rows.iter().map(|(record, content, out)| Row {
            digest: Some([*content; 32]),
            left_out: out.then_some("purpose"),
            ..used(&ids[*record])
        }).collect();
        let made = Made::of(&rows);
        let mut leaves: Vec<_> = rows.iter().filter(|row| row.left_out.is_none())
            .map(|row| (row.record_id, row.digest)).collect();
        leaves.sort();
        leaves.dedup();
        prop_assert_eq!(made.commitment.size, leaves.len() as u64);
        prop_assert_eq!(made.rows().len(), rows.len());
        for record_id in &ids {
            let proof = made.prove(record_id);
            prop_assert_eq!(check(&proof, &made.expected()), Ok(()));
            let contents = leaves.iter().filter(|(id, _)| id == record_id).count();
            match proof.proof {
                Evidence::Inclusion(found) => prop_assert_eq!(found.len(), contents),
                Evidence::Exclusion { .. } => prop_assert_eq!(contents, 0),
            }
        }
    }
}
