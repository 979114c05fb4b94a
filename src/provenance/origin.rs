//! What the base folder says of itself: what it is called and under which licence it is.
//!
//! Nothing is guessed: a base whose model card names no licence has licence `unknown`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use super::release::ReleaseError;
use super::statement::Licence;
use crate::files::sha256_of_bytes;

/// Files that a licence may require to be passed on, by the names in use on the hub.
const LEGAL_FILES: [&str; 7] =
    ["LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt", "USE_POLICY.md"];

/// Largest model card or legal file that is read.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// The hub's word for a licence that nobody stated.
pub const UNKNOWN_LICENCE: &str = "unknown";

/// Where a release comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Hub identifier if the folder lies in the hub's cache, else the folder's name.
    pub name: String,
    /// Package URL with the revision if the folder lies in the hub's cache, else the name.
    pub uri: String,
    /// Its licence.
    pub licence: Licence,
    /// Its legal files by name, to be copied into the release.
    pub legal_files: BTreeMap<String, Vec<u8>>,
}

impl Origin {
    /// Reads model card and legal files of a base folder.
    pub fn read(folder: &Path) -> Result<Self, ReleaseError> {
        let mut legal_files = BTreeMap::new();
        for name in LEGAL_FILES {
            if let Some(bytes) = read_if_there(&folder.join(name))? {
                legal_files.insert(name.to_owned(), bytes);
            }
        }
        let card = match read_if_there(&folder.join("README.md"))? {
            Some(bytes) => CardData::of(&String::from_utf8_lossy(&bytes)),
            None => CardData::default(),
        };
        let texts = legal_files.iter().map(|(name, text)| (name.clone(), sha256_of_bytes(text)));
        let licence = Licence {
            hub: card.license.unwrap_or_else(|| UNKNOWN_LICENCE.to_owned()),
            license_name: card.license_name,
            license_link: card.license_link,
            texts: texts.collect(),
        };
        let (name, uri) = identity(folder);
        Ok(Self { name, uri, licence, legal_files })
    }
}

/// The bytes of a file, `None` where there is none.
fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, ReleaseError> {
    if !path.is_file() {
        return Ok(None);
    }
    let unreadable = |source| ReleaseError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(ReleaseError::TooLarge { path: path.to_owned(), limit: MAX_TEXT_BYTES });
    }
    Ok(Some(bytes))
}

/// The metadata of a model card that bears on its licence.
#[derive(Debug, Default, Deserialize)]
struct CardData {
    license: Option<String>,
    license_name: Option<String>,
    license_link: Option<String>,
}

impl CardData {
    /// What a card says. A card without metadata, or with metadata that is not as the hub
    /// wants it, says nothing.
    fn of(card: &str) -> Self {
        let text = card.replace("\r\n", "\n");
        let metadata = text
            .strip_prefix("---\n")
            .and_then(|rest| rest.split_once("\n---").map(|(metadata, _)| metadata));
        metadata.and_then(|yaml| serde_saphyr::from_str(yaml).ok()).unwrap_or_default()
    }
}

/// Name and URI of a base folder. The hub's cache lays a snapshot at
/// `models--ORG--NAME/snapshots/REVISION`, which says more than the last part alone.
fn identity(folder: &Path) -> (String, String) {
    let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let parts: Vec<String> = absolute
        .components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect();
    if let [.., model, snapshots, revision] = parts.as_slice()
        && snapshots == "snapshots"
        && let Some(name) = model.strip_prefix("models--")
    {
        let name = name.replace("--", "/");
        let uri = format!("pkg:huggingface/{name}@{revision}");
        return (name, uri);
    }
    // The name that the user wrote, not that of a folder that a link leads to.
    let written = folder.file_name().map(PathBuf::from);
    let name = written.map(|name| name.to_string_lossy().into_owned());
    let name = name.or_else(|| parts.last().cloned()).unwrap_or_else(|| "base".to_owned());
    (name.clone(), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("seedling");
        fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            crate::files::write_atomically(&folder.join(name), text.as_bytes()).unwrap();
        }
        (place, folder)
    }

    #[test]
    fn the_licence_is_what_the_base_card_says() {
        let card = "---\nlicense: other\nlicense_name: qwen\nlanguage: [en]\n---\n# Base\n";
        let (_place, folder) = base(&[("README.md", card), ("LICENSE", "terms")]);
        let origin = Origin::read(&folder).unwrap();
        assert_eq!((origin.name.as_str(), origin.uri.as_str()), ("seedling", "seedling"));
        assert_eq!(origin.licence.hub, "other");
        assert_eq!(origin.licence.license_name.as_deref(), Some("qwen"));
        assert_eq!(origin.licence.texts["LICENSE"], sha256_of_bytes(b"terms"));
        assert_eq!(origin.legal_files["LICENSE"], b"terms");
    }

    #[test]
    fn a_base_that_states_no_licence_is_unknown() {
        for card in [
            "",
            "# Base\nlicense: mit\n",
            "---\nlicense: mit\n",
            "---\nlicense: [mit, apache-2.0]\n---\n",
            "---\nlicense: mit\nlicense: apache-2.0\n---\n",
            "---\n: : {\n---\n",
        ] {
            let (_place, folder) = base(&[("README.md", card)]);
            assert_eq!(Origin::read(&folder).unwrap().licence.hub, "unknown", "{card:?}");
        }
    }

    #[test]
    fn a_snapshot_in_the_hubs_cache_keeps_its_identity() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("models--example--Base-1B/snapshots/0badcafe");
        fs::create_dir_all(&folder).unwrap();
        let (name, uri) = identity(&folder);
        assert_eq!(name, "example/Base-1B");
        assert_eq!(uri, "pkg:huggingface/example/Base-1B@0badcafe");
    }

    #[test]
    fn an_oversized_licence_is_refused() {
        let text = "x".repeat(MAX_TEXT_BYTES as usize + 1);
        let (_place, folder) = base(&[("LICENSE", &text)]);
        assert!(matches!(Origin::read(&folder), Err(ReleaseError::TooLarge { .. })));
    }
}
