//! From which region's origin leases are fetched.

use rand::SeedableRng as _;
use rand_pcg::Pcg64Mcg;

use super::*;
use crate::origin_region::OriginRegion;
use crate::tracker::origins::OriginOpinions;

const OTHER: OriginRegion = OriginRegion(1);

/// Peers that may ask the origins of two regions, each with a lease on the chunk of its number.
struct Burst {
    tracker: Harness,
    missing: ChunkMap,
}

impl Burst {
    fn begin(peers: u32) -> Self {
        let mut tracker = Harness::new(TrackerConfig::default());
        tracker.join_all(0..100);
        let missing = ChunkMap::full(200);
        let mut burst = Self { tracker, missing };
        for peer in 0..peers {
            assert_eq!(burst.take(peer), Some((peer, Some(OriginRegion::OWN))));
            burst.tracker.lease(peer, peer, renew(0));
        }
        burst
    }

    /// Requests a lease: the chunk, and the origin to ask first.
    fn take(&mut self, peer: u32) -> Option<(u32, Option<OriginRegion>)> {
        self.take_of(peer, 2)
    }

    fn take_of(&mut self, peer: u32, origins: u8) -> Option<(u32, Option<OriginRegion>)> {
        let missing = self.missing.clone();
        let change = |take: &mut Take| take.origins = origins;
        let request = self.tracker.take_with(peer, &missing, change);
        match self.tracker.leases.get(&request) {
            Some(LeaseOutcome::Granted { chunk, from, .. }) => Some((*chunk, *from)),
            _ => None,
        }
    }

    /// The holders of the chunks wait; whether each lease is moved.
    fn wait(&mut self, holders: core::ops::Range<u32>) -> Vec<bool> {
        let mut wait = |peer| match self.tracker.lease(peer, peer, WAITING) {
            LeaseOutcome::Moved { to } => {
                assert_eq!(to, OTHER);
                true
            }
            outcome => {
                assert_eq!(outcome, LeaseOutcome::Noted);
                false
            }
        };
        holders.map(&mut wait).collect()
    }

    fn serve(&mut self, peer: u32, chunk: u32, from: OriginRegion) {
        let done = LeaseEvent::Done { from: Some(from) };
        assert_eq!(
            self.tracker.lease(peer, chunk, done),
            LeaseOutcome::Noted,
            "the lease is held"
        );
        self.missing.remove(chunk);
    }

    /// The own origin is found to be out, and the chunks are served by the other one.
    fn with_origin_out() -> Self {
        let mut burst = Self::begin(4);
        burst.tracker.pass(millis(250));
        burst.wait(0..4);
        assert_eq!(burst.tracker.machine.origins_out(), 1);
        burst.wait(0..2);
        for peer in 0..4 {
            burst.serve(peer, peer, OTHER);
        }
        burst
    }
}

#[test]
fn leases_move_when_an_origin_serves_none_of_three_holders() {
    let mut burst = Burst::begin(4);
    burst.tracker.pass(millis(250));
    assert_eq!(burst.wait(0..4), [false, false, true, true]);
    assert_eq!(burst.wait(0..2), [true, true]);
    assert_eq!(burst.tracker.machine.counts().moved, 4);
    assert_eq!(burst.tracker.machine.counts().origins_out, 1);
    burst.serve(0, 0, OTHER);
    assert_eq!(burst.take(4), Some((4, Some(OTHER))));
    assert_eq!(burst.tracker.machine.counts().granted_again, 0);
}

#[test]
fn moved_lease_has_a_whole_term() {
    let mut burst = Burst::begin(4);
    burst.tracker.pass(millis(900));
    assert_eq!(burst.wait(0..4), [false, false, true, true]);
    burst.tracker.pass(millis(950));
    let moved = burst.tracker.lease(2, 2, renew(1));
    assert_eq!(
        moved,
        LeaseOutcome::Renewed {
            term: millis(1_000)
        }
    );
    assert_eq!(burst.tracker.machine.counts().expired, 0);
    burst.tracker.pass(millis(100));
    assert_eq!(burst.tracker.machine.counts().expired, 1, "that of peer 3");
}

