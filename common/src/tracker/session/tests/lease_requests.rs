//! When lease requests are posted, and when trackers are told that they are not needed any more.

use super::*;
use crate::origin_region::OriginRegion;

/// The answer to an announce that names a peer with this progress for the blob.
fn accept_naming(shell: &mut Shell, now: Time, exchange: ExchangeId, progress: u8) {
    let handout = Handout {
        digest: blob(1),
        peers: vec![NamedPeer { index: 0, progress }],
    };
    let answer = AnnounceAnswer::Accepted {
        epoch: EPOCH,
        next_ms: INTERVAL_MS,
        lease_delay_ms: 0,
        peers: vec![info("vm-1")],
        handouts: vec![handout],
    };
    shell.handle(now, SessionInput::AnnounceAnswered { exchange, answer });
}

#[test]
fn request_waits_for_holders_to_greet() {
    for (progress, posted_at) in [(0, ms(10)), (1, ms(260))] {
        let mut shell = Shell::new(1);
        shell.blobs = vec![wanted(1)];
        shell.request_lease(ms(0), blob(1));
        let (exchange, _) = shell.announce(ms(0));
        accept_naming(&mut shell, ms(10), exchange, progress);
        let before = posted_at - Duration::from_millis(1);
        if before > ms(10) {
            assert_eq!(lease_posts(shell.outputs(before)), Vec::new());
        }
        assert_eq!(lease_posts(shell.outputs(posted_at)).len(), 1, "{progress}");
    }
}

#[test]
fn request_that_was_not_posted_is_withdrawn_without_a_word() {
    let mut shell = Shell::new(1);
    shell.blobs = vec![wanted(1)];
    shell.request_lease(ms(0), blob(1));
    let (exchange, _) = shell.announce(ms(0));
    accept_naming(&mut shell, ms(10), exchange, 15);
    shell.outputs(ms(10));
    shell.handle(ms(100), SessionInput::WithdrawRequest { digest: blob(1) });
    assert_eq!(lease_posts(shell.outputs(ms(1_000))), Vec::new());
}

#[test]
fn tracker_is_told_of_withdrawn_requests_only_if_it_matters() {
    let mut shell = Shell::announced(1, (0..20).map(wanted).collect());
    let mut told = Vec::new();
    for number in 0..20 {
        let starving = number == 3;
        shell.handle(
            ms(10),
            SessionInput::RequestLease {
                digest: blob(number),
                missing: ChunkMap::full(4),
                starving,
                unreachable: Vec::new(),
                origins: 2,
            },
        );
        assert_eq!(lease_posts(shell.outputs(ms(10))).len(), 1);
        let digest = blob(number);
        shell.handle(ms(10), SessionInput::WithdrawRequest { digest });
        if !lease_posts(shell.outputs(ms(10))).is_empty() {
            told.push(number);
        }
    }
    // The starving request, and those that would leave more than eight of the others parked; each
    // withdrawn request stays under way until it is answered.
    assert_eq!(told, [vec![3], (9..20).collect()].concat());
}

#[test]
fn first_requests_of_a_large_swarm_are_spread_unless_the_peer_starves() {
    let mut posted = Vec::new();
    for number in 0..40 {
        let mut shell = Shell::new(1);
        shell.blobs = vec![wanted(number)];
        shell.request_lease(ms(0), blob(number));
        let (exchange, _) = shell.announce(ms(0));
        let handout = Handout {
            digest: blob(number),
            peers: Vec::new(),
        };
        let answer = AnnounceAnswer::Accepted {
            epoch: EPOCH,
            next_ms: INTERVAL_MS,
            lease_delay_ms: 1_000,
            peers: Vec::new(),
            handouts: vec![handout],
        };
        shell.handle(ms(0), SessionInput::AnnounceAnswered { exchange, answer });
        let mut now = ms(0);
        while lease_posts(shell.outputs(now)).is_empty() {
            now = shell.session.poll_timeout().expect("the request is due");
        }
        posted.push(now);
        shell.request_lease(now, blob(number));
        assert_eq!(lease_posts(shell.outputs(now)).len(), 1, "only the first");
    }
    let early = posted.iter().filter(|at| **at < ms(500)).count();
    assert!(posted.iter().all(|at| *at <= ms(1_000)) && (8..=32).contains(&early));
}

#[test]
fn request_that_replaces_a_delayed_one_does_not_wait_again() {
    let mut shell = Shell::new(1);
    shell.blobs = vec![wanted(1)];
    shell.request_lease(ms(0), blob(1));
    let (exchange, _) = shell.announce(ms(0));
    accept_naming(&mut shell, ms(10), exchange, 1);
    shell.request_lease(ms(100), blob(1));
    assert_eq!(
        lease_posts(shell.outputs(ms(100))).len(),
        1,
        "it is posted once"
    );
    assert_eq!(lease_posts(shell.outputs(ms(1_000))), Vec::new());
}

#[test]
fn waiting_holder_is_told_where_its_lease_moves() {
    let mut shell = Shell::announced(1, vec![wanted(1)]);
    let (digest, chunk, to) = (blob(1), 2, OriginRegion(1));
    let update = LeaseUpdate::Waiting { chunk, from: None };
    shell.handle(ms(0), SessionInput::UpdateLease { digest, update });
    let (exchange, ..) = shell.lease_post(ms(0));
    shell.answer_lease(ms(0), exchange, LeaseAnswer::Moved { to });
    let moved = SessionOutput::LeaseMoved { digest, chunk, to };
    assert_eq!(shell.outputs(ms(0)), vec![moved]);
}

#[test]
fn named_holder_is_handed_out() {
    let mut shell = Shell::announced(1, vec![wanted(1)]);
    let digest = blob(1);
    shell.request_lease(ms(0), digest);
    let (exchange, ..) = shell.lease_post(ms(0));
    let peer = info("holder");
    shell.answer_lease(ms(10), exchange, LeaseAnswer::Dial { peer: peer.clone() });
    let peers = vec![peer];
    assert_eq!(
        shell.outputs(ms(10)),
        vec![
            SessionOutput::Handouts(vec![NamedPeers { digest, peers }]),
            SessionOutput::LeaseWait {
                digest,
                retry_after: Duration::ZERO
            }
        ]
    );
}
