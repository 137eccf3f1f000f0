//! Answers of the mirror that are not content: OCI error bodies.
//!
//! If every host of a pull fails, containerd shows the person the first host's error, which is
//! ours; so each message says what happened and where. The mirror never answers 408 or 429:
//! containerd would ask the same host five times more.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::json;

/// Why a pull through the mirror failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The request's path or reference makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Every origin that was asked says that it does not have this.
    #[error("{0}")]
    Unknown(String),
    /// No source could deliver it now.
    #[error("{0}")]
    Unavailable(String),
}

/// What kind of thing was asked for: decides the OCI error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Manifest,
    Blob,
    /// Anything, of a registry that is not mirrored here.
    Name,
}

/// The error as HTTP.
pub(crate) fn failed(subject: Subject, failure: &Failure) -> Response<Body> {
    let (status, code) = match (failure, subject) {
        (Failure::Invalid(_), Subject::Manifest) => (StatusCode::NOT_FOUND, "MANIFEST_INVALID"),
        (Failure::Invalid(_), Subject::Blob) => (StatusCode::NOT_FOUND, "DIGEST_INVALID"),
        (Failure::Invalid(_) | Failure::Unknown(_), Subject::Name) => {
            (StatusCode::NOT_FOUND, "NAME_UNKNOWN")
        }
        (Failure::Unknown(_), Subject::Manifest) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        (Failure::Unknown(_), Subject::Blob) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        (Failure::Unavailable(_), _) => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    };
    error(status, code, &failure.to_string())
}

/// An OCI error body under a status.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({"errors": [{"code": code, "message": message}]}).to_string();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}
