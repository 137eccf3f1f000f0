//! What a session takes from a tracker's answer. A broken or hostile tracker must not keep a peer
//! busy or fill its memory.

use core::time::Duration;

use crate::wire::tracker::Handout;

/// Shortest and longest time to the next announce.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));
/// Shortest and longest term of a lease.
const TERM: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// Shortest and longest time until a lease may be asked for again. The peer's machine has a
/// shortest pause of its own.
const WAIT: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(60));
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

/// The time until a lease may be asked for again.
pub(super) fn wait(retry_ms: u32) -> Duration {
    clamped(retry_ms, WAIT)
}

fn clamped(millis: u32, (least, most): (Duration, Duration)) -> Duration {
    Duration::from_millis(millis.into()).clamp(least, most)
}

/// The handouts, without those beyond the limits.
pub(super) fn handouts(mut handouts: Vec<Handout>) -> Vec<Handout> {
    handouts.truncate(MAX_HANDOUTS);
    for handout in &mut handouts {
        handout.peers.truncate(MAX_PEERS);
    }
    handouts
}
