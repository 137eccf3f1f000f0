//! The order in which chunks are fetched.

use core::time::Duration;

use super::support::{BLOB, connect, facts, wanting};
use crate::swarm::{HaveBatch, HeldChunks, Input, Nearness, Output, PeerSlot};
use crate::time::Time;

/// The first chunks that a peer fetches which has these candidates: seeders, and leechers that hold
/// the last chunk. The first `connected` of them are connected, `after` the handout.
fn first_fetched(seeders: u32, leechers: u32, connected: u32, after: Duration) -> Vec<u32> {
    let mut machine = wanting(64);
    let candidates = (0..seeders + leechers).map(|peer| facts(PeerSlot(peer), Nearness::SameZone));
    machine.handle(
        Time::ZERO,
        Input::Handout {
            blob: BLOB,
            peers: candidates.collect(),
        },
    );
    let mut fetched = Vec::new();
    let now = Time::ZERO + after;
    for peer in 0..connected {
        let mut last = HaveBatch::default();
        last.push(63);
        let have = if peer < seeders {
            HeldChunks::Complete
        } else {
            HeldChunks::Chunks(last)
        };
        connect(&mut machine, now, PeerSlot(peer), have);
    }
    while let Some(output) = machine.poll_output() {
        if let Output::Fetch {
            chunk, transfer, ..
        } = output
        {
            fetched.push(chunk);
            machine.handle(now, Input::Received { transfer });
        }
        if fetched.len() == 8 {
            break;
        }
    }
    fetched
}

#[test]
fn in_order_when_all_peers_are_seeders() {
    assert_eq!(
        first_fetched(1, 0, 1, Duration::ZERO),
        [0, 1, 2, 3, 4, 5, 6, 7]
    );
    let after = Duration::from_secs(1);
    assert_eq!(
        first_fetched(1, 1, 1, after),
        [0, 1, 2, 3, 4, 5, 6, 7],
        "a candidate that does not connect does not count"
    );
}

#[test]
fn rarest_first_with_leechers() {
    assert_ne!(
        first_fetched(1, 1, 2, Duration::from_secs(9)),
        [0, 1, 2, 3, 4, 5, 6, 7]
    );
    assert_ne!(
        first_fetched(1, 1, 1, Duration::ZERO),
        [0, 1, 2, 3, 4, 5, 6, 7],
        "a candidate that may still connect counts"
    );
}
