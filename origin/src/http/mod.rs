//! The HTTP interface: the OCI distribution specification under `/v2/`, endpoints for peers under
//! `/flotilla/v1/`, endpoints for origins of other regions below it, health and metrics.
//!
//! Malformed input is answered 4xx, failing storage 503 with Retry-After. Nothing here answers 500.

mod blob_body;
mod blobs;
mod error;
mod manifests;
pub(crate) mod operators;
mod peers;
mod region_list;
mod regional;
mod regions;
mod request_body;
mod request_id;
mod route;
mod uploads;

use core::time::Duration;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use flotilla_common::name::{Reference, RegionName};
use flotilla_common::time::Time;
use flotilla_common::wire::origin::{
    API_VERSION, API_VERSION_HEADER, CONTENT_DIGEST_HEADER, OWN_STORAGE_HEADER, OWN_STORAGE_ONLY,
};
use flotilla_runtime::admin::Readiness;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::http::{OverLimit, Responder};
use flotilla_runtime::rate::Limiter;
use futures_util::FutureExt as _;
use http::request::Parts;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use http_body_util::BodyExt as _;

use crate::admission::{Admission, Overload, Permit};
use crate::metrics::Metrics;
use crate::readiness::StorageHealth;
use crate::regions::regional::Regional;
use crate::registry::Registry;
use crate::storage::StorageError;
pub(crate) use blob_body::SendBuffers;
use error::{ApiError, Code};
pub(crate) use regions::RegionServer;
use request_id::HttpRequestId;
use route::{Route, route};

/// The state of all handlers.
pub(crate) struct Api {
    pub(crate) clock: Clock,
    pub(crate) registry: Arc<Registry>,
    pub(crate) uplink: Limiter,
    pub(crate) buffers: SendBuffers,
    pub(crate) redirect_blobs: bool,
    pub(crate) readiness: Readiness,
    pub(crate) storage_health: StorageHealth,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Arc<Metrics>,
    /// The other regions; `None` without a certificate that names this region.
    pub(crate) regional: Option<Arc<Regional>>,
    /// What other regions are answered.
    pub(crate) regions: RegionServer,
}

/// In the extensions of requests by the origin of another region of the policy, as its certificate
/// names it. They are answered from this region's storage only, and are never forwarded or
/// redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FromRegion(pub(crate) RegionName);

type HandlerResult = Result<Response<Body>, ApiError>;

/// The HTTP service.
pub(crate) fn responder(api: Arc<Api>) -> Responder {
    let router = Router::new().fallback(handle).with_state(Arc::clone(&api));
    Responder::from(router).with_shortcut(move |request| manifests::shortcut(&api, request))
}

async fn handle(State(api): State<Arc<Api>>, mut request: Request<Body>) -> Response<Body> {
    let context = RequestContext::of(&request, api.clock.now());
    let region = api.regions.caller(request.extensions().get());
    let is_from_region = region.is_some();
    if let Some(region) = region {
        request.extensions_mut().insert(FromRegion(region));
    }
    let routed = route(request.method(), request.uri().path());
    let name = routed.as_ref().map_or("none", Route::name);
    let admitted = routed.and_then(|route| {
        let permits = admit(&api, &route, context.is_over_limit, is_from_region)?;
        Ok((permits, route))
    });
    let answer = match admitted {
        Ok((permits, route)) => {
            let streams = matches!(route, Route::Blob { .. });
            if streams {
                request.extensions_mut().insert(context.id.clone());
            }
            let (caller, headers) = (request.extensions().get(), request.headers());
            let checked = api.regions.check_storage(&route, caller, headers).await;
            let answer = match checked {
                Ok(()) => dispatch(&api, route, request).await,
                Err(refused) => Err(refused),
            };
            answer.map(|response| {
                if streams {
                    hold_until_sent(permits, response)
                } else {
                    response
                }
            })
        }
        Err(error) => Err(error),
    };
    let duration = api.clock.now().saturating_since(context.started);
    let response = context.complete(name, answer, duration);
    api.metrics.request(name, response.status(), duration);
    response
}

