//! Fetches without a tracker: who claims which chunk, and who leaves it alone.

use core::time::Duration;

use super::support::{BLOB, PEER, connect, facts, grant_lease_at, ms, outputs, wanting};
use crate::swarm::{
    ChunkSource, Claim, DownloadFailure, HaveBatch, HeldChunks, Input, Nearness, Output,
    PeerMachine, PeerSlot, TransferId,
};
use crate::time::Time;

const TERM: Duration = Duration::from_secs(2);

/// A machine that wants a blob, without a tracker, and with so many neighbours that hold nothing.
fn among_leechers(chunks: u64, neighbours: u32) -> PeerMachine {
    let mut machine = wanting(chunks);
    for peer in (0..neighbours).map(PeerSlot) {
        let nothing = HeldChunks::Chunks(HaveBatch::default());
        connect(&mut machine, ms(0), peer, nothing);
    }
    machine.handle(ms(0), Input::TrackerUnreachable);
    outputs(&mut machine);
    machine
}

fn claims_of(chunks: core::ops::Range<u32>) -> Vec<Claim> {
    chunks.map(|chunk| Claim { chunk, term: TERM }).collect()
}

fn hear(machine: &mut PeerMachine, now: Time, peer: PeerSlot, claims: Vec<Claim>) {
    let blob = BLOB;
    machine.handle(now, Input::Claims { peer, blob, claims });
}

fn see(machine: &mut PeerMachine, now: Time, peer: PeerSlot, chunk: u32) {
    let mut batch = HaveBatch::default();
    batch.push(chunk);
    let (blob, have) = (BLOB, HeldChunks::Chunks(batch));
    machine.handle(now, Input::Have { peer, blob, have });
}

/// What a machine did: chunks fetched from the origin, and chunks told as claimed.
#[derive(Debug, Default)]
struct Done {
    fetched: Vec<(TransferId, u32)>,
    told: Vec<u32>,
}

/// Lets the machine work from one time to another.
fn run(machine: &mut PeerMachine, from: Time, to: Time) -> Done {
    let mut done = Done::default();
    let mut now = from;
    loop {
        for output in outputs(machine) {
            match output {
                Output::Fetch {
                    transfer,
                    chunk,
                    source: ChunkSource::Origin,
                    ..
                } => done.fetched.push((transfer, chunk)),
                Output::Claims { claims, .. } => {
                    done.told.extend(claims.iter().map(|claim| claim.chunk));
                }
                _ => {}
            }
        }
        now = match machine.poll_timeout() {
            Some(at) if at <= to => at.max(now + Duration::from_micros(10)),
            _ => return done,
        };
        machine.handle_timeout(now);
    }
}

fn chunks_of(done: &Done) -> Vec<u32> {
    done.fetched.iter().map(|(_, chunk)| *chunk).collect()
}

#[test]
fn peer_without_a_tracker_fetches_chunks_and_tells_that_it_does() {
    let mut machine = among_leechers(64, 1);
    let done = run(&mut machine, ms(0), ms(1000));
    assert_eq!(done.fetched.len(), 3, "as many as slots: {done:?}");
    assert_eq!(done.told, chunks_of(&done));
}

#[test]
fn claimed_chunk_is_left_alone_until_the_claim_expires() {
    let mut machine = among_leechers(1, 2);
    hear(&mut machine, ms(0), PEER, claims_of(0..1));
    let done = run(&mut machine, ms(0), ms(1999));
    assert!(done.fetched.is_empty(), "{done:?}");
    assert_eq!(done.told, [0], "it is handed on");
    let done = run(&mut machine, ms(2000), ms(4000));
    assert_eq!(chunks_of(&done), [0], "the claimant died");
}

#[test]
fn claim_is_handed_on_once() {
    let mut machine = among_leechers(64, 3);
    for peer in (0..3).map(PeerSlot) {
        hear(&mut machine, ms(0), peer, claims_of(7..8));
    }
    let done = run(&mut machine, ms(0), ms(1));
    assert_eq!(done.told, [7]);
}

#[test]
fn renewed_claim_is_believed_for_ten_seconds_at_most() {
    let mut machine = among_leechers(1, 1);
    let mut now = ms(0);
    while now < ms(9_000) {
        hear(&mut machine, now, PEER, claims_of(0..1));
        let done = run(&mut machine, now, now + TERM / 2);
        assert!(done.fetched.is_empty(), "{now:?}");
        assert_eq!(done.told, [0], "renewals are handed on");
        now += TERM / 2;
    }
    hear(&mut machine, now, PEER, claims_of(0..1));
    let done = run(&mut machine, now, ms(12_000));
    assert_eq!(chunks_of(&done), [0]);
}

