//! The settings of the tracker's machine.

use core::time::Duration;

use bincode::{Decode, Encode};

/// Settings of the tracker's machine.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TrackerConfig {
    /// Shortest time between two announces of a peer.
    pub min_interval: Duration,
    /// Longest time between two announces of a peer.
    pub max_interval: Duration,
    /// Announces per second that all peers together should not exceed: the interval grows with the
    /// number of peers.
    pub announces_per_second: u32,
    /// Intervals without an announce after which a peer is forgotten.
    pub intervals_to_expiry: u32,
    /// Maximum number of peers; further ones are rejected.
    pub peers_limit: u32,
    /// Most swarms that one peer may be in; further changes are ignored.
    pub swarms_per_peer_limit: usize,
    /// Neighbours in a handout.
    pub handout: usize,
    /// Of each 16 neighbours in a handout, so many are of the peer's own zone, if it has as many.
    pub near_of_16: usize,
    /// After a start, how long no lease is granted on blobs that peers already have parts of. In
    /// this time peers report the chunks that they hold to a restarted tracker.
    pub settle: Duration,
    /// Settings of the lease authorities.
    pub lease: LeaseSettings,
}

impl Default for TrackerConfig {
    fn default() -> Self {
        Self {
            min_interval: Duration::from_secs(5),
            max_interval: Duration::from_secs(120),
            announces_per_second: 2_000,
            intervals_to_expiry: 3,
            peers_limit: 1_000_000,
            swarms_per_peer_limit: 10_000,
            handout: 16,
            near_of_16: 12,
            settle: Duration::from_secs(2),
            lease: LeaseSettings::default(),
        }
    }
}

/// Settings of the lease authorities.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LeaseSettings {
    /// Open leases for one blob in one region. The default was measured; six are better when a
    /// chunk takes 10 ms or less, and more when the origin is much faster than the peers.
    pub open_limit: usize,
    /// The most that `open_limit` grows to while origins of other regions serve: it is doubled, and
    /// one is added for each chunk that they served.
    pub far_open_limit: usize,
    /// How long a lease lasts, and by how much progress extends it.
    pub term: Duration,
    /// How long an unconfirmed lease counts against the limit. A holder confirms at once, so a
    /// holder that does not is probably dead, and the origin should not be idle. After five times
    /// as long an unconfirmed lease ends.
    pub confirm: Duration,
    /// How long a lease lasts without progress while the origin serves none of the blob's holders.
    /// An origin or a peer that turns to another region takes up to four seconds.
    pub longest_stall: Duration,
    /// Longest total time of a lease, however much progress it makes.
    pub longest: Duration,
    /// As `longest`, for a blob of one chunk: a blob that cannot be cut into chunks has one chunk
    /// of any size.
    pub longest_whole: Duration,
    /// Longest time that a request is parked.
    pub park: Duration,
    /// Longest time that the request of a starving peer is parked, because the chunks of its
    /// neighbours change quickly.
    pub park_starving: Duration,
    /// Most parked requests for one blob in one region; further ones are answered with a time to
    /// wait.
    pub parked_limit: usize,
    /// Most chunks of a blob.
    pub chunks_limit: u32,
    /// Most chunks of all blobs whose authorities one peer's requests created; for each chunk 16
    /// bytes are kept. Requests for further blobs wait until peers leave swarms.
    pub created_chunks_limit: u32,
    /// As `created_chunks_limit`, of all peers together.
    pub all_chunks_limit: u64,
}

/// A lease whose holder sends nothing ends after so many times [`LeaseSettings::confirm`].
pub(super) const UNCONFIRMED_FACTOR: u32 = 5;

impl LeaseSettings {
    /// Most leases of one blob in one region that are open at the same time: those that count, and
    /// those whose holders are late to confirm, because each of these made room for another one.
    pub const fn most_open(&self) -> usize {
        self.open_limit * (UNCONFIRMED_FACTOR as usize + 1)
    }

    /// As [`Self::most_open`], while origins of other regions serve.
    pub const fn most_far_open(&self) -> usize {
        self.far_open_limit * (UNCONFIRMED_FACTOR as usize + 1)
    }
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            open_limit: 4,
            far_open_limit: 32,
            term: Duration::from_secs(1),
            confirm: Duration::from_millis(50),
            longest_stall: Duration::from_secs(4),
            longest: Duration::from_secs(30),
            longest_whole: Duration::from_secs(900),
            park: Duration::from_secs(10),
            park_starving: Duration::from_secs(1),
            parked_limit: 20_000,
            chunks_limit: 1 << 18,
            created_chunks_limit: 1 << 20,
            all_chunks_limit: 1 << 25,
        }
    }
}
