//! What a model consists of at a commit, and which of its files are wanted.
//!
//! Follows the hub's `/api/models/REPO/revision/REVISION` and
//! `/api/models/REPO/tree/COMMIT?recursive=true`, whose object ids are the digests under
//! which the cache keeps files.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::address::{Address, is_commit, is_hex};
use super::client::Client;
use super::error::HubError;

/// The index of weights in several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Weights in one file.
pub(super) const SINGLE: &str = "model.safetensors";

/// Files beside the weights that are read where a model has them: those that it cannot be
/// understood without, and those that its licence may want passed on.
pub(super) const SIDE_FILES: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.md",
    "NOTICE.txt",
    "USE_POLICY.md",
];

/// The folder of templates beside the main one.
const TEMPLATES: &str = "additional_chat_templates/";

/// Beginnings of the names of further legal texts.
const LEGAL: [&str; 3] = ["LICENSE", "NOTICE", "USE_POLICY"];

/// Ends of the names of weights that are refused.
const PICKLES: [&str; 4] = [".bin", ".pt", ".pth", ".ckpt"];

/// Pages of a listing that are read: the hub has a thousand entries on each.
const MAX_PAGES: usize = 100;

/// Entries of a listing that are read.
const MAX_ENTRIES: usize = 100_000;

/// Largest file that is not weights, in bytes: tokenizers have some 30 MB.
const MAX_SIDE_BYTES: u64 = 256 << 20;

/// Largest file of weights, in bytes.
const MAX_WEIGHTS_BYTES: u64 = 1 << 40;

/// Under what a file is kept, and what its content must digest to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Digest {
    /// Of large files: SHA-256 of the content.
    Sha256(String),
    /// Of small files: the object id that git gives it, a SHA-1 of length and content.
    Git(String),
}

impl Digest {
    /// Lower-case hexadecimal: the name of the blob.
    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }
}

/// A file of a model at a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

/// Every file of a model at a commit, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing(BTreeMap<String, RemoteFile>);

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Asks the hub for the commit that a revision is now.
pub(super) fn resolve(client: &Client, address: &Address) -> Result<String, HubError> {
    let revision = address.revision.replace('/', "%2F").replace('+', "%2B");
    let url = client.url(&format!("/api/models/{}/revision/{revision}", address.repo));
    let (Revision { sha }, _) = client.json(address, &url, "description of a revision")?;
    if is_commit(&sha) {
        Ok(sha)
    } else {
        Err(HubError::Malformed { url, what: "description of a revision", source: None })
    }
}

impl Listing {
    /// Asks the hub for every file at a commit.
    pub(super) fn ask(client: &Client, pinned: &Address) -> Result<Self, HubError> {
        let Address { repo, revision: commit } = pinned;
        let url =
            client.url(&format!("/api/models/{repo}/tree/{commit}?recursive=true&expand=false"));
        let mut listing = Self::default();
        client.pages(pinned, url.clone(), "listing", MAX_PAGES, |entries: Vec<Entry>| {
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                let (size, digest) = match entry.lfs {
                    Some(lfs) => (lfs.size, Digest::Sha256(lfs.oid)),
                    None => (entry.size, Digest::Git(entry.oid)),
                };
                if !listing.add(pinned, RemoteFile { name: entry.path, size, digest })? {
                    return Err(HubError::Malformed {
                        url: url.clone(),
                        what: "listing",
                        source: None,
                    });
                }
            }
            Ok(())
        })?;
        Ok(listing)
    }

    /// Adds a file; false if its digest is none.
    pub(super) fn add(&mut self, address: &Address, file: RemoteFile) -> Result<bool, HubError> {
        if !stays_inside(&file.name) {
            let shown = file.name.chars().filter(|c| !c.is_control()).take(200).collect();
            return Err(HubError::FileName { repo: address.repo.clone(), file: shown });
        }
        let sound = match &file.digest {
            Digest::Sha256(hex) => is_hex(hex, 64),
            Digest::Git(hex) => is_hex(hex, 40),
        };
        self.0.insert(file.name.clone(), file);
        if self.0.len() > MAX_ENTRIES {
            let (found, limit) = (self.0.len() as u64, MAX_ENTRIES as u64);
            let what = "the listing".to_owned();
            return Err(HubError::TooLarge { repo: address.repo.clone(), what, found, limit });
        }
        Ok(sound)
    }

    /// Whether the model has such a file.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Everything wanted but the weights. Their index is with them: it says which they are.
    pub(super) fn side_files(&self, address: &Address) -> Result<Vec<RemoteFile>, HubError> {
        let wanted = self.0.values().filter(|file| is_side_file(&file.name));
        wanted.map(|file| limited(address, file, MAX_SIDE_BYTES)).collect()
    }

    /// The weights; `index` is the text of their index, where the model has one.
    pub(super) fn weights(
        &self,
        address: &Address,
        index: Option<&str>,
    ) -> Result<Vec<RemoteFile>, HubError> {
        let repo = &address.repo;
        let Some(index) = index else {
            let single = self.0.get(SINGLE).ok_or_else(|| self.without_weights(repo))?;
            return Ok(vec![limited(address, single, MAX_WEIGHTS_BYTES)?]);
        };
        let refuse = |what| HubError::Index { repo: repo.clone(), what };
        let shards = shards(index).map_err(&refuse)?;
        let find = |name: &String| {
            let file = self.0.get(name);
            let file = file.ok_or_else(|| refuse(format!("names `{name}`, which is not there")))?;
            limited(address, file, MAX_WEIGHTS_BYTES)
        };
        shards.iter().map(find).collect()
    }

    fn without_weights(&self, repo: &str) -> HubError {
        let repo = repo.to_owned();
        let is_pickle = |name: &&String| PICKLES.iter().any(|end| name.ends_with(end));
        match self.0.keys().find(is_pickle) {
            Some(file) => HubError::Pickle { repo, file: file.clone() },
            None => HubError::NoWeights { repo },
        }
    }
}

