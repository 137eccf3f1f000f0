//! Figures for Prometheus, read from the machine when they are asked for.

use std::sync::Arc;

use flotilla_common::tracker::Counts;
use flotilla_runtime::metrics::{Figures, Requests, seconds_histogram};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::service::Service;

/// The figures of one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    pub(crate) peers: u32,
    pub(crate) swarms: u64,
    pub(crate) leases_open: u64,
    pub(crate) requests_parked: u64,
    pub(crate) counts: Counts,
}

/// What is counted as it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) requests: Requests,
    /// From an announce's last byte to its answer.
    pub(crate) handout_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = Requests::default();
        requests.begin_with(&["announce", "lease"]);
        Self {
            requests,
            handout_seconds: seconds_histogram(),
        }
    }
}

/// All figures of a tracker.
pub(crate) fn registry(service: Arc<Service>) -> Registry {
    let mut registry = Registry::with_prefix("flotilla_tracker");
    let metrics = service.metrics();
    metrics.requests.register(&mut registry);
    let help = "Time to answer an announce, handouts included";
    registry.register("handout_seconds", help, metrics.handout_seconds.clone());
    registry.register_collector(Figures::collector(move |figures| {
        let Snapshot {
            peers,
            swarms,
            leases_open,
            requests_parked,
            counts,
        } = service.snapshot();
        figures.gauge("peers", "Peers known", u64::from(peers))?;
        figures.gauge("swarms", "Blobs that a peer holds or wants", swarms)?;
        figures.gauge("leases_open", "Leases open", leases_open)?;
        figures.gauge(
            "requests_parked",
            "Lease requests that wait",
            requests_parked,
        )?;
        service
            .identity()
            .iter()
            .try_for_each(|identity| identity.figures(figures))?;
        let announces = [("accepted", counts.announces), ("resync", counts.resyncs)];
        figures.counters(
            "announces",
            "Announces, by how they were answered",
            "answer",
            announces,
        )?;
        figures.counter(
            "peers_expired",
            "Peers forgotten because they were silent",
            counts.peers_expired,
        )?;
        figures.counter(
            "changes_left_out",
            "Changes left out of too many swarms",
            counts.changes_left_out,
        )?;
        let leases = [
            ("granted", counts.granted),
            ("granted_again", counts.granted_again),
            ("adopted", counts.adopted),
            ("done", counts.done),
            ("failed", counts.failed),
            ("expired", counts.expired),
        ];
        figures.counters("leases", "Leases, by what became of them", "event", leases)?;
        figures.counter(
            "introduced",
            "Starving peers told a holder to dial",
            counts.introduced,
        )
    }));
    registry
}
