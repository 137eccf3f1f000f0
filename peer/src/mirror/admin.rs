//! Endpoints for operators: metrics for Prometheus, and the status as JSON.

use core::time::Duration;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use flotilla_runtime::metrics;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::state::Mirror;
use crate::driver::DriverCommand;

/// How long the driver may take to answer. It never works on one event for long.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// `GET /flotilla/status`.
pub(super) async fn status(State(mirror): State<Arc<Mirror>>) -> Response {
    let (sender, answer) = oneshot::channel();
    mirror
        .context
        .commands
        .send(DriverCommand::Status(sender))
        .await;
    match timeout(STATUS_TIMEOUT, answer).await {
        Ok(Ok(status)) => Json(status).into_response(),
        _ => {
            let message = "the peer is shutting down\n";
            (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
        }
    }
}

/// `GET /flotilla/metrics`, in the text format that the client accepts.
pub(super) async fn metrics(State(mirror): State<Arc<Mirror>>, headers: HeaderMap) -> Response {
    metrics::respond(&headers, &mirror.metrics)
}
