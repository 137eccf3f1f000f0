//! Endpoints for operators: metrics for Prometheus, and the status as JSON.
//!
//! The mirror has the status too, for `flotilla peer status` on the same machine.

use core::time::Duration;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use flotilla_runtime::admin;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::state::Mirror;
use crate::driver::DriverCommand;

/// How long the driver may take to answer. It never works on one event for long.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// `GET /flotilla/status` of the mirror, `GET /admin/status` of the listener for operators.
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

/// The endpoints of the listener for operators: the status, and `metrics` for Prometheus.
pub(crate) fn operators(mirror: Arc<Mirror>, metrics: Registry) -> Router {
    Router::new()
        .route("/admin/status", get(status))
        .with_state(mirror)
        .merge(admin::metrics(Arc::new(metrics)))
}
