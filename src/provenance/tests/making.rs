//! What is in a release, and what never is.

use fs_err as fs;
use serde_json::{Value, json};

use super::*;
use crate::provenance::tree::{Commitment, Key, Row, TreeWriter};
use crate::provenance::verify::record_tree;
use crate::recipe::lock::LockedTeacher;

#[test]
fn a_release_holds_and_tells_what_it_is() {
    for (kind, files) in [(ExportKind::Adapter, 4), (ExportKind::Merged, 5)] {
        let finished = Finished::new();
        let release = finished.export(kind, false).unwrap();
        let Verified { files: found, export, base, licence, rows, evaluations, .. } =
            verify(&release).unwrap();
        assert_eq!((found, export), (files, kind));
        assert_eq!((base.as_str(), licence.as_str()), ("seedling", "apache-2.0"));
        assert_eq!(evaluations[0].target.exact_match, 0.955);
        assert_eq!(rows["train"].used.to_string(), "1750");
        assert_eq!(rows["train"].excluded[&Reason::Withdrawn].to_string(), "13 to 16");
        assert_eq!(rows["test/catalogue"].left_out().to_string(), "0");
        assert_eq!(fs::read(release.join("LICENSE")).unwrap(), b"Apache License\n");
    }
}

#[test]
fn a_release_says_who_taught_it() {
    let mut finished = Finished::new();
    let licence = |hub: &str| {
        serde_json::from_value::<crate::provenance::statement::Licence>(json!({ "hub": hub }))
    };
    finished.lock.teacher = Some(LockedTeacher {
        name: "grown *up*".to_owned(),
        uri: "grown up".to_owned(),
        licence: licence("mit").unwrap(),
        files: vec![locked("teacher/model.safetensors")],
        logits: Some(locked("said.parquet")),
    });
    let read =
        |release: &std::path::Path, name: &str| fs::read_to_string(release.join(name)).unwrap();
    let release = finished.export(ExportKind::Adapter, false).unwrap();
    verify(&release).unwrap();
    let card = read(&release, "README.md");
    assert!(card.contains("another model, grown \\*up\\*, would say to them: its licence is mit."));
    let manifest: Value = serde_json::from_str(&read(&release, MANIFEST)).unwrap();
    let inputs = &manifest["predicate"]["buildDefinition"]["resolvedDependencies"];
    let named = |name: &str| inputs.as_array().unwrap().iter().find(|one| one["name"] == name);
    assert_eq!(named("teacher_model").unwrap()["annotations"]["licence"]["hub"], "mit");
    assert!(
        named("teacher_model/teacher/model.safetensors").unwrap()["digest"]["sha256"].is_string()
    );
    assert!(named("teacher_model said.parquet").is_some());
    finished.lock.teacher.as_mut().unwrap().licence = licence("unknown").unwrap();
    let release = finished.export(ExportKind::Adapter, true).unwrap();
    assert!(read(&release, "README.md").contains("whether it may teach others is not known"));
}

