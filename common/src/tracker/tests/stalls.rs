//! Leases whose holders wait for an origin that sends nothing.

use super::*;

/// Four peers with a lease each and a fifth that waits for one; the time passes in quarters of a
/// term, and in each the peers of `waiting` say that they wait for the origin.
struct Stall {
    tracker: Harness,
    next: RequestId,
}

impl Stall {
    fn begin() -> Self {
        let mut tracker = Harness::new(TrackerConfig::default());
        tracker.join_all(0..5);
        let four = ChunkMap::full(4);
        for peer in 0..4 {
            tracker.take(peer, &four);
            tracker.lease(peer, peer, renew(0));
        }
        let next = tracker.take(4, &four);
        Self { tracker, next }
    }

    fn pass(&mut self, quarters: u32, waiting: core::ops::Range<u32>) {
        for _ in 0..quarters {
            self.tracker.pass(millis(250));
            for peer in waiting.clone() {
                self.tracker.lease(peer, peer, WAITING);
            }
        }
    }

    fn granted(&self) -> Option<u32> {
        self.tracker.granted(self.next)
    }
}

#[test]
fn origin_that_serves_no_holder_does_not_end_their_leases() {
    let mut stall = Stall::begin();
    stall.pass(15, 0..4);
    assert_eq!(stall.granted(), None);
    stall.tracker.lease(0, 0, renew(10));
    stall.pass(1, 1..4);
    let mut expired = stall.granted();
    assert!(expired.is_some_and(|chunk| chunk != 0), "{expired:?}");
    // The one that moved again has a term from then on.
    assert_eq!(
        stall.tracker.lease(0, 0, renew(11)),
        LeaseOutcome::Renewed {
            term: millis(1_000)
        }
    );
    let mut hopeless = Stall::begin();
    hopeless.pass(16, 0..4);
    expired = hopeless.granted();
    assert!(
        expired.is_some(),
        "no lease lasts longer than 4 s without progress"
    );
}

#[test]
fn holder_that_alone_waits_loses_its_lease() {
    let mut stall = Stall::begin();
    for received in 1..4 {
        stall.pass(1, 0..1);
        for peer in 1..4 {
            let moved = renew(received);
            stall.tracker.lease(peer, peer, moved);
        }
    }
    assert_eq!(stall.granted(), None);
    stall.pass(1, 0..1);
    assert_eq!(stall.granted(), Some(0), "the origin serves others");
    assert_eq!(stall.tracker.lease(0, 0, WAITING), LeaseOutcome::NotHeld);
}

#[test]
fn holders_that_say_nothing_lose_their_leases() {
    let mut stall = Stall::begin();
    stall.pass(4, 0..0);
    assert_eq!(stall.granted(), Some(0));
    let mut alone = Stall::begin();
    alone.pass(4, 2..3);
    assert!(alone.granted().is_some(), "one holder is no evidence");
}
