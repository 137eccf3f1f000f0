//! The lease authority on a virtual clock.

use super::*;

#[test]
fn four_peers_get_four_different_chunks() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..8);
    let all = ChunkMap::full(6);
    let requests: Vec<RequestId> = (0..8).map(|peer| tracker.take(peer, &all)).collect();
    let granted: Vec<Option<u32>> = requests
        .iter()
        .map(|request| tracker.granted(*request))
        .collect();
    assert_eq!(
        granted,
        [Some(0), Some(1), Some(2), Some(3), None, None, None, None]
    );
    let granted_now = |tracker: &Harness| {
        let mut granted: Vec<u32> = requests
            .iter()
            .filter_map(|request| tracker.granted(*request))
            .collect();
        granted.sort_unstable();
        granted
    };
    assert_eq!(tracker.lease(2, 2, DONE), LeaseOutcome::Noted);
    assert_eq!(
        granted_now(&tracker),
        [0, 1, 2, 3, 4],
        "a parked request gets the next chunk"
    );
    assert_eq!(tracker.lease(0, 0, LeaseEvent::Failed), LeaseOutcome::Noted);
    assert_eq!(
        granted_now(&tracker),
        [0, 0, 1, 2, 3, 4],
        "a failed chunk is granted again at once"
    );
    tracker.lease(1, 1, DONE);
    assert_eq!(granted_now(&tracker), [0, 0, 1, 2, 3, 4, 5]);
    tracker.lease(3, 3, DONE);
    assert_eq!(granted_now(&tracker).len(), 7, "nothing is left to grant");
    tracker.pass(Duration::from_secs(10));
    assert_eq!(
        granted_now(&tracker).len(),
        8,
        "leases without renewals expired, and the last request was granted"
    );
}

#[test]
fn unconfirmed_lease_does_not_keep_the_origin_idle() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..6);
    let all = ChunkMap::full(100);
    let requests: Vec<RequestId> = (0..6).map(|peer| tracker.take(peer, &all)).collect();
    let granted = |tracker: &Harness| {
        requests
            .iter()
            .filter(|request| tracker.granted(**request).is_some())
            .count()
    };
    for peer in [0, 1, 2] {
        tracker.lease(peer, peer, renew(0));
    }
    tracker.pass(millis(49));
    assert_eq!(granted(&tracker), 4);
    tracker.pass(millis(1));
    assert_eq!(
        granted(&tracker),
        5,
        "only the unconfirmed lease is not counted"
    );
    assert!(
        tracker
            .machine
            .open_leases(BLOB, REGION)
            .contains(&(3, PeerSlot(3))),
        "but it stays open"
    );
}

#[test]
fn peer_has_one_lease_of_a_blob_unless_no_other_peer_asks() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..4);
    let all = ChunkMap::full(6);
    let requests: Vec<RequestId> = [0, 0, 1, 2, 3]
        .map(|peer| tracker.take(peer, &all))
        .to_vec();
    let granted: Vec<Option<u32>> = requests
        .iter()
        .map(|request| tracker.granted(*request))
        .collect();
    assert_eq!(
        granted,
        [Some(0), Some(1), Some(2), Some(3), None],
        "without other requests, it gets two"
    );
    let more = tracker.take(0, &all);
    tracker.lease(0, 0, DONE);
    assert_eq!(
        (tracker.granted(more), tracker.granted(requests[4])),
        (None, Some(4)),
        "other peers come first"
    );
}

#[test]
fn only_progress_extends_a_term() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..2);
    let one = ChunkMap::full(1);
    tracker.take(0, &one);
    let next = tracker.take(1, &one);
    let confirmed = tracker.lease(0, 0, renew(0));
    assert_eq!(
        confirmed,
        LeaseOutcome::Renewed {
            term: millis(1_000)
        }
    );
    tracker.pass(millis(900));
    let renewed = tracker.lease(0, 0, renew(10));
    assert_eq!(
        renewed,
        LeaseOutcome::Renewed {
            term: millis(1_000)
        }
    );
    tracker.pass(millis(900));
    let renewed = tracker.lease(0, 0, renew(10));
    assert_eq!(
        renewed,
        LeaseOutcome::Renewed { term: millis(100) },
        "no progress, no extension"
    );
    assert_eq!(tracker.granted(next), None);
    tracker.pass(millis(100));
    assert_eq!(tracker.granted(next), Some(0));
    assert_eq!(tracker.lease(0, 0, renew(20)), LeaseOutcome::NotHeld);
}

