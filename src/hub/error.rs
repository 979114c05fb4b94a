//! What can go wrong between here and the hub.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::diagnose::Diagnose;

/// A model that cannot be had from the hub or its cache.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields of an error are what its words show")]
pub enum HubError {
    // What was asked for, and how
    /// Not `hf://org/name@revision`.
    #[error("`{text}` {what}")]
    Address { text: String, what: &'static str },
    /// `HF_ENDPOINT` is no address.
    #[error("`HF_ENDPOINT` is `{endpoint}`, which is no web address")]
    Endpoint { endpoint: String },
    /// No place for the cache.
    #[error("nothing says where the cache of the hub lies")]
    NoHome,
    /// A token that cannot stand in a header.
    #[error("the token for the hub has characters that no token has")]
    Token,
    /// A token that everybody on the way could read.
    #[error("the token for the hub would go to `{endpoint}` unencrypted")]
    OpenToken { endpoint: String },
    /// Not in the cache, and requests are forbidden.
    #[error("`{file}` of `{address}` is not in the cache `{}`, and `{variable}` forbids to ask the hub", cache.display())]
    Offline { address: String, file: String, cache: PathBuf, variable: &'static str },
    /// Not in the cache, where it was a moment ago.
    #[error("`{address}` is not in the cache `{}`", cache.display())]
    NotCached { address: String, cache: PathBuf },

    // What the hub says
    /// No such repository, or not for this user.
    #[error("the hub has no model `{repo}`{}", if *.token { " that your token may see" } else { "" })]
    NoRepository { repo: String, token: bool },
    /// The model's terms are not accepted yet.
    #[error("`{repo}` is gated: its owners let only those have it who accepted its terms")]
    Gated { repo: String, endpoint: String, token: bool },
    /// No such revision.
    #[error("`{repo}` has no revision `{revision}`")]
    NoRevision { repo: String, revision: String },
    /// No such file.
    #[error("`{repo}` has no file `{file}`")]
    NoEntry { repo: String, file: String },
    /// The hub does not know the token.
    #[error("the hub does not accept your token")]
    BadToken,
    /// Any other refusal.
    #[error("`{url}` answers with status {status}")]
    Status { url: String, status: u16, retry_after: Option<Duration> },

    // The way there
    /// The connection broke, or never was one.
    #[error("cannot reach `{url}`")]
    Unreachable { url: String, source: ureq::Error },
    /// Fewer bytes than promised.
    #[error("`{url}` ended at byte {at} of {size}")]
    Short { url: String, at: u64, size: u64 },
    /// A redirect that is not followed.
    #[error("`{url}` redirects to `{to}`, which is not followed")]
    Redirect { url: String, to: String },
    /// Redirects without an end.
    #[error("`{url}` redirects more than {limit} times")]
    Redirects { url: String, limit: usize },
    /// An answer that the protocol does not have.
    #[error("`{url}` answers with something else than the hub's {what}")]
    Malformed { url: String, what: &'static str, source: Option<serde_json::Error> },

    // What is offered
    /// A name that would leave its folder.
    #[error("the listing of `{repo}` has a file name that leaves its folder: `{file}`")]
    FileName { repo: String, file: String },
    /// More than anything sensible.
    #[error("{what} of `{repo}` has {found}, more than the {limit} that are read")]
    TooLarge { repo: String, what: String, found: u64, limit: u64 },
    /// A listing that never ends.
    #[error("the listing of `{repo}` comes back to a page that it already had")]
    Loop { repo: String },
    /// Other bytes than were promised.
    #[error("`{file}` of `{repo}` arrived with other content than the hub promised")]
    Digest { repo: String, file: String, expected: String, found: String },
    /// Weights that can run code.
    #[error(
        "`{repo}` has its weights only in `{file}`, a pickle file, which can run code when it is read"
    )]
    Pickle { repo: String, file: String },
    /// No weights.
    #[error("`{repo}` has neither `model.safetensors` nor `model.safetensors.index.json`")]
    NoWeights { repo: String },
    /// An index that is none, or names what is not there.
    #[error("`model.safetensors.index.json` of `{repo}` {what}")]
    Index { repo: String, what: String },

    // The cache
    /// Not enough space.
    #[error("{needed} bytes are to be downloaded, but only {free} are free in `{}`", folder.display())]
    Space { needed: u64, free: u64, folder: PathBuf },
    /// The cache cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl HubError {
    /// Whether the same request may work a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Short { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 416 | 429 | 500 | 502..=504),
            Self::Unreachable { source, .. } => match source {
                ureq::Error::Io(error) => !matches!(
                    error.kind(),
                    // Nobody there: waiting rarely brings them.
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::InvalidData
                ),
                ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// How long the hub asks to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Diagnose for HubError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Address { .. } => "write `hf://org/name`, or `hf://org/name@revision` with a \
                branch, a tag or a commit"
                .to_owned(),
            Self::Endpoint { .. } => {
                "set it to an address such as `https://huggingface.co`, or unset it".to_owned()
            }
            Self::NoHome => "set `HF_HOME` to a folder that may grow large".to_owned(),
            Self::Token => "check `HF_TOKEN`, or the file that `HF_TOKEN_PATH` names".to_owned(),
            Self::OpenToken { .. } => "use an `https://` endpoint, or keep the token out of it \
                with `HF_HUB_DISABLE_IMPLICIT_TOKEN=1`"
                .to_owned(),
            Self::Offline { variable, .. } => {
                format!("unset `{variable}` and run the same command again to download it")
            }
            Self::NotCached { .. } => "run the same command again to download it, with the \
                `HF_HOME` and `HF_HUB_CACHE` of the run"
                .to_owned(),
            Self::NoRepository { token: true, .. } => {
                "check the name for a typing mistake, and that your token may read the model"
                    .to_owned()
            }
            Self::NoRepository { token: false, .. } => "check the name for a typing mistake; a \
                private model needs a token in `HF_TOKEN`"
                .to_owned(),
            Self::Gated { repo, endpoint, token: true } => {
                format!("accept its terms at `{endpoint}/{repo}` with the account of your token")
            }
            Self::Gated { repo, endpoint, token: false } => {
                format!("accept its terms at `{endpoint}/{repo}`, then set `HF_TOKEN` to a token")
            }
            Self::NoRevision { .. } => {
                "give a branch, a tag or a commit of the model after the `@`".to_owned()
            }
            Self::BadToken => "make a new token, and set `HF_TOKEN` to it".to_owned(),
            Self::Unreachable { .. } => "check the connection, `HF_ENDPOINT` and the proxy; \
                `HF_HUB_OFFLINE=1` uses what is in the cache"
                .to_owned(),
            Self::Short { .. } => "run the same command again: it goes on where it \
                stopped"
                .to_owned(),
            Self::Status { status: 429 | 500.., .. } => {
                "try again later: a download goes on where it stopped".to_owned()
            }
            Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Redirects { .. }
            | Self::Malformed { .. }
            | Self::NoEntry { .. } => {
                "check that `HF_ENDPOINT` names a server that speaks the hub's protocol".to_owned()
            }
            Self::FileName { .. } | Self::Loop { .. } | Self::TooLarge { .. } => {
                "do not use this model, or this server: it is not honest".to_owned()
            }
            Self::Digest { .. } => {
                "try again later, or through another `HF_ENDPOINT`; nothing of it was kept"
                    .to_owned()
            }
            Self::Pickle { .. } => "choose a revision with safetensors (many models have one \
                under `refs/pr/…`), or convert the weights with Transformers and give that folder"
                .to_owned(),
            Self::NoWeights { .. } | Self::Index { .. } => {
                "choose a model with safetensors weights in Transformers' layout".to_owned()
            }
            Self::Space { .. } => {
                "free some space, or set `HF_HOME` to a folder on a larger disk".to_owned()
            }
            Self::Io { source, .. } => return source.hint(),
        })
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Digest { expected, found, .. } => {
                vec![format!("expected {expected}"), format!("found    {found}")]
            }
            _ => Vec::new(),
        }
    }
}
