//! The state that is kept about one peer.

use core::time::Duration;

use super::dialer::ConnectionState;
use super::io::{BlobSlot, Nearness};
use super::unresponsive::Responsiveness;
use crate::time::Time;

/// One peer that the driver has named.
#[derive(Debug)]
pub(super) struct KnownPeer {
    pub(super) nearness: Nearness,
    pub(super) connection: ConnectionState,
    pub(super) round_trip: Duration,
    /// Its uplink in bits per second, if it reported one.
    pub(super) rate: Option<u64>,
    pub(super) quarantined_until: Time,
    pub(super) responsiveness: Responsiveness,
    /// Blobs that are exchanged with it.
    pub(super) blobs: Vec<BlobSlot>,
    /// Number of blobs for which it is a candidate.
    pub(super) candidacies: u32,
}

impl Default for KnownPeer {
    fn default() -> Self {
        Self {
            nearness: Nearness::Elsewhere,
            connection: ConnectionState::NEW,
            round_trip: Duration::ZERO,
            rate: None,
            quarantined_until: Time::ZERO,
            responsiveness: Responsiveness::default(),
            blobs: Vec::new(),
            candidacies: 0,
        }
    }
}

impl KnownPeer {
    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_connected()
    }

    pub(super) fn is_quarantined(&self, now: Time) -> bool {
        self.quarantined_until > now
    }

    pub(super) fn is_unreachable(&self, now: Time) -> bool {
        self.connection.is_unanswered()
            || (self.is_connected() && self.responsiveness.is_unresponsive())
            || (!self.is_connected() && self.is_quarantined(now))
    }
}
