//! What an operator or a test may set.

use core::time::Duration;

/// Settings of a peer's machine; [`Config::default`] is what `docs/decisions/chunk-scheduling.md` measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Own uplink, bits per second; `None` if it has no cap and is not known.
    pub up_bits_per_second: Option<u64>,
    /// Own downlink, bits per second; `None` if it has no cap and is not known.
    pub down_bits_per_second: Option<u64>,
    /// What a link is taken to carry while nothing better is known, bits per second.
    pub assumed_bits_per_second: u64,
    /// Transfers each way at the neighbours' median rate.
    pub slots: u32,
    /// Most transfers each way, however fast the own link is.
    pub max_slots: u32,
    /// Number of configured origins, the own region's first.
    pub origins: u32,
    /// A stable hash of the own id, as in [`super::PeerFacts::key`].
    pub key: u64,

    /// Most connections altogether.
    pub max_connections: u32,
    /// Most dials at once, of which some may be to the dead.
    pub max_dialling: u32,
    /// A dial that has not been answered for this long is not waited for: the peer counts as out of
    /// reach, while the dial goes on. Four times as long for a peer in another region.
    pub dial: Duration,
    /// Most neighbours with which one blob is exchanged; at most 64.
    pub max_neighbours: u32,
    /// Fewer neighbours than this for a wanted blob: announce for more.
    pub min_neighbours: u32,
    /// Least time between two announces for want of neighbours.
    pub refill_interval: Duration,

    /// One pick in this many is the lowest chunk that a reader waits for, rather than the rarest.
    pub in_order_one_in: u32,
    /// Least time between two Have batches of one blob, or half a chunk's time if that is less; the
    /// first goes at once.
    pub have_interval: Duration,
    /// A transfer with less than this left, or less than a round trip, counts as free.
    pub nearly_done: Duration,
    /// A neighbour whose first byte has not come for this long and four chunk times is not waited
    /// for: whoever has a slot answers at once. Twice as long each time in a row, up to `stalled`.
    pub first_byte: Duration,
    /// A transfer that has not moved for this long is given up, longer on slow links.
    pub stalled: Duration,
    /// A wanted blob that could be fetched but has not moved for this long is taken from the origin
    /// without a lease; longer on slow links, jittered, growing with each use.
    pub escalate: Duration,
    /// A wanted blob that could be fetched but has not moved for this long is reported to the
    /// tracker as starving; longer on slow links, jittered.
    pub starving: Duration,
    /// As `escalate`, while a tracker answers: then somebody else holds the lease, and waiting is
    /// cheaper.
    pub escalate_with_tracker: Duration,
    /// How long a neighbour that sent corrupt bytes is not used.
    pub quarantine: Duration,
    /// How long a peer that could not be reached is not dialled, doubling up to 16 times.
    pub redial: Duration,
    /// How long a failed origin is not used if there is another, doubling up to 16 times.
    pub origin_rest: Duration,
}

impl Config {
    /// The own rate, the slower of both directions, in bits per second; `None` if it is not known.
    pub(super) fn own_rate(&self) -> Option<u64> {
        let up = self.up_bits_per_second.into_iter();
        up.chain(self.down_bits_per_second).min()
    }

    /// How long `bytes` take at the own rate.
    pub(super) fn time_of(&self, bytes: u64) -> Duration {
        let rate = self.own_rate().unwrap_or(self.assumed_bits_per_second);
        Duration::from_secs_f64((bytes * 8) as f64 / rate.max(1) as f64)
    }

    /// Transfers in each direction for neighbours with this median rate: `max(1, round(slots x own
    /// / median))`, within [`Self::max_slots`]. `None` if the own rate is not known.
    pub(super) fn slots_at(&self, median_rate: Option<u64>) -> Option<u32> {
        let own = self.own_rate()?;
        let median = median_rate.unwrap_or(own).max(1);
        let slots = (u64::from(self.slots) * own + median / 2) / median;
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        Some(slots.clamp(1, self.max_slots.max(1)))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            up_bits_per_second: None,
            down_bits_per_second: None,
            assumed_bits_per_second: 1_000_000_000,
            slots: 3,
            max_slots: 24,
            origins: 1,
            key: 0,
            max_connections: 64,
            max_dialling: 32,
            dial: Duration::from_millis(250),
            max_neighbours: 32,
            min_neighbours: 12,
            refill_interval: Duration::from_secs(1),
            in_order_one_in: 4,
            have_interval: Duration::from_millis(50),
            nearly_done: Duration::from_millis(3),
            first_byte: Duration::from_millis(250),
            stalled: Duration::from_secs(2),
            escalate: Duration::from_secs(2),
            starving: Duration::from_millis(300),
            escalate_with_tracker: Duration::from_secs(10),
            quarantine: Duration::from_secs(600),
            redial: Duration::from_secs(1),
            origin_rest: Duration::from_secs(1),
        }
    }
}
