//! Conditional removal from an object store, which the `object_store` crate does not have.
//!
//! The crate signs a URL for DELETE, and the HTTP client of the store sends it with the
//! precondition:
//!
//! | storage | precondition |
//! |---|---|
//! | S3 | `If-Match` with the `ETag`, signed; needs permission to read the object |
//! | GCS | `x-goog-if-generation-match` with the generation, signed |
//! | Azure | `If-Match` with the `ETag`; a shared access signature does not cover headers |
//!
//! A compatible server that ignores the precondition would delete what another replica wrote.
//! Therefore the first removal tries the server with an object of its own, and none is sent to a
//! server that fails this.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use http::header::IF_MATCH;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use tokio::sync::OnceCell;

use super::{Key, Storage, StorageError, StorageResult, Version};
use crate::nonce::nonce;

const ACTION: &str = "remove object";
const IF_GENERATION_MATCH: HeaderName = HeaderName::from_static("x-goog-if-generation-match");
/// How long a signed URL is valid: clocks may differ by as much. A removal that is sent again later
/// finds another version.
const VALID_FOR: Duration = Duration::from_mins(15);
/// How much of a server's answer an error quotes, in bytes.
const QUOTED_LEN: usize = 300;

/// How the storage is told the version that may be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precondition {
    /// S3.
    SignedIfMatch,
    /// GCS.
    SignedGeneration,
    /// Azure.
    IfMatch,
}

/// Removes objects by their version.
#[derive(Clone, Debug)]
pub(super) struct ConditionalRemoval {
    signer: Arc<dyn Signer>,
    http: HttpClient,
    precondition: Precondition,
    /// Whether the server honours preconditions; empty until it was tried.
    is_honoured: Arc<OnceCell<bool>>,
}

impl ConditionalRemoval {
    pub(super) fn new(
        signer: Arc<dyn Signer>,
        http: HttpClient,
        precondition: Precondition,
    ) -> Self {
        Self {
            signer,
            http,
            precondition,
            is_honoured: Arc::default(),
        }
    }

    /// Whether the server honours preconditions of removals. The first call tries it with an object
    /// that `storage` creates; `send` removes a key of that storage.
    ///
    /// # Errors
    /// Those of the storage calls; the next call tries again.
    pub(super) async fn is_honoured<F>(
        &self,
        storage: &dyn Storage,
        send: impl Fn(Key, Version) -> F,
    ) -> StorageResult<bool>
    where
        F: Future<Output = StorageResult<()>>,
    {
        let attempt = || async {
            let name = format!("probe/remove-{:032x}", nonce());
            let key = Key::new(name.as_str())
                .map_err(|error| StorageError::unavailable(ACTION, name, error))?;
            let outcome = try_removals(storage, &key, send).await;
            let cleaned = storage.delete(&key).await;
            let is_honoured = outcome?;
            cleaned?;
            if !is_honoured {
                tracing::warn!(
                    "the storage ignores preconditions of DELETE; tombstones and other objects that \
                     may change are never removed"
                );
            }
            Ok(is_honoured)
        };
        self.is_honoured.get_or_try_init(attempt).await.copied()
    }

    /// Sends one conditional removal.
    pub(super) async fn send(&self, key: &Key, path: &Path, seen: &Version) -> StorageResult<()> {
        let (name, is_signed) = match self.precondition {
            Precondition::SignedIfMatch => (IF_MATCH, true),
            Precondition::SignedGeneration => (IF_GENERATION_MATCH, true),
            Precondition::IfMatch => (IF_MATCH, false),
        };
        let value = HeaderValue::from_str(seen.as_str())
            .map_err(|error| StorageError::unavailable(ACTION, key, error))?;
        let mut options = SignedUrlOptions::new();
        if is_signed {
            options = options.with_signed_header(name.clone(), value.clone());
        }
        let signed = self
            .signer
            .signed_url_opts(Method::DELETE, path, VALID_FOR, &options)
            .await;
        let url = match signed {
            Err(object_store::Error::NotSupported { .. }) => {
                return Err(StorageError::unsupported(ACTION, key));
            }
            signed => {
                signed.map_err(|error| StorageError::from_object_store(ACTION, key, error))?
            }
        };
        let request = http::Request::delete(url.as_str()).header(name, value);
        let request: HttpRequest = request
            .body(HttpRequestBody::empty())
            .map_err(|error| StorageError::unavailable(ACTION, key, error))?;
        let response = self.http.execute(request).await;
        let response = response.map_err(|error| StorageError::unavailable(ACTION, key, error))?;
        let status = response.status();
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::PRECONDITION_FAILED | StatusCode::NOT_FOUND => {
                Err(StorageError::conflict(ACTION, key))
            }
            StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => {
                Err(StorageError::unsupported(ACTION, key))
            }
            _ => {
                let body = response.into_body().bytes().await.unwrap_or_default();
                let quoted = String::from_utf8_lossy(&body[..body.len().min(QUOTED_LEN)]);
                let problem = format!("the storage answered {status}: {quoted}");
                Err(StorageError::unavailable(ACTION, key, problem))
            }
        }
    }
}

/// Whether an object stays when it is removed by an old version, and goes by its own.
async fn try_removals<F>(
    storage: &dyn Storage,
    key: &Key,
    send: impl Fn(Key, Version) -> F,
) -> StorageResult<bool>
where
    F: Future<Output = StorageResult<()>>,
{
    let old = storage.create(key, Bytes::from_static(b"old")).await?;
    let new = storage.swap(key, &old, Bytes::from_static(b"new")).await?;
    match send(key.clone(), old).await {
        Ok(()) | Err(StorageError::Unsupported { .. }) => return Ok(false),
        Err(StorageError::Conflict { .. }) => {}
        Err(error) => return Err(error),
    }
    if storage.read(key).await?.is_none() {
        return Ok(false);
    }
    match send(key.clone(), new).await {
        Ok(()) => Ok(storage.read(key).await?.is_none()),
        Err(StorageError::Conflict { .. } | StorageError::Unsupported { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
