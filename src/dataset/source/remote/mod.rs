//! Rows that lie elsewhere: `s3://bucket/key`, `http://…` and `https://…`.
//!
//! Owns reaching a store ([`Access`]), listing a pattern, reading an object in blocks within
//! a bound on memory, and pinning its version. Nothing is asked that a recipe or the
//! environment did not name. Protocols are `object_store`'s; requests go over `ureq`.
//! References: RFC 9110 (ranges, `If-Match`), the Amazon S3 API (`GetObject`,
//! `ListObjectsV2`).

mod address;
mod blocks;
mod failure;
mod object;
mod stores;
mod transport;

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};

use futures_util::StreamExt;
use glob::{MatchOptions, Pattern};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ureq::Agent;

use self::address::Address;
pub(super) use self::address::address_of;
pub use self::failure::Failure;
pub(super) use self::object::{Object, Reader, Stash};
pub use self::transport::{Listener, Patience};
use self::transport::{Reach, Transport};
use super::SourceError;
use crate::files::hex;

/// Objects below one folder that a pattern may be matched with.
pub const MAX_LISTED: usize = 1_000_000;

/// Pages that a listing of them may have, at 1,000 a page, if not every page is full.
const MAX_PAGES: u32 = 10_000;

/// How stores are reached.
pub struct Access {
    variables: BTreeMap<String, String>,
    patience: Patience,
    listener: Listener,
    agent: Agent,
}

/// The version of an object, as a lock keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Size in bytes.
    pub bytes: u64,
    /// What the server calls this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// When the server says that it was last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<Timestamp>,
    /// SHA-256 of the Parquet footer, its length and magic included; lower-case hex. It says
    /// where every page lies and how large it is.
    pub footer_sha256: String,
}

static LISTENER: OnceLock<Listener> = OnceLock::new();

/// Has every request that is made again told to `listener`. The first call counts.
pub fn on_retry(listener: Listener) {
    let _ = LISTENER.set(listener);
}

static PATIENCE: OnceLock<Patience> = OnceLock::new();

/// Has this process wait so long for stores, where nothing else is said. The first call
/// counts, if nothing was read before it.
pub fn be_patient(patience: Patience) {
    let _ = PATIENCE.set(patience);
}

impl Access {
    /// Access by these `AWS_…` variables.
    pub fn new(
        variables: BTreeMap<String, String>,
        patience: Patience,
        listener: Listener,
    ) -> Self {
        Self { variables, patience, listener, agent: patience.agent() }
    }

