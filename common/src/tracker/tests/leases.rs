//! Stories of the lease authority, on a virtual clock.

use super::*;

#[test]
fn different_chunks_go_to_different_peers_four_at_a_time() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..8);
    let all = ChunkMap::full(6);
    let requests: Vec<RequestId> = (0..8).map(|peer| desk.take(peer, &all)).collect();
    let granted: Vec<Option<u32>> = requests
        .iter()
        .map(|request| desk.granted(*request))
        .collect();
    assert_eq!(
        granted,
        [Some(0), Some(1), Some(2), Some(3), None, None, None, None]
    );
    let granted_now = |desk: &Desk| {
        let mut granted: Vec<u32> = requests
            .iter()
            .filter_map(|request| desk.granted(*request))
            .collect();
        granted.sort_unstable();
        granted
    };
    assert_eq!(desk.lease(2, 2, LeaseEvent::Done), LeaseAnswer::Noted);
    assert_eq!(
        granted_now(&desk),
        [0, 1, 2, 3, 4],
        "somebody in the queue has the next chunk"
    );
    assert_eq!(desk.lease(0, 0, LeaseEvent::Failed), LeaseAnswer::Noted);
    assert_eq!(
        granted_now(&desk),
        [0, 0, 1, 2, 3, 4],
        "what failed is granted again at once"
    );
    desk.lease(1, 1, LeaseEvent::Done);
    assert_eq!(granted_now(&desk), [0, 0, 1, 2, 3, 4, 5]);
    desk.lease(3, 3, LeaseEvent::Done);
    assert_eq!(granted_now(&desk).len(), 7, "nothing is left to grant");
    desk.pass(Duration::from_secs(10));
    assert_eq!(
        granted_now(&desk).len(),
        8,
        "leases that nobody renewed ran out, and the last one got one"
    );
}

#[test]
fn a_holder_that_is_silent_from_the_start_does_not_keep_the_origin_idle() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..6);
    let all = ChunkMap::full(100);
    let requests: Vec<RequestId> = (0..6).map(|peer| desk.take(peer, &all)).collect();
    let granted = |desk: &Desk| {
        requests
            .iter()
            .filter(|request| desk.granted(**request).is_some())
            .count()
    };
    for peer in [0, 1, 2] {
        desk.lease(peer, peer, LeaseEvent::Renew { received: 0 });
    }
    desk.pass(millis(49));
    assert_eq!(granted(&desk), 4);
    desk.pass(millis(1));
    assert_eq!(granted(&desk), 5, "only the silent one is passed over");
    assert!(
        desk.machine
            .open_leases(BLOB, REGION)
            .contains(&(3, PeerSlot(3))),
        "but its lease stands"
    );
}

#[test]
fn one_peer_has_one_lease_of_a_blob_unless_nobody_else_asks() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..4);
    let all = ChunkMap::full(6);
    let requests: Vec<RequestId> = [0, 0, 1, 2, 3].map(|peer| desk.take(peer, &all)).to_vec();
    let granted: Vec<Option<u32>> = requests
        .iter()
        .map(|request| desk.granted(*request))
        .collect();
    assert_eq!(
        granted,
        [Some(0), Some(1), Some(2), Some(3), None],
        "alone at first, it has two"
    );
    let more = desk.take(0, &all);
    desk.lease(0, 0, LeaseEvent::Done);
    assert_eq!(
        (desk.granted(more), desk.granted(requests[4])),
        (None, Some(4)),
        "others come first"
    );
}

#[test]
fn a_term_is_extended_by_progress_only_and_not_for_ever() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..2);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    let next = desk.take(1, &one);
    let confirmed = desk.lease(0, 0, LeaseEvent::Renew { received: 0 });
    assert_eq!(
        confirmed,
        LeaseAnswer::Renewed {
            term: millis(1_000)
        }
    );
    desk.pass(millis(900));
    let renewed = desk.lease(0, 0, LeaseEvent::Renew { received: 10 });
    assert_eq!(
        renewed,
        LeaseAnswer::Renewed {
            term: millis(1_000)
        }
    );
    desk.pass(millis(900));
    let renewed = desk.lease(0, 0, LeaseEvent::Renew { received: 10 });
    assert_eq!(
        renewed,
        LeaseAnswer::Renewed { term: millis(100) },
        "no progress, no extension"
    );
    assert_eq!(desk.granted(next), None);
    desk.pass(millis(100));
    assert_eq!(desk.granted(next), Some(0));
    assert_eq!(
        desk.lease(0, 0, LeaseEvent::Renew { received: 20 }),
        LeaseAnswer::NotHeld
    );
}

