//! Manifests by tag and by digest, lists of tags, and referrers.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use flotilla_common::digest::Digest;
use flotilla_common::manifest::{MAX_MANIFEST_LEN, OCI_INDEX};
use flotilla_common::name::{Reference, RepositoryName, Tag};
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::FactKey;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::Body as _;
use serde_json::json;

use super::error::{ApiError, Code};
use super::regional::OwedValue;
use super::route::{Route, digest as parse_digest, encode_parameter, parameter, parameters, route};
use super::{
    Api, CONTENT_DIGEST, HandlerResult, OCI_SUBJECT, OCI_TAG, all_regions, empty, is_from_region,
    is_read, json, matches_etag, regional, set, set_version, text_of, typed, warn_if_stale,
};
use crate::admission::Permit;
use crate::metrics::MANIFEST;
use crate::registry::{CachedManifest, LiveTag, MAX_REFERRERS, MAX_TAGS, RegistryError};
use crate::stall_budget::BudgetExhausted;

/// Maximum tags that one request moves.
const MAX_TAGS_PER_PUT: usize = 32;

pub(super) async fn get(
    api: &Arc<Api>,
    repository: &RepositoryName,
    reference: &Reference,
    request: &Parts,
) -> HandlerResult {
    let found = api.registry.manifest(repository, reference).await?;
    let mut response = response_of(&found.manifest, request);
    warn_if_stale(&mut response, found.stale);
    if let Some(tag) = found.tag {
        response.extensions_mut().insert(OwnTag(tag));
    }
    Ok(response)
}

/// In the extensions of a response to a read by tag: the tag in the own storage.
#[derive(Clone, Debug)]
pub(super) struct OwnTag(pub(super) LiveTag);

/// The response to a GET or HEAD of a manifest that is in memory; `None` passes the request on to
/// the router.
///
/// This is the hot path of a registry: it does only what the response needs.
pub(super) fn shortcut(api: &Api, request: &Parts) -> Option<Response<Body>> {
    let path = request.uri.path();
    if !is_read(&request.method) || !path.contains("/manifests/") {
        return None;
    }
    let started = api.clock.now();
    let Route::Manifest {
        repository,
        reference,
    } = route(&request.method, path).ok()?
    else {
        return None;
    };
    let regional = all_regions(api);
    if regional.is_some_and(|it| !it.may_answer_from_memory(&repository, &reference)) {
        return None;
    }
    // A manifest that a tag names may have been deleted elsewhere.
    let regional = regional.filter(|it| !it.ahead().is_empty());
    let named = regional.map(|regional| (regional, repository.clone()));
    let manifest = api.registry.manifest_in_memory(repository, reference)?;
    if let Some((regional, repository)) = named
        && !regional.may_answer_from_memory(&repository, &Reference::Digest(manifest.digest))
    {
        return None;
    }
    let mut response = response_of(&manifest, request);
    set_version(&mut response);
    let duration = api.clock.now().saturating_since(started);
    match response.status() {
        StatusCode::OK => api.metrics.manifest_answered(duration),
        other => api.metrics.request(MANIFEST, other, duration),
    }
    Some(response)
}

pub(super) fn response_of(manifest: &CachedManifest, request: &Parts) -> Response<Body> {
    let is_known = matches_etag(&request.headers, manifest.quoted_digest());
    let sends_body = request.method != Method::HEAD && !is_known;
    let body = if sends_body {
        Body::from(manifest.bytes.clone())
    } else {
        Body::empty()
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.reserve(6);
    let texts = [
        (header::ETAG, manifest.quoted_digest().clone()),
        (CONTENT_DIGEST, manifest.digest_text()),
    ];
    let texts = texts.map(|(name, text)| (name, HeaderValue::from_maybe_shared(text)));
    headers.extend(
        texts
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.ok()?))),
    );
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    headers.insert(
        header::CONTENT_LENGTH,
        HeaderValue::from(manifest.bytes.len()),
    );
    set(&mut response, header::CONTENT_TYPE, &manifest.media_type);
    response
}

