//! What operators and their machines ask a service: is it alive, is it ready, how is it doing.
//!
//! | path       | answer |
//! |------------|--------|
//! | `/healthz` | 200 while the process answers at all |
//! | `/readyz`  | 200 when it can do its work; 503 and why not while it starts and while it drains |
//! | `/metrics` | every metric, in the text formats of Prometheus |
//!
//! It must never answer anything that changes a service, nor anything secret: it may listen without
//! TLS.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

use crate::metrics;
use crate::shutdown::Shutdown;

/// Whether a service can do its work. Clones share one answer.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// `None` is ready.
    waiting_for: Arc<ArcSwap<Option<String>>>,
    shutdown: Shutdown,
}

impl Readiness {
    /// Not ready yet, because it starts; never again once `shutdown` is triggered.
    pub fn starting(shutdown: &Shutdown) -> Self {
        let waiting_for = ArcSwap::from_pointee(Some("starting".to_owned()));
        Self {
            waiting_for: Arc::new(waiting_for),
            shutdown: shutdown.clone(),
        }
    }

    /// It can do its work.
    pub fn set_ready(&self) {
        self.waiting_for.store(Arc::new(None));
    }

    /// It cannot, because of `reason`: a few words for people.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.waiting_for.store(Arc::new(Some(reason.into())));
    }

    /// # Errors
    /// Why it cannot do its work.
    pub fn check(&self) -> Result<(), String> {
        if self.shutdown.is_triggered() {
            return Err("draining".to_owned());
        }
        match self.waiting_for.load().as_ref() {
            None => Ok(()),
            Some(reason) => Err(reason.clone()),
        }
    }
}

/// The admin endpoints; a service merges its own JSON for people.
pub fn router(registry: Arc<Registry>, readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready).with_state(readiness))
        .route("/metrics", get(figures).with_state(registry))
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    match readiness.check() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn figures(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> Response {
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

    async fn ask(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = router.clone().call(request).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_service_starts_works_stumbles_and_drains() {
        let shutdown = Shutdown::new();
        let readiness = Readiness::starting(&shutdown);
        let router = router(Arc::default(), readiness.clone());
        let not = |reason: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"));
        assert_eq!(ask(&router, "/readyz").await, not("starting"));
        readiness.set_ready();
        assert_eq!(
            ask(&router, "/readyz").await,
            (StatusCode::OK, "ready\n".to_owned())
        );
        readiness.set_not_ready("storage cannot be reached");
        assert_eq!(
            ask(&router, "/readyz").await,
            not("storage cannot be reached")
        );
        readiness.set_ready();
        shutdown.trigger();
        assert_eq!(ask(&router, "/readyz").await, not("draining"));
        assert_eq!(ask(&router, "/healthz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_are_answered_beside_it() {
        let served = Counter::<u64>::default();
        let mut registry = Registry::default();
        registry.register(
            "flotilla_served_bytes",
            "Payload bytes served",
            served.clone(),
        );
        served.inc_by(42);
        let (status, text) = ask(
            &router(Arc::new(registry), Readiness::starting(&Shutdown::new())),
            "/metrics",
        )
        .await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("flotilla_served_bytes_total 42"), "{text}");
    }
}
