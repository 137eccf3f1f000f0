//! The peer's metrics for Prometheus.

use core::time::Duration;
use std::fmt;
use std::sync::Arc;

use flotilla_common::swarm::{StallReason, StallTimes};
use flotilla_runtime::identity::Identity;
use flotilla_runtime::metrics::{MetricWriter, RequestMetrics};
use prometheus_client::registry::Registry;

use crate::origin::OriginClient;
use crate::store::Store;
use crate::telemetry::Telemetry;
use crate::tracker_client::Trackers;

/// The sources of the metrics' values.
#[derive(Debug)]
pub(crate) struct MetricSources {
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) store: Arc<Store>,
    pub(crate) identity: Identity,
    pub(crate) trackers: Trackers,
    pub(crate) origins: OriginClient,
}

/// All metrics of a peer. Sources are read at each scrape.
pub(crate) fn registry(sources: MetricSources, requests: &RequestMetrics) -> Registry {
    let mut registry = Registry::with_prefix("flotilla_peer");
    requests.register(&mut registry);
    let pulls = &sources.telemetry.pulls;
    registry.register(
        "pull_seconds",
        "Time from the first request of an image pull to its last byte",
        pulls.seconds.clone(),
    );
    let help = "Time from the first request of an image pull to the first byte of a blob";
    registry.register("first_byte_seconds", help, pulls.first_byte_seconds.clone());
    let trackers = &sources.telemetry.trackers;
    let help = "Time until a tracker answered an announce";
    registry.register("announce_seconds", help, trackers.announce_seconds.clone());
    let help = "Time until a tracker answered an update of a lease";
    let seconds = trackers.lease_update_seconds.clone();
    registry.register("lease_update_seconds", help, seconds);
    registry.register_collector(MetricWriter::collector(move |figures| {
        bytes(&sources, figures)?;
        pulls_and_faults(&sources.telemetry, figures)?;
        state(&sources, figures)
    }));
    registry
}

fn bytes(sources: &MetricSources, figures: &mut MetricWriter<'_>) -> fmt::Result {
    let counters = &sources.telemetry.counters;
    let pulled = [
        ("own_store", counters.from_store.value()),
        ("same_zone", counters.from_same_zone.value()),
        ("other_zones", counters.from_other_zones.value()),
        ("origin_leased", counters.origin_leased.value()),
        ("origin_unleased", counters.origin_unleased.value()),
        ("passed_through", counters.passed_through.value()),
    ];
    let help = "Blob bytes pulled, by source";
    figures.counters("pulled_bytes", help, "source", pulled)?;
    let sent = [
        ("peers", counters.to_peers.value()),
        ("runtime", counters.to_runtime.value()),
    ];
    figures.counters("sent_bytes", "Blob bytes sent, by receiver", "to", sent)
}

fn pulls_and_faults(telemetry: &Telemetry, figures: &mut MetricWriter<'_>) -> fmt::Result {
    let Telemetry {
        counters, pulls, ..
    } = telemetry;
    let results = [
        ("pulled", pulls.pulled.value()),
        ("given_up", pulls.given_up.value()),
        ("refused", pulls.refused.value()),
    ];
    figures.counters("pulls", "Image pulls, by result", "result", results)?;
    let (peer, blobs) = telemetry.waits.get();
    let help = "Time in which blobs were wanted and none made progress, by reason";
    figures.seconds("wait_seconds", help, "reason", by_reason(&peer))?;
    let help = "Time in which a wanted blob made no progress, summed over blobs, by reason";
    figures.seconds("blob_wait_seconds", help, "reason", by_reason(&blobs))?;
    figures.counter(
        "corrupt_chunks",
        "Received chunks that failed verification",
        counters.corrupt_chunks.value(),
    )?;
    let quarantines = [
        ("peer", counters.quarantined_peers.value()),
        ("blob", counters.quarantined_blobs.value()),
    ];
    let help = "Peers and blobs put into quarantine";
    figures.counters("quarantines", help, "what", quarantines)?;
    let help = "Tags answered from the last known manifest because no origin was available";
    figures.counter("stale_tags", help, counters.stale_tags.value())?;
    let refusals = [
        ("busy", counters.refused_busy.value()),
        ("not_permitted", counters.refused_not_permitted.value()),
    ];
    let help = "Requests of neighbours that were refused, by reason";
    figures.counters("refusals", help, "reason", refusals)
}

fn state(sources: &MetricSources, figures: &mut MetricWriter<'_>) -> fmt::Result {
    let MetricSources {
        telemetry, store, ..
    } = sources;
    let counters = &telemetry.counters;
    figures.gauge(
        "neighbours",
        "Peers connected to this peer",
        counters.neighbours.value(),
    )?;
    figures.gauge(
        "leases_open",
        "Leases held: chunks that this peer may fetch from an origin",
        counters.leases.value(),
    )?;
    let help = "Total size of the blobs in the store";
    figures.gauge("store_bytes", help, store.bytes())?;
    let help = "Maximum total size of the blobs in the store";
    figures.gauge("store_quota_bytes", help, store.quota().0)?;
    sources.identity.write_metrics(figures)?;
    let trackers = sources.trackers.status();
    let answers = trackers
        .iter()
        .filter_map(|it| Some((it.url.as_str(), u64::from(it.is_answering?))));
    let help = "1 if the tracker answered the last request, 0 if not";
    figures.gauges("tracker_up", help, "url", answers)?;
    let announces = trackers.iter().map(|it| (it.url.as_str(), it.announces));
    let help = "Announces that the tracker accepted";
    figures.counters("announces", help, "url", announces)?;
    let origins = sources.origins.status();
    // An origin that was never asked has no value: neither 0 nor 1 would be true.
    let answers = origins
        .iter()
        .filter_map(|it| Some((it.url.as_str(), u64::from(it.is_answering?))));
    let help = "1 if the origin answered the last request or probe, 0 if not";
    figures.gauges("origin_up", help, "url", answers)?;
    let shares = origins
        .iter()
        .map(|it| (it.url.as_str(), it.share_percent.into()));
    let help = "Share of the requests that prefer the origin and ask it, in percent: 0 while it \
                is out, less than 100 while it returns";
    figures.gauges("origin_share_percent", help, "url", shares)
}

fn by_reason(times: &StallTimes) -> impl Iterator<Item = (&'static str, Duration)> + '_ {
    StallReason::ALL
        .into_iter()
        .map(|wait| (wait.name(), times[wait]))
}
