//! Pulls and deletions of blobs.

use core::convert::Infallible;
use core::ops::Range;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use flotilla_common::wire::origin::{REDIRECT_HEADER, REDIRECT_NEVER};
use flotilla_runtime::http::FileSender;
use flotilla_runtime::http::range::{RequestedRange, content_range, unsatisfied_range};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::blob_body::one_piece_at_a_time;
use super::error::{ApiError, Code};
use super::request_id::HttpRequestId;
use super::{
    Api, CONTENT_DIGEST, HandlerResult, empty, is_from_region, matches_etag, other_regions, set,
    text_of, warn_if_stale,
};
use crate::regions::regional::Regional;
use crate::regions::resuming_body::{BrokenBody, ResumingBody, STALL_TIMEOUT, with_stall_timeout};
use crate::registry::{FoundBlob, Need, RegistryError, gave_wrong_bytes};
use crate::storage::StorageError;

const REDIRECT: HeaderName = HeaderName::from_static(REDIRECT_HEADER);

/// Bytes for which a rate-limited response asks the limiter at a time.
const LIMITED_PIECE_LEN: usize = 32 << 10;

pub(super) async fn get(
    api: &Arc<Api>,
    repository: &RepositoryName,
    digest: &Digest,
    request: &Parts,
) -> HandlerResult {
    let headers = &request.headers;
    let redirects = api.redirect_blobs && may_be_redirected(request);
    // A redirected client reads the data later, so the record must be recent.
    let need = if redirects { Need::Live } else { Need::Bytes };
    let blob = find(api, repository, digest, need).await?;
    let size = blob.size();
    let etag = format!("\"{digest}\"");
    if matches_etag(headers, &etag) {
        return Ok(empty(StatusCode::NOT_MODIFIED, &[(header::ETAG, &etag)]));
    }
    if redirects && let Some(url) = api.registry.presigned_blob(&blob).await? {
        api.metrics.redirected();
        let headers = [
            (header::LOCATION, url.as_str()),
            (header::CACHE_CONTROL, "no-store"),
        ];
        return Ok(empty(StatusCode::TEMPORARY_REDIRECT, &headers));
    }
    let (status, range) = requested_range(headers, &etag, size)?;
    let body = body(api, repository, &blob, range.clone(), request).await?;
    let mut response = described(digest, range.end - range.start, blob.stale);
    complete(&mut response, status, &range, size, body);
    Ok(response)
}

/// The answer to a GET of a small blob that is in memory; `None` if storage must be read, or other
/// regions may have to be asked.
pub(super) fn from_memory(
    api: &Arc<Api>,
    repository: &RepositoryName,
    digest: &Digest,
    request: &Parts,
) -> Option<HandlerResult> {
    let bytes = api.registry.blob_in_memory(repository, digest)?;
    Some(answer_from_memory(api, &bytes, digest, request))
}

fn answer_from_memory(
    api: &Arc<Api>,
    bytes: &Bytes,
    digest: &Digest,
    request: &Parts,
) -> HandlerResult {
    let size = bytes.len() as u64;
    let etag = format!("\"{digest}\"");
    if matches_etag(&request.headers, &etag) {
        return Ok(empty(StatusCode::NOT_MODIFIED, &[(header::ETAG, &etag)]));
    }
    let (status, range) = requested_range(&request.headers, &etag, size)?;
    // A range of a blob of at most 64 KiB.
    let piece = bytes.slice(range.start as usize..range.end as usize);
    let pieces = stream::iter([Ok::<_, Infallible>(piece)]);
    let body = limited_body(api, request, pieces);
    let mut response = described(digest, range.end - range.start, false);
    complete(&mut response, status, &range, size, body);
    Ok(response)
}

/// The bytes that a request asks for, and the status of the answer.
fn requested_range(
    headers: &HeaderMap,
    etag: &str,
    size: u64,
) -> Result<(StatusCode, Range<u64>), ApiError> {
    let unchanged = text_of(headers, header::IF_RANGE).is_none_or(|validator| validator == etag);
    let range = text_of(headers, header::RANGE).filter(|_| unchanged);
    match RequestedRange::parse(range, size) {
        RequestedRange::Whole => Ok((StatusCode::OK, 0..size)),
        RequestedRange::Part(range) => Ok((StatusCode::PARTIAL_CONTENT, range)),
        RequestedRange::Unsatisfiable => {
            let error = ApiError::new(
                Code::RangeUnsatisfiable,
                format_args!("the range selects none of the {size} bytes"),
            );
            Err(error.with(header::CONTENT_RANGE, unsatisfied_range(size)))
        }
    }
}

/// Adds status, range and body to a response that describes a blob.
fn complete(
    response: &mut Response<Body>,
    status: StatusCode,
    range: &Range<u64>,
    size: u64,
    body: Body,
) {
    *response.status_mut() = status;
    if status == StatusCode::PARTIAL_CONTENT {
        set(response, header::CONTENT_RANGE, &content_range(range, size));
    }
    *response.body_mut() = body;
}

pub(super) async fn head(
    api: &Arc<Api>,
    repository: &RepositoryName,
    digest: &Digest,
    headers: &HeaderMap,
) -> HandlerResult {
    let blob = find(api, repository, digest, Need::Live).await?;
    let etag = format!("\"{digest}\"");
    if matches_etag(headers, &etag) {
        return Ok(empty(StatusCode::NOT_MODIFIED, &[(header::ETAG, &etag)]));
    }
    Ok(described(digest, blob.size(), blob.stale))
}

