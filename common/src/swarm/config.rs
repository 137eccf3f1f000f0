//! The settings of the machine.

use core::time::Duration;

use bincode::{Decode, Encode};

/// Settings of a peer's machine. [`SwarmConfig::default`] has the values that ship;
/// `docs/benchmarks/simulated-swarm.md` has the measurements behind them.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct SwarmConfig {
    /// Own uplink, bits per second; `None` if it has no cap and is not known.
    pub up_bits_per_second: Option<u64>,
    /// Own downlink, bits per second; `None` if it has no cap and is not known.
    pub down_bits_per_second: Option<u64>,
    /// Assumed rate of the own link while neither direction is known, bits per second.
    pub assumed_bits_per_second: u64,
    /// Transfers in each direction if the own rate is the median rate of the neighbours
    /// (`docs/decisions/transfer-slots.md`).
    pub slots: u32,
    /// Maximum number of transfers in each direction, however fast the own link is.
    pub max_slots: u32,

    /// Maximum number of connections.
    pub max_connections: u32,
    /// Maximum number of concurrent dials, some of which may be to dead peers.
    pub max_dials: u32,
    /// A dial that is not answered for this long is late: the peer counts as unreachable, while the
    /// dial continues. Four times as long for a peer in another region.
    pub dial_timeout: Duration,
    /// Maximum number of neighbours with which one blob is exchanged; at most 64.
    pub max_neighbours: u32,
    /// With fewer neighbours than this for a wanted blob, the tracker is asked for more.
    pub min_neighbours: u32,
    /// Minimum time between two announces that ask for more neighbours.
    pub refill_interval: Duration,

    /// One pick in this many is the lowest chunk that a reader waits for, rather than the rarest.
    pub in_order_one_in: u32,
    /// Minimum time between a Have batch of a blob and the next one with a chunk that few
    /// neighbours hold, or half a chunk's time if that is less. Other chunks may wait longer.
    pub have_interval: Duration,
    /// A transfer with less than this left, or less than a round trip, takes no slot.
    pub nearly_done: Duration,
    /// Timeout for a neighbour's first byte, plus four chunk times: a neighbour with a free slot
    /// answers at once. Doubles each time in a row, up to `stall_timeout`.
    pub first_byte_timeout: Duration,
    /// A transfer that has not moved for this long is cancelled.
    pub stall_timeout: Duration,
    /// A wanted blob that has not moved for this long is fetched from the origin without a lease.
    /// Longer on slow links, jittered, shorter with each success and longer with each failure.
    pub fallback_timeout: Duration,
    /// A wanted blob that has not moved for this long is reported to the tracker as starving.
    /// Longer on slow links, jittered.
    pub starving_timeout: Duration,
    /// As `fallback_timeout`, while a tracker answers: then another peer holds the lease, and
    /// waiting costs less.
    pub fallback_timeout_with_tracker: Duration,
    /// How long a neighbour that sent corrupt bytes is in quarantine.
    pub quarantine_time: Duration,
    /// Delay before a peer that could not be reached is dialed again, doubling with each failure.
    pub redial_delay: Duration,
    /// After no origin delivered a chunk of a blob, none is asked for that blob for this long,
    /// doubling up to 16 times this.
    pub origin_retry_delay: Duration,
}

impl SwarmConfig {
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

    /// Minimum time between two batches of a blob's news that should not wait, if a chunk takes
    /// `chunk_time`.
    pub(super) fn batch_interval(&self, chunk_time: Duration) -> Duration {
        self.have_interval.min(chunk_time / 2)
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

impl Default for SwarmConfig {
    fn default() -> Self {
        Self {
            up_bits_per_second: None,
            down_bits_per_second: None,
            assumed_bits_per_second: 1_000_000_000,
            slots: 3,
            max_slots: 24,
            max_connections: 64,
            max_dials: 32,
            dial_timeout: Duration::from_millis(250),
            max_neighbours: 32,
            min_neighbours: 12,
            refill_interval: Duration::from_secs(1),
            in_order_one_in: 4,
            have_interval: Duration::from_millis(50),
            nearly_done: Duration::from_millis(3),
            first_byte_timeout: Duration::from_millis(250),
            stall_timeout: Duration::from_secs(2),
            fallback_timeout: Duration::from_secs(2),
            starving_timeout: Duration::from_millis(300),
            fallback_timeout_with_tracker: Duration::from_secs(10),
            quarantine_time: Duration::from_secs(600),
            redial_delay: Duration::from_secs(1),
            origin_retry_delay: Duration::from_secs(1),
        }
    }
}
