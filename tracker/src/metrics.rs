//! Figures for Prometheus, read from the machine when they are asked for.

use std::fmt;
use std::sync::Arc;

use flotilla_common::tracker::Counts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
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

/// All figures of a tracker.
pub(crate) fn registry(service: Arc<Service>) -> Registry {
    let mut registry = Registry::with_prefix("flotilla_tracker");
    registry.register_collector(Box::new(Figures(service)));
    registry
}

#[derive(Debug)]
struct Figures(Arc<Service>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Snapshot { peers, swarms, leases_open, requests_parked, counts } = self.0.snapshot();
        let gauges = [
            ("peers", "Peers known", u64::from(peers)),
            ("swarms", "Blobs that a peer holds or wants", swarms),
            ("leases_open", "Leases open", leases_open),
            ("requests_parked", "Lease requests that wait", requests_parked),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("announces", "Announces accepted", counts.announces),
            ("resyncs", "Announces answered by a resync", counts.resyncs),
            ("peers_expired", "Peers forgotten because they were silent", counts.peers_expired),
            ("changes_left_out", "Changes left out of too many swarms", counts.changes_left_out),
            ("leases_granted", "Leases granted", counts.granted),
            ("leases_granted_again", "Leases of chunks that were in the swarm before", counts.granted_again),
            ("leases_adopted", "Leases taken up from peers", counts.adopted),
            ("leases_done", "Leases that ended with the chunk", counts.done),
            ("leases_failed", "Leases given up", counts.failed),
            ("leases_expired", "Leases whose term ran out", counts.expired),
            ("introduced", "Starving peers told a holder to dial", counts.introduced),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
