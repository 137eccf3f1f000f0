//! What a session takes from a tracker's answer. A broken or hostile tracker must not keep a peer
//! busy or fill its memory.

use core::time::Duration;

use super::io::NamedPeers;
use crate::wire::tracker::{Handout, NamedPeer, PeerInfo};

/// Shortest and longest time to the next announce.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));
/// Shortest and longest term of a lease.
const TERM: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// Shortest and longest time until a lease may be asked for again. The peer's machine has a
/// shortest pause of its own.
const WAIT: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(60));
/// Shortest and longest time over which first requests for leases are spread.
const LEASE_DELAY: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(10));
/// Peers of one blob in one answer. A peer has fewer neighbours for a blob.
const MAX_PEERS: usize = 64;
/// Blobs for which one answer names peers.
const MAX_HANDOUTS: usize = 1024;

/// The time to the next announce.
pub(super) fn interval(next_ms: u32) -> Duration {
    clamped(next_ms, INTERVAL)
}

/// The term of a lease.
pub(super) fn term(term_ms: u32) -> Duration {
    clamped(term_ms, TERM)
}

/// The time over which first requests for leases are spread.
pub(super) fn lease_delay(delay_ms: u32) -> Duration {
    clamped(delay_ms, LEASE_DELAY)
}

/// The time until a lease may be asked for again.
pub(super) fn wait(retry_ms: u32) -> Duration {
    clamped(retry_ms, WAIT)
}

fn clamped(millis: u32, (least, most): (Duration, Duration)) -> Duration {
    Duration::from_millis(millis.into()).clamp(least, most)
}

/// The peers that an answer names, without those beyond the limits.
pub(super) fn handouts(peers: &[PeerInfo], handouts: &[Handout]) -> Vec<NamedPeers> {
    let info = |named: &NamedPeer| peers.get(usize::from(named.index)).cloned();
    let handouts = handouts.iter().take(MAX_HANDOUTS);
    let named = handouts.map(|handout| {
        let named = &handout.peers[..handout.peers.len().min(MAX_PEERS)];
        NamedPeers {
            digest: handout.digest,
            peers: named.iter().filter_map(info).collect(),
        }
    });
    named.collect()
}
