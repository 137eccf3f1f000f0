//! What the registry answers when it does not do what was asked.

use std::sync::Arc;

use flotilla_common::digest::Digest;

use super::Progress;
use crate::storage::StorageError;
use crate::upload::receive::ReceiveError;

/// Variants are what a client acts on; `http::error` gives each its code.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("blob unknown to the repository")]
    BlobUnknown,
    #[error("upload unknown, expired or ended")]
    UploadUnknown,
    /// The upload is elsewhere than the request says.
    #[error("the chunk does not begin where the upload ends")]
    Offset(Progress),
    #[error("{0}")]
    DigestInvalid(String),
    #[error("{0}")]
    SizeInvalid(String),
    #[error("{0}")]
    UploadInvalid(String),
    #[error("the client sent nothing for too long")]
    Stalled,
    #[error("repository unknown")]
    NameUnknown,
    #[error("manifest unknown to the repository")]
    ManifestUnknown,
    #[error("{0}")]
    ManifestInvalid(String),
    #[error("the manifest names {0}, which the repository does not have")]
    ManifestBlobUnknown(Digest),
    /// Another write was there first, and nobody may write a second time: the client repeats its
    /// request.
    #[error("another request changed the same thing at the same time; repeat the request")]
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