#[test]
fn own_claim_is_renewed_while_bytes_arrive() {
    let mut machine = among_leechers(1, 1);
    let first = run(&mut machine, ms(0), ms(900));
    let (transfer, _) = first.fetched[0];
    for (at, received) in [(900, 1000), (1900, 2000), (2900, 3000)] {
        machine.handle(ms(at), Input::Progress { transfer, received });
        let done = run(&mut machine, ms(at), ms(at + 900));
        assert_eq!(done.told, [0], "at {at} ms");
    }
    // Nothing arrives any more.
    let done = run(&mut machine, ms(3900), ms(4500));
    assert!(done.told.is_empty(), "{done:?}");
}

#[test]
fn no_chunk_is_claimed_while_many_claims_are_open() {
    let mut machine = among_leechers(64, 1);
    hear(&mut machine, ms(0), PEER, claims_of(0..24));
    let done = run(&mut machine, ms(0), ms(900));
    assert!(done.fetched.is_empty(), "{done:?}");
    for chunk in 0..12 {
        see(&mut machine, ms(900), PEER, chunk);
    }
    let done = run(&mut machine, ms(900), ms(1999));
    assert!(!done.fetched.is_empty(), "{done:?}");
    assert!(
        chunks_of(&done).iter().all(|chunk| *chunk >= 24),
        "{done:?}"
    );
}

/// A neighbour that claims everything, again and again, and fetches nothing.
fn hostile_pull(neighbours: u32) -> Time {
    let mut machine = among_leechers(64, neighbours);
    let mut missing: Vec<u32> = (0..64).collect();
    let mut now = ms(0);
    while !missing.is_empty() {
        for peer in (0..neighbours).map(PeerSlot) {
            let claims = missing.iter().map(|chunk| Claim {
                chunk: *chunk,
                term: Duration::from_secs(1_000_000),
            });
            hear(&mut machine, now, peer, claims.collect());
        }
        let to = now + Duration::from_millis(100);
        for (transfer, chunk) in run(&mut machine, now, to).fetched {
            machine.handle(to, Input::FirstByte { transfer });
            machine.handle(to, Input::Received { transfer });
            missing.retain(|other| *other != chunk);
        }
        now = to;
        assert!(now < ms(600_000), "silenced; missing {missing:?}");
    }
    now
}

#[test]
fn hostile_neighbours_delay_a_pull_by_one_claim_age() {
    for neighbours in [1, 3, 16] {
        let spent = hostile_pull(neighbours);
        assert!(spent < ms(20_000), "{neighbours} neighbours: {spent:?}");
    }
}

#[test]
fn claims_do_not_matter_while_a_tracker_grants_leases() {
    let mut machine = wanting(8);
    connect(
        &mut machine,
        ms(0),
        PEER,
        HeldChunks::Chunks(HaveBatch::default()),
    );
    hear(&mut machine, ms(0), PEER, claims_of(0..8));
    run(&mut machine, ms(0), ms(5));
    grant_lease_at(&mut machine, ms(5), 3, Duration::from_secs(1));
    let done = run(&mut machine, ms(5), ms(50));
    assert_eq!(chunks_of(&done), [3]);
    assert!(done.told.is_empty(), "the lease is known to the tracker");
}

#[test]
fn fetch_under_a_lease_is_claimed_when_the_tracker_is_lost() {
    let mut machine = wanting(8);
    connect(
        &mut machine,
        ms(0),
        PEER,
        HeldChunks::Chunks(HaveBatch::default()),
    );
    grant_lease_at(&mut machine, ms(1), 3, Duration::from_secs(1));
    outputs(&mut machine);
    machine.handle(ms(5), Input::TrackerUnreachable);
    let done = run(&mut machine, ms(5), ms(6));
    assert_eq!(done.told, [3]);
}

#[test]
fn peer_that_dials_its_candidates_does_not_count_as_alone() {
    let mut machine = wanting(8);
    let peers = vec![facts(PEER, Nearness::SameZone)];
    machine.handle(ms(0), Input::Handout { blob: BLOB, peers });
    machine.handle(ms(0), Input::TrackerUnreachable);
    let done = run(&mut machine, ms(0), ms(249));
    assert!(done.fetched.is_empty(), "{done:?}");
    let done = run(&mut machine, ms(249), ms(300));
    assert_eq!(chunks_of(&done), [0, 1, 2], "the dial is late");
}

#[test]
fn claimed_chunk_whose_fetch_failed_is_tried_again() {
    let mut machine = among_leechers(1, 1);
    let done = run(&mut machine, ms(0), ms(500));
    let (transfer, _) = done.fetched[0];
    let why = DownloadFailure::Link;
    machine.handle(ms(500), Input::Failed { transfer, why });
    let done = run(&mut machine, ms(500), ms(6000));
    assert_eq!(chunks_of(&done), [0]);
}
