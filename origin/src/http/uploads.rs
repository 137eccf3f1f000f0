//! Pushes of blobs: in one request, in two, streamed or in chunks.

use std::sync::Arc;

use axum::body::Body;
use flotilla_common::digest::{Algorithm, Digest};
use flotilla_common::name::RepositoryName;
use flotilla_runtime::http::range::parse_upload_range;
use futures_util::{StreamExt, TryStreamExt};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use http_body::Body as _;

use super::error::{ApiError, Code, upload_range};
use super::route::{digest as parse_digest, parameter};
use super::{
    Api, CHUNK_MIN_LENGTH, CONTENT_DIGEST, HandlerResult, UPLOAD_ID, empty, is_from_region,
    regional, text_of,
};
use crate::registry::{LocationHint, RegistryError, UploadBody, UploadProgress};
use crate::upload::id::UploadTicket;

/// The recommended minimum size of a chunk in bytes, so that a blob does not become many objects.
/// Not enforced.
const CHUNK_MIN: &str = "1048576";

/// `POST`: begins an upload. With `digest` the body is the whole blob; with `mount` the blob is
/// taken from another repository.
pub(super) async fn begin(
    api: &Arc<Api>,
    repository: &RepositoryName,
    request: &Parts,
    body: Body,
) -> HandlerResult {
    let query = request.uri.query();
    if let Some(mounted) = mount(api, repository, query).await? {
        return Ok(created(repository, &mounted));
    }
    let digest = parameter(query, "digest")
        .map(|text| parse_digest(&text))
        .transpose()?;
    let algorithm = match parameter(query, "digest-algorithm") {
        Some(name) => Some(
            name.parse()
                .map_err(|error| ApiError::new(Code::DigestInvalid, error))?,
        ),
        None => digest.map(|digest| digest.algorithm()),
    };
    let (ticket, progress) = api
        .registry
        .begin_upload(repository, algorithm == Some(Algorithm::Sha512));
    let body = body_of(request, body)?;
    let whole = digest.filter(|digest| body.len != Some(0) || digest.matches(b""));
    let Some(digest) = whole else {
        return Ok(accepted(api, StatusCode::ACCEPTED, repository, &progress));
    };
    let _permit = api.admission.admit_upload(is_from_region(request))?;
    let finished = api
        .registry
        .finish(repository, ticket, Some(progress.hint), digest, body)
        .await;
    finished
        .map_err(|error| ApiError::of(error, |progress| location(api, repository, &progress)))?;
    regional::announce_blob(api, repository, &digest);
    Ok(created(repository, &digest))
}

/// The digest that was mounted; `None` if the request does not mount, or the blob does not exist.
async fn mount(
    api: &Arc<Api>,
    repository: &RepositoryName,
    query: Option<&str>,
) -> Result<Option<Digest>, ApiError> {
    let Some(digest) = parameter(query, "mount") else {
        return Ok(None);
    };
    let digest = parse_digest(&digest)?;
    let from: Option<RepositoryName> = match parameter(query, "from") {
        Some(from) => Some(
            from.parse()
                .map_err(|error| ApiError::new(Code::NameInvalid, error))?,
        ),
        None => None,
    };
    let mounted = api
        .registry
        .mount(from.as_ref(), repository, &digest)
        .await?;
    Ok(mounted.map(|()| digest))
}

/// `GET`: the progress of an upload.
pub(super) async fn status(
    api: &Arc<Api>,
    repository: &RepositoryName,
    id: &str,
    query: Option<&str>,
) -> HandlerResult {
    let ticket = ticket(api, repository, id)?;
    let progress = api.registry.progress(ticket, location_hint(query)).await?;
    Ok(accepted(api, StatusCode::NO_CONTENT, repository, &progress))
}

/// `PATCH`: appends bytes.
pub(super) async fn patch(
    api: &Arc<Api>,
    repository: &RepositoryName,
    id: &str,
    request: &Parts,
    body: Body,
) -> HandlerResult {
    let ticket = ticket(api, repository, id)?;
    let hint = location_hint(request.uri.query());
    let _permit = api.admission.admit_upload(is_from_region(request))?;
    let appended = api
        .registry
        .append(ticket, hint, body_of(request, body)?)
        .await;
    let progress = appended
        .map_err(|error| ApiError::of(error, |progress| location(api, repository, &progress)))?;
    Ok(accepted(api, StatusCode::ACCEPTED, repository, &progress))
}

