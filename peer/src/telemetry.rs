//! The peer's measurements: byte counters, pulls, waiting times and the time of the last received
//! byte. The driver and the mirror write them; metrics and status read them.

use core::time::Duration;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flotilla_common::swarm::StallTimes;
use flotilla_common::time::Time;
use flotilla_common::units::BitRate;
use flotilla_runtime::identity::Identity;
use flotilla_runtime::metrics::seconds_histogram;
use prometheus_client::metrics::histogram::Histogram;

use crate::pulls::Pulls;
use crate::stats::{BlobProgress, Counters, Stats};
use crate::store::Store;
use crate::tracker_client::{ExchangeKind, ExchangeObserver, PostError};

/// All measurements of a peer.
#[derive(Debug)]
pub(crate) struct Telemetry {
    pub(crate) counters: Counters,
    pub(crate) pulls: Pulls,
    pub(crate) waits: WaitTotals,
    pub(crate) last_received: LastReceived,
    pub(crate) trackers: Arc<TrackerTimes>,
}

impl Telemetry {
    /// Everything at zero, for a peer with this download rate limit.
    pub(crate) fn new(down: Option<BitRate>) -> Self {
        Self {
            counters: Counters::default(),
            pulls: Pulls::new(down),
            waits: WaitTotals::default(),
            last_received: LastReceived::default(),
            trackers: Arc::default(),
        }
    }

    /// The counters, with the blobs in the store and the expiry of the certificate.
    pub(crate) fn stats(&self, store: &Store, identity: &Identity) -> Stats {
        let blobs = store.blobs().into_iter().map(|blob| BlobProgress {
            digest: *blob.digest(),
            size: blob.geometry().size(),
            held: blob.held_bytes(),
            is_complete: blob.is_complete(),
        });
        Stats {
            store_bytes: store.bytes(),
            blobs: blobs.collect(),
            certificate_ends_unix_s: identity.ends_unix_s(),
            ..self.counters.snapshot()
        }
    }
}

/// The time spent waiting since the start, by reason. The driver updates it at its housekeeping.
#[derive(Debug, Default)]
pub(crate) struct WaitTotals(Mutex<(StallTimes, StallTimes)>);

impl WaitTotals {
    /// The time in which the peer as a whole made no progress, and the sum over all blobs.
    pub(crate) fn get(&self) -> (StallTimes, StallTimes) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, peer: StallTimes, blobs: StallTimes) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (peer, blobs);
    }
}

/// When bytes of any blob were last received. By this, readers distinguish a busy swarm from a
/// stalled one.
#[derive(Debug, Default)]
pub(crate) struct LastReceived(AtomicU64);

impl LastReceived {
    pub(crate) fn set(&self, now: Time) {
        self.0.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// The time since then.
    pub(crate) fn elapsed(&self, now: Time) -> Duration {
        now.saturating_since(Time::from_nanos(self.0.load(Ordering::Relaxed)))
    }
}

/// How long trackers take to answer requests that they do not park.
#[derive(Debug)]
pub(crate) struct TrackerTimes {
    pub(crate) announce_seconds: Histogram,
    pub(crate) lease_update_seconds: Histogram,
}

impl Default for TrackerTimes {
    fn default() -> Self {
        Self {
            announce_seconds: seconds_histogram(),
            lease_update_seconds: seconds_histogram(),
        }
    }
}

impl ExchangeObserver for TrackerTimes {
    fn answered(&self, kind: ExchangeKind, elapsed: Duration) {
        match kind {
            ExchangeKind::Announce => self.announce_seconds.observe(elapsed.as_secs_f64()),
            ExchangeKind::LeaseUpdate => self.lease_update_seconds.observe(elapsed.as_secs_f64()),
            ExchangeKind::LeaseRequest => {}
        }
    }

    // The session decides what a failure means, and the status and `tracker_up` show it.
    fn failed(&self, _kind: ExchangeKind, _error: &PostError) {}
}
