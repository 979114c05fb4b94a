//! The words of `croissant.json`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};
use serde_json::{Map, Value, json};

use super::offer::Offer;
use super::{About, DescribeError};
use crate::files::sha256_of_file;

/// Names that the document uses; those of Croissant, with the vocabularies of consent.
const CONTEXT: &str = include_str!("context.json");

/// The standards that the document follows.
const CONFORMS_TO: [&str; 2] =
    ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"];

/// mlcroissant can load this one; `application/vnd.apache.parquet` it only validates.
const PARQUET: &str = "application/x-parquet";

/// What a column means in the vocabularies of others.
const MEANINGS: [(&str, &str); 12] = [
    ("consent_basis", "dpv:hasLegalBasis"),
    ("consent_status", "dpv:hasConsentStatus"),
    ("consent_purposes", "dpv:hasPurpose"),
    ("consent_processing", "dpv:hasProcessing"),
    ("consent_given_at", "dpv:isIndicatedAtTime"),
    ("consent_expires_at", "dpv:hasDuration"),
    ("consent_notice_id", "dpv:hasNotice"),
    ("subject_ref", "dpv:hasDataSubject"),
    ("special_category", "dpv:hasPersonalData"),
    ("source_id", "dpv:hasDataSource"),
    ("license", "sc:license"),
    ("model_generated", "prov:wasGeneratedBy"),
];

/// The document about `files`, which lie in `folder`.
pub(super) fn document(
    folder: &Path,
    files: &[PathBuf],
    about: &About,
) -> Result<Value, DescribeError> {
    let mut offer = Offer::none();
    let (mut distribution, mut record_sets) = (Vec::new(), Vec::new());
    for path in files {
        let elsewhere =
            || DescribeError::Elsewhere { path: path.clone(), folder: folder.to_owned() };
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(elsewhere)?;
        let inside = folder.join(name);
        if !same_file(&inside, path) {
            return Err(elsewhere());
        }
        let fields = offer.widen(path)?;
        distribution.push(json!({
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "contentUrl": name,
            "contentSize": format!("{} B", fs_err::metadata(path)?.len()),
            "encodingFormat": PARQUET,
            "sha256": sha256_of_file(path)?,
        }));
        record_sets.push(record_set(name, &fields));
    }
    let mut document = Map::new();
    document.insert("@context".to_owned(), context()?);
    document.insert("@type".to_owned(), "sc:Dataset".into());
    document.insert("conformsTo".to_owned(), json!(CONFORMS_TO));
    describe(&mut document, about);
    document.insert("usageInfo".to_owned(), offer.document());
    document.insert("distribution".to_owned(), distribution.into());
    document.insert("recordSet".to_owned(), record_sets.into());
    Ok(Value::Object(document))
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn context() -> Result<Value, DescribeError> {
    // Part of the program; a test reads it.
    Ok(serde_json::from_str(CONTEXT).map_err(std::io::Error::other)?)
}

/// What is said of the data set as a whole, as far as it is known.
fn describe(document: &mut Map<String, Value>, about: &About) {
    let consent = |key: &str| about.consent.get(key).and_then(Value::as_str).map(str::to_owned);
    let defaults = about.consent.get("defaults").and_then(|defaults| defaults.get("license"));
    let default_license = defaults.and_then(Value::as_str).map(str::to_owned);
    let day = consent("snapshot_at").map(|at| at.split('T').next().unwrap_or_default().to_owned());
    let controller = consent("controller");
    let texts = [
        ("name", Some(about.name.clone())),
        ("description", Some(about.description.clone())),
        ("identifier", consent("dataset_id")),
        ("license", about.license.clone().or(default_license)),
        ("url", about.url.clone()),
        ("version", about.version.clone()),
        ("datePublished", about.date_published.clone().or(day)),
        ("citeAs", about.cite_as.clone()),
        ("rai:dataCollection", about.collection.clone()),
    ];
    for (key, value) in texts {
        document.extend(value.map(|value| (key.to_owned(), Value::from(value))));
    }
    if let Some(creator) = about.creator.clone().or_else(|| controller.clone()) {
        let creator = json!({ "@type": "sc:Organization", "name": creator });
        document.insert("creator".to_owned(), creator);
    }
    if let Some(controller) = controller {
        let agent = json!({ "@type": "prov:Agent", "prov:label": controller });
        document.insert("prov:wasAttributedTo".to_owned(), agent);
    }
    let withdrawals = consent("ledger")
        .map(|ledger| format!("Withdrawals are recorded in {ledger}, which is read at every use"));
    let withdraw = consent("withdrawal").map(|at| format!("Consent is withdrawn at {at}"));
    let lists = [
        ("rai:dataUseCases", about.use_cases.clone()),
        ("rai:dataLimitations", about.limitations.clone()),
        ("rai:dataBiases", about.biases.clone()),
        ("rai:personalSensitiveInformation", about.personal_information.clone()),
        ("rai:dataReleaseMaintenancePlan", withdrawals.into_iter().chain(withdraw).collect()),
    ];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        document.insert(key.to_owned(), list.into());
    }
}