pub(super) async fn put(
    api: &Arc<Api>,
    repository: &RepositoryName,
    reference: &Reference,
    request: &Parts,
    body: Body,
) -> HandlerResult {
    let tags = tags_of(reference, request.uri.query())?;
    let media_type = text_of(&request.headers, header::CONTENT_TYPE);
    let media_type = media_type
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_owned());
    let (bytes, _permits) = body_up_to_limit(api, body).await?;
    let manifest_digest = match reference {
        Reference::Digest(digest) => *digest,
        Reference::Tag(_) => Digest::sha256(&bytes),
    };
    let keys = keys_of(repository, Some(manifest_digest), &tags);
    let kind = regional::ChangeKind::Push;
    let rules = regional::change_rules(api, kind, repository, &keys, request).await?;
    let media_type = media_type.as_deref();
    let put = || {
        let registry = &api.registry;
        registry.put_manifest(
            repository,
            reference,
            &tags,
            media_type,
            bytes.clone(),
            &rules,
        )
    };
    let pushed = match (put().await, all_regions(api)) {
        (Err(error @ RegistryError::ManifestBlobUnknown(_)), Some(regional)) => {
            regional::bring_references(regional, repository, &bytes, error).await?;
            put().await?
        }
        (pushed, _) => pushed?,
    };
    if let Some(regional) = all_regions(api) {
        regional::acknowledge(regional, repository, keys, pushed.bytes).await?;
    }
    let digest = pushed.digest.to_string();
    let location = format!("/v2/{repository}/manifests/{digest}");
    let headers = [(header::LOCATION, &*location), (CONTENT_DIGEST, &*digest)];
    let mut response = empty(StatusCode::CREATED, &headers);
    if let Some(subject) = pushed.subject {
        set(&mut response, OCI_SUBJECT, &subject.to_string());
    }
    add_stamp(&mut response, request, &pushed.stamp);
    if tags.len() > usize::from(matches!(reference, Reference::Tag(_))) {
        let names: Vec<_> = tags.iter().map(Tag::as_str).collect();
        set(&mut response, OCI_TAG, &names.join(", "));
    }
    Ok(response)
}

