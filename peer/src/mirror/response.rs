//! Heads of successful responses, which manifests and blobs share.

use core::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use flotilla_common::digest::Digest;
use flotilla_common::wire::origin::{API_VERSION, API_VERSION_HEADER, CONTENT_DIGEST_HEADER};
use flotilla_runtime::http::range::{content_range, unsatisfied_range};

use super::error::oci_error;

/// The response to `GET /v2/`: this is a registry.
pub(super) fn ping() -> Response<Body> {
    let mut response = Response::new(Body::from("{}"));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(API_VERSION_HEADER, HeaderValue::from_static(API_VERSION));
    response
}

/// Sets the headers of all content: its media type, its digest, and the length of the body.
pub(super) fn set_content_headers(
    headers: &mut HeaderMap,
    digest: &Digest,
    media_type: &str,
    length: u64,
) {
    let media_type = HeaderValue::from_str(media_type)
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_TYPE, media_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Ok(digest) = HeaderValue::from_str(&digest.to_string()) {
        headers.insert(CONTENT_DIGEST_HEADER, digest);
    }
}

/// Makes it a response with status 206 and this range of `size` bytes.
pub(super) fn set_partial(response: &mut Response<Body>, range: &Range<u64>, size: u64) {
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    if let Ok(range) = HeaderValue::from_str(&content_range(range, size)) {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
}

/// Status 416 for content of `size` bytes.
pub(super) fn unsatisfiable(size: u64) -> Response<Body> {
    let message = format!("range starts beyond the end ({size} bytes)");
    let mut response = oci_error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", &message);
    if let Ok(range) = HeaderValue::from_str(&unsatisfied_range(size)) {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    response
}
