//! Why an object cannot be read.

use thiserror::Error;

use crate::diagnose::Diagnose;

/// Why an object cannot be read; completes the sentence "cannot read `NAME`: …".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // Each sentence names its fields.
pub enum Failure {
    // What the user says
    /// The address is not of a form that is read.
    #[error("the address {what}")]
    Address { what: &'static str },
    /// A pattern for a web server.
    #[error("a web server lists no files")]
    NoListing,
    /// No object matches a pattern.
    #[error("no object matches")]
    NoMatch,
    /// A pattern matches more than can be meant.
    #[error("more than {limit} objects lie below it")]
    TooMany { limit: usize },
    /// No credentials for a store.
    #[error("nothing in the environment says who asks the store")]
    NoCredentials,
    /// Variables that do not fit together.
    #[error("the `AWS_…` variables do not fit together: {reason}")]
    Environment { reason: String },
    /// A store that is to be asked without encryption.
    #[error("`{endpoint}` would be asked without encryption")]
    Unencrypted { endpoint: String },

    // What the server says
    /// No such object.
    #[error("there is no such object")]
    Absent,
    /// Not for this user.
    #[error("the server refuses it with status {status}{}", .code.as_ref().map(|code| format!(" (`{code}`)")).unwrap_or_default())]
    Refused {
        status: u16,
        /// What a store calls the reason.
        code: Option<String>,
    },
    /// The bucket lies elsewhere.
    #[error("the bucket lies in the region `{region}`")]
    Region { region: String },
    /// The server names another address.
    #[error("the server points to another address{}", .to.as_ref().map(|to| format!(", `{to}`")).unwrap_or_default())]
    Redirect { to: Option<String> },
    /// The server ignores `Range`.
    #[error("the server sends whole files only, not parts of them")]
    NoRanges,
    /// A change of the object could not be seen.
    #[error(
        "the server gives it neither an `ETag` nor a `Last-Modified`, so that a change could not be seen"
    )]
    NoVersion,
    /// The object is another one than before.
    #[error("it changed while it was read")]
    Changed,
    /// A status that means nothing here.
    #[error("the server answers with status {status}")]
    Status { status: u16 },
    /// An answer that breaks the protocol.
    #[error("the server does not answer as it should: {reason}")]
    Answer { reason: String },

    // The way there
    /// No way to the server, and another attempt would not find one.
    #[error("the server cannot be reached: {reason}")]
    Unreachable { reason: String },
    /// A server that nobody named.
    #[error("`{host}` would be asked, which nobody named")]
    Elsewhere { host: String },
    /// Tried again, in vain.
    #[error("{reason}, {attempts} times in a row")]
    GaveUp { reason: String, attempts: u32 },
}

impl Diagnose for Failure {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Address { .. } => {
                    "write `s3://bucket/key` (or a pattern as `s3://bucket/folder/*.parquet`), with \
                     credentials in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or an address \
                     `https://host/file.parquet` that needs none"
                }
                Self::NoListing => "name each file, or use a store that speaks S3",
                Self::NoMatch => "check the bucket, the spelling and `AWS_ENDPOINT_URL`",
                Self::TooMany { .. } => "write a pattern that begins with a longer folder",
                Self::NoCredentials => {
                    "set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or \
                     `AWS_SKIP_SIGNATURE=true` for a public bucket; profiles and the metadata \
                     service of a cloud machine are not asked by themselves"
                }
                Self::Environment { .. } => "see docs/reference/sources.md for those that are read",
                Self::Unencrypted { .. } => {
                    "use an `https://` endpoint, or set `AWS_ALLOW_HTTP=true` if the way there is \
                     your own"
                }
                Self::Absent => "check the spelling, the bucket and `AWS_ENDPOINT_URL`",
                Self::Refused { .. } => {
                    "check `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` and \
                     what they may read, and the clock of this machine"
                }
                Self::Region { region } => return Some(format!("set `AWS_REGION={region}`")),
                Self::Redirect { .. } => {
                    "name that address in the recipe, if you trust it: nothing else is asked than \
                     what a recipe names"
                }
                Self::NoRanges => "download the file, and name it by its path",
                Self::NoVersion => "download the file, and name it by its path",
                Self::Changed => "start a new run on what is there now",
                Self::Status { .. } | Self::Answer { .. } => {
                    "check that the address leads to the file itself; `curl -I` shows what the \
                     server says"
                }
                Self::Unreachable { .. } => "check the name of the host and the certificate",
                Self::Elsewhere { .. } => "check `AWS_ENDPOINT_URL`",
                Self::GaveUp { .. } => {
                    "run the same command again once the server answers; a training run goes on \
                     with `--resume` where its last checkpoint stands"
                }
            }
            .to_owned(),
        )
    }
}
