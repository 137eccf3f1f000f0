//! What people and their tools ask of a peer: its figures for Prometheus, and its state as JSON.

use core::time::Duration;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use flotilla_runtime::metrics;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Mirror;
use crate::driver::Command;

/// For the driver to say how it is going: it is never busy for long.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything about the peer, as it is now.
pub(super) async fn status(State(mirror): State<Arc<Mirror>>) -> Response {
    let (sender, answer) = oneshot::channel();
    mirror.command(Command::Status(sender)).await;
    match timeout(STATUS_TIMEOUT, answer).await {
        Ok(Ok(status)) => Json(status).into_response(),
        _ => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the peer is shutting down\n",
        )
            .into_response(),
    }
}

/// The figures in the text formats of Prometheus.
pub(super) async fn figures(State(mirror): State<Arc<Mirror>>, headers: HeaderMap) -> Response {
    metrics::answer(&headers, &mirror.registry)
}
