//! Reads: from the own storage if it answers, otherwise from another region.
//!
//! Absence counts only from the own storage while it is sure. Content that is absent there and
//! owed by another region is read through from it, and copied behind the answer. Content by digest
//! may come from any region as soon as one is slow; facts that can change may not.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::Arc;

use axum::body::Body;
use flotilla_common::digest::Digest;
use flotilla_common::failover::{ContentKey, Need, SourceId};
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::wire::origin::CLOSURE_PATH;
use flotilla_common::wire::region::FactKey;
use flotilla_runtime::failover::Unserved;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use tokio::time::Instant;

use super::elsewhere::{keepers_elsewhere, serve_elsewhere};
use super::facts::{FactAnswer, read_fact};
use super::proxy::{ReadError, busy, open_at, read_at, send_at, unavailable};
use super::relay::resumed;
use crate::http::error::{ApiError, Code};
use crate::http::{Api, HandlerResult, blobs, hold_until_sent, peers};
use crate::regions::absence::{Missed, OwnRead, Presence};
use crate::regions::copies::CopyJob;
use crate::regions::foreign_streams;
use crate::regions::regional::Regional;
use crate::regions::routes::{OWN, Routes};
use crate::regions::source::Source;
use crate::registry::RegistryError;

/// Marks an answer that may be older than an acknowledged change.
const MAYBE_OLD: &str =
    "299 - \"This region does not reach all acknowledged changes; the answer may be old\"";

/// GET of a blob. Few bodies of a blob that the own storage lacks come from other regions at once:
/// more readers wait for the copy. If it has the blob and is slow, there is no copy to wait for.
pub(in crate::http) async fn blob(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    digest: &Digest,
    request: &Parts,
) -> HandlerResult {
    let path = format!("/v2/{repository}/blobs/{digest}");
    let streams = regional.foreign_streams();
    let deadline = Instant::now() + foreign_streams::WAIT;
    loop {
        let routes = regional.routes();
        let is_lacking = AtomicBool::new(false);
        let own = || blobs::get(api, repository, digest, request);
        let call = |source: SourceId| {
            let (routes, path, own, is_lacking) = (&routes, &path, &own, &is_lacking);
            async move {
                let Some(other) = routes.other(source) else {
                    let answer = own_blob(api, regional, repository, digest, own).await;
                    let lacks = matches!(
                        answer,
                        Err(ReadError::MayBeElsewhere(..) | ReadError::OwnLost)
                    );
                    is_lacking.store(lacks, Ordering::Relaxed);
                    return answer;
                };
                let permit = match is_lacking.load(Ordering::Relaxed) {
                    true => Some(streams.try_begin(digest).ok_or(ReadError::Crowded)?),
                    false => None,
                };
                let response = open_at(&**other, request, path).await?;
                let response = resumed(routes, other, repository, digest, response);
                Ok(hold_until_sent(permit, response))
            }
        };
        let answer = match routes.failover.ask(content(digest), call).await {
            Err(error) if is_crowded(&error) && Instant::now() < deadline => {
                streams.wait(digest, deadline).await;
                continue;
            }
            answer => counted(regional, &routes, answer),
        };
        let (from, response) = answer?;
        if let Some(other) = routes.other(from)
            && is_lacking.into_inner()
        {
            let job = CopyJob::Blob(repository.clone(), *digest);
            regional.copy_behind(other.region(), job);
        }
        return Ok(response);
    }
}

/// The answer of the own storage about a blob. Data that is missing although the repository names
/// the blob was lost: other regions are asked, and it is copied anew.
async fn own_blob<F>(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    digest: &Digest,
    own: impl Fn() -> F,
) -> Result<Response<Body>, ReadError>
where
    F: Future<Output = HandlerResult>,
{
    // A delete of a blob concerns one region.
    let answer = own_answer(regional, repository, None, own).await;
    match answer {
        Err(ReadError::OwnLost) => regional.replace_lost(repository, digest),
        // A replica that copied it anew may have died between its last two writes.
        Err(ReadError::Final(error))
            if error.status() == StatusCode::NOT_FOUND
                && is_named(api, repository, digest).await =>
        {
            let keepers = regional.keepers(repository);
            let keepers = keepers.iter().map(|source| source.region().clone());
            return Err(ReadError::MayBeElsewhere(error, keepers.collect()));
        }
        _ => {}
    }
    answer
}

async fn is_named(api: &Api, repository: &RepositoryName, digest: &Digest) -> bool {
    let named = api.registry.has_membership(repository, digest).await;
    named.unwrap_or(false)
}