#[test]
fn holders_that_are_few_or_contradicted_move_nothing() {
    let mut few = Burst::begin(4);
    for _ in 0..7 {
        few.tracker.pass(millis(125));
        assert_eq!(few.wait(0..2), [false, false]);
    }
    let mut contradicted = Burst::begin(4);
    for step in 1..5 {
        contradicted.tracker.pass(millis(200));
        let renewed = LeaseEvent::Renew {
            received: step,
            from: Some(OriginRegion::OWN),
        };
        contradicted.tracker.lease(3, 3, renewed);
        assert_eq!(contradicted.wait(0..3), [false, false, false]);
    }
    assert_eq!(contradicted.tracker.machine.origins_out(), 0);
}

#[test]
fn one_holder_is_not_three() {
    let mut burst = Burst::begin(1);
    for _ in 0..6 {
        burst.tracker.pass(millis(125));
        assert_eq!(burst.wait(0..1), [false]);
    }
}

#[test]
fn holders_that_die_say_nothing_of_the_origin() {
    let mut burst = Burst::begin(4);
    burst.tracker.pass(millis(2_000));
    assert_eq!(burst.tracker.machine.counts().expired, 4);
    assert_eq!(burst.take(9), Some((0, Some(OriginRegion::OWN))));
}

#[test]
fn bytes_of_another_origin_do_not_speak_for_the_own_one() {
    let mut burst = Burst::begin(4);
    burst.tracker.pass(millis(250));
    let renewed = LeaseEvent::Renew {
        received: 1,
        from: Some(OTHER),
    };
    burst.tracker.lease(3, 3, renewed);
    assert_eq!(burst.wait(0..3), [false, false, true]);
}

#[test]
fn distant_origin_has_time_to_answer() {
    let mut burst = Burst::begin(4);
    burst.tracker.pass(millis(250));
    burst.wait(0..4);
    burst.wait(0..2);
    for _ in 0..11 {
        burst.tracker.pass(millis(125));
        for peer in 0..4 {
            assert_eq!(
                burst.tracker.lease(peer, peer, WAITING),
                LeaseOutcome::Noted
            );
        }
    }
    assert_eq!(burst.tracker.machine.origins_out(), 1);
    burst.tracker.pass(millis(125));
    for peer in 0..4 {
        burst.tracker.lease(peer, peer, WAITING);
    }
    assert_eq!(burst.tracker.machine.origins_out(), 2);
}

#[test]
fn single_leases_try_an_origin_that_is_out() {
    let mut burst = Burst::with_origin_out();
    let mut trials = Vec::new();
    for peer in 4..80 {
        burst.tracker.pass(millis(100));
        let (chunk, from) = burst.take(peer).unwrap();
        if from == Some(OriginRegion::OWN) {
            trials.push(peer);
            burst.tracker.pass(millis(125));
            let waits = burst.tracker.lease(peer, chunk, WAITING);
            assert_eq!(waits, LeaseOutcome::Moved { to: OTHER });
        }
        burst.serve(peer, chunk, OTHER);
    }
    let gaps: Vec<u32> = trials.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(trials[0] >= 13, "the first pause is a second: {trials:?}");
    assert!(gaps[0] > 17 && gaps[1] > 36, "pauses double: {trials:?}");
}

