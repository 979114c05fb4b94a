//! Models on the Hugging Face hub: `hf://org/name@revision` as a folder in the cache.
//!
//! Owns addresses, the protocol and the cache, as `huggingface_hub` (checked with 2.4.0) has
//! them: one listing says which files a commit has and their digests; what lies in the cache
//! is never asked for again. Nothing here is reached unless a command or a recipe says
//! `hf://`, and nothing is told to the hub but the name and the version of this program. Does
//! not own what the files mean (`base`), nor the pin in the lock (`recipe::lock`).

mod address;
mod cache;
mod client;
mod download;
mod environment;
mod error;
mod listing;

use std::path::{Path, PathBuf};

pub use address::Address;
pub use environment::Environment;
pub use error::HubError;

use crate::job::Verbosity;
use crate::track::transfers::Transfers;
use cache::Repo;
use client::Client;
use listing::{INDEX, Listing, RemoteFile};

/// What of a model is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Configuration, tokenizer, templates and legal texts.
    Description,
    /// The same, and how large the weights are that the cache lacks.
    Sizes,
    /// Everything.
    Model,
}

/// A model of which the cache holds what is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The model at its commit.
    pub pinned: Address,
    /// The folder of its files.
    pub folder: PathBuf,
    /// Bytes of weights that the cache lacks; 0 unless [`Need::Sizes`] asks.
    pub lacking: u64,
}

/// Gets from the hub what the cache lacks of a model.
pub fn fetch(address: &Address, need: Need, verbosity: Verbosity) -> Result<Fetched, HubError> {
    let environment = Environment::read()?;
    if let Some(variable) = environment.offline {
        return offline(address, need, &environment, variable);
    }
    let client = Client::new(&environment)?;
    fetch_with(&client, address, need, &environment, verbosity)
}

/// The folder that `path` means: itself, or for an address its files in the cache, without
/// asking the hub for anything.
pub fn local(path: &Path) -> Result<PathBuf, HubError> {
    match Address::of(path) {
        Some(address) => local_in(&Environment::read()?, &address?),
        None => Ok(path.to_owned()),
    }
}

/// Like [`local`], for a file in a folder that may be an address at a commit.
pub fn local_file(path: &Path) -> Result<PathBuf, HubError> {
    let split = path.to_str().and_then(|text| {
        let (repo, rest) = text.split_once('@')?;
        let (commit, name) = rest.split_once('/')?;
        address::is_commit(commit).then(|| (format!("{repo}@{commit}"), name))
    });
    match split {
        Some((folder, name)) if folder.starts_with("hf://") => {
            Ok(local(Path::new(&folder))?.join(name))
        }
        _ => Ok(path.to_owned()),
    }
}

fn local_in(environment: &Environment, address: &Address) -> Result<PathBuf, HubError> {
    let repo = Repo::new(&environment.cache, address);
    let folder = repo.commit_of(&address.revision).map(|commit| repo.snapshot(&commit));
    folder.filter(|folder| folder.is_dir()).ok_or_else(|| HubError::NotCached {
        address: address.to_string(),
        cache: environment.cache.clone(),
    })
}

/// What the cache has, or which file it lacks.
fn offline(
    address: &Address,
    need: Need,
    environment: &Environment,
    variable: &'static str,
) -> Result<Fetched, HubError> {
    let repo = Repo::new(&environment.cache, address);
    let refuse = |file: &str| HubError::Offline {
        address: address.to_string(),
        file: file.to_owned(),
        cache: environment.cache.clone(),
        variable,
    };
    let commit = repo.commit_of(&address.revision).ok_or_else(|| refuse("config.json"))?;
    if let Some(file) = repo.missing(&commit, need != Need::Description, false) {
        return Err(refuse(&file));
    }
    Ok(fetched(&repo, address, &commit, 0))
}

fn fetched(repo: &Repo, address: &Address, commit: &str, lacking: u64) -> Fetched {
    Fetched { pinned: address.at(commit), folder: repo.snapshot(commit), lacking }
}

fn fetch_with(
    client: &Client,
    address: &Address,
    need: Need,
    environment: &Environment,
    verbosity: Verbosity,
) -> Result<Fetched, HubError> {
    let repo = Repo::new(&environment.cache, address);
    let commit = match address.is_pinned() {
        true => address.revision.clone(),
        false => listing::resolve(client, address)?,
    };
    let mut lacking = 0;
    if repo.missing(&commit, need != Need::Description, true).is_some() {
        let job = Job { client, repo: &repo, pinned: address.at(&commit), verbosity };
        lacking = job.fetch(need)?;
    }
    repo.remember(&address.revision, &commit)?;
    Ok(fetched(&repo, address, &commit, lacking))
}

struct Job<'a> {
    client: &'a Client,
    repo: &'a Repo,
    pinned: Address,
    verbosity: Verbosity,
}

impl Job<'_> {
    /// Downloads what is needed and lacking; gives the bytes of weights that are left out.
    fn fetch(&self, need: Need) -> Result<u64, HubError> {
        let Self { client, repo, pinned, .. } = self;
        let listing = match repo.listing(pinned, &pinned.revision) {
            Some(listing) => listing,
            None => Listing::ask(client, pinned)?,
        };
        if !listing.has("config.json") {
            let (repo, file) = (pinned.repo.clone(), "config.json".to_owned());
            return Err(HubError::NoEntry { repo, file });
        }
        self.download(&listing.side_files(pinned)?)?;
        repo.note_absent(&pinned.revision, &listing);
        if need == Need::Description {
            return Ok(0);
        }
        let index = listing.has(INDEX).then(|| repo.index(&pinned.revision)).flatten();
        let weights = listing.weights(pinned, index.as_deref())?;
        if need == Need::Sizes {
            let (here, lacking): (Vec<_>, Vec<_>) =
                weights.into_iter().partition(|file| repo.holds(file));
            self.download(&here)?;
            return Ok(lacking.iter().map(|file| repo.lacking(file)).sum());
        }
        self.download(&weights)?;
        Ok(0)
    }

    fn download(&self, files: &[RemoteFile]) -> Result<(), HubError> {
        let lacking = files.iter().map(|file| self.repo.lacking(file));
        let needed = lacking.fold(0, u64::saturating_add);
        self.repo.check_space(needed)?;
        let transfers = Transfers::new(self.verbosity, needed);
        for file in files {
            download::file(self.client, self.repo, &self.pinned, file, &transfers)?;
        }
        transfers.finish();
        Ok(())
    }
}
