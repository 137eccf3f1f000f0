//! Why the registry refuses a request or fails it.

use std::sync::Arc;

use flotilla_common::digest::Digest;

use super::upload_progress::UploadProgress;
use crate::storage::StorageError;
use crate::upload::receive::ReceiveError;

/// Each variant asks something else of the client; `http::error` maps it to a code.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("blob unknown to the repository")]
    BlobUnknown,
    #[error("upload unknown, expired, finished or cancelled")]
    UploadUnknown,
    /// The request gives another offset than the upload has.
    #[error("the chunk does not start at the upload's current offset; see the Range header")]
    Offset(UploadProgress),
    #[error("{0}")]
    DigestInvalid(String),
    #[error("{0}")]
    SizeInvalid(String),
    #[error("{0}")]
    UploadInvalid(String),
    #[error("{}", crate::stall_budget::EXHAUSTED)]
    Stalled,
    #[error("repository unknown")]
    NameUnknown,
    #[error("manifest unknown to the repository")]
    ManifestUnknown,
    #[error("{0}")]
    ManifestInvalid(String),
    #[error("the manifest references {0}, which the repository does not have")]
    ManifestBlobUnknown(Digest),
    /// The policy forbids the change.
    #[error("{0}")]
    Denied(String),
    /// The present value is stamped too far in the future for any region to merge a later one.
    #[error(
        "the present value was stamped {} s in the future by a replica with a wrong clock; it cannot be replaced before then, unless an operator restamps it (`flotilla origin restamp`)",
        .0.as_secs()
    )]
    StampAhead(core::time::Duration),
    /// Another write came first, and the origin must not write a second time.
    #[error("a concurrent request changed the same key; repeat the request")]
    Contended,
    #[error(transparent)]
    Storage(Arc<StorageError>),
}

impl From<StorageError> for RegistryError {
    fn from(error: StorageError) -> Self {
        Self::Storage(Arc::new(error))
    }
}

impl From<Arc<StorageError>> for RegistryError {
    fn from(error: Arc<StorageError>) -> Self {
        Self::Storage(error)
    }
}

impl From<ReceiveError> for RegistryError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Body(reason) => Self::UploadInvalid(reason),
            ReceiveError::Stalled => Self::Stalled,
            ReceiveError::Length => Self::SizeInvalid(error.to_string()),
            ReceiveError::Storage(error) => error.into(),
        }
    }
}
