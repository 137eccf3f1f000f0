//! Errors of requests to origins.

use core::time::Duration;

use flotilla_common::failover::Outcome;
use flotilla_runtime::failover::CallError;

use crate::store::StoreError;

/// Why a request to an origin, or to all origins, failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum OriginError {
    /// The origin is sure that its region does not have the content. For all origins: every region.
    #[error("{0}")]
    Missing(String),
    /// The origin refuses the request, or the content to this peer.
    #[error("{0}")]
    Refused(String),
    /// The origin answers, but asks for a pause.
    #[error("{message}")]
    Busy {
        message: String,
        retry_after: Duration,
    },
    /// The origin does not answer or cannot serve now. For all origins: this is true of each.
    #[error("{0}")]
    Unavailable(String),
    /// For all origins: some regions do not have the content, and the others are unavailable.
    #[error("{0}")]
    Unsure(String),
    /// The requested range starts beyond the end of the content, which has this size in bytes.
    #[error("range starts beyond the end ({0} bytes)")]
    Unsatisfiable(u64),
}

impl CallError for OriginError {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Missing(_) => Outcome::Missing,
            Self::Refused(_) => Outcome::Refused,
            Self::Busy { retry_after, .. } => Outcome::Busy {
                retry_after: *retry_after,
            },
            Self::Unsatisfiable(_) => Outcome::Answered,
            Self::Unavailable(error) | Self::Unsure(error) => Outcome::Failed {
                error: error.clone(),
            },
        }
    }
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