#[test]
fn lease_with_endless_progress_expires() {
    let config = LeaseSettings::default();
    assert_eq!(longest_lease(2), config.longest, "long enough for a chunk");
    assert_eq!(
        longest_lease(1),
        config.longest_whole,
        "the blob may be one that cannot be cut into chunks"
    );
}

/// How long a peer keeps a lease with endless progress while another peer waits.
fn longest_lease(chunks: u32) -> Duration {
    let lease = LeaseSettings {
        open_limit: 1,
        ..LeaseSettings::default()
    };
    let mut tracker = Harness::new(TrackerConfig {
        lease,
        ..TrackerConfig::default()
    });
    tracker.join_all(0..2);
    let all = ChunkMap::full(chunks);
    tracker.take(0, &all);
    let began = tracker.now;
    for received in 0.. {
        let waiting = tracker.take(1, &all);
        tracker.lease(0, 0, renew(received));
        tracker.stay(0);
        tracker.stay(1);
        tracker.pass(millis(500));
        if tracker.granted(waiting).is_some() {
            break;
        }
    }
    tracker.now.saturating_since(began)
}

#[test]
fn holder_of_an_expired_lease_may_still_report_the_chunk() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..3);
    let one = ChunkMap::full(1);
    tracker.take(0, &one);
    let second = tracker.take(1, &one);
    tracker.pass(millis(1_000));
    assert_eq!(tracker.granted(second), Some(0));
    tracker.lease(0, 0, DONE);
    tracker.lease(1, 0, LeaseEvent::Failed);
    let third = tracker.starve(2, &one);
    assert_eq!(
        tracker.leases[&third],
        LeaseOutcome::Dial {
            holder: PeerSlot(0),
            chunk: 0
        }
    );
}

#[test]
fn orphaned_chunk_is_granted_to_starving_peers_once_per_term() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..4);
    let one = ChunkMap::full(1);
    tracker.take(0, &one);
    tracker.lease(0, 0, DONE);
    let first = tracker.starve(1, &one);
    assert_eq!(
        tracker.leases[&first],
        LeaseOutcome::Dial {
            holder: PeerSlot(0),
            chunk: 0
        }
    );
    tracker.pass(millis(1_500));

    tracker.handle(TrackerInput::Gone { peer: PeerSlot(0) });
    let calm = tracker.take(2, &one);
    assert_eq!(
        tracker.leases.get(&calm),
        None,
        "a peer that does not starve waits for neighbours"
    );
    let starving = tracker.starve(1, &one);
    assert_eq!(tracker.granted(starving), Some(0));
    tracker.lease(1, 0, DONE);
    tracker.handle(TrackerInput::Gone { peer: PeerSlot(1) });
    let again = tracker.starve(3, &one);
    assert_eq!(tracker.leases.get(&again), None, "once per term");
    tracker.pass(millis(1_000));
    assert_eq!(
        tracker.leases[&again],
        LeaseOutcome::Wait {
            retry_after: Duration::ZERO
        }
    );
    let again = tracker.starve(3, &one);
    assert_eq!(tracker.granted(again), Some(0));
}

#[test]
fn unreachable_holder_or_lost_chunk_counts_as_gone() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..3);
    let both = ChunkMap::full(2);
    tracker.take(0, &both);
    tracker.lease(0, 0, DONE);
    tracker.pass(millis(1_000));
    tracker.take(0, &only(2, &[1]));
    tracker.lease(0, 1, DONE);
    tracker.pass(millis(1_000));
    let unreachable = tracker.take_with(1, &both, |take| {
        take.starving = true;
        take.unreachable = vec![PeerSlot(0)];
    });
    assert_eq!(tracker.granted(unreachable), Some(0));
    tracker.lease(1, 0, DONE);
    tracker.take(1, &only(2, &[0]));
    tracker.pass(millis(1_000));
    let starving = tracker.starve(2, &both);
    assert_eq!(
        tracker.granted(starving),
        Some(0),
        "the former holder misses the chunk itself"
    );
}