/// Whether a request for a blob found enough of its bodies under way.
fn is_crowded(error: &Unserved<ReadError>) -> bool {
    match error {
        Unserved::Unavailable(errors) => errors
            .iter()
            .any(|(_, error)| matches!(error, ReadError::Crowded)),
        Unserved::Final(..) | Unserved::Absent(_) => false,
    }
}

/// A list of tags or referrers, which can change.
pub(in crate::http) async fn list<F>(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    request: &Parts,
    own: impl Fn() -> F,
) -> HandlerResult
where
    F: Future<Output = HandlerResult>,
{
    let routes = regional.routes();
    let path = request
        .uri
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let at_other = async |other: Arc<dyn Source>| read_at(&*other, request, path).await;
    let answer = read_fact(api, regional, &routes, repository, &own, at_other).await;
    match count_failure(regional, answer)? {
        FactAnswer::Served(source, response) => {
            regional.count_read(routes.other(source), "served");
            Ok(response)
        }
        FactAnswer::OtherRegion => {
            let own = || own_answer(regional, repository, None, &own);
            let served = serve(regional, &routes, Need::Fact, request, path, own);
            let (from, response) = served.await?;
            if from == OWN {
                return Ok(response);
            }
            mark_old(Ok(response))
        }
    }
}

/// Counts a read that no region served.
pub(super) fn count_failure<T>(
    regional: &Regional,
    answer: Result<T, ApiError>,
) -> Result<T, ApiError> {
    if let Err(error) = &answer
        && error.status() != StatusCode::NOT_FOUND
    {
        regional.count_read(None, "failed");
    }
    answer
}

/// The closure of a manifest. A closure of another region has that region's seals, and no grant:
/// a grant names the peer, and the other region sees this one.
pub(in crate::http) async fn closure(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    request: &Parts,
    body: Body,
) -> HandlerResult {
    let bytes = peers::read_request(api, body).await?;
    let asked = peers::decode_request(&bytes)?;
    if let Some(keepers) = keepers_elsewhere(regional, &asked.repository) {
        let send = async |other: Arc<dyn Source>| {
            send_at(&*other, request, CLOSURE_PATH, Body::from(bytes.clone())).await
        };
        let absent = RegistryError::ManifestUnknown.into();
        return serve_elsewhere(regional, &keepers, content(&asked.manifest), absent, send).await;
    }
    let routes = regional.routes();
    let client = request.extensions.get();
    let key = FactKey::Manifest(asked.repository.clone(), asked.manifest);
    let call = |source: SourceId| {
        let (routes, bytes, asked, key) = (&routes, &bytes, &asked, &key);
        async move {
            match routes.other(source) {
                None => {
                    let own = || peers::closure_of(api, client, asked);
                    own_answer(regional, &asked.repository, Some(key), own).await
                }
                Some(other) => {
                    let body = Body::from(bytes.clone());
                    send_at(&**other, request, CLOSURE_PATH, body).await
                }
            }
        }
    };
    let (_, response) = ask(regional, &routes, content(&asked.manifest), call).await?;
    Ok(response)
}

/// The key of content in the failover machine.
pub(super) fn content(digest: &Digest) -> Need {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(digest.hash()) {
        *to = *from;
    }
    Need::Content(ContentKey(u64::from_be_bytes(first)))
}

/// Marks an answer that may be old, be it that something was deleted.
pub(super) fn mark_old(answer: HandlerResult) -> HandlerResult {
    match answer {
        Ok(mut response) => {
            let maybe_old = HeaderValue::from_static(MAYBE_OLD);
            response.headers_mut().insert(header::WARNING, maybe_old);
            Ok(response)
        }
        Err(error) => Err(error.with(header::WARNING, MAYBE_OLD.to_owned())),
    }
}

/// The same if it is not sure that the answer shows all acknowledged changes.
pub(super) fn mark_old_unless(is_sure: bool, answer: HandlerResult) -> HandlerResult {
    match is_sure {
        true => answer,
        false => mark_old(answer),
    }
}

/// Serves a read by the own storage or another region, and says by which.
async fn serve<F>(
    regional: &Arc<Regional>,
    routes: &Arc<Routes>,
    need: Need,
    request: &Parts,
    path: &str,
    own: impl Fn() -> F,
) -> Result<(SourceId, Response<Body>), ApiError>
where
    F: Future<Output = Result<Response<Body>, ReadError>>,
{
    let call = |source: SourceId| {
        let own = &own;
        async move {
            match routes.other(source) {
                Some(other) => read_at(&**other, request, path).await,
                None => own().await,
            }
        }
    };
    ask(regional, routes, need, call).await
}

/// Asks the own storage and other regions as the failover machine decides, and counts the outcome.
pub(super) async fn ask<F>(
    regional: &Regional,
    routes: &Routes,
    need: Need,
    call: impl Fn(SourceId) -> F,
) -> Result<(SourceId, Response<Body>), ApiError>
where
    F: Future<Output = Result<Response<Body>, ReadError>>,
{
    counted(regional, routes, routes.failover.ask(need, call).await)
}

