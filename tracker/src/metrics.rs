//! Metrics for Prometheus. Most are read from the state when they are scraped.

use std::sync::{Arc, OnceLock};

use flotilla_runtime::http::Connections;
use flotilla_runtime::identity::Identity;
use flotilla_runtime::metrics::{self, RequestMetrics, seconds_histogram};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::state::TrackerFigures;

/// The metrics that are counted as requests come.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) requests: RequestMetrics,
    /// Time from an announce's last byte to its answer.
    pub(crate) handout_seconds: Histogram,
    /// Of the public port, once it exists.
    pub(crate) connections: OnceLock<Connections>,
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = RequestMetrics::default();
        requests.register_routes(&["announce", "lease"]);
        Self {
            requests,
            handout_seconds: seconds_histogram(),
            connections: OnceLock::new(),
        }
    }
}

/// All metrics of a tracker; `read` reads the state.
pub(crate) fn registry(
    metrics: Arc<Metrics>,
    identity: Option<Identity>,
    read: impl Fn() -> TrackerFigures + Send + Sync + 'static,
) -> Registry {
    let mut registry = Registry::with_prefix("flotilla_tracker");
    metrics.requests.register(&mut registry);
    let help = "Time to answer an announce, handouts included";
    registry.register("handout_seconds", help, metrics.handout_seconds.clone());
    registry.register_collector(metrics::MetricWriter::collector(move |figures| {
        let TrackerFigures {
            peers,
            swarms,
            leases_open,
            requests_parked,
            origins_out,
            counts,
        } = read();
        if let Some(connections) = metrics.connections.get() {
            let help = "Open connections to the port for peers";
            figures.gauge("connections", help, connections.open())?;
            let help = "Connections to the port for peers accepted";
            figures.counter("connections_accepted", help, connections.accepted())?;
        }
        figures.gauge(
            "peers",
            "Peers that announce to this tracker",
            u64::from(peers),
        )?;
        figures.gauge(
            "swarms",
            "Blobs that at least one peer holds or wants",
            swarms,
        )?;
        figures.gauge(
            "leases_open",
            "Leases held by peers (chunks being fetched from origins)",
            leases_open,
        )?;
        figures.gauge(
            "requests_parked",
            "Lease requests waiting for a lease",
            requests_parked,
        )?;
        figures.gauge(
            "origins_out",
            "Origins from which no leases are fetched, counted for the peers of each region",
            origins_out,
        )?;
        identity
            .iter()
            .try_for_each(|identity| identity.write_metrics(figures))?;
        let announces = [("accepted", counts.announces), ("resync", counts.resyncs)];
        figures.counters(
            "announces",
            "Announces received, by answer: accepted, or resync (peer must announce in full)",
            "answer",
            announces,
        )?;
        figures.counter(
            "peers_expired",
            "Peers forgotten because their announces stopped",
            counts.peers_expired,
        )?;
        figures.counter(
            "changes_left_out",
            "Announced blobs ignored because the peer is in too many swarms",
            counts.changes_left_out,
        )?;
        let leases = [
            ("granted", counts.granted),
            ("granted_again", counts.granted_again),
            ("adopted", counts.adopted),
            ("done", counts.done),
            ("failed", counts.failed),
            ("expired", counts.expired),
            ("moved", counts.moved),
        ];
        figures.counters("leases", "Leases, by event", "event", leases)?;
        figures.counter(
            "introduced",
            "Lease requests of starving peers answered with a holder to dial",
            counts.introduced,
        )
    }));
    registry
}