    /// Access by the environment of this process.
    pub fn of_process() -> &'static Self {
        static ACCESS: OnceLock<Access> = OnceLock::new();
        ACCESS.get_or_init(|| {
            let variables = env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .filter(|(name, _)| name.starts_with("AWS_"))
                .collect();
            let listener: Listener = Arc::new(|words: &str| {
                if let Some(listener) = LISTENER.get() {
                    listener(words);
                }
            });
            let patience = PATIENCE.get().copied().unwrap_or_default();
            Self::new(variables, patience, listener)
        })
    }

    /// The objects that an address or pattern names, sorted.
    pub(super) fn resolve(&self, pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
        let fail = |failure| SourceError::Remote { name: pattern.to_owned(), failure };
        let address = Address::parse(pattern).map_err(fail)?;
        if !address.is_pattern() {
            return Ok(vec![PathBuf::from(pattern)]);
        }
        let Address::S3 { bucket, key } = &address else { return Err(fail(Failure::NoListing)) };
        let matcher = Pattern::new(key).map_err(|error| SourceError::Pattern {
            pattern: pattern.to_owned(),
            position: error.pos,
            reason: error.msg,
        })?;
        let listed = self.list(&address, address::folder_of(key)).map_err(fail)?;
        // An object whose key has brackets is that object, not a pattern.
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        let mut keys: Vec<String> = match listed.iter().any(|listed| listed == key) {
            true => vec![key.clone()],
            false => listed.into_iter().filter(|key| matcher.matches_with(key, options)).collect(),
        };
        keys.sort();
        if keys.is_empty() {
            return Err(fail(Failure::NoMatch));
        }
        Ok(keys.iter().map(|key| PathBuf::from(format!("s3://{bucket}/{key}"))).collect())
    }

    /// The keys of all objects below a folder of a bucket.
    fn list(&self, address: &Address, folder: &str) -> Result<Vec<String>, Failure> {
        let mut transport = self.transport();
        transport.left = Some(Arc::new(AtomicU32::new(MAX_PAGES)));
        let place = stores::place(address, &self.variables, transport)?;
        let refuse = |_| Failure::Address { what: "has a key with an empty or dotted part" };
        let folder = object_store::path::Path::parse(folder).map_err(refuse)?;
        let mut keys = Vec::new();
        block_on(async {
            let mut listing = place.store.list(Some(&folder));
            while let Some(object) = listing.next().await {
                keys.push(object.map_err(|error| translate(&error))?.location.to_string());
                if keys.len() > MAX_LISTED {
                    return Err(Failure::TooMany { limit: MAX_LISTED });
                }
            }
            Ok(keys)
        })?
    }

    /// Looks at an object.
    pub(super) fn open(&self, name: &str) -> Result<Arc<Object>, Failure> {
        let address = Address::parse(name)?;
        let place = stores::place(&address, &self.variables, self.transport())?;
        Ok(Arc::new(Object::open(place)?))
    }

    fn transport(&self) -> Transport {
        Transport {
            agent: self.agent.clone(),
            patience: self.patience,
            listener: Arc::clone(&self.listener),
            reach: Reach::Host(String::new()),
            left: None,
        }
    }
}

impl Pin {
    pub(super) fn of(object: &Arc<Object>) -> Result<Self, Failure> {
        let digest = footer_digest(object)?;
        let modified = object::modified(&object.meta);
        Ok(Self {
            bytes: object.meta.size,
            etag: object.meta.e_tag.clone(),
            last_modified: modified.and_then(|seconds| Timestamp::from_second(seconds).ok()),
            footer_sha256: digest,
        })
    }
}

fn footer_digest(object: &Arc<Object>) -> Result<String, Failure> {
    use std::io::Read;

    use parquet::file::reader::ChunkReader;
    let stash = Stash::default();
    let reader = Reader::new(object, &[], stash.clone());
    let short = || Failure::Answer { reason: "it is too short for a Parquet file".to_owned() };
    let failed = || stash.take().unwrap_or_else(short);
    let size = object.meta.size;
    let tail = size.checked_sub(8).ok_or_else(short)?;
    let length = reader.get_bytes(tail, 4).map_err(|_| failed())?;
    let length = length.as_ref().try_into().map(u32::from_le_bytes).map_err(|_| short())?;
    let start = tail.checked_sub(u64::from(length)).ok_or_else(short)?;
    let mut bytes = reader.get_read(start).map_err(|_| failed())?;
    let mut hasher = Sha256::new();
    let mut buffer = [0; 8192];
    loop {
        match bytes.read(&mut buffer).map_err(|_| failed())? {
            0 => return Ok(hex(&hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Runs what `object_store` does to its end on this thread.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|error| Failure::Unreachable { reason: error.to_string() })?;
    Ok(runtime.block_on(work))
}

/// What an error of `object_store` means: what [`Transport`] found, else what it says.
fn translate(error: &object_store::Error) -> Failure {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return failure.clone();
        }
        next = error.source();
    }
    Failure::Answer { reason: innermost(error) }
}

/// The end of the chain of causes. Links before it name addresses, with their queries.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    let words = last.to_string();
    words.split("://").next().unwrap_or_default().to_owned()
}

/// As `object_store` reads a switch.
fn is_true(value: &str) -> bool {
    ["1", "true", "on", "yes", "y"].contains(&value.to_ascii_lowercase().as_str())
}
