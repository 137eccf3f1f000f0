//! A peer's figures for Prometheus.

use std::fmt;
use std::sync::Arc;

use flotilla_common::swarm::{Wait, WaitTimes};
use flotilla_runtime::metrics::{Figures, Requests};
use prometheus_client::registry::Registry;

use crate::driver::Shared;

/// All figures of a peer.
pub(crate) fn registry(shared: Arc<Shared>, requests: &Requests) -> Registry {
    let mut registry = Registry::with_prefix("flotilla_peer");
    requests.register(&mut registry);
    let pulls = &shared.pulls;
    registry.register(
        "pull_seconds",
        "From an image's first request to its last byte",
        pulls.seconds.clone(),
    );
    let help = "From an image's first request to the first byte of a blob";
    registry.register("first_byte_seconds", help, pulls.first_byte_seconds.clone());
    registry.register_collector(Figures::collector(move |figures| {
        bytes(&shared, figures)?;
        pulls_and_faults(&shared, figures)?;
        state(&shared, figures)
    }));
    registry
}

fn bytes(shared: &Shared, figures: &mut Figures<'_>) -> fmt::Result {
    let counters = &shared.counters;
    let sources = [
        ("own_store", counters.from_store.value()),
        ("same_zone", counters.from_same_zone.value()),
        ("other_zones", counters.from_other_zones.value()),
        ("origin_leased", counters.origin_leased.value()),
        ("origin_unleased", counters.origin_unleased.value()),
        ("passed_through", counters.passed_through.value()),
    ];
    figures.counters(
        "pulled_bytes",
        "Bytes of blobs by where they came from",
        "source",
        sources,
    )?;
    let sinks = [
        ("peers", counters.to_peers.value()),
        ("runtime", counters.to_runtime.value()),
    ];
    figures.counters(
        "sent_bytes",
        "Bytes of blobs by where they went",
        "to",
        sinks,
    )
}

fn pulls_and_faults(shared: &Shared, figures: &mut Figures<'_>) -> fmt::Result {
    let (pulls, counters) = (&shared.pulls, &shared.counters);
    let results = [
        ("pulled", pulls.pulled.value()),
        ("given_up", pulls.given_up.value()),
        ("refused", pulls.refused.value()),
    ];
    figures.counters(
        "pulls",
        "Images, by how their pull ended",
        "result",
        results,
    )?;
    let (still, blobs) = shared.waited.read();
    let help = "Time in which something was wanted and nothing moved at all";
    figures.seconds("wait_seconds", help, "reason", by_reason(&still))?;
    let help = "Time in which nothing moved of a wanted blob, summed over blobs";
    figures.seconds("blob_wait_seconds", help, "reason", by_reason(&blobs))?;
    figures.counter(
        "corrupt_chunks",
        "Chunks that failed their check",
        counters.corrupt_chunks.value(),
    )?;
    let quarantines = [
        ("peer", counters.quarantined_peers.value()),
        ("blob", counters.quarantined_blobs.value()),
    ];
    figures.counters(
        "quarantines",
        "Peers and blobs put into quarantine",
        "what",
        quarantines,
    )?;
    let stale = "Tags served as they were because every origin was out";
    figures.counter("stale_tags", stale, counters.stale_tags.value())?;
    let refusals = [
        ("busy", counters.refused_busy.value()),
        ("not_permitted", counters.refused_not_permitted.value()),
    ];
    figures.counters(
        "refusals",
        "Requests of neighbours refused",
        "reason",
        refusals,
    )
}

fn state(shared: &Shared, figures: &mut Figures<'_>) -> fmt::Result {
    figures.gauge(
        "neighbours",
        "Connections to neighbours",
        shared.counters.neighbours.value(),
    )?;
    figures.gauge("leases_open", "Leases held", shared.counters.leases.value())?;
    figures.gauge(
        "store_bytes",
        "Bytes of the blobs in the store",
        shared.store.bytes(),
    )?;
    figures.gauge(
        "store_quota_bytes",
        "Bytes that the store may have",
        shared.store.quota().0,
    )?;
    shared.identity.figures(figures)?;
    let trackers = shared.trackers.status();
    let answers = trackers
        .iter()
        .filter_map(|it| Some((it.url.as_str(), u64::from(it.is_answering?))));
    figures.gauges(
        "tracker_up",
        "Whether a tracker answered last time",
        "url",
        answers,
    )?;
    let announces = trackers
        .iter()
        .map(|tracker| (tracker.url.as_str(), tracker.announces));
    figures.counters(
        "announces",
        "Announces that a tracker accepted",
        "url",
        announces,
    )?;
    let origins = shared.origins.status();
    // Of one that was never asked nothing is known, and nothing is said.
    let answers = origins
        .iter()
        .filter_map(|it| Some((it.url.as_str(), u64::from(it.is_answering?))));
    figures.gauges(
        "origin_up",
        "Whether an origin answered last time",
        "url",
        answers,
    )
}

fn by_reason(times: &WaitTimes) -> impl Iterator<Item = (&'static str, core::time::Duration)> + '_ {
    Wait::ALL.into_iter().map(|wait| (wait.name(), times[wait]))
}