/// `PUT`: finishes an upload as a digest, possibly with the last bytes.
pub(super) async fn put(
    api: &Arc<Api>,
    repository: &RepositoryName,
    id: &str,
    request: &Parts,
    body: Body,
) -> HandlerResult {
    let ticket = ticket(api, repository, id)?;
    let query = request.uri.query();
    let digest = parameter(query, "digest");
    let digest =
        digest.ok_or_else(|| ApiError::new(Code::DigestInvalid, "parameter digest is missing"))?;
    let digest = parse_digest(&digest)?;
    let hint = location_hint(query);
    let body = body_of(request, body)?;
    // Without bytes it only finishes an upload that was admitted before.
    let _permit = if body.len == Some(0) {
        None
    } else {
        Some(api.admission.admit_upload(is_from_region(request))?)
    };
    let finished = api
        .registry
        .finish(repository, ticket, hint, digest, body)
        .await;
    finished
        .map_err(|error| ApiError::of(error, |progress| location(api, repository, &progress)))?;
    regional::announce_blob(api, repository, &digest);
    Ok(created(repository, &digest))
}

/// `DELETE`: cancels an upload.
pub(super) async fn cancel(
    api: &Arc<Api>,
    repository: &RepositoryName,
    id: &str,
    query: Option<&str>,
) -> HandlerResult {
    let ticket = ticket(api, repository, id)?;
    api.registry.cancel(ticket, location_hint(query)).await?;
    Ok(empty(StatusCode::NO_CONTENT, &[]))
}

/// The upload of an id, which names the region in which it began.
fn ticket(api: &Api, repository: &RepositoryName, id: &str) -> Result<UploadTicket, RegistryError> {
    let own = match id.split_once('.') {
        Some((region, own)) if region == api.registry.region().as_str() => own,
        _ => return Err(RegistryError::UploadUnknown),
    };
    api.registry.ticket(repository, own)
}

fn created(repository: &RepositoryName, digest: &Digest) -> http::Response<Body> {
    let location = format!("/v2/{repository}/blobs/{digest}");
    let digest = digest.to_string();
    empty(
        StatusCode::CREATED,
        &[(header::LOCATION, &location), (CONTENT_DIGEST, &digest)],
    )
}

fn accepted(
    api: &Api,
    status: StatusCode,
    repository: &RepositoryName,
    progress: &UploadProgress,
) -> http::Response<Body> {
    let headers = [
        (header::LOCATION, &*location(api, repository, progress)),
        (header::RANGE, &*upload_range(progress.end)),
        (UPLOAD_ID, &*progress.upload.to_string()),
        (CHUNK_MIN_LENGTH, CHUNK_MIN),
    ];
    empty(status, &headers)
}

/// The Location of an upload. It names the region, so that a request that reaches another one is
/// forwarded, and the last log entry, so that any replica continues with one read.
fn location(api: &Api, repository: &RepositoryName, progress: &UploadProgress) -> String {
    let last = progress
        .hint
        .last_entry
        .map_or("none".to_owned(), |offset| format!("{offset:016x}"));
    format!(
        "/v2/{repository}/blobs/uploads/{}.{}?last={last}",
        api.registry.region(),
        progress.upload
    )
}

/// The hint in the Location that a request uses; `None` if it is missing or malformed.
fn location_hint(query: Option<&str>) -> Option<LocationHint> {
    match parameter(query, "last")?.as_str() {
        "none" => Some(LocationHint { last_entry: None }),
        offset => Some(LocationHint {
            last_entry: Some(u64::from_str_radix(offset, 16).ok()?),
        }),
    }
}

fn body_of(request: &Parts, body: Body) -> Result<UploadBody, ApiError> {
    let chunk = chunk_of(&request.headers)?;
    let exact = body.size_hint().exact();
    let len = match (&chunk, exact) {
        (Some(chunk), Some(exact)) if chunk.end - chunk.start != exact => {
            return Err(RegistryError::SizeInvalid(
                "Content-Range and Content-Length do not match".to_owned(),
            )
            .into());
        }
        (Some(chunk), _) => Some(chunk.end - chunk.start),
        (None, exact) => exact,
    };
    let bytes = body
        .into_data_stream()
        .map_err(|error| error.to_string())
        .boxed();
    Ok(UploadBody {
        bytes,
        len,
        offset: chunk.map(|chunk| chunk.start),
    })
}

fn chunk_of(headers: &HeaderMap) -> Result<Option<core::ops::Range<u64>>, ApiError> {
    if !headers.contains_key(header::CONTENT_RANGE) {
        return Ok(None);
    }
    let chunk = text_of(headers, header::CONTENT_RANGE).and_then(parse_upload_range);
    let chunk = chunk
        .ok_or_else(|| ApiError::new(Code::BlobUploadInvalid, "Content-Range is malformed"))?;
    Ok(Some(chunk))
}
