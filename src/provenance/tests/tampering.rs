//! Every way of tampering with a release is found, and called what it is.

use std::io::Write as _;

use super::*;

fn problems(release: &Path) -> Vec<Problem> {
    match verify(release) {
        Ok(verified) => panic!("it holds: {verified:?}"),
        Err(error) => error.problems,
    }
}

/// Edits the manifest as a forger would: sealing it again.
fn forge(release: &Path, edit: impl FnOnce(&mut Value)) {
    let path = release.join(MANIFEST);
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut manifest);
    let place = "/predicate/runDetails/metadata/invocationId";
    let open = format!("sha256:{}", "0".repeat(64));
    if let Some(seal) = manifest.pointer_mut(place) {
        *seal = open.clone().into();
    }
    let text = format!("{}\n", serde_json::to_string_pretty(&manifest).unwrap());
    let seal = format!("sha256:{}", sha256_of_bytes(text.as_bytes()));
    write_atomically(&path, text.replace(&open, &seal).as_bytes()).unwrap();
}

fn edit_text(release: &Path, edit: impl FnOnce(String) -> String) {
    let path = release.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    write_atomically(&path, edit(text).as_bytes()).unwrap();
}

/// Asserts that verifying finds exactly the given problems, in this order.
macro_rules! assert_problems {
    ($release:expr, $($problem:pat),+ $(,)?) => {{
        let found = problems(&$release);
        assert!(matches!(found.as_slice(), [$($problem),+]), "{found:?}");
    }};
}

#[test]
fn forging_without_an_edit_changes_nothing() {
    // The tests below rest on this: what they find is due to their edit alone.
    let (_guard, release) = good();
    let before = fs::read(release.join(MANIFEST)).unwrap();
    forge(&release, |_| {});
    assert_eq!(fs::read(release.join(MANIFEST)).unwrap(), before);
}

#[test]
fn any_flipped_byte_of_any_file_is_found() {
    let (_guard, release) = good();
    let mut flips = 0;
    for item in fs::read_dir(&release).unwrap() {
        let path = item.unwrap().path();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= [0x01, 0x20, 0x80][at % 3];
            fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&bad).unwrap();
            assert!(verify(&release).is_err(), "{} at byte {at}", path.display());
            flips += 1;
        }
        write_atomically(&path, &good).unwrap();
    }
    assert!(flips > 5_000, "{flips}");
    verify(&release).unwrap();
}

#[test]
fn a_missing_an_extra_and_a_changed_file_are_all_named() {
    let (_guard, release) = good();
    fs::remove_file(release.join("LICENSE")).unwrap();
    write(&release.join("croissant/extra.json"), "{}");
    write(&release.join("adapter_config.json"), "changed");
    assert_problems!(
        release,
        Problem::Changed { .. },
        Problem::Extra { .. },
        Problem::Missing { .. }
    );
    let messages: Vec<_> = problems(&release).iter().map(ToString::to_string).collect();
    assert!(messages[0].starts_with("`adapter_config.json` was changed"), "{messages:?}");
    assert_eq!(messages[1], "`croissant/extra.json` is not in the manifest");
    assert_eq!(messages[2], "`LICENSE` is missing");
}

