//! The endpoints of the listener for operators ([`flotilla_runtime::admin`]).

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use http::{HeaderMap, Response};

use super::error::ApiError;
use super::{Api, peers};

/// Those that all its clients may use.
pub(crate) fn health(api: &Arc<Api>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Arc::clone(api))
}

/// Those that only operators may use.
pub(crate) fn private(api: &Arc<Api>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(Arc::clone(api))
}

async fn ready(State(api): State<Arc<Api>>) -> Response<Body> {
    peers::ready(&api)
        .await
        .unwrap_or_else(ApiError::into_response)
}

async fn metrics(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response<Body> {
    api.metrics.respond(&api.registry, &headers)
}