#[test]
fn progress_without_end_is_not_waited_for_for_ever() {
    let config = LeaseConfig::default();
    assert_eq!(
        longest_lease(2),
        config.longest,
        "enough for a chunk, now somebody else"
    );
    assert_eq!(
        longest_lease(1),
        config.longest_whole,
        "it may be a blob that cannot be cut"
    );
}

/// How long a peer keeps a lease with ever more bytes of its chunk, while another one waits.
fn longest_lease(chunks: u32) -> Duration {
    let lease = LeaseConfig {
        open_limit: 1,
        ..LeaseConfig::default()
    };
    let mut desk = Desk::new(Config {
        lease,
        ..Config::default()
    });
    desk.join_all(0..2);
    let all = ChunkMap::full(chunks);
    desk.take(0, &all);
    let began = desk.now;
    for received in 0.. {
        let waiting = desk.take(1, &all);
        desk.lease(0, 0, LeaseEvent::Renew { received });
        desk.stay(0);
        desk.stay(1);
        desk.pass(millis(500));
        if desk.granted(waiting).is_some() {
            break;
        }
    }
    desk.now.saturating_since(began)
}

#[test]
fn a_holder_that_was_slow_is_believed_when_it_comes_with_the_chunk() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..3);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    let second = desk.take(1, &one);
    desk.pass(millis(1_000));
    assert_eq!(desk.granted(second), Some(0));
    desk.lease(0, 0, LeaseEvent::Done);
    desk.lease(1, 0, LeaseEvent::Failed);
    let third = desk.starve(2, &one);
    assert_eq!(
        desk.leases[&third],
        LeaseAnswer::Dial {
            holder: PeerSlot(0),
            chunk: 0
        }
    );
}

#[test]
fn a_chunk_that_was_done_is_granted_again_only_when_its_holder_is_gone_and_somebody_starves_once_per_term()
 {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..4);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    desk.lease(0, 0, LeaseEvent::Done);
    let hungry = desk.starve(1, &one);
    assert_eq!(
        desk.leases[&hungry],
        LeaseAnswer::Dial {
            holder: PeerSlot(0),
            chunk: 0
        }
    );
    desk.pass(millis(1_500));

    desk.handle(Input::Gone { peer: PeerSlot(0) });
    let patient = desk.take(2, &one);
    assert_eq!(
        desk.leases.get(&patient),
        None,
        "who does not starve waits for neighbours"
    );
    let starving = desk.starve(1, &one);
    assert_eq!(desk.granted(starving), Some(0));
    desk.lease(1, 0, LeaseEvent::Done);
    desk.handle(Input::Gone { peer: PeerSlot(1) });
    let again = desk.starve(3, &one);
    assert_eq!(desk.leases.get(&again), None, "once per term");
    desk.pass(millis(1_000));
    assert_eq!(
        desk.leases[&again],
        LeaseAnswer::Wait {
            retry_after: Duration::ZERO
        }
    );
    let again = desk.starve(3, &one);
    assert_eq!(desk.granted(again), Some(0));
}

#[test]
fn a_holder_that_cannot_be_dialled_or_lost_the_chunk_counts_as_gone() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..3);
    let both = ChunkMap::full(2);
    desk.take(0, &both);
    desk.lease(0, 0, LeaseEvent::Done);
    desk.pass(millis(1_000));
    desk.take(0, &only(2, &[1]));
    desk.lease(0, 1, LeaseEvent::Done);
    desk.pass(millis(1_000));
    let unreachable = desk.take_with(1, &both, |take| {
        take.starving = true;
        take.unreachable = vec![PeerSlot(0)];
    });
    assert_eq!(desk.granted(unreachable), Some(0));
    desk.lease(1, 0, LeaseEvent::Done);
    desk.take(1, &only(2, &[0]));
    desk.pass(millis(1_000));
    let starving = desk.starve(2, &both);
    assert_eq!(
        desk.granted(starving),
        Some(0),
        "who had it misses it itself"
    );
}