#[test]
fn seeder_of_the_region_is_named_before_the_origin_is_used() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join(9, 0, SwarmRole::Held(Progress::COMPLETE));
    tracker.join_all(0..2);
    let all = ChunkMap::full(5);
    let calm = tracker.take(0, &all);
    assert_eq!(tracker.leases.get(&calm), None);
    let starving = tracker.starve(1, &all);
    assert_eq!(
        tracker.leases[&starving],
        LeaseOutcome::Dial {
            holder: PeerSlot(9),
            chunk: 0
        }
    );
    let cut_off = tracker.take_with(1, &all, |take| {
        take.starving = true;
        take.unreachable = vec![PeerSlot(9)];
    });
    tracker.pass(millis(999));
    assert_eq!(
        tracker.leases.get(&cut_off),
        None,
        "a restarted tracker waits until peers have reported their chunks"
    );
    tracker.pass(millis(1_001));
    let cut_off = tracker.take_with(1, &all, |take| {
        take.starving = true;
        take.unreachable = vec![PeerSlot(9)];
    });
    assert_eq!(tracker.granted(cut_off), Some(0));
}

#[test]
fn peer_that_cannot_reach_a_dozen_seeders_gets_a_lease() {
    let mut tracker = Harness::new(TrackerConfig::default());
    for seeder in 20..50 {
        tracker.join(seeder, 0, SwarmRole::Held(Progress::COMPLETE));
    }
    tracker.join_all(0..1);
    tracker.pass(TrackerConfig::default().settle);
    let all = ChunkMap::full(5);
    let mut starve = |dead: core::ops::Range<u32>| {
        let request = tracker.take_with(0, &all, |take| {
            take.starving = true;
            take.unreachable = dead.map(PeerSlot).collect();
        });
        tracker.leases[&request]
    };
    assert!(matches!(starve(20..31), LeaseOutcome::Dial { .. }));
    assert!(matches!(starve(20..32), LeaseOutcome::Granted { .. }));
}

#[test]
fn restarted_tracker_adopts_leases_and_learns_held_chunks() {
    let mut tracker = Harness::new(TrackerConfig::default());
    let some = SwarmRole::Wanted(Progress::from_step(4).unwrap());
    tracker.join(0, 0, some);
    tracker.join(1, 0, some);
    let missing = only(8, &[5, 6, 7]);
    let early = tracker.take(0, &missing);
    assert_eq!(
        tracker.leases.get(&early),
        None,
        "not all peers have reported their chunks"
    );
    tracker.announce_with(PeerSlot(2), 0, |announce| {
        announce.changes.push(RoleChange {
            blob: BLOB,
            state: some,
        });
        announce.leases.push(ReportedLease {
            blob: BLOB,
            chunk: 5,
            chunks: 8,
        });
    });
    assert_eq!(
        tracker.machine.open_leases(BLOB, REGION),
        [(5, PeerSlot(2))]
    );
    assert_eq!(
        tracker.lease(2, 5, renew(9)),
        LeaseOutcome::Renewed {
            term: millis(1_000)
        }
    );
    tracker.pass(millis(900));
    tracker.lease(2, 5, DONE);
    tracker.pass(millis(1_100));
    assert_eq!(
        tracker.granted(early),
        Some(6),
        "chunk 5 is done, and peers or their neighbours hold the first ones"
    );
    assert_eq!(tracker.machine.free_chunks(BLOB, REGION), Some(1));
}

#[test]
fn burst_on_a_fresh_tracker_is_granted_at_once() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..1);
    let request = tracker.take(0, &ChunkMap::full(8));
    assert_eq!(tracker.granted(request), Some(0));
}

#[test]
fn regions_have_separate_leases() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join(0, 0, SwarmRole::Wanted(Progress::NONE));
    tracker.join(1, 10, SwarmRole::Wanted(Progress::NONE));
    let all = ChunkMap::full(3);
    let (here, there) = (tracker.take(0, &all), tracker.take(1, &all));
    assert_eq!(
        (tracker.granted(here), tracker.granted(there)),
        (Some(0), Some(0))
    );
}