/// The permits of a request: one, and another one if it comes from another region.
type RequestPermits = [Option<Permit>; 2];

/// The permits for a request. Health needs none.
fn admit(
    api: &Api,
    route: &Route,
    is_over_limit: bool,
    is_from_region: bool,
) -> Result<RequestPermits, ApiError> {
    let admission = &api.admission;
    match route {
        Route::Health | Route::Ready => Ok([None, None]),
        _ if is_over_limit => Err(admission.refuse(Overload::Connections).into()),
        Route::Region(endpoint) if is_from_region && endpoint.is_question() => {
            Ok([None, Some(admission.admit_region_question()?)])
        }
        _ if is_from_region => {
            let of_region = admission.admit_region_request()?;
            Ok([Some(admission.admit_request()?), Some(of_region)])
        }
        _ => Ok([Some(admission.admit_request()?), None]),
    }
}

/// Ties permits to a response body: they are released after the last byte.
fn hold_until_sent<P: Send + 'static>(permits: P, response: Response<Body>) -> Response<Body> {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &permits;
            frame
        }))
    })
}

/// The facts of a request that its response and its log line need.
struct RequestContext {
    id: HttpRequestId,
    method: Method,
    path: Option<String>,
    version: Version,
    is_over_limit: bool,
    started: Time,
}

impl RequestContext {
    fn of(request: &Request<Body>, started: Time) -> Self {
        Self {
            id: HttpRequestId::of(request.headers()),
            method: request.method().clone(),
            // Only if it will be logged.
            path: tracing::enabled!(target: "flotilla_origin::request", tracing::Level::WARN)
                .then(|| request.uri().path().to_owned()),
            version: request.version(),
            is_over_limit: request.extensions().get::<OverLimit>().is_some(),
            started,
        }
    }

    /// Completes the response, and logs it.
    fn complete(
        &self,
        route: &'static str,
        answer: HandlerResult,
        duration: Duration,
    ) -> Response<Body> {
        let cause = answer.as_ref().err().and_then(ApiError::cause).cloned();
        let mut response = answer.unwrap_or_else(ApiError::into_response);
        let status = response.status();
        if self.method == Method::HEAD && !status.is_success() {
            *response.body_mut() = Body::empty();
        }
        let headers = response.headers_mut();
        headers.insert(request_id::HEADER, self.id.value().clone());
        if self.is_over_limit && self.version <= Version::HTTP_11 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        set_version(&mut response);
        self.log(route, status, duration, cause.as_deref());
        response
    }

    /// Logs a warning if the storage failed the request; at level `debug`, logs every request.
    fn log(
        &self,
        route: &'static str,
        status: StatusCode,
        duration: Duration,
        cause: Option<&StorageError>,
    ) {
        const TARGET: &str = "flotilla_origin::request";
        let request_id = &self.id;
        let method = &self.method;
        let path = self.path.as_deref();
        let status = status.as_u16();
        let seconds = duration.as_secs_f64();
        match cause {
            Some(error) => {
                tracing::warn!(target: TARGET, %request_id, %method, path, route, status, seconds, %error, "request failed: storage error")
            }
            None => {
                tracing::debug!(target: TARGET, %request_id, %method, path, route, status, seconds, "request completed")
            }
        }
    }
}

/// Passes a request to the region that serves it: this one, unless there are others.
///
/// The futures of all requests but pulls are boxed: the task of every request is as large as the
/// largest future here, and is moved a few times.
async fn dispatch(api: &Arc<Api>, route: Route, request: Request<Body>) -> HandlerResult {
    let (parts, body) = request.into_parts();
    let regional = other_regions(api, &parts);
    if let Route::Blob { repository, digest } = &route
        && parts.method == Method::GET
        && let Some(answer) = blobs::from_memory(api, repository, digest, &parts)
    {
        if let (Some(regional), Ok(_)) = (regional, &answer) {
            regional.count_read(None, "served");
        }
        return answer;
    }
    match regional {
        Some(regional) => {
            let served = serve_in_regions(api, regional, route, parts, body);
            served.boxed().await
        }
        None => {
            regional::check_forwarded(api, &route, &parts)?;
            serve_own(api, route, parts, body).await
        }
    }
}

