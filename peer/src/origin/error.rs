//! Errors of requests to origins.

use crate::store::StoreError;

/// Why a request to an origin, or to all origins, failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum OriginError {
    /// The origin does not have the content, or refuses it to this peer.
    #[error("{0}")]
    Refused(String),
    /// The origin does not answer or cannot serve now. For all origins: this is true of each.
    #[error("{0}")]
    Unavailable(String),
    /// For all origins: some do not have the content, and the others are unavailable.
    #[error("{0}")]
    Unsure(String),
    /// The requested range starts beyond the end of the content, which has this size in bytes.
    #[error("range starts beyond the end ({0} bytes)")]
    Unsatisfiable(u64),
    /// No origin is configured.
    #[error("no origin is configured")]
    None,
}

/// Why the download of a chunk from an origin failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OriginFetchError {
    #[error("{0}")]
    Origin(#[from] OriginError),
    #[error("the bytes do not match their proof")]
    Corrupt,
    #[error("{0}")]
    Store(#[from] StoreError),
}
