//! Which store an address means, by the usual variables of the environment.
//!
//! `object_store` would ask the metadata service of a cloud machine where it finds no
//! credentials; here that happens only where a variable names it.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::address::Address;
use super::failure::Failure;
use super::transport::{Reach, Transport};

/// Where the stores of Amazon are.
const AMAZON: &str = ".amazonaws.com";

/// A store and the place of an object in it.
pub(super) struct Place {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) location: Path,
}

/// The place of an address.
pub(super) fn place(
    address: &Address,
    variables: &BTreeMap<String, String>,
    mut transport: Transport,
) -> Result<Place, Failure> {
    match address {
        Address::S3 { bucket, key } => {
            let location = Path::parse(key)
                .map_err(|_| Failure::Address { what: "has a key with an empty or dotted part" })?;
            Ok(Place { store: s3(bucket, variables, transport)?, location })
        }
        Address::Web { url } => {
            transport.reach = Reach::Host(host_of(url));
            let store = HttpBuilder::new()
                .with_url(url)
                // The address itself says whether it is encrypted.
                .with_client_options(ClientOptions::new().with_allow_http(true))
                .with_retry(no_retries())
                .with_http_connector(transport)
                .build()
                .map_err(|_| Failure::Address { what: "is no web address" })?;
            Ok(Place { store: Arc::new(store), location: Path::default() })
        }
    }
}

/// A bucket.
fn s3(
    bucket: &str,
    variables: &BTreeMap<String, String>,
    mut transport: Transport,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
        if let Some(key) = name.starts_with("AWS_").then(|| name.to_ascii_lowercase())
            && let Ok(key) = key.parse::<AmazonS3ConfigKey>()
        {
            builder = builder.with_config(key, value);
        }
    }
    use AmazonS3ConfigKey as Key;
    let value = |key: Key| builder.get_config_value(&key);
    let is_true = |key| value(key).is_some_and(|value| super::is_true(&value));
    let all = |keys: &[Key]| keys.iter().all(|key| builder.get_config_value(key).is_some());
    let keys = all(&[Key::AccessKeyId]) || all(&[Key::SecretAccessKey]);
    let named = all(&[Key::WebIdentityTokenFile, Key::RoleArn])
        || all(&[Key::ContainerCredentialsRelativeUri])
        || all(&[Key::ContainerCredentialsFullUri, Key::ContainerAuthorizationTokenFile])
        || all(&[Key::MetadataEndpoint]);
    let public = is_true(Key::SkipSignature);
    if !keys && !named && !public {
        return Err(Failure::NoCredentials);
    }
    let endpoint = value(Key::S3Endpoint).or_else(|| value(Key::Endpoint));
    let open = is_true(Key::Client(object_store::ClientConfigKey::AllowHttp));
    transport.reach = match &endpoint {
        Some(endpoint) if !endpoint.starts_with("https://") && !open => {
            return Err(Failure::Unencrypted { endpoint: endpoint.clone() });
        }
        _ if !keys && named && !public => Reach::Anywhere,
        Some(endpoint) => Reach::Host(host_of(endpoint)),
        None => Reach::Below(AMAZON),
    };
    let store = builder
        .with_bucket_name(bucket)
        .with_retry(no_retries())
        .with_http_connector(transport)
        .build()
        .map_err(|error| Failure::Environment { reason: super::innermost(&error) })?;
    Ok(Arc::new(store))
}

/// Tried again by [`Transport`] alone.
fn no_retries() -> RetryConfig {
    let retry_timeout = std::time::Duration::ZERO;
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout }
}

/// Host and port of a web address.
fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    // As an address parser leaves out the port that the scheme means.
    let default = if url.starts_with("https://") { ":443" } else { ":80" };
    host.strip_suffix(default).unwrap_or(host).to_owned()
}
