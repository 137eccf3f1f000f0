//! The metrics of an origin: for Prometheus, and for programs that run an origin in their process.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use flotilla_runtime::http::Connections;
use flotilla_runtime::identity::Identity;
use flotilla_runtime::metrics::{self, MetricWriter, RequestMetrics, RouteMetrics};
use http::{HeaderMap, Response, StatusCode};

use crate::admission::Admission;
use crate::regions;
use crate::regions::regional::Regional;
use crate::regions::take::TakeQueue;
use crate::registry::Registry;
use crate::replicas::Invalidator;
use crate::storage::Operations;

/// The route of manifests, as the value of a label.
pub(crate) const MANIFEST: &str = "manifest";
/// The route of the endpoints for other regions.
pub(crate) const REGION: &str = "region";

/// Counters of an origin since its start.
#[derive(Debug)]
pub struct Metrics {
    blob_bytes_sent: AtomicU64,
    redirects: AtomicU64,
    requests: RequestMetrics,
    /// Manifests served from memory.
    manifests: RouteMetrics,
    operations: Arc<Operations>,
    admission: Arc<Admission>,
    invalidator: Arc<Invalidator>,
    takes: TakeQueue,
    connections: OnceLock<Connections>,
    identity: Option<Identity>,
    regional: OnceLock<Arc<Regional>>,
}

impl Metrics {
    pub(crate) fn new(
        operations: Arc<Operations>,
        admission: Arc<Admission>,
        invalidator: Arc<Invalidator>,
        takes: TakeQueue,
        identity: Option<Identity>,
    ) -> Self {
        let requests = RequestMetrics::default();
        requests.register_routes(&["blob"]);
        Self {
            blob_bytes_sent: AtomicU64::new(0),
            redirects: AtomicU64::new(0),
            manifests: requests.of(MANIFEST, StatusCode::OK),
            requests,
            operations,
            admission,
            invalidator,
            takes,
            connections: OnceLock::new(),
            identity,
            regional: OnceLock::new(),
        }
    }

    /// Sets the other regions, whose figures are exported while there are any.
    pub(crate) fn set_regional(&self, regional: Arc<Regional>) {
        self.regional.get_or_init(|| regional);
    }

    /// Sets the listener whose connections are counted.
    pub(crate) fn set_connections(&self, connections: Connections) {
        self.connections.get_or_init(|| connections);
    }

    /// Bytes of blobs passed to the connections of clients.
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

    /// Counts a redirect of a client to storage.
    pub(crate) fn redirected(&self) {
        self.redirects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn request(&self, route: &'static str, status: StatusCode, duration: Duration) {
        self.requests.count_response(route, status, duration);
    }

    /// Counts a manifest served from memory.
    pub(crate) fn manifest_answered(&self, duration: Duration) {
        self.manifests.count_response(duration);
    }

    /// The response to `GET /metrics`.
    pub(crate) fn respond(
        self: &Arc<Self>,
        registry: &Registry,
        headers: &HeaderMap,
    ) -> Response<Body> {
        let mut exposition = prometheus_client::registry::Registry::with_prefix("flotilla_origin");
        self.requests.register(&mut exposition);
        let metrics = Arc::clone(self);
        let stale = registry.stale_answers();
        exposition.register_collector(MetricWriter::collector(move |figures| {
            figures.counter(
                "sent_bytes",
                "Bytes of blobs sent to clients",
                metrics.blob_bytes(),
            )?;
            let redirects = metrics.redirects.load(Ordering::Relaxed);
            figures.counter(
                "redirects",
                "Blob requests redirected to the storage",
                redirects,
            )?;
            figures.counter(
                "stale_answers",
                "Expired cache entries served because storage was unavailable",
                stale,
            )?;
            let admission = &metrics.admission;
            figures.counters(
                "shed",
                "Requests refused with 429 or 503, by the limit that was reached",
                "reason",
                admission.refused(),
            )?;
            let requests = admission.requests_in_flight();
            figures.gauge(
                "requests_under_way",
                "Requests in flight, up to the last byte of their response",
                requests,
            )?;
            let uploads = admission.uploads_in_flight();
            figures.gauge(
                "uploads_under_way",
                "Uploads that receive bytes or wait for a buffer",
                uploads,
            )?;
            figures.gauge(
                "replicas_listed",
                "Origin replicas to which cache invalidations are sent",
                metrics.invalidator.replica_count() as u64,
            )?;
            let outcomes = metrics.invalidator.counts().by_outcome();
            figures.counters(
                "changes_told",
                "Cache invalidations sent to other replicas, by outcome",
                "outcome",
                outcomes,
            )?;
            figures.counter(
                "changes_heard",
                "Cache invalidations received from other replicas",
                metrics.invalidator.counts().received(),
            )?;
            figures.counters(
                "region_takes",
                "Requests of other regions to copy keys, by outcome",
                "outcome",
                metrics.takes.by_outcome(),
            )?;
            metrics
                .identity
                .iter()
                .try_for_each(|identity| identity.write_metrics(figures))?;
            let failures = metrics.operations.failures_by_kind();
            figures.counters(
                "storage_failures",
                "Failed storage operations",
                "kind",
                failures,
            )?;
            if let Some(connections) = metrics.connections.get() {
                figures.gauge("connections", "Open client connections", connections.open())?;
            }
            if let Some(regional) = metrics
                .regional
                .get()
                .filter(|regional| regional.has_others())
            {
                regions::metrics::write(regional, figures)?;
            }
            let operations = metrics.operations.by_kind();
            figures.counters(
                "storage_operations",
                "Storage operations",
                "kind",
                operations,
            )
        }));
        metrics::respond(headers, &exposition)
    }
}