/// Serves a request by this region or another one.
async fn serve_in_regions(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    route: Route,
    parts: Parts,
    body: Body,
) -> HandlerResult {
    let (parts, body) = if regional::may_be_forwarded(&route, &parts.method) {
        let forwarded = regional::forward(api, regional, &route, parts, body).boxed();
        match forwarded.await {
            Ok(forwarded) => return forwarded,
            Err(own) => own,
        }
    } else {
        (parts, body)
    };
    if let Some(answer) = regional::read_elsewhere(regional, &route, &parts).await {
        return answer;
    }
    match &route {
        Route::Manifest {
            repository,
            reference,
        } if is_read(&parts.method) => match reference {
            Reference::Digest(digest) => {
                regional::by_digest(api, regional, repository, digest, &parts).await
            }
            Reference::Tag(tag) => {
                let answer = regional::by_tag(api, regional, repository, tag, &parts);
                answer.boxed().await
            }
        },
        Route::Blob { repository, digest } if parts.method == Method::GET => {
            regional::blob(api, regional, repository, digest, &parts).await
        }
        Route::Blob { repository, digest } if parts.method == Method::HEAD => {
            regional::has_blob(api, regional, repository, digest, parts).await
        }
        Route::Tags { repository } if is_read(&parts.method) => {
            let own = || manifests::tags(api, repository, parts.uri.query());
            let answer = regional::list(api, regional, repository, &parts, own);
            answer.boxed().await
        }
        Route::Referrers {
            repository,
            subject,
        } if is_read(&parts.method) => {
            let own = || manifests::referrers(api, repository, subject, parts.uri.query());
            let answer = regional::list(api, regional, repository, &parts, own);
            answer.boxed().await
        }
        Route::Closure if parts.method == Method::POST => {
            let answer = regional::closure(api, regional, &parts, body);
            answer.boxed().await
        }
        _ if is_read(&parts.method) => {
            let answer = serve_own(api, route, parts, body).await;
            regional::note_failure(regional, &answer);
            answer
        }
        _ => {
            let change = regional::change_own(api, regional, route, parts, body);
            change.boxed().await
        }
    }
}

/// Serves a request by this region alone.
async fn serve_own(api: &Arc<Api>, route: Route, parts: Parts, body: Body) -> HandlerResult {
    match (&route, &parts.method) {
        (Route::Blob { repository, digest }, &Method::GET) => {
            blobs::get(api, repository, digest, &parts).await
        }
        (Route::Blob { repository, digest }, &Method::HEAD) => {
            blobs::head(api, repository, digest, &parts.headers).await
        }
        (
            Route::Manifest {
                repository,
                reference,
            },
            &(Method::GET | Method::HEAD),
        ) => manifests::get(api, repository, reference, &parts).await,
        _ => serve_all_but_pulls(api, route, parts, body).boxed().await,
    }
}