#[test]
fn a_seeder_of_the_region_is_dialled_before_the_origin_is_asked() {
    let mut desk = Desk::new(Config::default());
    desk.join(9, 0, BlobState::Held(Progress::COMPLETE));
    desk.join_all(0..2);
    let all = ChunkMap::full(5);
    let calm = desk.take(0, &all);
    assert_eq!(desk.leases.get(&calm), None);
    let starving = desk.starve(1, &all);
    assert_eq!(
        desk.leases[&starving],
        LeaseAnswer::Dial {
            holder: PeerSlot(9),
            chunk: 0
        }
    );
    let cut_off = desk.take_with(1, &all, |take| {
        take.starving = true;
        take.unreachable = vec![PeerSlot(9)];
    });
    desk.pass(millis(999));
    assert_eq!(
        desk.leases.get(&cut_off),
        None,
        "a tracker that just started waits for what peers hold"
    );
    desk.pass(millis(1_001));
    let cut_off = desk.take_with(1, &all, |take| {
        take.starving = true;
        take.unreachable = vec![PeerSlot(9)];
    });
    assert_eq!(desk.granted(cut_off), Some(0));
}

#[test]
fn who_could_not_reach_a_dozen_seeders_need_not_try_the_rest() {
    let mut desk = Desk::new(Config::default());
    for seeder in 20..50 {
        desk.join(seeder, 0, BlobState::Held(Progress::COMPLETE));
    }
    desk.join_all(0..1);
    desk.pass(Config::default().settle);
    let all = ChunkMap::full(5);
    let mut starve = |dead: core::ops::Range<u32>| {
        let request = desk.take_with(0, &all, |take| {
            take.starving = true;
            take.unreachable = dead.map(PeerSlot).collect();
        });
        desk.leases[&request]
    };
    assert!(matches!(starve(20..31), LeaseAnswer::Dial { .. }));
    assert!(matches!(starve(20..32), LeaseAnswer::Granted { .. }));
}

#[test]
fn a_tracker_that_was_restarted_takes_up_leases_and_learns_what_is_in_the_swarm() {
    let mut desk = Desk::new(Config::default());
    let some = BlobState::Wanted(Progress::from_step(4).unwrap());
    desk.join(0, 0, some);
    desk.join(1, 0, some);
    let missing = only(8, &[5, 6, 7]);
    let early = desk.take(0, &missing);
    assert_eq!(
        desk.leases.get(&early),
        None,
        "not everybody has told what they hold"
    );
    desk.announce_with(PeerSlot(2), 0, |announce| {
        announce.changes.push(Change {
            blob: BLOB,
            state: some,
        });
        announce.leases.push(HeldLease {
            blob: BLOB,
            chunk: 5,
            chunks: 8,
        });
    });
    assert_eq!(desk.machine.open_leases(BLOB, REGION), [(5, PeerSlot(2))]);
    assert_eq!(
        desk.lease(2, 5, LeaseEvent::Renew { received: 9 }),
        LeaseAnswer::Renewed {
            term: millis(1_000)
        }
    );
    desk.pass(millis(900));
    desk.lease(2, 5, LeaseEvent::Done);
    desk.pass(millis(1_100));
    assert_eq!(
        desk.granted(early),
        Some(6),
        "five is done, and four are held by peers or their neighbours"
    );
    assert_eq!(desk.machine.free_chunks(BLOB, REGION), Some(1));
}

#[test]
fn a_burst_on_a_tracker_that_just_started_waits_for_nothing() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..1);
    let request = desk.take(0, &ChunkMap::full(8));
    assert_eq!(desk.granted(request), Some(0));
}

#[test]
fn each_region_has_its_own_leases() {
    let mut desk = Desk::new(Config::default());
    desk.join(0, 0, BlobState::Wanted(Progress::NONE));
    desk.join(1, 10, BlobState::Wanted(Progress::NONE));
    let all = ChunkMap::full(3);
    let (here, there) = (desk.take(0, &all), desk.take(1, &all));
    assert_eq!(
        (desk.granted(here), desk.granted(there)),
        (Some(0), Some(0))
    );
}

