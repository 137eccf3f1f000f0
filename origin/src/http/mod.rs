//! The origin's HTTP: the OCI distribution specification under `/v2/`, what peers ask for under `/flotilla/v1/`, and
//! what operators ask for.
//!
//! Malformed input is a 4xx, storage that fails is a 503 with Retry-After; nothing here answers 500.

mod blobs;
mod error;
mod manifests;
mod peers;
mod range;
mod route;
mod sending;
mod uploads;

#[cfg(test)]
mod any_text;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use flotilla_runtime::http::Responder;
use flotilla_runtime::rate::Limiter;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};

use crate::metrics::Metrics;
use crate::registry::Registry;
use error::{ApiError, Code};
use route::{Route, route};
pub(crate) use sending::SendBuffers;

/// What handlers need.
pub(crate) struct Api {
    pub(crate) registry: Registry,
    pub(crate) uplink: Limiter,
    pub(crate) buffers: SendBuffers,
    pub(crate) redirect_blobs: bool,
    pub(crate) metrics: Arc<Metrics>,
}

type Answer = Result<Response<Body>, ApiError>;

/// The service.
pub(crate) fn responder(api: Arc<Api>) -> Responder {
    let router = Router::new().fallback(handle).with_state(Arc::clone(&api));
    Responder::from(router).with_shortcut(move |request| manifests::shortcut(&api, request))
}

async fn handle(State(api): State<Arc<Api>>, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let is_head = request.method() == Method::HEAD;
    let routed = route(request.method(), request.uri().path());
    let name = routed.as_ref().map_or("none", Route::name);
    let answer = match routed {
        Ok(route) => answer(&api, route, request).await,
        Err(error) => Err(error),
    };
    let mut response = answer.unwrap_or_else(ApiError::into_response);
    if is_head && !response.status().is_success() {
        *response.body_mut() = Body::empty();
    }
    set_version(&mut response);
    api.metrics.request(name, response.status(), started.elapsed());
    response
}

async fn answer(api: &Arc<Api>, route: Route, request: Request<Body>) -> Answer {
    let (parts, body) = request.into_parts();
    let (method, query) = (parts.method.clone(), parts.uri.query());
    match route {
        Route::Ping if is_read(&method) => Ok(json("{}")),
        Route::Health if is_read(&method) => Ok(text("ok\n")),
        Route::Ready if is_read(&method) => peers::ready(api).await,
        Route::Metrics if is_read(&method) => Ok(api.metrics.answer(&api.registry, &parts.headers)),
        Route::Keys if is_read(&method) => Ok(peers::keys(api)),
        Route::Closure if method == Method::POST => peers::closure(api, parts.extensions.get(), body).await,
        Route::Blob { repository, digest } => match method {
            Method::GET => blobs::get(api, &repository, &digest, &parts).await,
            Method::HEAD => blobs::head(api, &repository, &digest, &parts.headers).await,
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
        Route::Manifest { repository, reference } => match method {
            Method::GET | Method::HEAD => manifests::get(api, &repository, &reference, &parts).await,
            Method::PUT => manifests::put(api, &repository, &reference, &parts, body).await,
            Method::DELETE => manifests::delete(api, &repository, &reference).await,
            _ => Err(not_allowed("GET, HEAD, PUT, DELETE")),
        },
        Route::Tags { repository } if is_read(&method) => manifests::tags(api, &repository, query).await,
        Route::Referrers { repository, subject } if is_read(&method) => {
            manifests::referrers(api, &repository, &subject, query).await
        }
        Route::Closure => Err(not_allowed("POST")),
        _ => Err(not_allowed("GET, HEAD")),
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn not_allowed(allowed: &'static str) -> ApiError {
    let error = ApiError::new(Code::Unsupported, format_args!("the methods here are {allowed}"));
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
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer of a status and headers.
fn empty(status: StatusCode, headers: &[(HeaderName, &str)]) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    for (name, value) in headers {
        set(&mut response, name.clone(), value);
    }
    response
}

fn set_version(response: &mut Response<Body>) {
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
}

/// Sets a header whose value is made of names and digests; one that cannot be sent is left out.
fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// The value of a header as text; `None` where it is not there or not text.
fn text_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// Whether an If-None-Match names this entity tag (weak comparison).
fn matches_etag(headers: &HeaderMap, etag: impl AsRef<[u8]>) -> bool {
    let Some(listed) = text_of(headers, header::IF_NONE_MATCH) else { return false };
    listed
        .split(',')
        .map(str::trim)
        .any(|one| one == "*" || one.trim_start_matches("W/").as_bytes() == etag.as_ref())
}

/// Marks an answer that is known only from memory past its time. The specification has one code for all warnings.
fn warn_if_stale(response: &mut Response<Body>, stale: bool) {
    if stale {
        response
            .headers_mut()
            .insert(header::WARNING, HeaderValue::from_static("299 - \"Response is stale\""));
    }
}
