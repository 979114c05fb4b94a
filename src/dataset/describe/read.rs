//! Reading sidecars that someone else may have written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{CONSENT, CROISSANT, DescribeError, MAX_SIDECAR_BYTES};
use crate::files::read_if_there;
use crate::json::{self, Fault};

/// What lies beside the files of a folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Described {
    /// The folder.
    pub folder: PathBuf,
    /// The name of the data set in `croissant.json`.
    pub name: Option<String>,
    /// Its identifier there: the `dataset_id` of the footers.
    pub identifier: Option<String>,
    /// Whom it attributes the data set to: the `controller` of the footers.
    pub controller: Option<String>,
    /// The files that `croissant.json` describes, by their path in the folder; `None` where
    /// there is no such sidecar.
    pub files: Option<BTreeMap<String, FileEntry>>,
    /// What `consent.json` says; `None` where there is no such sidecar.
    pub consent: Option<Map<String, Value>>,
}

/// A file as `croissant.json` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its bytes.
    pub sha256: String,
    /// Their number, where it is said.
    pub bytes: Option<u64>,
}

impl Described {
    /// What is said of the file `path`, which lies in this folder.
    pub fn entry(&self, path: &Path) -> Option<&FileEntry> {
        self.files.as_ref()?.get(path.file_name()?.to_str()?)
    }
}

/// Reads the sidecars in `folder`; `None` where there is none.
pub fn read(folder: &Path) -> Result<Option<Described>, DescribeError> {
    let (croissant, consent) = (folder.join(CROISSANT), folder.join(CONSENT));
    let mut described = Described { folder: folder.to_owned(), ..Described::default() };
    if let Some(document) = object(&croissant)? {
        let text = |key| document.get(key).and_then(Value::as_str).map(str::to_owned);
        (described.name, described.identifier) = (text("name"), text("identifier"));
        let attributed = document.get("prov:wasAttributedTo");
        let label = attributed.and_then(|agent| agent.get("prov:label")?.as_str());
        described.controller = label.map(str::to_owned);
        described.files = Some(files(&croissant, document.get("distribution"))?);
    }
    described.consent = object(&consent)?;
    if let Some(content) = &described.consent
        && content.get("schema").and_then(Value::as_str) != Some("consent/v1")
    {
        let what = "its `schema` is not `consent/v1`".to_owned();
        return Err(DescribeError::Shape { path: consent, what });
    }
    let nothing = described.files.is_none() && described.consent.is_none();
    Ok((!nothing).then_some(described))
}

/// Refuses the footer of the file of rows `path` where an object in it has a key twice: the last
/// would count here, the first elsewhere. What is no JSON describes nothing anyway.
pub fn check_footer(path: &Path, footer: &str) -> Result<(), DescribeError> {
    match json::check(footer) {
        Err(Fault::DuplicateKey { key, line, column }) => {
            Err(DescribeError::FooterKey { path: path.to_owned(), key, line, column })
        }
        Ok(()) | Err(Fault::Syntax { .. }) => Ok(()),
    }
}

/// A sidecar that is there must be one object without duplicate keys.
fn object(path: &Path) -> Result<Option<Map<String, Value>>, DescribeError> {
    let Some(bytes) = read_if_there(path, MAX_SIDECAR_BYTES)? else { return Ok(None) };
    let shape = |what: &str| DescribeError::Shape { path: path.to_owned(), what: what.to_owned() };
    let text = String::from_utf8(bytes).map_err(|_| shape("it is not UTF-8"))?;
    json::check(&text).map_err(|fault| {
        let path = path.to_owned();
        match fault {
            Fault::DuplicateKey { key, line, column } => {
                DescribeError::DuplicateKey { path, key, line, column }
            }
            Fault::Syntax { line, column, what } => {
                DescribeError::NotJson { path, line, column, what }
            }
        }
    })?;
    serde_json::from_str(&text).map(Some).map_err(|_| shape("it is not an object"))
}

/// The files of a `distribution`, without what lies elsewhere on the network.
fn files(
    path: &Path,
    distribution: Option<&Value>,
) -> Result<BTreeMap<String, FileEntry>, DescribeError> {
    let shape = |what: String| DescribeError::Shape { path: path.to_owned(), what };
    let list = match distribution {
        None => &Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(shape("its `distribution` is not a list".to_owned())),
    };
    let mut files = BTreeMap::new();
    for item in list {
        let Some(name) = item.get("contentUrl").and_then(Value::as_str) else { continue };
        if name.starts_with("https://") || name.starts_with("http://") {
            continue;
        }
        if !stays_inside(name) {
            return Err(DescribeError::Escapes { path: path.to_owned(), name: name.to_owned() });
        }
        let sha256 = item.get("sha256").and_then(Value::as_str).filter(|text| is_sha256(text));
        let Some(sha256) = sha256 else {
            return Err(shape(format!("the `sha256` of `{name}` is not 64 hexadecimal digits")));
        };
        let bytes = item.get("contentSize").and_then(Value::as_str);
        let bytes = bytes.and_then(|text| text.strip_suffix(" B")?.parse().ok());
        let entry = FileEntry { sha256: sha256.to_ascii_lowercase(), bytes };
        if files.insert(name.to_owned(), entry).is_some() {
            return Err(shape(format!("it describes `{name}` twice")));
        }
    }
    Ok(files)
}

/// Whether a `contentUrl` names a file beside the sidecar or below, on every system alike.
fn stays_inside(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    name.split('/').all(plain)
        && !name.contains(['\\', ':', '%'])
        && !name.contains(char::is_control)
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
