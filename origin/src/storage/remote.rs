//! Remote storage by its URL: `s3://bucket/prefix`, `gs://bucket/prefix` and
//! `az://container/prefix`.
//!
//! Where it is and who asks is in the environment's variables that the providers' own tools use,
//! too, read by `object_store`: `AWS_...`, `GOOGLE_...`, `AZURE_...` (`docs/operations.md` lists
//! those that matter). Ours are only the bounds: what a server throttles or fails is tried again
//! with backoff, for less time than one storage call may take, so that a request ends with 503 and
//! not with a client that gave up.

use core::str::FromStr;
use core::time::Duration;
use std::collections::BTreeMap;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::ObjectStoreClient;
use super::Prefix;
use super::transport::SmallBuffers;

/// Variables of the environment.
pub type Variables = BTreeMap<String, String>;

/// How long a server may send nothing. No bound on a whole answer: a client may take its time with
/// a large blob.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After this long no further attempt is made; one that is under way may last a [`READ_TIMEOUT`]
/// more.
const RETRY_FOR: Duration = Duration::from_secs(10);
const ATTEMPTS: usize = 8;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// Why a remote storage cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    /// The URL.
    #[error("{0}")]
    Url(&'static str),
    /// The variables.
    #[error("{0}")]
    Variables(#[from] object_store::Error),
}

/// The variables of this process.
pub(super) fn process_variables() -> Variables {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// The client of the storage at `kind://address`; `None` if no remote storage is of that kind.
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
    // The HTTP client wants to know of a TLS provider; whoever installed one before us installed
    // the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Some(
        parse(address)
            .and_then(|(bucket, prefix)| Ok(build(bucket, variables)?.with_prefix(prefix))),
    )
}

/// The bucket and the prefix of all keys in it.
fn parse(address: &str) -> Result<(&str, Option<Prefix>), RemoteError> {
    let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
    let prefix = prefix.trim_end_matches('/');
    if bucket.is_empty() {
        return Err(RemoteError::Url("a bucket is missing: s3://bucket/prefix"));
    }
    if bucket.ends_with("--x-s3") {
        return Err(RemoteError::Url(
            "a directory bucket lists in no order: take a general purpose bucket",
        ));
    }
    if prefix.is_empty() {
        return Ok((bucket, None));
    }
    let prefix = Prefix::new(format!("{prefix}/"));
    let prefix = prefix
        .map_err(|_| RemoteError::Url("a prefix has letters, digits and ._-:+=@ between slashes"));
    Ok((bucket, Some(prefix?)))
}

fn s3(bucket: &str, variables: &Variables) -> Result<ObjectStoreClient, object_store::Error> {
    let builder = AmazonS3Builder::new().with_http_connector(SmallBuffers);
    let builder = builder.with_client_options(client()).with_retry(retry());
    // Objects go one at a time, and not every server that calls itself S3 knows the other way.
    let builder = builder.with_config(
        object_store::aws::AmazonS3ConfigKey::DisableBulkDelete,
        "true",
    );
    let builder = configured(builder, "AWS_", variables, |builder, key, value| {
        builder.with_config(key, value)
    });
    Ok(ObjectStoreClient::new(
        builder.with_bucket_name(bucket).build()?,
    ))
}

fn gs(bucket: &str, variables: &Variables) -> Result<ObjectStoreClient, object_store::Error> {
    let builder = GoogleCloudStorageBuilder::new().with_http_connector(SmallBuffers);
    let builder = builder.with_client_options(client()).with_retry(retry());
    let builder = configured(builder, "GOOGLE_", variables, |builder, key, value| {
        builder.with_config(key, value)
    });
    Ok(ObjectStoreClient::new(
        builder.with_bucket_name(bucket).build()?,
    ))
}

fn az(container: &str, variables: &Variables) -> Result<ObjectStoreClient, object_store::Error> {
    let builder = MicrosoftAzureBuilder::new().with_http_connector(SmallBuffers);
    let builder = builder.with_client_options(client()).with_retry(retry());
    let builder = configured(builder, "AZURE_", variables, |builder, key, value| {
        builder.with_config(key, value)
    });
    Ok(ObjectStoreClient::new(
        builder.with_container_name(container).build()?,
    ))
}

/// The builder with each variable that it knows. Others of the same prefix belong to the provider's
/// other tools.
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

pub(super) fn client() -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(READ_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
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
