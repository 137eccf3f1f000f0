//! The peers that may become neighbours for one blob, and when to ask the tracker for more.

use core::time::Duration;

use super::blob_exchange::BlobExchange;
use super::config::SwarmConfig;
use super::io::PeerSlot;
use super::rng::Rng;
use crate::time::Time;

/// Maximum number of candidates that are remembered for a blob.
const MAX_CANDIDATES: usize = 64;
/// How many neighbours a peer with too few looks for: as many as a tracker names by default.
const SOUGHT_NEIGHBOURS: usize = 16;
/// Candidates that are not connected this long after they were named are slow or dead.
const CONNECT_GRACE: Duration = Duration::from_millis(200);
/// The delay between two announces for more neighbours doubles up to this multiple of
/// [`SwarmConfig::refill_interval`].
const MAX_REFILL_DELAY: u32 = 16;

/// The candidates of one blob.
#[derive(Debug)]
pub(super) struct Candidates {
    /// Nearest first, as the tracker named them.
    peers: Vec<PeerSlot>,
    /// When the last of them was first named.
    named_at: Time,
    /// When the tracker may be asked for more, and the delay after that.
    refill_at: Time,
    refill_delay: Duration,
}

/// The decision of [`Candidates::refill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refill {
    /// There are enough.
    NotNeeded,
    /// Announce now, and look again at this time.
    Announce { next_at: Time },
    /// Look again at this time.
    Wait { until: Time },
}

impl Candidates {
    pub(super) fn new() -> Self {
        Self {
            peers: Vec::new(),
            named_at: Time::ZERO,
            refill_at: Time::ZERO,
            refill_delay: Duration::ZERO,
        }
    }

    pub(super) fn peers(&self) -> &[PeerSlot] {
        &self.peers
    }

    /// Adds a candidate; false if it is known or there is no room.
    pub(super) fn add(&mut self, now: Time, peer: PeerSlot) -> bool {
        let is_new = self.peers.len() < MAX_CANDIDATES && !self.peers.contains(&peer);
        if is_new {
            self.peers.push(peer);
            self.named_at = now;
        }
        is_new
    }

    /// Removes a candidate; false if it was none.
    pub(super) fn remove(&mut self, peer: PeerSlot) -> bool {
        let before = self.peers.len();
        self.peers.retain(|other| *other != peer);
        self.peers.len() < before
    }

    /// Removes all candidates.
    pub(super) fn take(&mut self) -> Vec<PeerSlot> {
        core::mem::take(&mut self.peers)
    }

    /// Whether all candidates are neighbours or had time enough to become one.
    pub(super) fn are_settled(&self, now: Time, blob: &BlobExchange) -> bool {
        self.named_at + CONNECT_GRACE <= now
            || self
                .peers
                .iter()
                .all(|peer| blob.neighbours().contains(peer))
    }

    /// How many further neighbours are looked for; none while there are enough, or those that were
    /// named last may still become some.
    pub(super) fn wanted(&self, now: Time, blob: &BlobExchange, config: &SwarmConfig) -> u8 {
        let has_enough = blob.neighbours().len() >= config.min_neighbours as usize;
        let may_get_some = !self.peers.is_empty() && !self.are_settled(now, blob);
        if !blob.is_wanted() || has_enough || may_get_some {
            return 0;
        }
        let missing = SOUGHT_NEIGHBOURS.saturating_sub(blob.neighbours().len());
        u8::try_from(missing).unwrap_or(u8::MAX)
    }

    /// Starts anew when the blob is wanted: its announce asks for neighbours already.
    pub(super) fn restart_refill(&mut self, now: Time, config: &SwarmConfig) {
        self.refill_delay = config.refill_interval;
        self.refill_at = now + self.refill_delay;
    }

    /// Decides whether to announce for more neighbours, less and less often while none come.
    pub(super) fn refill(
        &mut self,
        now: Time,
        neighbours: usize,
        config: &SwarmConfig,
        rng: &mut Rng,
    ) -> Refill {
        if neighbours >= config.min_neighbours as usize {
            self.refill_delay = config.refill_interval;
            return Refill::NotNeeded;
        }
        if self.refill_at > now {
            return Refill::Wait {
                until: self.refill_at,
            };
        }
        self.refill_at = now + rng.jitter(self.refill_delay);
        self.refill_delay = (self.refill_delay * 2).min(config.refill_interval * MAX_REFILL_DELAY);
        Refill::Announce {
            next_at: self.refill_at,
        }
    }
}
