//! What `s3://bucket/key`, `http://…` and `https://…` say.

use std::path::Path;

use super::failure::Failure;

const S3: &str = "s3://";
const WEB: [&str; 2] = ["https://", "http://"];

/// Characters by which a key is a pattern.
const WILD: [char; 3] = ['*', '?', '['];

/// Where an object lies, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// In a store that speaks the protocol of S3.
    S3 {
        bucket: String,
        /// As the store has it: nothing in it is an escape.
        key: String,
    },
    /// On a web server.
    Web { url: String },
}

/// The address that `name` is, if it is one and not a path in the file system.
pub(in super::super) fn address_of(name: &Path) -> Option<&str> {
    let text = name.to_str()?;
    (text.starts_with(S3) || WEB.iter().any(|scheme| text.starts_with(scheme))).then_some(text)
}

impl Address {
    /// Reads an address. What would be a secret in a recipe, a lock or a log is refused.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let refuse = |what| Failure::Address { what };
        if let Some(rest) = text.strip_prefix(S3) {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if bucket.is_empty() || !bucket.chars().all(is_name) {
                return Err(refuse("does not begin with a bucket's name"));
            }
            if key.is_empty() || key.ends_with('/') {
                return Err(refuse("names no object in the bucket"));
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() });
        }
        let rest = WEB.iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = rest.ok_or_else(|| refuse("has no scheme that is known"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.contains('@') {
            return Err(refuse("has a user's name or password in it"));
        }
        if text.contains(['?', '#']) {
            return Err(refuse("has a query, which may be a signature"));
        }
        if host.is_empty() || path.is_empty() || path.ends_with('/') {
            return Err(refuse("names no file on a server"));
        }
        Ok(Self::Web { url: text.to_owned() })
    }

    /// Whether it may stand for several objects.
    pub(super) fn is_pattern(&self) -> bool {
        match self {
            Self::S3 { key, .. } => key.contains(WILD),
            // A question mark is refused as a query.
            Self::Web { url } => url.contains('*'),
        }
    }
}

/// The part of a pattern that all keys it matches begin with, up to a slash.
pub(super) fn folder_of(pattern: &str) -> &str {
    let literal = pattern.find(WILD).map_or(pattern, |end| &pattern[..end]);
    literal.rfind('/').map_or("", |end| &literal[..end])
}

/// An address without its query, which may be a signature.
pub(super) fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_a_bucket_and_a_key_as_the_store_has_it() {
        for key in ["a.parquet", "a b/ü%20.parquet", "x[1]/*.parquet"] {
            let address = Address::parse(&format!("s3://my-bucket.v1/{key}")).unwrap();
            assert_eq!(
                address,
                Address::S3 { bucket: "my-bucket.v1".to_owned(), key: key.to_owned() }
            );
            assert_eq!(address.is_pattern(), key.contains('*'));
        }
    }

    #[test]
    fn what_would_be_a_secret_in_a_lock_is_refused() {
        for text in [
            "https://me:secret@host/a.parquet",
            "https://secret@host/a.parquet",
            "https://host/a.parquet?X-Amz-Signature=secret",
            "https://host/a.parquet#secret",
            "s3://key:secret@bucket/a",
            "s3://bucket",
            "s3://bucket/",
            "s3:///a",
            "s3://bucket/a/",
            "http://host",
            "http://host/",
            "http:///a",
        ] {
            let refused = Address::parse(text).unwrap_err();
            assert!(matches!(refused, Failure::Address { .. }), "{text}");
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
        assert!(Address::parse("http://host:80/a/b%20c.parquet").is_ok());
    }

    #[test]
    fn a_path_is_no_address() {
        for path in ["a.parquet", "s3:/b/c", "hf://org/name", "/http://x"] {
            assert_eq!(address_of(Path::new(path)), None, "{path}");
        }
        assert!(
            address_of(Path::new("s3://b/c")).is_some()
                && address_of(Path::new("http://h/c")).is_some()
        );
    }

    #[test]
    fn only_the_folder_before_a_wildcard_is_listed() {
        for (pattern, folder) in
            [("a/b/*.parquet", "a/b"), ("a/b[1]/c", "a"), ("*.parquet", ""), ("a*/b/c", "")]
        {
            assert_eq!(folder_of(pattern), folder);
        }
    }
}