/// The rows of one file. Each file has a set of its own, because a reader that takes several
/// as one does not check their digests.
fn record_set(file: &str, fields: &Fields) -> Value {
    let id = file.strip_suffix(".parquet").unwrap_or(file);
    let list: Vec<Value> = fields.iter().map(|field| describe_field(file, id, field)).collect();
    let mut set = json!({
        "@type": "cr:RecordSet",
        "@id": id,
        "name": id,
        "field": list,
    });
    if fields.find("record_id").is_some() {
        set["key"] = json!({ "@id": format!("{id}/record_id") });
    }
    set
}

fn describe_field(file: &str, set: &str, field: &Field) -> Value {
    let (name, (item, is_list)) = (field.name(), item_of(field.data_type()));
    let id = format!("{set}/{name}");
    let source = json!({ "fileObject": { "@id": file }, "extract": { "column": name } });
    let mut described = json!({ "@type": "cr:Field", "@id": id, "name": name });
    if let DataType::Struct(members) = item {
        // mlcroissant cannot take apart what is nested deeper.
        let plain = members.iter().filter(|member| !is_nested(item_of(member.data_type()).0));
        let part = |member: &Arc<Field>| {
            let (name, mut source) = (member.name(), source.clone());
            source["transform"] = json!({ "jsonPath": format!("$['{name}']") });
            let id = format!("{id}/{name}");
            let data_type = data_type(item_of(member.data_type()).0);
            json!({
                "@type": "cr:Field", "@id": id, "name": name, "dataType": data_type,
                "source": source,
            })
        };
        described["subField"] = plain.map(part).collect();
    } else {
        described["dataType"] = data_type(item).into();
        described["source"] = source;
    }
    if is_list {
        described["isArray"] = true.into();
        described["arrayShape"] = "-1".into();
    }
    if let Some((_, meaning)) = MEANINGS.iter().find(|(column, _)| column == name) {
        described["equivalentProperty"] = (*meaning).into();
    }
    described
}

/// What a list holds, and that it is one; or a type itself.
fn item_of(found: &DataType) -> (&DataType, bool) {
    match found {
        DataType::List(item) | DataType::LargeList(item) => (item.data_type(), true),
        other => (other, false),
    }
}

fn is_nested(found: &DataType) -> bool {
    matches!(found, DataType::Struct(_) | DataType::Map(..)) || item_of(found).1
}

fn data_type(found: &DataType) -> &'static str {
    match found {
        DataType::Boolean => "sc:Boolean",
        DataType::Timestamp(..) => "sc:DateTime",
        DataType::Date32 | DataType::Date64 => "sc:Date",
        found if found.is_integer() => "sc:Integer",
        found if found.is_floating() => "sc:Float",
        _ => "sc:Text",
    }
}