#[cfg(unix)]
#[test]
fn links_and_sockets_are_neither_followed_nor_opened() {
    let (guard, release) = good();
    let outside = guard.place.path().join("outside");
    fs::rename(release.join("LICENSE"), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, release.join("LICENSE")).unwrap();
    std::os::unix::fs::symlink(guard.place.path(), release.join("folder")).unwrap();
    fs::remove_file(release.join("README.md")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(release.join("README.md")).unwrap();
    assert_problems!(
        release,
        Problem::Symlink { .. },
        Problem::Special { .. },
        Problem::Symlink { .. }
    );
}

#[cfg(unix)]
#[test]
fn a_linked_manifest_is_not_read() {
    let (guard, release) = good();
    let outside = guard.place.path().join("outside");
    fs::rename(release.join(MANIFEST), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, release.join(MANIFEST)).unwrap();
    assert_problems!(release, Problem::Symlink { .. });
}

#[test]
fn a_folder_without_manifest_or_no_folder_at_all() {
    let (_guard, release) = good();
    fs::remove_file(release.join(MANIFEST)).unwrap();
    assert_problems!(release, Problem::NoManifest);
    assert_problems!(release.join("nowhere"), Problem::Unreadable { .. });
}

#[test]
fn a_manifest_that_names_files_outside_reads_none_of_them() {
    for name in ["../outside", "/etc/passwd", "a/../../outside", "a\\b", "", "C:x", "nai\u{308}ve"]
    {
        let (_guard, release) = good();
        forge(&release, |manifest| {
            let subject = manifest["subject"].as_array_mut().unwrap();
            subject.push(json!({"name": name, "digest": sha256("0".repeat(64))}));
        });
        assert_problems!(release, Problem::UnsafeName { .. });
    }
}

#[test]
fn an_oversized_manifest_is_not_read() {
    let (_guard, release) = good();
    let file = fs::OpenOptions::new().write(true).open(release.join(MANIFEST)).unwrap();
    file.set_len(MAX_MANIFEST_BYTES + 1).unwrap();
    assert_problems!(release, Problem::ManifestTooLarge { .. });
}

#[test]
fn a_manifest_that_is_not_json() {
    let nested = "[".repeat(100_000);
    for text in ["", "{", "{} {}", "[1,]", "\u{feff}{}", "{\"a\": NaN}", &nested] {
        let (_guard, release) = good();
        edit_text(&release, |_| text.to_owned());
        assert_problems!(release, Problem::NotJson { .. });
    }
    let (_guard, release) = good();
    write_atomically(&release.join(MANIFEST), b"{\n  \"\xff\": 1}").unwrap();
    assert_problems!(release, Problem::NotJson { line: 2, column: 4, .. });
}

#[test]
fn a_manifest_of_another_shape() {
    for text in ["null", "[]", "3", "{}"] {
        let (_guard, release) = good();
        edit_text(&release, |_| text.to_owned());
        assert_problems!(release, Problem::Shape { .. }, Problem::Shape { .. });
    }
    let (_guard, release) = good();
    forge(&release, |manifest| manifest["predicate"]["runDetails"] = json!(7));
    assert_problems!(release, Problem::Shape { .. });
}

#[test]
fn duplicate_keys_at_any_depth() {
    for (once, twice) in [
        ("\"subject\": [", "\"subject\": [], \"subject\": ["),
        ("\"seed\": 17", "\"seed\": 18, \"s\\u0065ed\": 17"),
    ] {
        let (_guard, release) = good();
        edit_text(&release, |text| text.replacen(once, twice, 1));
        assert_problems!(release, Problem::DuplicateKey { .. });
    }
}

#[test]
fn other_statements_are_not_taken_for_ours() {
    let (_guard, release) = good();
    forge(&release, |manifest| {
        manifest["_type"] = json!("https://in-toto.io/Statement/v0.1");
        manifest["predicateType"] = json!("https://in-toto.io/attestation/svr/v0.2");
    });
    assert_problems!(release, Problem::StatementType { .. }, Problem::PredicateType { .. });
    let (_guard, release) = good();
    forge(&release, |manifest| {
        manifest["predicate"]["buildDefinition"]["buildType"] = json!("https://example.org/x");
    });
    assert_problems!(release, Problem::BuildType { .. });
}

#[test]
fn an_edited_manifest_breaks_its_seal() {
    for (from, to) in
        [("\"seed\": 17", "\"seed\": 18"), ("\"invocationId\": ", "\"invocationId\":")]
    {
        let (_guard, release) = good();
        edit_text(&release, |text| text.replacen(from, to, 1));
        assert_problems!(release, Problem::Seal);
    }
}

#[test]
fn digests_that_are_none() {
    for digest in [
        json!({"sha256": "zz"}),
        json!({"sha256": "A".repeat(64)}),
        json!({"sha256": "0".repeat(63)}),
        json!({}),
    ] {
        let (_guard, release) = good();
        forge(&release, |manifest| manifest["subject"][0]["digest"] = digest);
        assert_problems!(release, Problem::BadDigest { .. });
    }
    let (_guard, release) = good();
    forge(&release, |manifest| manifest["subject"][0]["digest"]["md5"] = json!("0".repeat(32)));
    assert_problems!(release, Problem::Algorithm { .. });
}

#[test]
fn files_named_twice_or_in_another_case() {
    let (_guard, release) = good();
    forge(&release, |manifest| {
        let subject = manifest["subject"].as_array_mut().unwrap();
        subject.push(subject[0].clone());
    });
    assert_problems!(release, Problem::DuplicateSubject { .. });

    let (_guard, release) = good();
    let copy = fs::read(release.join("README.md")).unwrap();
    write_atomically(&release.join("readme.MD"), &copy).unwrap();
    forge(&release, |manifest| {
        let subject = manifest["subject"].as_array_mut().unwrap();
        subject.push(json!({"name": "readme.MD", "digest": sha256(sha256_of_bytes(&copy))}));
    });
    assert_problems!(release, Problem::CaseCollision { .. });
}

#[test]
fn a_manifest_cannot_vouch_for_itself_or_for_its_double() {
    let digest = sha256("0".repeat(64));
    let (_guard, release) = good();
    let entry = json!({"name": MANIFEST, "digest": digest});
    forge(&release, |manifest| manifest["subject"].as_array_mut().unwrap().push(entry));
    assert_problems!(release, Problem::NamesItself);

    let (_guard, release) = good();
    let entry = json!({"name": "Provenance.json", "digest": digest});
    forge(&release, |manifest| manifest["subject"].as_array_mut().unwrap().push(entry));
    assert_problems!(release, Problem::CaseCollision { .. }, Problem::Missing { .. });
}

#[test]
fn an_emptied_list_of_files_vouches_for_nothing() {
    let (_guard, release) = good();
    forge(&release, |manifest| manifest["subject"] = json!([]));
    assert_problems!(
        release,
        Problem::NoSubject,
        Problem::Extra { .. },
        Problem::Extra { .. },
        Problem::Extra { .. },
        Problem::Extra { .. },
    );
}

#[test]
fn a_release_of_endless_depth_is_not_walked() {
    let (_guard, release) = good();
    fs::create_dir_all(release.join("a/".repeat(20))).unwrap();
    assert_problems!(release, Problem::TooManyFiles);
}

#[test]
fn a_record_tree_that_is_not_one_is_found() {
    let tree = |size: Value, key_id: &str| {
        json!({"name": "record_tree.json", "annotations": {"recordTree": {
            "algorithm": "rfc6962-sha256", "size": size, "root": "0".repeat(64), "keyId": key_id}}})
    };
    let key_id = "0123456789abcdef";
    let add = |trees: Vec<Value>| {
        let (guard, release) = good();
        forge(&release, |manifest| {
            let byproducts = &mut manifest["predicate"]["runDetails"]["byproducts"];
            byproducts.as_array_mut().unwrap().extend(trees);
        });
        (guard, release)
    };
    let (_guard, release) = add(vec![tree(json!(12), key_id)]);
    assert_eq!(verify(&release).unwrap().record_tree.unwrap().size.to_string(), "12");
    let (_guard, release) = add(vec![tree(json!(12), "0123")]);
    assert_problems!(release, Problem::KeyId);
    let (_guard, release) = add(vec![tree(json!(12), key_id), tree(json!(12), key_id)]);
    assert_problems!(release, Problem::TwoRecordTrees);
    for (pointer, wrong) in [
        ("/annotations/recordTree/algorithm", json!("rfc6962-sha1")),
        ("/annotations/recordTree/size", json!(-1)),
        ("/annotations/recordTree/root", json!("0".repeat(63))),
        ("/annotations/recordTree/root", json!("A".repeat(64))),
        ("/annotations/recordTree", json!({"algorithm": "rfc6962-sha256", "size": 1, "salt": "x"})),
    ] {
        let mut tree = tree(json!(12), key_id);
        *tree.pointer_mut(pointer).unwrap() = wrong;
        let (_guard, release) = add(vec![tree]);
        assert_problems!(release, Problem::Shape { .. });
    }
}
