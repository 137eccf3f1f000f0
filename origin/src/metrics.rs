//! What an origin counts: for Prometheus, and for a demonstration that runs in the same process.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use flotilla_runtime::http::Connections;
use flotilla_runtime::identity::Identity;
use flotilla_runtime::metrics::{self, Answers, Figures, Requests};
use http::{HeaderMap, Response, StatusCode};

use crate::admission::Admission;
use crate::registry::Registry;
use crate::replicas::Invalidator;
use crate::storage::Operations;

/// The route of manifests, as a label.
pub(crate) const MANIFEST: &str = "manifest";

/// Counters of an origin, from its start on.
#[derive(Debug)]
pub struct Metrics {
    blob_bytes_sent: AtomicU64,
    redirects: AtomicU64,
    requests: Requests,
    /// Of manifests from memory.
    manifests: Answers,
    operations: Arc<Operations>,
    admission: Arc<Admission>,
    invalidator: Arc<Invalidator>,
    connections: OnceLock<Connections>,
    identity: Option<Identity>,
}

impl Metrics {
    pub(crate) fn new(
        operations: Arc<Operations>,
        admission: Arc<Admission>,
        invalidator: Arc<Invalidator>,
        identity: Option<Identity>,
    ) -> Self {
        let requests = Requests::default();
        requests.begin_with(&["blob"]);
        Self {
            blob_bytes_sent: AtomicU64::new(0),
            redirects: AtomicU64::new(0),
            manifests: requests.of(MANIFEST, StatusCode::OK),
            requests,
            operations,
            admission,
            invalidator,
            connections: OnceLock::new(),
            identity,
        }
    }

    /// The listener's connections are these.
    pub(crate) fn watch(&self, connections: Connections) {
        self.connections.get_or_init(|| connections);
    }

    /// Bytes of blobs handed to clients' connections.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes_sent.load(Ordering::Relaxed)
    }

    /// Storage operations.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    pub(crate) fn blob_bytes_sent(&self, bytes: usize) {
        self.blob_bytes_sent
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A client was sent to the storage.
    pub(crate) fn redirected(&self) {
        self.redirects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn request(&self, route: &'static str, status: StatusCode, duration: Duration) {
        self.requests.answered(route, status, duration);
    }

    /// A manifest was answered from memory.
    pub(crate) fn manifest_answered(&self, duration: Duration) {
        self.manifests.answered(duration);
    }

    /// The answer of `/metrics`, of an origin that answers from `registry`.
    pub(crate) fn answer(
        self: &Arc<Self>,
        registry: &Registry,
        headers: &HeaderMap,
    ) -> Response<Body> {
        let mut exposition = prometheus_client::registry::Registry::with_prefix("flotilla_origin");
        self.requests.register(&mut exposition);
        let metrics = Arc::clone(self);
        let stale = registry.stale_answers();
        exposition.register_collector(Figures::collector(move |figures| {
            figures.counter(
                "sent_bytes",
                "Bytes of blobs handed to clients",
                metrics.blob_bytes(),
            )?;
            let redirects = metrics.redirects.load(Ordering::Relaxed);
            figures.counter(
                "redirects",
                "Requests for blobs that were sent to the storage",
                redirects,
            )?;
            figures.counter(
                "stale_answers",
                "Answers from memory past its time, without storage",
                stale,
            )?;
            let admission = &metrics.admission;
            figures.counters(
                "shed",
                "Requests refused because it was too much",
                "reason",
                admission.refused(),
            )?;
            let requests = admission.requests_in_flight();
            figures.gauge(
                "requests_under_way",
                "Requests that are not answered to their end",
                requests,
            )?;
            let uploads = admission.uploads_in_flight();
            figures.gauge(
                "uploads_under_way",
                "Uploads whose bytes are received or wait",
                uploads,
            )?;
            figures.gauge(
                "replicas_listed",
                "Replicas that are told of changes",
                metrics.invalidator.listed() as u64,
            )?;
            let (help, outcomes) = (
                "Changes told to a replica, by outcome",
                metrics.invalidator.counts().by_outcome(),
            );
            figures.counters("changes_told", help, "outcome", outcomes)?;
            figures.counter(
                "changes_heard",
                "Messages of other replicas",
                metrics.invalidator.counts().received(),
            )?;
            metrics
                .identity
                .iter()
                .try_for_each(|identity| identity.figures(figures))?;
            let failures = metrics.operations.failures_by_kind();
            figures.counters(
                "storage_failures",
                "Calls that the storage failed",
                "kind",
                failures,
            )?;
            if let Some(connections) = metrics.connections.get() {
                figures.gauge("connections", "Connections of clients", connections.open())?;
            }
            let operations = metrics.operations.by_kind();
            figures.counters(
                "storage_operations",
                "Calls of the storage",
                "kind",
                operations,
            )
        }));
        metrics::answer(headers, &exposition)
    }
}
