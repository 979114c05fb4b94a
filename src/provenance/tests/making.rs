//! What is in a release, and what never is.

use fs_err as fs;
use serde_json::{Value, json};

use super::*;

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
