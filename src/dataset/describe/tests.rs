//! Sidecars as they are written, and as someone would write them who means ill.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::{Map, Value, json};

use super::*;
use crate::diagnose::Diagnose as _;

/// A folder with two bundled files of rows and their sidecars.
struct Place {
    folder: tempfile::TempDir,
}

fn consent() -> Map<String, Value> {
    let consent = json!({
        "schema": "consent/v1", "dataset_id": "urn:uuid:1", "snapshot_at": "2026-06-01T00:00:00Z",
        "controller": "Seed House", "defaults": {"license": "CC-BY-4.0", "expiry": "P12M"},
        "withdrawal": "https://example.org/withdraw", "ledger": "withdrawals.jsonl",
    });
    consent.as_object().unwrap().clone()
}

fn about() -> About {
    About {
        name: "catalogue".to_owned(),
        description: "Orders for seed.".to_owned(),
        use_cases: vec!["Fine tuning".to_owned()],
        consent: consent(),
        ..About::default()
    }
}

fn footer() -> String {
    // Another order of keys, as a canonical writer would have it.
    let sorted: std::collections::BTreeMap<String, Value> = consent().into_iter().collect();
    serde_json::to_string(&sorted).unwrap()
}

impl Place {
    fn bare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/catalogue");
        for name in ["test.parquet", "validation.parquet"] {
            fs::copy(bundled.join(name), folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn new() -> Self {
        let place = Self::bare();
        write(place.folder.path(), &place.files(), &about()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path("test.parquet"), self.path("validation.parquet")]
    }

    fn put(&self, name: &str, text: &str) {
        write_atomically(&self.path(name), text.as_bytes()).unwrap();
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = self.json(name);
        edit(&mut value);
        self.put(name, &value.to_string());
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn of_test(&self, footer: Option<&str>) -> Result<Option<String>, DescribeError> {
        of_file(&self.path("test.parquet"), footer)
    }

    fn refused(&self, footer: Option<&str>) -> DescribeError {
        let error = self.of_test(footer).unwrap_err();
        assert!(error.hint().is_some());
        error
    }
}

#[test]
fn what_is_written_is_read_back() {
    let place = Place::new();
    let described = read(place.folder.path()).unwrap().unwrap();
    assert_eq!(described.consent, Some(consent()));
    assert_eq!(described.name.as_deref(), Some("catalogue"));
    assert_eq!(described.identifier.as_deref(), Some("urn:uuid:1"));
    let files = described.files.unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["test.parquet", "validation.parquet"]);
    for (name, entry) in files {
        assert_eq!(entry.sha256, sha256_of_file(&place.path(&name)).unwrap());
        assert_eq!(entry.bytes, Some(fs::metadata(place.path(&name)).unwrap().len()));
    }
    let first = fs::read(place.path(CROISSANT)).unwrap();
    write(place.folder.path(), &place.files(), &about()).unwrap();
    assert_eq!(fs::read(place.path(CROISSANT)).unwrap(), first, "the same again");
}

#[test]
fn the_document_says_what_the_columns_mean_and_what_the_rows_permit() {
    let document = Place::new().json(CROISSANT);
    assert_eq!(document["license"], "CC-BY-4.0");
    assert_eq!(document["datePublished"], "2026-06-01");
    assert_eq!(document["creator"]["name"], "Seed House");
    let sets = document["recordSet"].as_array().unwrap();
    assert_eq!(sets[0]["key"]["@id"], "test/record_id");
    let fields = sets[0]["field"].as_array().unwrap();
    let field = |name: &str| fields.iter().find(|field| field["name"] == name).unwrap();
    assert_eq!(field("consent_purposes")["equivalentProperty"], "dpv:hasPurpose");
    assert_eq!(field("consent_purposes")["isArray"], true);
    assert_eq!(field("consent_expires_at")["dataType"], "sc:DateTime");
    let parts = field("messages")["subField"].as_array().unwrap();
    assert_eq!(parts[1]["source"]["transform"]["jsonPath"], "$['content']");
    let own = fields.iter().filter(|field| field["name"] != "messages").chain(parts);
    own.for_each(|field| assert_eq!(field["source"]["fileObject"]["@id"], "test.parquet"));
    let permissions = document["usageInfo"]["odrl:permission"].as_array().unwrap();
    let actions: Vec<&Value> = permissions.iter().map(|one| &one["odrl:action"]["@id"]).collect();
    assert_eq!(actions, ["ai:ModelFineTuning", "dpv:MakeAvailable"]);
    let purposes = &permissions[0]["odrl:constraint"][0]["odrl:rightOperand"];
    assert!(purposes.as_array().unwrap().contains(&json!({"@id": "dpv:ServiceProvision"})));
    // Every name that the document uses is explained.
    for prefix in ["dpv", "ai", "odrl", "rai", "cr", "sc", "prov"] {
        assert!(document["@context"][prefix].is_string(), "{prefix}");
    }
}

#[test]
fn a_dropped_footer_is_made_up_for_by_the_sidecar_and_without_either_nothing_is_known() {
    let place = Place::new();
    let text = place.of_test(None).unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Value::Object(consent()));
    assert_eq!(place.of_test(Some(&footer())).unwrap(), Some(footer()));
    assert_eq!(Place::bare().of_test(None).unwrap(), None);
    assert_eq!(Place::bare().of_test(Some(&footer())).unwrap(), Some(footer()));
    // A description without `consent.json` says nothing of consent.
    fs::remove_file(place.path(CONSENT)).unwrap();
    assert_eq!(place.of_test(None).unwrap(), None);
}

#[test]
fn a_footer_that_permits_more_than_the_sidecar_is_refused() {
    let place = Place::new();
    for (edit, expected) in [
        (json!({"defaults": {"license": "CC-BY-4.0", "expiry": "endless"}}), "defaults.expiry"),
        (json!({"max_snapshot_age": "P30Y"}), "max_snapshot_age"),
        (json!({"ledger": null}), "ledger"),
        (json!({"schema": "consent/v2"}), "schema"),
    ] {
        let mut footer = consent();
        footer.extend(edit.as_object().unwrap().clone());
        let refused = place.refused(Some(&Value::Object(footer).to_string()));
        let DescribeError::Disagree { path, sidecar, key } = refused else { panic!("{refused}") };
        assert_eq!((path, sidecar), (place.path("test.parquet"), place.path(CONSENT)));
        assert_eq!(key, expected);
    }
    for garbage in ["", "{", "[]", "null", "\u{0}"] {
        let refused = place.refused(Some(garbage));
        assert!(matches!(refused, DescribeError::Disagree { .. }), "{refused}");
    }
    // The other way round, an edited sidecar.
    place.edit(CONSENT, |consent| consent["defaults"]["expiry"] = "endless".into());
    assert!(matches!(place.refused(Some(&footer())), DescribeError::Disagree { .. }));
}

#[test]
fn a_footer_of_another_data_set_is_refused_by_the_description_alone() {
    let place = Place::new();
    fs::remove_file(place.path(CONSENT)).unwrap();
    for changed in ["dataset_id", "controller"] {
        let mut other = consent();
        other.insert(changed.to_owned(), "urn:uuid:2".into());
        let refused = place.refused(Some(&Value::Object(other).to_string()));
        let DescribeError::Disagree { sidecar, key, .. } = refused else { panic!("{refused}") };
        assert_eq!((sidecar, key.as_str()), (place.path(CROISSANT), changed));
    }
}

#[test]
fn a_key_given_twice_for_two_readers_is_refused() {
    let place = Place::new();
    let text = fs::read_to_string(place.path(CONSENT)).unwrap();
    place.put(CONSENT, &text.replacen('{', "{\"ledger\": null,", 1));
    let refused = place.refused(Some(&footer()));
    assert!(
        matches!(&refused, DescribeError::DuplicateKey { key, .. } if key == "ledger"),
        "{refused}"
    );
    let place = Place::new();
    let text = fs::read_to_string(place.path(CROISSANT)).unwrap();
    let twice = format!("\"sha256\": \"{}\", \"sha256\":", "0".repeat(64));
    place.put(CROISSANT, &text.replacen("\"sha256\":", &twice, 1));
    let refused = place.refused(None);
    assert!(
        matches!(&refused, DescribeError::DuplicateKey { key, .. } if key == "sha256"),
        "{refused}"
    );
}

#[test]
fn a_sidecar_of_gigabytes_is_not_read() {
    for name in [CROISSANT, CONSENT] {
        let place = Place::new();
        let file = fs::OpenOptions::new().write(true).open(place.path(name)).unwrap();
        file.set_len(3 << 30).unwrap();
        let refused = place.refused(None);
        assert!(matches!(refused, DescribeError::Io(_)), "{refused}");
    }
}

#[test]
fn a_sidecar_for_another_file_does_not_vouch_for_this_one() {
    // The other file's bytes, under a name that the sidecars describe.
    let place = Place::new();
    fs::copy(place.path("validation.parquet"), place.path("test.parquet")).unwrap();
    assert!(matches!(place.refused(None), DescribeError::OtherFile { .. }));
    assert!(matches!(place.refused(Some(&footer())), DescribeError::OtherFile { .. }));
    // Of the same size, with one byte changed.
    let place = Place::new();
    let mut bytes = fs::read(place.path("test.parquet")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    write_atomically(&place.path("test.parquet"), &bytes).unwrap();
    let refused = place.refused(None);
    assert!(matches!(refused, DescribeError::OtherFile { .. }), "{refused}");
    let sha256 = sha256_of_file(&place.path("test.parquet")).unwrap();
    let refused = check_digest(&place.path("test.parquet"), &sha256).unwrap_err();
    assert!(matches!(refused, DescribeError::OtherFile { .. }), "{refused}");
    let place = Place::new();
    let sha256 = sha256_of_file(&place.path("test.parquet")).unwrap();
    check_digest(&place.path("test.parquet"), &sha256).unwrap();
}

#[test]
fn a_file_that_the_description_does_not_name_gets_nothing_from_it() {
    let place = Place::new();
    let smuggled = place.path("smuggled.parquet");
    fs::copy(place.path("test.parquet"), &smuggled).unwrap();
    assert_eq!(of_file(&smuggled, None).unwrap(), None);
    assert_eq!(of_file(&smuggled, Some("{}")).unwrap().as_deref(), Some("{}"));
}

#[test]
fn a_content_url_that_leaves_the_folder_is_refused() {
    for name in [
        "../test.parquet",
        "/etc/passwd",
        "a/../../test.parquet",
        "./test.parquet",
        "a//b.parquet",
        "",
        "..\\test.parquet",
        "C:test.parquet",
        "file:///etc/passwd",
        "%2e%2e/test.parquet",
        "test.parquet\n",
    ] {
        let place = Place::new();
        place.edit(CROISSANT, |document| document["distribution"][0]["contentUrl"] = name.into());
        let refused = place.refused(None);
        assert!(
            matches!(&refused, DescribeError::Escapes { name: found, .. } if found == name),
            "{refused}"
        );
    }
    // What lies on the network is none of this folder's.
    let place = Place::new();
    place.edit(CROISSANT, |document| {
        document["distribution"][1]["contentUrl"] = "https://example.org/x.parquet".into();
    });
    assert!(place.of_test(None).unwrap().is_some());
}

#[test]
fn sidecars_that_are_no_descriptions_are_named() {
    for (name, text) in [
        (CROISSANT, "[]"),
        (CROISSANT, r#"{"distribution": {}}"#),
        (CROISSANT, r#"{"distribution": [{"contentUrl": "test.parquet"}]}"#),
        (CROISSANT, r#"{"distribution": [{"contentUrl": "test.parquet", "sha256": "12"}]}"#),
        (CONSENT, "\"consent/v1\""),
        (CONSENT, r#"{"schema": "consent/v2"}"#),
        (CONSENT, "{}"),
    ] {
        let place = Place::new();
        place.put(name, text);
        let refused = place.refused(None);
        assert!(matches!(refused, DescribeError::Shape { .. }), "{text}: {refused}");
    }
    let deep = "[".repeat(100_000);
    for text in ["", "{", "{} {}", "\u{feff}{}", deep.as_str()] {
        let place = Place::new();
        place.put(CONSENT, text);
        let refused = place.refused(None);
        assert!(matches!(refused, DescribeError::NotJson { line: 1, .. }), "{refused}");
    }
    let place = Place::new();
    write_atomically(&place.path(CONSENT), b"{\"schema\": \"\xff\"}").unwrap();
    assert!(matches!(place.refused(None), DescribeError::Shape { .. }));
}

#[test]
fn a_description_grows_with_its_data_set_and_gives_way_to_no_other() {
    let place = Place::bare();
    let names = || read(place.folder.path()).unwrap().unwrap().files.unwrap();
    write(place.folder.path(), &place.files()[..1], &about()).unwrap();
    write(place.folder.path(), &place.files()[1..], &about()).unwrap();
    assert_eq!(names().into_keys().collect::<Vec<_>>(), ["test.parquet", "validation.parquet"]);
    // A file that was written again is no longer what was described.
    fs::copy(place.path("validation.parquet"), place.path("test.parquet")).unwrap();
    write(place.folder.path(), &place.files()[1..], &about()).unwrap();
    assert_eq!(names().into_keys().collect::<Vec<_>>(), ["validation.parquet"]);
    let mut other = about();
    other.consent.insert("dataset_id".to_owned(), "urn:uuid:2".into());
    let refused = write(place.folder.path(), &place.files()[..1], &other).unwrap_err();
    assert!(matches!(&refused, DescribeError::Occupied { key, .. } if key == "dataset_id"));
    assert_eq!(read(place.folder.path()).unwrap().unwrap().consent, Some(consent()));
    // Where nothing of the other data set is left, there is nothing to protect.
    write(place.folder.path(), &place.files(), &other).unwrap();
    assert_eq!(read(place.folder.path()).unwrap().unwrap().consent, Some(other.consent));
    // A sidecar that someone wrote by hand for the whole folder is not replaced.
    fs::remove_file(place.path(CROISSANT)).unwrap();
    let refused = write(place.folder.path(), &place.files(), &about()).unwrap_err();
    assert!(matches!(&refused, DescribeError::Occupied { .. }), "{refused}");
}

#[test]
fn files_elsewhere_and_files_that_are_no_parquet_are_refused() {
    let (place, other) = (Place::bare(), Place::bare());
    let refused = write(place.folder.path(), &other.files(), &about()).unwrap_err();
    assert!(matches!(refused, DescribeError::Elsewhere { .. }), "{refused}");
    place.put("text.parquet", "PAR1 and nothing else PAR1");
    let refused = write(place.folder.path(), &[place.path("text.parquet")], &about()).unwrap_err();
    assert!(matches!(refused, DescribeError::NotParquet { .. }), "{refused}");
    assert!(!place.path(CROISSANT).exists() && !place.path(CONSENT).exists());
}

#[test]
fn terms_that_are_no_names_stay_out_of_the_offer() {
    use std::sync::Arc;

    use arrow::array::{ListBuilder, RecordBatch, StringBuilder};
    use parquet::arrow::ArrowWriter;

    let place = Place::bare();
    let mut purposes = ListBuilder::new(StringBuilder::new());
    for terms in [
        &["dpv:Purpose\"}], \"x\": [{", "*", "https://example.org/x"][..],
        &["dpv:AcademicResearch"],
    ] {
        terms.iter().for_each(|term| purposes.values().append_value(term));
        purposes.append(true);
    }
    let rows = RecordBatch::try_from_iter([("consent_purposes", Arc::new(purposes.finish()) as _)]);
    let path = place.path("hostile.parquet");
    let file = fs::File::create(&path).unwrap();
    let rows = rows.unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    let mut offer = offer::Offer::none();
    offer.widen(&path).unwrap();
    let text = offer.document().to_string();
    assert!(
        !text.contains("example.org") && !text.contains('*') && !text.contains("\\\""),
        "{text}"
    );
}
