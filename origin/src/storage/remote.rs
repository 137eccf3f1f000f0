//! Remote storage by its URL: `s3://bucket/prefix`, `gs://bucket/prefix` and
//! `az://container/prefix`.
//!
//! Endpoint and credentials come from the environment variables of the providers' own tools, read
//! by `object_store`: `AWS_...`, `GOOGLE_...`, `AZURE_...` (`docs/operations.md` lists the
//! important ones). This module sets only timeouts and retries: throttled and failed requests are
//! retried with backoff, for less time than the timeout of a storage call, so that a client gets
//! 503 before it gives up.

use core::str::FromStr;
use core::time::Duration;
use std::collections::BTreeMap;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, RetryConfig};

use super::ObjectStoreClient;
use super::Prefix;
use super::client_options::client_options;
use super::conditional_removal::Precondition;
use super::transport::SmallBuffers;

/// Environment variables by name.
pub type Variables = BTreeMap<String, String>;

/// After this time no further attempt starts. An attempt in progress may last one read timeout
/// longer.
const RETRY_FOR: Duration = Duration::from_secs(10);
const ATTEMPTS: usize = 8;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// A remote storage cannot be configured.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    /// The URL is not valid.
    #[error("{0}")]
    Url(&'static str),
    /// The environment variables are not valid.
    #[error("{0}")]
    Variables(#[from] object_store::Error),
}

/// The environment variables of this process.
pub(super) fn process_variables() -> Variables {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// Connects to the storage at `kind://address`; `None` if no remote storage has that scheme.
pub(super) fn connect(
    kind: &str,
    address: &str,
    variables: &Variables,
) -> Option<Result<ObjectStoreClient, RemoteError>> {
    let build = match kind {
        "s3" => s3,
        "gs" => gs,
        "az" => az,
        _ => return None,
    };
    // The HTTP client of `object_store` requires a process-wide crypto provider. An earlier
    // installation of the same provider makes this one fail, without consequences.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Some(
        parse(address)
            .and_then(|(bucket, prefix)| Ok(build(bucket, variables)?.with_prefix(prefix))),
    )
}

/// Splits an address into the bucket and the prefix of all keys.
fn parse(address: &str) -> Result<(&str, Option<Prefix>), RemoteError> {
    let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
    let prefix = prefix.trim_end_matches('/');
    if bucket.is_empty() {
        return Err(RemoteError::Url("a bucket is missing: s3://bucket/prefix"));
    }
    if bucket.ends_with("--x-s3") {
        return Err(RemoteError::Url(
            "directory buckets list keys in no order: use a general purpose bucket",
        ));
    }
    if prefix.is_empty() {
        return Ok((bucket, None));
    }
    let prefix = Prefix::new(format!("{prefix}/"));
    let prefix = prefix.map_err(|_| {
        RemoteError::Url("a prefix may have letters, digits and ._-:+=@ between slashes")
    });
    Ok((bucket, Some(prefix?)))
}

fn s3(bucket: &str, variables: &Variables) -> Result<ObjectStoreClient, object_store::Error> {
    let connector = SmallBuffers::default();
    let builder = AmazonS3Builder::new().with_http_connector(connector.clone());
    let builder = builder
        .with_client_options(client_options())
        .with_retry(retry());
    // Objects are deleted one at a time, because not all S3-compatible servers support bulk
    // deletes.
    let builder = builder.with_config(
        object_store::aws::AmazonS3ConfigKey::DisableBulkDelete,
        "true",
    );
    let builder = configured(builder, "AWS_", variables, |builder, key, value| {
        builder.with_config(key, value)
    });
    let store = builder.with_bucket_name(bucket).build()?;
    Ok(ObjectStoreClient::new(
        store,
        connector.last_client(),
        Precondition::SignedIfMatch,
    ))
}

fn gs(bucket: &str, variables: &Variables) -> Result<ObjectStoreClient, object_store::Error> {
    let connector = SmallBuffers::default();
    let builder = GoogleCloudStorageBuilder::new().with_http_connector(connector.clone());
    let builder = builder
        .with_client_options(client_options())
        .with_retry(retry());
    let builder = configured(builder, "GOOGLE_", variables, |builder, key, value| {
        builder.with_config(key, value)
    });
    let store = builder.with_bucket_name(bucket).build()?;
    Ok(ObjectStoreClient::new(
        store,
        connector.last_client(),
        Precondition::SignedGeneration,
    ))
}

fn az(container: &str, variables: &Variables) -> Result<ObjectStoreClient, object_store::Error> {
    let connector = SmallBuffers::default();
    let builder = MicrosoftAzureBuilder::new().with_http_connector(connector.clone());
    let builder = builder
        .with_client_options(client_options())
        .with_retry(retry());
    let builder = configured(builder, "AZURE_", variables, |builder, key, value| {
        builder.with_config(key, value)
    });
    let store = builder.with_container_name(container).build()?;
    Ok(ObjectStoreClient::new(
        store,
        connector.last_client(),
        Precondition::IfMatch,
    ))
}

/// Applies all variables that the builder knows. Others with the same prefix belong to other tools
/// of the provider.
fn configured<B, K: FromStr>(
    builder: B,
    prefix: &str,
    variables: &Variables,
    set: impl Fn(B, K, &str) -> B,
) -> B {
    let ours = variables
        .iter()
        .filter(|(name, _)| name.starts_with(prefix));
    let known =
        ours.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)));
    known.fold(builder, |builder, (key, value)| set(builder, key, value))
}

fn retry() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: FIRST_BACKOFF,
        max_backoff: LONGEST_BACKOFF,
        base: 2.0,
    };
    RetryConfig {
        backoff,
        max_retries: ATTEMPTS,
        retry_timeout: RETRY_FOR,
    }
}