async fn serve_all_but_pulls(
    api: &Arc<Api>,
    route: Route,
    parts: Parts,
    body: Body,
) -> HandlerResult {
    let method = parts.method.clone();
    let query = parts.uri.query();
    match route {
        Route::Ping if is_read(&method) => Ok(json("{}")),
        Route::Health if is_read(&method) => Ok(text("ok\n")),
        Route::Ready if is_read(&method) => peers::ready(api).await,
        Route::Keys if is_read(&method) => Ok(peers::keys(api)),
        Route::Regions if is_read(&method) => region_list::respond(api, query),
        Route::Closure if method == Method::POST => {
            peers::closure(api, parts.extensions.get(), body).await
        }
        Route::Region(endpoint) => regions::respond(api, endpoint, &parts, body).await,
        Route::Blob { repository, digest } => match method {
            Method::DELETE => blobs::delete(api, &repository, &digest).await,
            _ => Err(not_allowed("GET, HEAD, DELETE")),
        },
        Route::Uploads { repository } => match method {
            Method::POST => uploads::begin(api, &repository, &parts, body).await,
            _ => Err(not_allowed("POST")),
        },
        Route::Upload { repository, id } => match method {
            Method::GET | Method::HEAD => uploads::status(api, &repository, &id, query).await,
            Method::PATCH => uploads::patch(api, &repository, &id, &parts, body).await,
            Method::PUT => uploads::put(api, &repository, &id, &parts, body).await,
            Method::DELETE => uploads::cancel(api, &repository, &id, query).await,
            _ => Err(not_allowed("GET, PATCH, PUT, DELETE")),
        },
        Route::Manifest {
            repository,
            reference,
        } => match method {
            Method::PUT => manifests::put(api, &repository, &reference, &parts, body).await,
            Method::DELETE => manifests::delete(api, &repository, &reference, &parts).await,
            _ => Err(not_allowed("GET, HEAD, PUT, DELETE")),
        },
        Route::Tags { repository } if is_read(&method) => {
            manifests::tags(api, &repository, query).await
        }
        Route::Referrers {
            repository,
            subject,
        } if is_read(&method) => manifests::referrers(api, &repository, &subject, query).await,
        Route::Closure => Err(not_allowed("POST")),
        _ => Err(not_allowed("GET, HEAD")),
    }
}

/// The regions, if there are others.
pub(crate) fn all_regions(api: &Api) -> Option<&Arc<Regional>> {
    let regional = api.regional.as_ref()?;
    regional.has_others().then_some(regional)
}

/// The other regions that may serve a request: none if it comes from one of them, or asks for the
/// own storage.
fn other_regions<'a>(api: &'a Api, request: &Parts) -> Option<&'a Arc<Regional>> {
    let is_own_only = is_from_region(request) || is_own_storage_only(request);
    all_regions(api).filter(|_| !is_own_only)
}

/// Whether the origin of another region sent a request.
fn is_from_region(request: &Parts) -> bool {
    request.extensions.get::<FromRegion>().is_some()
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Whether a read asks what this region itself has. Changes do not have the choice.
fn is_own_storage_only(request: &Parts) -> bool {
    is_read(&request.method)
        && text_of(
            &request.headers,
            HeaderName::from_static(OWN_STORAGE_HEADER),
        ) == Some(OWN_STORAGE_ONLY)
}

fn not_allowed(allowed: &'static str) -> ApiError {
    let error = ApiError::new(
        Code::Unsupported,
        format_args!("method not allowed; allowed are {allowed}"),
    );
    error.with(header::ALLOW, allowed.to_owned())
}

fn json(body: impl Into<Body>) -> Response<Body> {
    typed("application/json", body.into())
}

fn text(body: impl Into<Body>) -> Response<Body> {
    typed("text/plain; charset=utf-8", body.into())
}

fn typed(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A response without a body.
fn empty(status: StatusCode, headers: &[(HeaderName, &str)]) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    for (name, value) in headers {
        set(&mut response, name.clone(), value);
    }
    response
}

fn set_version(response: &mut Response<Body>) {
    response
        .headers_mut()
        .insert(API_VERSION_HEADER, HeaderValue::from_static(API_VERSION));
}

/// Sets a header. A value that is not valid in a header is left out.
fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// The value of a header as text; `None` if it is missing or not text.
fn text_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

const CONTENT_DIGEST: HeaderName = HeaderName::from_static(CONTENT_DIGEST_HEADER);
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// Whether an If-None-Match names this entity tag (weak comparison).
fn matches_etag(headers: &HeaderMap, etag: impl AsRef<[u8]>) -> bool {
    let Some(listed) = text_of(headers, header::IF_NONE_MATCH) else {
        return false;
    };
    listed
        .split(',')
        .map(str::trim)
        .any(|one| one == "*" || one.trim_start_matches("W/").as_bytes() == etag.as_ref())
}

/// Marks a response from an expired cache entry. The specification has one code for all warnings.
fn warn_if_stale(response: &mut Response<Body>, stale: bool) {
    if stale {
        response.headers_mut().insert(
            header::WARNING,
            HeaderValue::from_static("299 - \"Response is stale\""),
        );
    }
}

#[cfg(test)]
mod tests;