#[test]
fn text_of_rows_and_small_counts_stay_out_of_a_release() {
    let (_guard, release) = good();
    for item in fs::read_dir(&release).unwrap() {
        let text = fs::read_to_string(item.unwrap().path()).unwrap();
        assert!(!text.contains("Miriam") && !text.contains("0198f2c0"), "{text}");
        assert!(!text.contains(&"d".repeat(64)));
    }
    let manifest: Value =
        serde_json::from_slice(&fs::read(release.join(MANIFEST)).unwrap()).unwrap();
    let dependencies = manifest["predicate"]["buildDefinition"]["resolvedDependencies"].as_array();
    let first = dependencies.unwrap().iter().find(|one| one["name"] == "t-0.parquet").unwrap();
    let consent = &first["annotations"]["consent"];
    assert_eq!(consent["excluded"], json!({"withdrawn": "< 5", "expired": 8}));
    assert_eq!(consent["rowsSeen"], "909 to 912");
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let (finished, release) = good();
    let read = || {
        let mut files: Vec<_> = fs::read_dir(&release)
            .unwrap()
            .map(|item| item.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let first = read();
    finished.export(ExportKind::Adapter, true).unwrap();
    assert_eq!(first, read());
}

#[test]
fn source_date_epoch_bounds_every_date_of_the_run() {
    let finished = Finished::new();
    let release = finished.export(ExportKind::Adapter, false).unwrap();
    let dates = |latest: Option<&str>| {
        let latest = release::source_date_epoch(latest.map(Into::into)).unwrap();
        let facts = finished.facts(ExportKind::Adapter);
        release::write_documents(&release, &release, &facts, latest).unwrap();
        let manifest: Value =
            serde_json::from_slice(&fs::read(release.join(MANIFEST)).unwrap()).unwrap();
        let metadata = &manifest["predicate"]["runDetails"]["metadata"];
        [metadata["startedOn"].clone(), metadata["finishedOn"].clone()]
    };
    assert_eq!(dates(None), ["2026-11-20T08:00:00Z", "2026-11-20T08:01:02Z"]);
    assert_eq!(dates(Some("1000000000")), ["2001-09-09T01:46:40Z"; 2]);
    for bad in ["", "yesterday", "1.5", "99999999999999"] {
        let error = release::source_date_epoch(Some(bad.into())).unwrap_err();
        assert!(matches!(error, ReleaseError::SourceDateEpoch { .. }), "{bad}");
    }
}

#[test]
fn a_failed_export_leaves_nothing() {
    let finished = Finished::new();
    fs::remove_file(finished.run.consent_report()).unwrap();
    let error = finished.export(ExportKind::Adapter, false).unwrap_err();
    assert!(matches!(error, ReleaseError::Unreadable { .. }), "{error}");
    let left = fs::read_dir(finished.target().parent().unwrap()).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn an_evaluation_that_is_not_one_is_refused_without_quoting_it() {
    let finished = Finished::new();
    write(&finished.run.eval("catalogue"), &format!("{{\n\"suite\": {{\"{ROW_TEXT}\": 1}}}}"));
    let error = finished.export(ExportKind::Adapter, false).unwrap_err();
    assert!(matches!(error, ReleaseError::Run { line: 2, .. }), "{error}");
    assert!(!error.to_string().contains("Miriam"));
}

#[test]
fn only_a_release_is_replaced_and_only_by_force() {
    let (finished, release) = good();
    let again = finished.export(ExportKind::Adapter, false).unwrap_err();
    assert!(matches!(again, ReleaseError::Exists { .. }), "{again}");
    finished.export(ExportKind::Merged, true).unwrap();
    assert_eq!(verify(&release).unwrap().export, ExportKind::Merged);
    fs::remove_file(release.join(MANIFEST)).unwrap();
    let precious = finished.export(ExportKind::Adapter, true).unwrap_err();
    assert!(matches!(precious, ReleaseError::NotARelease { .. }), "{precious}");
    assert!(release.join("model.safetensors").exists());
}

#[test]
fn an_incomplete_payload_is_our_defect() {
    let finished = Finished::new();
    let folder = FolderInProgress::beside(&finished.target()).unwrap();
    write(&folder.path().join("adapter_config.json"), "{}");
    let error = release::finish(folder, &finished.facts(ExportKind::Adapter), false).unwrap_err();
    assert!(matches!(&error, ReleaseError::Payload { what } if what.contains("adapter_model")));
    assert_eq!(crate::diagnose::Diagnose::blame(&error), crate::diagnose::Blame::Defect);
}

#[test]
fn metadata_survives_hostile_names() {
    let hostile = "on: {a}\n---\nlicense: mit # \"x\" 'y' \u{202e}";
    let mut finished = Finished::new();
    finished.recipe.name = hostile.to_owned();
    for name in ["yes", "1:20", "2026-01-01", "null", "- x", "*a", "!tag", "0x1F", "~", hostile] {
        let base = finished.place.path().join("bases").join(name);
        let card = serde_saphyr::to_string(&json!({"license": name})).unwrap();
        write(&base.join("README.md"), &format!("---\n{card}---\n"));
        finished.recipe.base.model = base;
        let release = finished.export(ExportKind::Adapter, finished.target().exists()).unwrap();
        verify(&release).unwrap();
        let text = fs::read_to_string(release.join("README.md")).unwrap();
        let (yaml, _) = text.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
        let metadata: Value = serde_saphyr::from_str(yaml).unwrap();
        let shown = name.replace(['\n', '\u{202e}'], "\u{fffd}");
        assert_eq!(metadata["base_model"], shown, "{yaml}");
        assert_eq!(metadata["license"], shown, "{yaml}");
        assert_eq!(metadata["library_name"], "peft");
        assert_eq!(metadata["model-index"][0]["results"][0]["metrics"][0]["value"], 0.955);
    }
}

#[test]
fn a_base_without_licence_or_results_is_said_to_have_none() {
    let mut finished = Finished::new();
    fs::remove_file(finished.recipe.base.model.join("README.md")).unwrap();
    finished.recipe.eval.suites.clear();
    let release = finished.export(ExportKind::Merged, false).unwrap();
    let text = fs::read_to_string(release.join("README.md")).unwrap();
    assert!(text.contains("license: unknown\n") && text.contains("states no licence"), "{text}");
    assert!(!text.contains("model-index") && text.contains("Nothing was measured"), "{text}");
}

/// Puts a record tree of these used records into the run; returns what must stay there.
fn with_tree(finished: &Finished, records: &[&str]) -> Vec<String> {
    let (key, salt, subject) = ([7; 32], [0xab; 32], [0xcd; 32]);
    let digest = [0xef; 32];
    let mut writer = TreeWriter::new(finished.run.path(), Key::from_bytes(key)).unwrap();
    for record_id in records {
        let (subject, salt, digest) = (Some(subject), Some(salt), Some(digest));
        writer.add(&Row { record_id, subject, salt, digest, left_out: None }).unwrap();
    }
    writer.finish().unwrap();
    [key, salt, subject, digest].map(|secret| crate::files::hex(&secret)).into()
}

#[test]
fn a_release_states_the_record_tree_and_nothing_that_it_is_made_of() {
    let finished = Finished::new();
    let mut secrets = with_tree(&finished, &["rec-of-miriam", "rec-b", "rec-c"]);
    secrets.push("rec-".to_owned());
    let release = finished.export(ExportKind::Adapter, false).unwrap();
    let stated = verify(&release).unwrap().record_tree.unwrap();
    let commitment = Commitment::read(&finished.run.record_tree()).unwrap();
    assert_eq!(
        (stated.root, stated.key_id.as_str()),
        (commitment.root, commitment.key_id.as_str())
    );
    assert_eq!(stated.size.to_string(), "< 5");
    assert_eq!(record_tree(&release.join(MANIFEST)).unwrap(), Some(stated));
    for item in fs::read_dir(&release).unwrap() {
        let path = item.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!name.starts_with("record_"), "{name}");
        let bytes = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{name} has {secret}");
        }
        assert!(
            !bytes
                .windows(32)
                .any(|window| [[7; 32], [0xab; 32]].contains(&window.try_into().unwrap()))
        );
    }
    let manifest: Value =
        serde_json::from_slice(&fs::read(release.join(MANIFEST)).unwrap()).unwrap();
    let byproducts = manifest["predicate"]["runDetails"]["byproducts"].as_array().unwrap();
    let tree = byproducts.iter().find(|one| one["name"] == "record_tree.json").unwrap();
    let members = tree["annotations"]["recordTree"].as_object().unwrap();
    assert_eq!(members.keys().collect::<Vec<_>>(), ["algorithm", "size", "root", "keyId"]);
    assert_eq!(tree.get("digest"), None);
}

#[test]
fn the_size_of_a_tree_does_not_give_a_suppressed_count_away() {
    let mut finished = Finished::new();
    finished.lock.data[2].rows.used = 3;
    with_tree(&finished, &["a", "b", "c", "d", "e", "f", "g"]);
    let release = finished.export(ExportKind::Adapter, false).unwrap();
    let size = verify(&release).unwrap().record_tree.unwrap().size;
    assert_eq!(size.to_string(), "1 to 1754");
}

#[test]
fn a_run_without_a_record_tree_states_none() {
    let (_guard, release) = good();
    assert_eq!(verify(&release).unwrap().record_tree, None);
}

#[test]
fn a_damaged_record_tree_stops_the_export() {
    let finished = Finished::new();
    write(&finished.run.record_tree(), "{}");
    let error = finished.export(ExportKind::Adapter, false).unwrap_err();
    assert!(matches!(error, ReleaseError::Run { .. }), "{error}");
}
