//! Pushing blobs: in one request, in two, streamed or in chunks.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use flotilla_common::digest::{Algorithm, Digest};
use flotilla_common::name::RepositoryName;
use flotilla_runtime::http::range::parse_upload_range;
use futures_util::{StreamExt, TryStreamExt};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use http_body::Body as _;

use super::error::{ApiError, Code, upload_range};
use super::route::{digest as parse_digest, parameter};
use super::{Answer, Api, CHUNK_MIN_LENGTH, CONTENT_DIGEST, UPLOAD_ID, empty, text_of};
use crate::registry::{Body, Known, Progress, RegistryError};

/// Bytes that a chunk should have at least, so that a blob does not become very many objects. Not
/// enforced.
const CHUNK_MIN: &str = "1048576";

/// `POST`: begins an upload; with `digest` takes the whole blob, with `mount` takes it from another
/// repository.
pub(super) async fn begin(
    api: &Arc<Api>,
    repository: &RepositoryName,
    request: &Parts,
    body: HttpBody,
) -> Answer {
    let query = request.uri.query();
    if let Some(mounted) = mount(api, repository, query).await? {
        return Ok(created(repository, &mounted));
    }
    let digest = parameter(query, "digest")
        .map(|text| parse_digest(&text))
        .transpose()?;
    let announced = match parameter(query, "digest-algorithm") {
        Some(name) => Some(
            name.parse()
                .map_err(|error| ApiError::new(Code::DigestInvalid, error))?,
        ),
        None => digest.map(|digest| digest.algorithm()),
    };
    let (ticket, progress) = api
        .registry
        .begin_upload(repository, announced == Some(Algorithm::Sha512));
    let body = body_of(request, body)?;
    let whole = digest.filter(|digest| body.len != Some(0) || digest.matches(b""));
    let Some(digest) = whole else {
        return Ok(accepted(StatusCode::ACCEPTED, repository, &progress));
    };
    let _permit = api.admission.admit_upload()?;
    let finished = api
        .registry
        .finish(repository, ticket, Some(progress.known), digest, body)
        .await;
    finished.map_err(|error| ApiError::of(error, |progress| location(repository, &progress)))?;
    Ok(created(repository, &digest))
}

/// The digest that was mounted; `None` if none was asked for, or there is nothing to mount.
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

/// `GET`: how far the upload is.
pub(super) async fn status(
    api: &Arc<Api>,
    repository: &RepositoryName,
    id: &str,
    query: Option<&str>,
) -> Answer {
    let ticket = api.registry.ticket(repository, id)?;
    let progress = api.registry.progress(ticket, known(query)).await?;
    Ok(accepted(StatusCode::NO_CONTENT, repository, &progress))
}

/// `PATCH`: the next bytes.
pub(super) async fn patch(
    api: &Arc<Api>,
    repository: &RepositoryName,
    id: &str,
    request: &Parts,
    body: HttpBody,
) -> Answer {
    let ticket = api.registry.ticket(repository, id)?;
    let known = known(request.uri.query());
    let _permit = api.admission.admit_upload()?;
    let appended = api
        .registry
        .append(ticket, known, body_of(request, body)?)
        .await;
    let progress = appended
        .map_err(|error| ApiError::of(error, |progress| location(repository, &progress)))?;
    Ok(accepted(StatusCode::ACCEPTED, repository, &progress))
}

/// `PUT`: the upload is this digest, perhaps with its last bytes.
pub(super) async fn put(
    api: &Arc<Api>,
    repository: &RepositoryName,
    id: &str,
    request: &Parts,
    body: HttpBody,
) -> Answer {
    let ticket = api.registry.ticket(repository, id)?;
    let query = request.uri.query();
    let digest = parameter(query, "digest");
    let digest = digest
        .ok_or_else(|| ApiError::new(Code::DigestInvalid, "the digest parameter is missing"))?;
    let (digest, known) = (parse_digest(&digest)?, known(query));
    let body = body_of(request, body)?;
    // Without bytes it only ends what was taken on.
    let _permit = if body.len == Some(0) {
        None
    } else {
        Some(api.admission.admit_upload()?)
    };
    let finished = api
        .registry
        .finish(repository, ticket, known, digest, body)
        .await;
    finished.map_err(|error| ApiError::of(error, |progress| location(repository, &progress)))?;
    Ok(created(repository, &digest))
}

/// `DELETE`: the upload is given up.
pub(super) async fn cancel(
    api: &Arc<Api>,
    repository: &RepositoryName,
    id: &str,
    query: Option<&str>,
) -> Answer {
    let ticket = api.registry.ticket(repository, id)?;
    api.registry.cancel(ticket, known(query)).await?;
    Ok(empty(StatusCode::NO_CONTENT, &[]))
}

fn created(repository: &RepositoryName, digest: &Digest) -> http::Response<HttpBody> {
    let (location, digest) = (
        format!("/v2/{repository}/blobs/{digest}"),
        digest.to_string(),
    );
    empty(
        StatusCode::CREATED,
        &[(header::LOCATION, &location), (CONTENT_DIGEST, &digest)],
    )
}

fn accepted(
    status: StatusCode,
    repository: &RepositoryName,
    progress: &Progress,
) -> http::Response<HttpBody> {
    let headers = [
        (header::LOCATION, &*location(repository, progress)),
        (header::RANGE, &*upload_range(progress.end)),
        (UPLOAD_ID, &*progress.upload.to_string()),
        (CHUNK_MIN_LENGTH, CHUNK_MIN),
    ];
    empty(status, &headers)
}

/// Where the upload goes on. It names the last log entry, so that any replica takes it up with one
/// read.
fn location(repository: &RepositoryName, progress: &Progress) -> String {
    let last = progress
        .known
        .last
        .map_or("none".to_owned(), |offset| format!("{offset:016x}"));
    format!(
        "/v2/{repository}/blobs/uploads/{}?last={last}",
        progress.upload
    )
}

/// What a request's Location says; one that was tampered with says nothing.
fn known(query: Option<&str>) -> Option<Known> {
    match parameter(query, "last")?.as_str() {
        "none" => Some(Known { last: None }),
        offset => Some(Known {
            last: Some(u64::from_str_radix(offset, 16).ok()?),
        }),
    }
}

fn body_of(request: &Parts, body: HttpBody) -> Result<Body, ApiError> {
    let chunk = chunk_of(&request.headers)?;
    let exact = body.size_hint().exact();
    let len = match (&chunk, exact) {
        (Some(chunk), Some(exact)) if chunk.end - chunk.start != exact => {
            return Err(RegistryError::SizeInvalid(
                "Content-Range and Content-Length disagree".to_owned(),
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
    Ok(Body {
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
    let chunk =
        chunk.ok_or_else(|| ApiError::new(Code::BlobUploadInvalid, "malformed Content-Range"))?;
    Ok(Some(chunk))
}
