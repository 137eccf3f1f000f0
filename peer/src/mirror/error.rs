//! Error responses of the mirror, with OCI error bodies.
//!
//! If every host of a pull fails, containerd shows the user the error of the first host, which is
//! the mirror; so each message says what happened and where. The mirror never answers 408 or 429:
//! containerd would repeat the request to the same host five times.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::json;

use crate::origin::OriginError;

/// Why a request to the mirror failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MirrorError {
    /// The path or reference is malformed.
    #[error("{0}")]
    Invalid(String),
    /// Every region says that it does not have the content, or an origin refuses it to this peer.
    #[error("{0}")]
    Unknown(String),
    /// No source can deliver the content now.
    #[error("{0}")]
    Unavailable(String),
}

impl MirrorError {
    /// An error of the origins about `subject`.
    pub(super) fn from_origin(subject: &str, error: &OriginError) -> Self {
        match error {
            OriginError::Refused(message) | OriginError::Missing(message) => {
                Self::Unknown(format!("{subject}: {message}"))
            }
            _ => Self::Unavailable(format!("{subject}: {error}")),
        }
    }
}

/// The kind of content that was requested; it decides the OCI error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentKind {
    Manifest,
    Blob,
    /// Any content of a registry that is not mirrored here.
    OtherRegistry,
}

/// The response for a failed request.
pub(super) fn error_response(kind: ContentKind, error: &MirrorError) -> Response<Body> {
    use ContentKind::{Blob, Manifest, OtherRegistry};
    use MirrorError::{Invalid, Unavailable, Unknown};
    let (status, code) = match (error, kind) {
        (Invalid(_), Manifest) => (StatusCode::NOT_FOUND, "MANIFEST_INVALID"),
        (Invalid(_), Blob) => (StatusCode::NOT_FOUND, "DIGEST_INVALID"),
        (Invalid(_) | Unknown(_), OtherRegistry) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        (Unknown(_), Manifest) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        (Unknown(_), Blob) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        (Unavailable(_), _) => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    };
    oci_error(status, code, &error.to_string())
}

/// A response with this status and an OCI error body.
pub(super) fn oci_error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({"errors": [{"code": code, "message": message}]}).to_string();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}