/// The tags that a PUT moves: the one in its path, and those of its `tag` parameters.
pub(super) fn tags_of(reference: &Reference, query: Option<&str>) -> Result<Vec<Tag>, ApiError> {
    let own = match reference {
        Reference::Tag(tag) => Some(tag.clone()),
        Reference::Digest(_) => None,
    };
    let mut tags: Vec<Tag> = own.into_iter().collect();
    for text in parameters(query, "tag") {
        let tag = text
            .parse()
            .map_err(|error| ApiError::new(Code::ManifestInvalid, error))?;
        if tags.len() == MAX_TAGS_PER_PUT {
            let message = format_args!("too many tags: at most {MAX_TAGS_PER_PUT} in one request");
            return Err(ApiError::new(Code::RequestInvalid, message));
        }
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

pub(super) async fn delete(
    api: &Arc<Api>,
    repository: &RepositoryName,
    reference: &Reference,
    request: &Parts,
) -> HandlerResult {
    let key = match reference {
        Reference::Digest(digest) => FactKey::Manifest(repository.clone(), *digest),
        Reference::Tag(tag) => FactKey::Tag(repository.clone(), tag.clone()),
    };
    let keys = vec![key.clone()];
    let kind = regional::ChangeKind::Delete;
    let mut rules = regional::change_rules(api, kind, repository, &keys, request).await?;
    let read_at = api.clock.now();
    let deleted = api.registry.delete_manifest(repository, reference, &rules);
    let stamp = match (deleted.await, all_regions(api)) {
        // What another region owes may be what the client wants to delete.
        (Err(error @ RegistryError::ManifestUnknown), Some(regional)) => {
            let owed = regional::owed_value(regional, repository, &key, read_at, request).await?;
            rules.unseen = match owed {
                OwedValue::Live(value) => Some(value),
                OwedValue::ReadAgain => None,
                OwedValue::Nothing => return Err(error.into()),
            };
            let deleted = api.registry.delete_manifest(repository, reference, &rules);
            deleted.await?
        }
        (deleted, _) => deleted?,
    };
    if let Some(regional) = all_regions(api) {
        regional::acknowledge(regional, repository, keys, 0).await?;
    }
    let mut response = empty(StatusCode::ACCEPTED, &[]);
    add_stamp(&mut response, request, &stamp);
    Ok(response)
}

/// The keys of a manifest and of tags.
pub(super) fn keys_of(
    repository: &RepositoryName,
    digest: Option<Digest>,
    tags: &[Tag],
) -> Vec<FactKey> {
    let tags = tags
        .iter()
        .map(|tag| FactKey::Tag(repository.clone(), tag.clone()));
    let manifest = digest.map(|digest| FactKey::Manifest(repository.clone(), digest));
    manifest.into_iter().chain(tags).collect()
}

/// Tells the region that forwarded the request how the change was stamped.
fn add_stamp(response: &mut Response<Body>, request: &Parts, stamp: &Stamp) {
    if is_from_region(request) {
        set(response, regional::STAMP, &regional::stamp_text(stamp));
    }
}

async fn body_up_to_limit(api: &Arc<Api>, body: Body) -> Result<(Bytes, Vec<Permit>), ApiError> {
    let too_large = || {
        ApiError::new(
            Code::ManifestTooLarge,
            format_args!("manifest too large: the limit is {MAX_MANIFEST_LEN} bytes"),
        )
    };
    let limit = MAX_MANIFEST_LEN as u64;
    if body.size_hint().lower() > limit {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    let mut permits = Vec::new();
    let mut body = body.into_data_stream();
    let mut budget = api.registry.stall_budget();
    loop {
        let piece = budget.next(&mut body).await;
        let Some(piece) = piece.map_err(|BudgetExhausted| RegistryError::Stalled)? else {
            return Ok((bytes.freeze(), permits));
        };
        let piece = piece.map_err(|error| ApiError::new(Code::ManifestInvalid, error))?;
        if bytes.len() + piece.len() > MAX_MANIFEST_LEN {
            return Err(too_large());
        }
        permits.push(api.admission.admit_manifest_bytes(piece.len())?);
        bytes.extend_from_slice(&piece);
    }
}

/// `GET /v2/<name>/tags/list?n=&last=`.
pub(super) async fn tags(
    api: &Arc<Api>,
    repository: &RepositoryName,
    query: Option<&str>,
) -> HandlerResult {
    let limit = match parameter(query, "n") {
        Some(n) => n
            .parse()
            .map_err(|_| ApiError::new(Code::RequestInvalid, "n must be a number"))?,
        None => MAX_TAGS,
    };
    let last: Option<Tag> = match parameter(query, "last").filter(|last| !last.is_empty()) {
        Some(last) => Some(
            last.parse()
                .map_err(|error| ApiError::new(Code::RequestInvalid, error))?,
        ),
        None => None,
    };
    let page = api
        .registry
        .tag_page(repository, last.as_ref(), limit)
        .await?;
    let mut response = json(json!({"name": repository, "tags": page.tags}).to_string());
    if let Some(last) = page.tags.last().filter(|_| page.more) {
        let next = format!(
            "</v2/{repository}/tags/list?n={}&last={last}>; rel=\"next\"",
            limit.min(MAX_TAGS)
        );
        set(&mut response, header::LINK, &next);
    }
    Ok(response)
}

/// `GET /v2/<name>/referrers/<digest>?artifactType=`. A Link header with `n` and `last` leads to
/// the next page. With a filter a page may be short, or empty.
pub(super) async fn referrers(
    api: &Arc<Api>,
    repository: &RepositoryName,
    subject: &Digest,
    query: Option<&str>,
) -> HandlerResult {
    let limit = match parameter(query, "n") {
        Some(n) => n
            .parse()
            .map_err(|_| ApiError::new(Code::RequestInvalid, "n must be a number"))?,
        None => MAX_REFERRERS,
    };
    let last = parameter(query, "last")
        .map(|last| parse_digest(&last))
        .transpose()?;
    let page = api
        .registry
        .referrers(repository, subject, last.as_ref(), limit)
        .await?;
    let mut manifests = page.descriptors;
    let next = page.next;
    let filter = parameter(query, "artifactType");
    if let Some(filter) = &filter {
        manifests.retain(|descriptor| {
            descriptor
                .get("artifactType")
                .is_some_and(|own| own == filter)
        });
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    let mut response = typed(OCI_INDEX, Body::from(index.to_string()));
    if filter.is_some() {
        set(
            &mut response,
            http::HeaderName::from_static("oci-filters-applied"),
            "artifactType",
        );
    }
    if let Some(last) = next {
        let filter = filter.map(|filter| format!("&artifactType={}", encode_parameter(&filter)));
        let filter = filter.unwrap_or_default();
        let next = format!(
            "</v2/{repository}/referrers/{subject}?n={limit}&last={last}{filter}>; rel=\"next\""
        );
        set(&mut response, header::LINK, &next);
    }
    Ok(response)
}
