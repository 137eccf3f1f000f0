//! Changes that this region makes itself, and what they tell the failover machine.

use std::sync::Arc;

use axum::body::Body;
use flotilla_common::digest::Digest;
use flotilla_common::failover::{Input, Need, Outcome};
use flotilla_common::name::RepositoryName;
use http::request::Parts;

use super::forward::{forward, forwards_to};
use super::proxy::unavailable;
use crate::http::error::{ApiError, Code};
use crate::http::route::Route;
use crate::http::{Api, HandlerResult, blobs, serve_own};
use crate::regions::regional::Regional;
use crate::regions::routes::OWN;

/// Makes a change in the own storage. A success counts as an answer of the storage, so that errors
/// with successes between them are not errors in a row. A storage that hangs is noticed, and the
/// change ends as soon as it is out, so that a repeated request is forwarded.
pub(in crate::http) async fn change_own(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    route: Route,
    request: Parts,
    body: Body,
) -> HandlerResult {
    let routes = regional.routes();
    let target = (route.clone(), request.method.clone());
    let was_out = routes.is_own_out();
    let change = serve_own(api, route, request, body);
    let answer = match routes.failover.until_out(OWN, change).await {
        Ok(answer) => answer,
        Err(stalled) => {
            tracing::warn!(error = %stalled, "a change was given up; its outcome is unknown");
            let message = "the storage of this region stopped answering; the outcome of the change is unknown, repeat the request";
            let is_upload = matches!(target.0, Route::Upload { .. } | Route::Uploads { .. });
            // Podman and skopeo give a push up after 503, and begin the upload again after 408. A
            // new upload is forwarded by now.
            return Err(if is_upload && !was_out {
                ApiError::new(Code::Timeout, message)
            } else {
                unavailable(message)
            });
        }
    };
    match &answer {
        Ok(_) => routes.failover.handle(Input::Ended {
            source: OWN,
            need: Need::Fact,
            outcome: Outcome::Answered,
        }),
        Err(error) if error.is_storage_full() => {
            regional.own_is_full();
            if let Some(region) = forwards_to(regional, &routes, &target.0, &target.1) {
                return Err(unavailable(format_args!(
                    "the storage of this region is full; repeat the request: region {region} takes changes until there is space (an upload is begun again)"
                )));
            }
        }
        Err(_) => note_failure(regional, &answer),
    }
    answer
}

/// Tells the failover machine if the own storage has failed a request.
pub(in crate::http) fn note_failure(regional: &Regional, answer: &HandlerResult) {
    if let Err(error) = answer
        && error.cause().is_some()
    {
        regional.own_failed(error.describe_cause());
    }
}

/// Answers from the own storage whether there is a blob, so that a push may skip its upload. If the
/// storage goes out meanwhile, the region is asked that gets the push.
pub(in crate::http) async fn has_blob(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    digest: &Digest,
    request: Parts,
) -> HandlerResult {
    let routes = regional.routes();
    let own = blobs::head(api, repository, digest, &request.headers);
    if let Ok(answer) = routes.failover.until_out(OWN, own).await {
        note_failure(regional, &answer);
        return answer;
    }
    let route = Route::Blob {
        repository: repository.clone(),
        digest: *digest,
    };
    match forward(api, regional, &route, request, Body::empty()).await {
        Ok(forwarded) => forwarded,
        Err(_) => Err(unavailable(
            "the storage of this region stopped answering; repeat the request",
        )),
    }
}