#[test]
fn origin_returns_in_steps() {
    let mut opinions = OriginOpinions::default();
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let now = |millis: u64| Time::ZERO + Duration::from_millis(millis);
    for peer in 0..3 {
        opinions.on_waiting(
            now(1_000),
            REGION,
            OriginRegion::OWN,
            (PeerSlot(peer), now(0)),
        );
    }
    assert_eq!(opinions.out_count(), 1);
    let mut share = |opinions: &mut OriginOpinions, at: Time| {
        let own = (0..800).filter(|_| {
            let chosen = opinions.choose(at, REGION, 2, &mut rng);
            chosen == Some(OriginRegion::OWN)
        });
        own.count()
    };
    assert_eq!(share(&mut opinions, now(1_999)), 0);
    // Bytes of leases that were granted before do not count.
    for _ in 0..3 {
        opinions.on_served(now(2_000), REGION, OriginRegion::OWN, now(500));
    }
    assert_eq!(opinions.out_count(), 1);
    for trial in 0..3 {
        let at = now(2_100 + trial);
        assert_eq!(share(&mut opinions, at), 1, "one trial at a time");
        opinions.on_served(at, REGION, OriginRegion::OWN, at);
    }
    assert_eq!(opinions.out_count(), 0);
    let shares: Vec<usize> = [2_200, 4_200, 6_200, 8_200]
        .map(|at| share(&mut opinions, now(at)))
        .to_vec();
    assert!((60..140).contains(&shares[0]), "{shares:?}");
    assert!((150..250).contains(&shares[1]), "{shares:?}");
    assert!((340..460).contains(&shares[2]), "{shares:?}");
    assert_eq!(shares[3], 800);
    // It goes out again from any step.
    for peer in 0..3 {
        opinions.on_waiting(
            now(9_000),
            REGION,
            OriginRegion::OWN,
            (PeerSlot(peer), now(8_000)),
        );
    }
    assert_eq!(opinions.out_count(), 1);
}

#[test]
fn origin_that_served_last_is_asked_when_all_are_out() {
    let mut opinions = OriginOpinions::default();
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let now = |millis: u64| Time::ZERO + Duration::from_millis(millis);
    opinions.on_served(now(1_000), REGION, OriginRegion(2), now(0));
    for origin in (0..3).map(OriginRegion) {
        for peer in 0..3 {
            opinions.on_waiting(now(4_000), REGION, origin, (PeerSlot(peer), now(0)));
        }
    }
    assert_eq!(opinions.out_count(), 3);
    assert_eq!(
        opinions.choose(now(4_001), REGION, 3, &mut rng),
        Some(OriginRegion(2))
    );
    assert_eq!(opinions.elsewhere(REGION, OriginRegion::OWN, 3), None);
}

#[test]
fn opinions_of_a_region_end_with_its_last_peer() {
    let mut burst = Burst::with_origin_out();
    for peer in 0..100 {
        assert_eq!(burst.tracker.machine.origins_out(), 1);
        let peer = PeerSlot(peer);
        burst.tracker.handle(TrackerInput::Gone { peer });
    }
    assert_eq!(burst.tracker.machine.origins_out(), 0);
}

#[test]
fn peer_that_does_not_let_the_tracker_choose_decides_itself() {
    let mut burst = Burst::with_origin_out();
    for origins in [0, 1] {
        let peer = 50 + u32::from(origins);
        let (chunk, from) = burst.take_of(peer, origins).unwrap();
        assert_eq!(from, None);
        burst.tracker.lease(peer, chunk, renew(0));
        burst.tracker.pass(millis(250));
        let waits = burst.tracker.lease(peer, chunk, WAITING);
        assert_eq!(waits, LeaseOutcome::Noted);
    }
}

#[test]
fn window_of_leases_grows_while_another_region_serves() {
    let mut burst = Burst::with_origin_out();
    let open = (10..90).filter(|peer| burst.take(*peer).is_some()).count();
    assert_eq!(open, 12, "twice the limit, and one for each chunk served");
    let own = TrackerConfig::default().lease.open_limit;
    let mut healthy = Burst::begin(4);
    for peer in 0..4 {
        healthy.serve(peer, peer, OriginRegion::OWN);
    }
    let open = (10..90)
        .filter(|peer| healthy.take(*peer).is_some())
        .count();
    assert_eq!(open, own);
}