#[test]
fn who_is_not_known_or_counts_other_chunks_is_told_so() {
    let mut desk = Desk::new(Config::default());
    let unknown = desk.take(0, &ChunkMap::full(3));
    assert_eq!(desk.leases[&unknown], LeaseAnswer::Unknown);
    assert_eq!(desk.lease(0, 0, LeaseEvent::Done), LeaseAnswer::Unknown);
    desk.join_all(0..2);
    desk.take(0, &ChunkMap::full(3));
    let mismatch = desk.take(1, &ChunkMap::full(4));
    assert_eq!(desk.leases[&mismatch], LeaseAnswer::Mismatch);
    let other = BlobSlot(1);
    let elsewhere = desk.take_with(1, &ChunkMap::full(4), |take| take.blob = other);
    assert_eq!(desk.leases[&elsewhere], LeaseAnswer::Unknown);
    assert_eq!(desk.lease(1, 99, LeaseEvent::Done), LeaseAnswer::Noted);
    assert_eq!(
        desk.lease(1, 99, LeaseEvent::Renew { received: 1 }),
        LeaseAnswer::NotHeld
    );
}

/// Two peers and a blob of one chunk, all of which is missing; the first has the lease, and it
/// moves.
fn one_lease_among_two() -> (Desk, ChunkMap) {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..2);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    desk.lease(0, 0, LeaseEvent::Renew { received: 1 });
    (desk, one)
}

#[test]
fn a_request_that_was_overtaken_by_a_newer_one_does_not_take_its_place() {
    let (mut desk, one) = one_lease_among_two();
    let newer = desk.take_with(1, &one, |take| take.number = 7);
    let older = desk.take_with(1, &one, |take| take.number = 6);
    assert_eq!(
        desk.leases[&older],
        LeaseAnswer::Wait {
            retry_after: Duration::ZERO
        }
    );
    assert_eq!(desk.leases.get(&newer), None, "it waits on");
    desk.lease(0, 0, LeaseEvent::Failed);
    assert!(matches!(
        desk.leases[&newer],
        LeaseAnswer::Granted { chunk: 0, .. }
    ));
}

#[test]
fn a_peer_that_starts_again_counts_its_requests_from_the_beginning() {
    let (mut desk, one) = one_lease_among_two();
    let before = desk.take_with(1, &one, |take| take.number = 7);
    desk.join(1, 0, BlobState::Wanted(Progress::NONE));
    assert_eq!(
        desk.leases[&before],
        LeaseAnswer::Wait {
            retry_after: Duration::ZERO
        }
    );
    let after = desk.take_with(1, &one, |take| take.number = 1);
    assert_eq!(desk.leases.get(&after), None, "it waits");
    desk.lease(0, 0, LeaseEvent::Failed);
    assert!(matches!(
        desk.leases[&after],
        LeaseAnswer::Granted { chunk: 0, .. }
    ));
}

#[test]
fn a_parked_request_is_answered_in_time_superseded_dropped_or_turned_away() {
    let config = Config {
        lease: LeaseConfig {
            parked_limit: 1,
            ..LeaseConfig::default()
        },
        ..Config::default()
    };
    let mut desk = Desk::new(config);
    desk.join_all(0..3);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    desk.lease(0, 0, LeaseEvent::Done);
    let older = desk.take(1, &one);
    let newer = desk.take(1, &one);
    assert!(matches!(desk.leases[&older], LeaseAnswer::Wait { .. }));
    assert_eq!(desk.leases.get(&newer), None);
    let third = desk.take(2, &one);
    assert!(
        matches!(desk.leases[&third], LeaseAnswer::Wait { retry_after } if retry_after >= millis(500))
    );
    desk.pass(millis(9_999));
    assert_eq!(desk.leases.get(&newer), None);
    desk.pass(millis(1));
    assert_eq!(
        desk.leases[&newer],
        LeaseAnswer::Wait {
            retry_after: Duration::ZERO
        }
    );
    let dropped = desk.take(2, &one);
    desk.handle(Input::Drop {
        peer: PeerSlot(2),
        blob: BLOB,
    });
    assert!(matches!(desk.leases[&dropped], LeaseAnswer::Wait { .. }));
}

#[test]
fn a_peer_that_goes_leaves_its_lease_to_the_next_at_once() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..2);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    let next = desk.take(1, &one);
    desk.announce_with(PeerSlot(0), 0, |announce| announce.leaving = true);
    assert_eq!(desk.granted(next), Some(0));
}