/// Counts the outcome of a read.
fn counted(
    regional: &Regional,
    routes: &Routes,
    answer: Result<(SourceId, Response<Body>), Unserved<ReadError>>,
) -> Result<(SourceId, Response<Body>), ApiError> {
    match answer {
        Ok((source, response)) => {
            regional.count_read(routes.other(source), "served");
            Ok((source, response))
        }
        Err(error) => count_failure(regional, Err(unserved(routes, error))),
    }
}

/// The answer of the own storage. Absence is final unless another region owes something. `key` is
/// that of a manifest, which may have been deleted here.
pub(super) async fn own_answer<F>(
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    key: Option<&FactKey>,
    own: impl Fn() -> F,
) -> Result<Response<Body>, ReadError>
where
    F: Future<Output = HandlerResult>,
{
    let read = || {
        let answer = own();
        async move {
            match answer.await {
                Ok(response) => OwnRead::Found(response),
                Err(error) if error.status() == StatusCode::NOT_FOUND => OwnRead::Absent(error),
                Err(error) => OwnRead::Failed(error),
            }
        }
    };
    let read_at = regional.now();
    let presence = match read().await {
        OwnRead::Found(response) => return Ok(response),
        OwnRead::Failed(error) => Presence::Failed(error),
        OwnRead::Absent(error) => {
            let missed = Missed { read_at, error };
            let absence = regional.absence(repository);
            absence.find(repository, key, missed, read).await
        }
    };
    match presence {
        Presence::Here(response) => Ok(response),
        Presence::Elsewhere(error, regions) => Err(ReadError::MayBeElsewhere(error, regions)),
        Presence::Nowhere(error) => Err(ReadError::Final(error)),
        Presence::Unknown => Err(ReadError::Final(undecided())),
        Presence::Failed(error) if error.is_lost_data() => Err(ReadError::OwnLost),
        Presence::Failed(error) if error.cause().is_some() => Err(ReadError::OwnFailed(error)),
        Presence::Failed(error) => Err(ReadError::Final(error)),
    }
}

fn undecided() -> ApiError {
    ApiError::new(
        Code::Unavailable,
        "another region may have it and does not answer; repeat the request",
    )
}

/// Why the sources that were asked did not serve a read.
#[derive(Default)]
pub(super) struct Refusals {
    /// The own storage is sure that it does not have it, and these regions may have it.
    own: Option<(ApiError, Vec<RegionName>)>,
    /// A region has no room for the request.
    pub(super) pause: Option<(StatusCode, Duration)>,
    /// Regions that do not have it.
    pub(super) absent: Vec<RegionName>,
}

impl Refusals {
    /// # Errors
    /// The own answer, if it is final.
    pub(super) fn of(routes: &Routes, error: Unserved<ReadError>) -> Result<Self, ApiError> {
        let errors = match error {
            Unserved::Final(_, ReadError::Final(error)) => return Err(error),
            Unserved::Final(..) => Vec::new(),
            Unserved::Absent(errors) | Unserved::Unavailable(errors) => errors,
        };
        let mut refusals = Self::default();
        for (source, error) in errors {
            match error {
                ReadError::MayBeElsewhere(error, regions) => refusals.own = Some((error, regions)),
                ReadError::Absent => {
                    let other = routes.other(source);
                    refusals.absent.extend(other.map(|it| it.region().clone()));
                }
                ReadError::Busy(status, after) => refusals.pause = Some((status, after)),
                ReadError::Final(_)
                | ReadError::NotAsked
                | ReadError::Crowded
                | ReadError::OwnLost
                | ReadError::OwnFailed(_)
                | ReadError::Failed(_) => {}
            }
        }
        Ok(refusals)
    }
}

/// The answer to a read that no region served.
pub(super) fn unserved(routes: &Routes, error: Unserved<ReadError>) -> ApiError {
    if is_crowded(&error) {
        return unavailable(
            "the blob is being copied from another region, and enough clients read it from there; repeat the request",
        );
    }
    let refusals = match Refusals::of(routes, error) {
        Ok(refusals) => refusals,
        Err(error) => return error,
    };
    match (refusals.own, refusals.pause) {
        (Some((error, regions)), _)
            if regions
                .iter()
                .all(|region| refusals.absent.contains(region)) =>
        {
            error
        }
        (_, Some((status, pause))) => busy(status, pause),
        (Some(_), None) => undecided(),
        (None, None) => unavailable(
            "the storage of this region does not answer, and no other region can serve the request; repeat it",
        ),
    }
}
