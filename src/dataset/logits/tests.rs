use std::path::{Path, PathBuf};

use fs_err as fs;

use super::*;
use crate::files::write_atomically_with;

fn header(top_k: usize) -> Header {
    Header {
        version: Header::version(),
        heirloom: crate::VERSION.to_owned(),
        teacher: serde_json::from_value(serde_json::json!({
            "name": "teacher", "uri": "teacher", "licence": { "hub": "mit" }, "files": [],
        }))
        .unwrap(),
        storage: Storage::default(),
        temperature: 1.5,
        top_k,
        vocabulary: 50,
        words: BTreeMap::new(),
        settings: BTreeMap::new(),
        data: vec!["a".repeat(64)],
    }
}

/// What is said to a document of so many tokens, different for every document.
fn said(document: i32, tokens: i32, top_k: i32) -> Said {
    let all = 0..tokens * top_k;
    // Of what is known at a token together.
    let share = |token: i32| 0.9 / f64::from(1 + document + token);
    let known = |number: i32| (share(number / top_k) / f64::from(top_k)).ln() as f32;
    Said {
        positions: (1..=tokens).collect(),
        ids: all.clone().map(|number| (number + document) % 50).collect(),
        logprobs: all.map(known).collect(),
        rest: (0..tokens).map(|token| (-share(token)).ln_1p() as f32).collect(),
    }
}

fn key(document: i32) -> Key {
    key_of(&[document as u32, 7], &[0.0, 1.0])
}

fn write(path: &Path, header: &Header, documents: &[(i32, Said)]) {
    let mut failure = None;
    write_atomically_with(path, |file| {
        let work = || -> Result<(), LogitsError> {
            let mut writer = Writer::new(file, header)?;
            for (document, said) in documents {
                writer.push(&format!("row-{document}"), key(*document), said)?;
            }
            writer.finish()
        };
        failure = work().err();
        Ok(())
    })
    .unwrap();
    assert!(failure.is_none(), "{failure:?}");
}

fn stored(header: &Header, documents: &[(i32, Said)]) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("said.parquet");
    write(&path, header, documents);
    (place, path)
}

#[test]
fn what_was_said_is_read_back_in_any_order() {
    // Several pages and several row groups, and a document longer than a page.
    let documents: Vec<(i32, Said)> = (0..300)
        .map(|document| {
            (document, said(document, if document == 7 { 700 } else { 60 + document % 40 }, 3))
        })
        .collect();
    let (_place, path) = stored(&header(3), &documents);
    let read = Stored::open(&path).unwrap();
    assert_eq!(read.header(), &header(3));
    for (document, said) in documents.iter().rev() {
        assert_eq!(read.said(&key(*document)).unwrap(), *said, "{document}");
    }
    let other = key_of(&[7, 7], &[0.0, 0.0]);
    assert!(matches!(read.said(&other), Err(LogitsError::NoDocument { .. })));
    let again = tempfile::tempdir().unwrap();
    write(&again.path().join("said.parquet"), &header(3), &documents);
    let bytes = |path: &Path| fs::read(path).unwrap();
    assert_eq!(bytes(&path), bytes(&again.path().join("said.parquet")));
}

#[test]
fn a_document_is_its_tokens_and_which_of_them_are_trained() {
    let one = key_of(&[1, 2, 3], &[0.0, 1.0, 1.0]);
    assert_eq!(one, key_of(&[1, 2, 3], &[0.0, 0.5, 2.0]), "how much is not said to a teacher");
    for other in [
        key_of(&[1, 2, 3], &[0.0, 1.0, 0.0]),
        key_of(&[1, 2, 4], &[0.0, 1.0, 1.0]),
        key_of(&[1, 2], &[0.0, 1.0]),
        key_of(&[1, 3, 2], &[0.0, 1.0, 1.0]),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn what_no_teacher_said_is_refused() {
    let refused = |change: fn(&mut Said)| {
        let mut wrong = said(1, 4, 3);
        change(&mut wrong);
        let (_place, path) = stored(&header(3), &[(0, said(0, 5, 3)), (1, wrong)]);
        let stored = Stored::open(&path).unwrap();
        assert_eq!(stored.said(&key(0)).unwrap(), said(0, 5, 3));
        match stored.said(&key(1)) {
            Err(LogitsError::Row { row: 5, what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    let token = "names a token that there is none of";
    assert_eq!(refused(|said| said.ids[2] = 50), token);
    assert_eq!(refused(|said| said.ids[2] = -1), token);
    let number = "has a log-probability that is no number";
    assert_eq!(refused(|said| said.logprobs[3] = f32::NAN), number);
    assert_eq!(refused(|said| said.rest[1] = f32::NEG_INFINITY), number);
    assert_eq!(refused(|said| said.ids[1] = said.ids[0]), "names a token twice");
    let sum = "has probabilities that do not add up to one";
    assert_eq!(refused(|said| said.logprobs[4] = 50.0), sum);
    assert_eq!(refused(|said| said.rest[3] = 3e38), sum);
    assert_eq!(refused(|said| said.rest[0] = -80.0), sum);
}

#[test]
fn a_footer_that_promises_something_else_is_refused() {
    // As many tokens as another file has.
    let (_place, path) = stored(&header(3), &[(0, said(0, 5, 3))]);
    let bytes = fs::read(&path).unwrap();
    let text = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let from = from.as_bytes();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        let mut changed = bytes.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, changed).unwrap();
        Stored::open(&path)
    };
    let fewer = text("\"top_k\":3", "\"top_k\":2").unwrap();
    let wrong = fewer.said(&key(0));
    assert!(matches!(wrong, Err(LogitsError::Row { row: 0, .. })), "{wrong:?}");
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("\"top_k\":3", "\"top_k\":0"),
        ("\"top_k\"", "\"top_l\""),
    ] {
        assert!(matches!(text(from, to), Err(LogitsError::Header { .. })), "{to}");
    }
    assert!(matches!(
        text("heirloom.logits", "heirloom.nothin"),
        Err(LogitsError::NoHeader { .. })
    ));
}

#[test]
fn a_file_cut_short_or_of_something_else_is_an_error() {
    let (place, path) = stored(&header(3), &[(0, said(0, 400, 3))]);
    let bytes = fs::read(&path).unwrap();
    for length in [0, 4, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(matches!(Stored::open(&path), Err(LogitsError::NotParquet { .. })), "{length}");
    }
    // Damage anywhere is noticed or harmless, and never a panic.
    for at in (4..bytes.len()).step_by(37) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        fs::write(&path, damaged).unwrap();
        let _ = Stored::open(&path).and_then(|stored| stored.said(&key(0)));
    }
    assert!(matches!(Stored::open(place.path()), Err(LogitsError::Read { .. })));
    let missing = place.path().join("missing");
    assert!(matches!(Stored::open(&missing), Err(LogitsError::Read { .. })));
}
