//! What an origin counts: for Prometheus, and for a demonstration that runs in the same process.

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::registry::Registry;
use crate::storage::Operations;

/// Counters of an origin, from its start on.
#[derive(Debug)]
pub struct Metrics {
    blob_bytes_sent: AtomicU64,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabel, Histogram, fn() -> Histogram>,
    operations: Arc<Operations>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: Status,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Status(StatusCode);

impl EncodeLabelValue for Status {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), core::fmt::Error> {
        encoder.write_str(self.0.as_str())
    }
}

impl Metrics {
    pub(crate) fn new(operations: Arc<Operations>) -> Self {
        let durations: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_05, 4.0, 10));
        Self {
            blob_bytes_sent: AtomicU64::new(0),
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            operations,
        }
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
        self.blob_bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn request(&self, route: &'static str, status: StatusCode, duration: Duration) {
        self.requests.get_or_create(&RequestLabels { route, status: Status(status) }).inc();
        self.durations.get_or_create(&RouteLabel { route }).observe(duration.as_secs_f64());
    }

    /// The Prometheus text.
    pub(crate) fn encode(&self, registry: &Registry) -> String {
        let mut exposition = prometheus_client::registry::Registry::with_prefix("flotilla_origin");
        exposition.register("requests", "Requests answered", self.requests.clone());
        exposition.register("request_seconds", "Time to an answer's head", self.durations.clone());
        let bytes = Counter::<u64>::default();
        bytes.inc_by(self.blob_bytes());
        exposition.register("blob_bytes_sent", "Bytes of blobs handed to clients' connections", bytes);
        let stale = Counter::<u64>::default();
        stale.inc_by(registry.stale_answers());
        exposition.register("stale_answers", "Answers from memory past its time, without storage", stale);
        let operations = Family::<[(&'static str, &'static str); 1], Counter>::default();
        for (kind, count) in self.operations.by_kind() {
            operations.get_or_create(&[("kind", kind)]).inc_by(count);
        }
        exposition.register("storage_operations", "Calls of the storage", operations);
        let mut text = String::new();
        if encode(&mut text, &exposition).is_err() {
            text.clear();
            tracing::error!("encode metrics");
        }
        text
    }
}
