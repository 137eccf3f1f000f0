//! Reads of repositories that the policy does not keep in this region: a region that keeps them
//! serves them, and nothing is copied here.
//!
//! The own storage is not asked. It may have what it got while the policy kept the repository here,
//! and that follows no later change.

use std::sync::Arc;

use axum::body::Body;
use flotilla_common::failover::{Need, SourceId};
use flotilla_common::name::{Reference, RegionName, RepositoryName};
use flotilla_runtime::failover::Unserved;
use http::Response;
use http::request::Parts;

use super::proxy::{ReadError, busy, read_at, unavailable};
use super::read::{Refusals, content, count_failure};
use crate::http::error::ApiError;
use crate::http::route::Route;
use crate::http::{HandlerResult, is_read};
use crate::regions::regional::Regional;
use crate::regions::routes::Routes;
use crate::regions::source::Source;
use crate::registry::RegistryError;

/// Serves a read of a repository that this region does not keep; `None` for all other requests.
pub(in crate::http) async fn read_elsewhere(
    regional: &Arc<Regional>,
    route: &Route,
    request: &Parts,
) -> Option<HandlerResult> {
    if !is_read(&request.method) {
        return None;
    }
    let (repository, need, absent) = match route {
        Route::Manifest {
            repository,
            reference: Reference::Digest(digest),
        } => (repository, content(digest), RegistryError::ManifestUnknown),
        Route::Manifest { repository, .. } | Route::Referrers { repository, .. } => {
            (repository, Need::Fact, RegistryError::ManifestUnknown)
        }
        Route::Blob { repository, digest } => {
            (repository, content(digest), RegistryError::BlobUnknown)
        }
        Route::Tags { repository } => (repository, Need::Fact, RegistryError::NameUnknown),
        _ => return None,
    };
    let keepers = keepers_elsewhere(regional, repository)?;
    let path = request.uri.path_and_query();
    let path = path.map_or("/", |path| path.as_str());
    let read = async |source: Arc<dyn Source>| read_at(&*source, request, path).await;
    Some(serve_elsewhere(regional, &keepers, need, absent.into(), read).await)
}

/// The regions that keep a repository, if this one does not.
pub(super) fn keepers_elsewhere(
    regional: &Regional,
    repository: &RepositoryName,
) -> Option<Vec<RegionName>> {
    let policy = regional.members().policy();
    let rule = policy.policy().rule_for(repository);
    (!rule.includes(regional.own())).then(|| rule.regions.clone())
}

/// Serves a read by one of the regions `keepers`.
///
/// # Errors
/// `absent` if all of them answer that they do not have it; 503 if one that may have it does not
/// answer; what a region says that has no room for the request.
pub(super) async fn serve_elsewhere<F>(
    regional: &Regional,
    keepers: &[RegionName],
    need: Need,
    absent: ApiError,
    read: impl Fn(Arc<dyn Source>) -> F,
) -> HandlerResult
where
    F: Future<Output = Result<Response<Body>, ReadError>>,
{
    let routes = regional.routes();
    let call = |source: SourceId| {
        let (routes, read) = (&routes, &read);
        async move {
            match routes.other(source) {
                Some(other) if keepers.contains(other.region()) => read(Arc::clone(other)).await,
                _ => Err(ReadError::NotAsked),
            }
        }
    };
    match routes.failover.ask(need, call).await {
        Ok((source, response)) => {
            regional.count_read(routes.other(source), "served");
            Ok(response)
        }
        Err(error) => count_failure(regional, Err(failure(&routes, keepers, error, absent))),
    }
}

/// The answer to a read that none of the regions `keepers` served.
fn failure(
    routes: &Routes,
    keepers: &[RegionName],
    error: Unserved<ReadError>,
    absent: ApiError,
) -> ApiError {
    let refusals = match Refusals::of(routes, error) {
        Ok(refusals) => refusals,
        Err(error) => return error,
    };
    if keepers
        .iter()
        .all(|keeper| refusals.absent.contains(keeper))
    {
        return absent;
    }
    match refusals.pause {
        Some((status, pause)) => busy(status, pause),
        None => unavailable(
            "the policy does not keep the repository in this region, and a region that may have it does not answer; repeat the request",
        ),
    }
}
