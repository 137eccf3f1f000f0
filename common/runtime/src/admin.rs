//! Admin endpoints: liveness, readiness and metrics of a service.
//!
//! | path       | response |
//! |------------|--------|
//! | `/healthz` | 200 while the process responds |
//! | `/readyz`  | 200 when the service is ready; 503 with the reason while it starts or drains |
//! | `/metrics` | every metric, in the text formats of Prometheus |
//!
//! `/healthz` and `/readyz` answer on the public port, too. `/metrics`, with the JSON endpoints of
//! the service below `/admin`, is on a listener of its own ([`AdminSettings`]), which may be
//! without TLS: these endpoints must never change a service or reveal secrets.

mod listener;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

pub use listener::{AdminClient, AdminError, AdminSettings};

use crate::metrics;
use crate::shutdown::Shutdown;

/// Whether a service is ready. Clones share the state.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// The reason why it is not ready; `None` is ready.
    not_ready_because: Arc<ArcSwap<Option<String>>>,
    shutdown: Shutdown,
}

impl Readiness {
    /// A service that is starting. Once `shutdown` is triggered it is never ready again.
    pub fn starting(shutdown: &Shutdown) -> Self {
        let not_ready_because = ArcSwap::from_pointee(Some("starting".to_owned()));
        Self {
            not_ready_because: Arc::new(not_ready_because),
            shutdown: shutdown.clone(),
        }
    }

    /// Marks the service as ready.
    pub fn set_ready(&self) {
        self.not_ready_because.store(Arc::new(None));
    }

    /// Marks the service as not ready, with a short reason for operators.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.not_ready_because.store(Arc::new(Some(reason.into())));
    }

    /// Checks whether the service is ready.
    ///
    /// # Errors
    /// The reason why it is not.
    pub fn check(&self) -> Result<(), String> {
        if self.shutdown.is_triggered() {
            return Err("draining".to_owned());
        }
        match self.not_ready_because.load().as_ref() {
            None => Ok(()),
            Some(reason) => Err(reason.clone()),
        }
    }
}

/// The endpoints for all clients: `/healthz` and `/readyz`.
pub fn health(readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready).with_state(readiness))
}

/// The endpoint `/metrics`. A service merges its own JSON endpoints into this router.
pub fn metrics(registry: Arc<Registry>) -> Router {
    Router::new().route("/metrics", get(show_metrics).with_state(registry))
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    match readiness.check() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn show_metrics(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> Response {
    metrics::respond(&headers, &registry)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use prometheus_client::metrics::counter::Counter;
    use tower_service::Service;

    use super::*;

    async fn get_path(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = router.clone().call(request).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_follows_start_failure_and_drain() {
        let shutdown = Shutdown::new();
        let readiness = Readiness::starting(&shutdown);
        let router = health(readiness.clone());
        let not = |reason: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"));
        assert_eq!(get_path(&router, "/readyz").await, not("starting"));
        readiness.set_ready();
        assert_eq!(
            get_path(&router, "/readyz").await,
            (StatusCode::OK, "ready\n".to_owned())
        );
        readiness.set_not_ready("storage cannot be reached");
        assert_eq!(
            get_path(&router, "/readyz").await,
            not("storage cannot be reached")
        );
        readiness.set_ready();
        shutdown.trigger();
        assert_eq!(get_path(&router, "/readyz").await, not("draining"));
        assert_eq!(get_path(&router, "/healthz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_endpoint_lists_registered_metrics() {
        let served = Counter::<u64>::default();
        let mut registry = Registry::default();
        registry.register(
            "flotilla_served_bytes",
            "Payload bytes served",
            served.clone(),
        );
        served.inc_by(42);
        let (status, text) = get_path(&super::metrics(Arc::new(registry)), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("flotilla_served_bytes_total 42"), "{text}");
    }
}
