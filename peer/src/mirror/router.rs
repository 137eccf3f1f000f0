//! The routes of the mirror's address.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::routing::{get, post};
use flotilla_runtime::http::OverLimit;

use super::error::{ContentKind, error_response, oci_error};
use super::route::{MirrorRoute, route};
use super::state::Mirror;
use super::{admin, manifests, response, warm};

/// All routes.
pub(crate) fn router(mirror: Arc<Mirror>) -> Router {
    Router::new()
        .route("/flotilla/healthz", get(async || "alive\n"))
        .route("/flotilla/status", get(admin::status))
        .route("/flotilla/warm/{*image}", post(warm::warm))
        .fallback(serve)
        .with_state(mirror)
}

async fn serve(State(mirror): State<Arc<Mirror>>, request: Request) -> Response<Body> {
    let clock = mirror.context.clock;
    let started = clock.now();
    let label = route_label(request.uri().path());
    let response = answer(&mirror, request).await;
    let elapsed = clock.now().saturating_since(started);
    mirror
        .requests
        .count_response(label, response.status(), elapsed);
    response
}

/// The label of a path in the request metrics.
fn route_label(path: &str) -> &'static str {
    match route(path) {
        Ok(MirrorRoute::Ping) => "ping",
        Ok(MirrorRoute::Manifest(..)) | Err((ContentKind::Manifest, _)) => "manifest",
        Ok(MirrorRoute::Blob(..)) => "blob",
        Err((ContentKind::Blob | ContentKind::OtherRegistry, _)) => "other",
    }
}

async fn answer(mirror: &Arc<Mirror>, request: Request) -> Response<Body> {
    if request.extensions().get::<OverLimit>().is_some() {
        return over_limit();
    }
    let is_head = request.method() == Method::HEAD;
    if !is_head && request.method() != Method::GET {
        let message = "this mirror is read-only; push to the origin";
        return oci_error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
    }
    let route = match route(request.uri().path()) {
        Ok(route) => route,
        Err((kind, error)) => return error_response(kind, &error),
    };
    if !matches!(route, MirrorRoute::Ping)
        && let Err(error) = mirror.registries.check(request.uri())
    {
        return error_response(ContentKind::OtherRegistry, &error);
    }
    let range = range_header(request.headers());
    let range = range.as_deref();
    match route {
        MirrorRoute::Ping => response::ping(),
        MirrorRoute::Manifest(repository, reference) => {
            match mirror.manifest(&repository, &reference, is_head).await {
                Ok(found) => manifests::response(&found, range),
                Err(error) => error_response(ContentKind::Manifest, &error),
            }
        }
        MirrorRoute::Blob(repository, digest) => mirror
            .blob(&repository, digest, range, is_head)
            .await
            .unwrap_or_else(|error| error_response(ContentKind::Blob, &error)),
    }
}

/// Answers at once, so that the runtime turns to its next host, and ends the connection.
fn over_limit() -> Response<Body> {
    let message = "the mirror has too many connections; try later";
    let mut response = oci_error(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message);
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

fn range_header(headers: &HeaderMap) -> Option<String> {
    headers.get(header::RANGE)?.to_str().ok().map(str::to_owned)
}
