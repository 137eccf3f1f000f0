//! What can be set about a tracker's decisions.

use core::time::Duration;

/// Settings of the tracker's machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Shortest time between two announces of a peer.
    pub min_interval: Duration,
    /// Longest time between two announces of a peer.
    pub max_interval: Duration,
    /// Announces per second that all peers together should not exceed: the interval grows with the
    /// peers.
    pub announces_per_second: u32,
    /// Intervals without an announce after which a peer is forgotten.
    pub intervals_to_expiry: u32,
    /// Most peers at once; who comes then is turned away.
    pub peers_limit: u32,
    /// Most swarms that one peer may be in; what it announces beyond is left out.
    pub swarms_per_peer_limit: usize,
    /// Neighbours in a handout.
    pub handout: usize,
    /// After a start, how long chunks of a blob that peers already have parts of are not granted:
    /// the time in which peers tell a restarted tracker what they hold.
    pub settle: Duration,
    /// Settings of the lease authorities.
    pub lease: LeaseConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            min_interval: Duration::from_secs(5),
            max_interval: Duration::from_secs(120),
            announces_per_second: 2_000,
            intervals_to_expiry: 3,
            peers_limit: 1_000_000,
            swarms_per_peer_limit: 10_000,
            handout: 16,
            settle: Duration::from_secs(2),
            lease: LeaseConfig::default(),
        }
    }
}

/// Settings of the lease authorities.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// Leases open at once for one blob in one region. Four by study; six when a chunk takes 10 ms
    /// or less, more when the origin is much faster than the peers.
    pub open_limit: usize,
    /// How long a lease is good, and how long it is extended by progress.
    pub term: Duration,
    /// How long a lease counts against the limit before its holder has said anything. A holder
    /// confirms at once, so one that is silent for longer is probably dead, and the origin should
    /// not idle. After five times as long the lease is over.
    pub confirm: Duration,
    /// Longest time that a lease is extended to, whatever the progress.
    pub longest: Duration,
    /// As `longest`, for a blob of one chunk: it may be one that cannot be cut, of any size.
    pub longest_whole: Duration,
    /// How long a request waits at most.
    pub park: Duration,
    /// How long the request of a starving peer waits at most: what it says about its neighbours
    /// goes stale.
    pub park_starving: Duration,
    /// Most requests that wait for one blob in one region; who comes then is told to wait by
    /// itself.
    pub parked_limit: usize,
    /// Most chunks of a blob.
    pub chunks_limit: u32,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            open_limit: 4,
            term: Duration::from_secs(1),
            confirm: Duration::from_millis(50),
            longest: Duration::from_secs(30),
            longest_whole: Duration::from_secs(900),
            park: Duration::from_secs(10),
            park_starving: Duration::from_secs(1),
            parked_limit: 20_000,
            chunks_limit: 1 << 18,
        }
    }
}