#[test]
fn unknown_peers_and_wrong_chunk_counts_are_rejected() {
    let mut tracker = Harness::new(TrackerConfig::default());
    let unknown = tracker.take(0, &ChunkMap::full(3));
    assert_eq!(tracker.leases[&unknown], LeaseOutcome::Unknown);
    assert_eq!(tracker.lease(0, 0, DONE), LeaseOutcome::Unknown);
    tracker.join_all(0..2);
    tracker.take(0, &ChunkMap::full(3));
    let mismatch = tracker.take(1, &ChunkMap::full(4));
    assert_eq!(tracker.leases[&mismatch], LeaseOutcome::Mismatch);
    let other = BlobSlot(1);
    let elsewhere = tracker.take_with(1, &ChunkMap::full(4), |take| take.blob = other);
    assert_eq!(tracker.leases[&elsewhere], LeaseOutcome::Unknown);
    assert_eq!(tracker.lease(1, 99, DONE), LeaseOutcome::Noted);
    assert_eq!(tracker.lease(1, 99, renew(1)), LeaseOutcome::NotHeld);
}

/// Two peers and a blob of one missing chunk. The first peer has a confirmed lease on it.
fn one_lease_among_two() -> (Harness, ChunkMap) {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..2);
    let one = ChunkMap::full(1);
    tracker.take(0, &one);
    tracker.lease(0, 0, renew(1));
    (tracker, one)
}

#[test]
fn late_request_does_not_replace_a_newer_one() {
    let (mut tracker, one) = one_lease_among_two();
    let newer = tracker.take_with(1, &one, |take| take.number = 7);
    let older = tracker.take_with(1, &one, |take| take.number = 6);
    assert_eq!(
        tracker.leases[&older],
        LeaseOutcome::Wait {
            retry_after: Duration::ZERO
        }
    );
    assert_eq!(tracker.leases.get(&newer), None, "it stays parked");
    tracker.lease(0, 0, LeaseEvent::Failed);
    assert!(matches!(
        tracker.leases[&newer],
        LeaseOutcome::Granted { chunk: 0, .. }
    ));
}

#[test]
fn restarted_peer_numbers_requests_from_the_beginning() {
    let (mut tracker, one) = one_lease_among_two();
    let before = tracker.take_with(1, &one, |take| take.number = 7);
    tracker.join(1, 0, SwarmRole::Wanted(Progress::NONE));
    assert_eq!(
        tracker.leases[&before],
        LeaseOutcome::Wait {
            retry_after: Duration::ZERO
        }
    );
    let after = tracker.take_with(1, &one, |take| take.number = 1);
    assert_eq!(tracker.leases.get(&after), None, "it is parked");
    tracker.lease(0, 0, LeaseEvent::Failed);
    assert!(matches!(
        tracker.leases[&after],
        LeaseOutcome::Granted { chunk: 0, .. }
    ));
}

#[test]
fn parked_requests_time_out_are_replaced_dropped_or_rejected() {
    let config = TrackerConfig {
        lease: LeaseSettings {
            parked_limit: 1,
            ..LeaseSettings::default()
        },
        ..TrackerConfig::default()
    };
    let mut tracker = Harness::new(config);
    tracker.join_all(0..3);
    let one = ChunkMap::full(1);
    tracker.take(0, &one);
    tracker.lease(0, 0, DONE);
    let older = tracker.take(1, &one);
    let newer = tracker.take(1, &one);
    assert!(matches!(tracker.leases[&older], LeaseOutcome::Wait { .. }));
    assert_eq!(tracker.leases.get(&newer), None);
    let third = tracker.take(2, &one);
    assert!(
        matches!(tracker.leases[&third], LeaseOutcome::Wait { retry_after } if retry_after >= millis(500))
    );
    tracker.pass(millis(9_999));
    assert_eq!(tracker.leases.get(&newer), None);
    tracker.pass(millis(1));
    assert_eq!(
        tracker.leases[&newer],
        LeaseOutcome::Wait {
            retry_after: Duration::ZERO
        }
    );
    let dropped = tracker.take(2, &one);
    tracker.handle(TrackerInput::Drop {
        peer: PeerSlot(2),
        blob: BLOB,
    });
    assert!(matches!(
        tracker.leases[&dropped],
        LeaseOutcome::Wait { .. }
    ));
}

#[test]
fn lease_of_a_leaving_peer_is_granted_at_once() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..2);
    let one = ChunkMap::full(1);
    tracker.take(0, &one);
    let next = tracker.take(1, &one);
    tracker.announce_with(PeerSlot(0), 0, |announce| announce.leaving = true);
    assert_eq!(tracker.granted(next), Some(0));
}