/// The files that an index names, or what is wrong with it.
pub(super) fn shards(index: &str) -> Result<BTreeSet<String>, String> {
    let Index { weight_map } =
        serde_json::from_str(index).map_err(|error| format!("is not valid: {error}"))?;
    for shard in weight_map.values() {
        if shard.contains('/') || !stays_inside(shard) || !shard.ends_with(".safetensors") {
            return Err("names a file that is no safetensors file beside it".to_owned());
        }
    }
    Ok(weight_map.into_values().collect())
}

fn is_side_file(name: &str) -> bool {
    if let Some(template) = name.strip_prefix(TEMPLATES) {
        return !template.contains('/') && template.ends_with(".jinja");
    }
    !name.contains('/')
        && (name == INDEX
            || SIDE_FILES.contains(&name)
            || (name.starts_with("tokenizer") && name.ends_with(".json"))
            || LEGAL.iter().any(|start| name.starts_with(start)))
}

/// Whether a name is a path below its folder, and nothing that a file system could take for
/// another.
fn stays_inside(name: &str) -> bool {
    name.len() <= 1000
        && !name.chars().any(|c| c.is_control() || c == '\\')
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn limited(address: &Address, file: &RemoteFile, limit: u64) -> Result<RemoteFile, HubError> {
    if file.size <= limit {
        return Ok(file.clone());
    }
    let (repo, found) = (address.repo.clone(), file.size);
    Err(HubError::TooLarge { repo, what: format!("`{}`", file.name), found, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address::parse("hf://org/name").unwrap()
    }

    fn listing(names: &[&str]) -> Listing {
        let mut listing = Listing::default();
        for name in names {
            let digest = Digest::Git("a".repeat(40));
            let file = RemoteFile { name: (*name).to_owned(), size: 1, digest };
            assert!(listing.add(&address(), file).unwrap());
        }
        listing
    }

    fn names(files: Vec<RemoteFile>) -> Vec<String> {
        files.into_iter().map(|file| file.name).collect()
    }

    #[test]
    fn only_what_is_read_is_wanted() {
        let listing = listing(&[
            "LICENSE.en",
            "README.md",
            "additional_chat_templates/rag.jinja",
            "additional_chat_templates/rag.py",
            "config.json",
            "modeling_name.py",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "tokenizer.json",
            "training_args.bin",
            "model.safetensors",
        ]);
        assert_eq!(
            names(listing.side_files(&address()).unwrap()),
            [
                "LICENSE.en",
                "README.md",
                "additional_chat_templates/rag.jinja",
                "config.json",
                "tokenizer.json"
            ]
        );
        assert_eq!(names(listing.weights(&address(), None).unwrap()), ["model.safetensors"]);
    }

    #[test]
    fn only_the_shards_that_the_index_names_are_wanted() {
        let listing = listing(&["a.safetensors", "b.safetensors", "consolidated.safetensors"]);
        let index =
            r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#;
        let weights = listing.weights(&address(), Some(index)).unwrap();
        assert_eq!(names(weights), ["a.safetensors", "b.safetensors"]);
    }

    #[test]
    fn an_index_that_leaves_the_folder_is_refused() {
        for shard in ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", ""] {
            let index = format!("{{\"weight_map\": {{\"x\": \"{shard}\"}}}}");
            assert!(shards(&index).is_err(), "{shard}");
        }
        assert!(shards("{}").is_err());
    }

    #[test]
    fn pickles_are_refused_with_the_reason() {
        let refused = listing(&["config.json", "pytorch_model.bin"]).weights(&address(), None);
        assert!(
            matches!(refused, Err(HubError::Pickle { file, .. }) if file == "pytorch_model.bin")
        );
        let refused = listing(&["config.json"]).weights(&address(), None);
        assert!(matches!(refused, Err(HubError::NoWeights { .. })));
    }

    #[test]
    fn a_file_name_that_leaves_the_folder_is_refused() {
        for name in ["../x", "a/../../x", "/etc/passwd", "a//b", "a\\b", "a/.", "", "a\nb", "a\0"] {
            let digest = Digest::Git("a".repeat(40));
            let file = RemoteFile { name: name.to_owned(), size: 1, digest };
            let added = Listing::default().add(&address(), file);
            assert!(matches!(added, Err(HubError::FileName { .. })), "{name:?}");
        }
    }

    #[test]
    fn an_absurd_size_is_refused() {
        let mut listing = Listing::default();
        for name in ["config.json", "model.safetensors"] {
            let digest = Digest::Sha256("a".repeat(64));
            let file = RemoteFile { name: name.to_owned(), size: u64::MAX, digest };
            assert!(listing.add(&address(), file).unwrap());
        }
        assert!(matches!(listing.side_files(&address()), Err(HubError::TooLarge { .. })));
        assert!(matches!(listing.weights(&address(), None), Err(HubError::TooLarge { .. })));
    }
}