pub(super) async fn delete(
    api: &Arc<Api>,
    repository: &RepositoryName,
    digest: &Digest,
) -> HandlerResult {
    api.registry.delete_blob(repository, digest).await?;
    Ok(empty(StatusCode::ACCEPTED, &[]))
}

/// Whether a client accepts a redirect to storage. The ETags of storage are not those of the
/// origin, so requests with If-Range are not redirected. Other regions have no access to storage.
fn may_be_redirected(request: &Parts) -> bool {
    let headers = &request.headers;
    text_of(headers, header::IF_RANGE).is_none()
        && text_of(headers, REDIRECT) != Some(REDIRECT_NEVER)
        && !is_from_region(request)
}

async fn find(
    api: &Arc<Api>,
    repository: &RepositoryName,
    digest: &Digest,
    need: Need,
) -> Result<FoundBlob, ApiError> {
    let found = api.registry.blob(repository, digest, need).await?;
    Ok(found.ok_or(RegistryError::BlobUnknown)?)
}

fn described(digest: &Digest, len: u64, is_stale: bool) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    set(&mut response, CONTENT_DIGEST, &digest.to_string());
    set(&mut response, header::ETAG, &format!("\"{digest}\""));
    warn_if_stale(&mut response, is_stale);
    response
}

/// The body for a range of a blob: sent directly from files if storage has files and the connection
/// supports it.
async fn body(
    api: &Arc<Api>,
    repository: &RepositoryName,
    blob: &FoundBlob,
    range: Range<u64>,
    request: &Parts,
) -> Result<Body, ApiError> {
    let regional = other_regions(api, request);
    if let Some(files) = api.registry.blob_files(blob, range.clone()).await? {
        let Some(regional) = regional else {
            return Ok(match request.extensions.get::<FileSender>() {
                Some(sender) => limited_body(api, request, sender.clone().body(files)),
                None => limited_body(api, request, api.buffers.files(files, None)),
            });
        };
        let bytes = api.buffers.files(files, Some(STALL_TIMEOUT));
        let bytes = bytes.map_err(|error| BrokenBody::Failed(error.to_string()));
        let bytes = bytes.boxed();
        let bytes = continued_elsewhere(regional, repository, blob, range, bytes);
        return Ok(limited_body(api, request, bytes));
    }
    let bytes = api
        .registry
        .read_blob(repository, blob, range.clone())
        .await?;
    let Some(regional) = regional else {
        return Ok(limited_body(api, request, one_piece_at_a_time(bytes)));
    };
    let digest = blob.record.facts.digest;
    let (owner, name) = (Arc::clone(regional), repository.clone());
    let bytes = bytes.inspect_err(move |error| {
        if matches!(error, StorageError::Missing { .. }) {
            owner.replace_lost(&name, &digest);
        }
    });
    let bytes = with_stall_timeout(bytes.map_err(broken_body).boxed());
    let bytes = continued_elsewhere(regional, repository, blob, range, bytes);
    Ok(limited_body(api, request, bytes))
}

/// A body that goes on from another region when the own storage stalls or fails.
fn continued_elsewhere(
    regional: &Regional,
    repository: &RepositoryName,
    blob: &FoundBlob,
    range: Range<u64>,
    bytes: BoxStream<'static, Result<Bytes, BrokenBody>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let bytes = ResumingBody::of_own(
        regional.routes().usable_others(),
        repository.clone(),
        blob.record.facts.digest,
        blob.size(),
        range,
        bytes,
    );
    // Outermost, so that a client that reads slowly is not taken for a source that stalls.
    one_piece_at_a_time(bytes.into_stream().map_err(io::Error::other))
}

fn broken_body(error: StorageError) -> BrokenBody {
    if gave_wrong_bytes(&error) {
        BrokenBody::Corrupt(error.to_string())
    } else {
        BrokenBody::Failed(error.to_string())
    }
}

/// A body that is counted, and limited to the rate of the uplink. Other regions get what this
/// region's clients leave of it.
fn limited_body<S, E>(api: &Arc<Api>, request: &Parts, bytes: S) -> Body
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: core::error::Error + Send + Sync + 'static,
{
    let metrics = Arc::clone(&api.metrics);
    let id = request.extensions.get::<HttpRequestId>().cloned();
    let bytes = bytes.inspect_err(move |error| {
        let request_id = id.as_ref().map(tracing::field::display);
        tracing::warn!(target: "flotilla_origin::request", request_id, %error, "response aborted: reading the blob failed");
    });
    if api.uplink.rate().is_none() {
        let counted = bytes.inspect_ok(move |piece| metrics.blob_bytes_sent(piece.len()));
        return Body::from_stream(counted);
    }
    let uplink = api.uplink.clone();
    let is_background = is_from_region(request);
    let pieces = bytes
        .map_ok(|piece| stream::iter(split(piece)).map(Ok::<_, E>))
        .try_flatten();
    let limited = pieces.and_then(move |piece: Bytes| {
        let uplink = uplink.clone();
        let metrics = Arc::clone(&metrics);
        async move {
            if is_background {
                uplink.take_background(piece.len()).await;
            } else {
                uplink.take(piece.len()).await;
            }
            metrics.blob_bytes_sent(piece.len());
            Ok(piece)
        }
    });
    Body::from_stream(limited)
}

fn split(mut piece: Bytes) -> impl Iterator<Item = Bytes> + Send {
    core::iter::from_fn(move || {
        let next = piece.split_to(piece.len().min(LIMITED_PIECE_LEN));
        (!next.is_empty()).then_some(next)
    })
}
