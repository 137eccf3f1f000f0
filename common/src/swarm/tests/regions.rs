//! Which region's origin sends a chunk, and when peers of other regions are used.

use core::time::Duration;

use super::support::{BLOB, connect, facts, ms, outputs, wanting};
use crate::origin_region::OriginRegion;
use crate::swarm::{
    DownloadFailure, HeldChunks, Input, Nearness, Output, PeerMachine, PeerSlot, TransferId,
};

const TERM: Duration = Duration::from_secs(1);
const OTHER: OriginRegion = OriginRegion(1);

/// The fetches from origins among the outputs so far, and the region that is asked first.
fn origin_fetches(machine: &mut PeerMachine) -> Vec<(TransferId, Option<OriginRegion>)> {
    let fetch = |output| match output {
        Output::Fetch {
            transfer, first, ..
        } => Some((transfer, first)),
        _ => None,
    };
    outputs(machine).into_iter().filter_map(fetch).collect()
}

/// A machine with a lease on the only chunk of a blob, and its transfer.
fn with_lease(from: Option<OriginRegion>) -> (PeerMachine, TransferId) {
    let mut machine = wanting(1);
    let granted = Input::LeaseGranted {
        blob: BLOB,
        chunk: 0,
        term: TERM,
        from,
        is_out: false,
    };
    machine.handle(ms(0), granted);
    let fetches = origin_fetches(&mut machine);
    assert_eq!(fetches.len(), 1);
    assert_eq!(fetches[0].1, from);
    let transfer = fetches[0].0;
    (machine, transfer)
}

fn move_to(machine: &mut PeerMachine, to: OriginRegion) {
    let (blob, chunk) = (BLOB, 0);
    machine.handle(ms(300), Input::LeaseMoved { blob, chunk, to });
}

#[test]
fn moved_lease_is_fetched_from_the_other_region() {
    let (mut machine, transfer) = with_lease(Some(OriginRegion::OWN));
    move_to(&mut machine, OTHER);
    let outputs = outputs(&mut machine);
    assert!(outputs.contains(&Output::Cancel { transfer }));
    let fetch = |output: &Output| matches!(output, Output::Fetch { first: Some(first), .. } if *first == OTHER);
    assert_eq!(outputs.iter().filter(|output| fetch(output)).count(), 1);
    assert_eq!(machine.leases().count(), 1, "it is the same lease");
}

#[test]
fn lease_from_an_origin_that_is_out_is_reported_at_once() {
    for is_out in [false, true] {
        let mut machine = wanting(1);
        let granted = Input::LeaseGranted {
            blob: BLOB,
            chunk: 0,
            term: TERM,
            from: Some(OriginRegion::OWN),
            is_out,
        };
        machine.handle(ms(0), granted);
        let waiting = |output: &Output| matches!(output, Output::LeaseWaiting { .. });
        assert_eq!(outputs(&mut machine).iter().any(waiting), is_out);
    }
}

#[test]
fn transfer_that_comes_from_there_already_goes_on() {
    let (mut machine, transfer) = with_lease(Some(OriginRegion::OWN));
    let region = OTHER;
    machine.handle(ms(200), Input::OriginAnswered { transfer, region });
    move_to(&mut machine, OTHER);
    assert!(origin_fetches(&mut machine).is_empty());
}

#[test]
fn lease_that_ended_is_not_moved() {
    let (mut machine, transfer) = with_lease(Some(OriginRegion::OWN));
    machine.handle(ms(200), Input::Received { transfer });
    move_to(&mut machine, OTHER);
    assert!(origin_fetches(&mut machine).is_empty());
}

#[test]
fn reports_name_the_origin_that_sends() {
    let (mut machine, transfer) = with_lease(None);
    let region = OTHER;
    machine.handle(ms(10), Input::OriginAnswered { transfer, region });
    machine.handle(ms(11), Input::FirstByte { transfer });
    let received = 9;
    machine.handle(ms(20), Input::Progress { transfer, received });
    machine.handle_timeout(ms(250));
    machine.handle_timeout(ms(500));
    machine.handle(ms(510), Input::Received { transfer });
    let named = |output| match output {
        Output::LeaseRenew { from, .. } if from.is_some() => Some(("renew", from)),
        Output::LeaseWaiting { from, .. } => Some(("waiting", from)),
        Output::LeaseDone { from, .. } => Some(("done", from)),
        _ => None,
    };
    let named: Vec<_> = outputs(&mut machine)
        .into_iter()
        .filter_map(named)
        .collect();
    let other = Some(OTHER);
    assert_eq!(
        named,
        [("renew", other), ("waiting", other), ("done", other)]
    );
}

/// A tracker names a peer of another region that holds all of the blob.
fn name_far_peer(machine: &mut PeerMachine) -> PeerSlot {
    let peer = PeerSlot(7);
    let peers = vec![facts(peer, Nearness::Elsewhere)];
    machine.handle(ms(0), Input::Handout { blob: BLOB, peers });
    peer
}

fn is_dialed(machine: &mut PeerMachine, peer: PeerSlot) -> bool {
    outputs(machine).contains(&Output::Dial { peer })
}

#[test]
fn peer_of_another_region_is_set_aside_until_no_origin_is_usable() {
    let mut machine = wanting(1);
    let peer = name_far_peer(&mut machine);
    machine.handle_timeout(ms(5_000));
    assert!(!is_dialed(&mut machine, peer));
    assert!(!machine.is_idle(peer), "its slot is not given to another");
    machine.handle(ms(5_000), Input::OriginUnusable);
    assert!(is_dialed(&mut machine, peer));
}

#[test]
fn peer_of_another_region_is_used_when_no_tracker_answers() {
    let mut machine = wanting(1);
    let peer = name_far_peer(&mut machine);
    machine.handle(ms(100), Input::TrackerUnreachable);
    assert!(is_dialed(&mut machine, peer));
}

#[test]
fn peer_of_another_region_is_used_when_no_origin_delivers() {
    let (mut machine, transfer) = with_lease(Some(OriginRegion::OWN));
    let peer = name_far_peer(&mut machine);
    let why = DownloadFailure::Link;
    machine.handle(ms(100), Input::Failed { transfer, why });
    assert!(is_dialed(&mut machine, peer));
}

#[test]
fn holdings_of_a_peer_of_another_region_are_ignored_while_an_origin_serves() {
    let mut machine = wanting(1);
    let far = PeerSlot(3);
    let round_trip = Duration::from_millis(80);
    let facts = facts(far, Nearness::Elsewhere);
    machine.handle(ms(0), Input::Connected { facts, round_trip });
    let have = |peer| Input::Have {
        peer,
        blob: BLOB,
        have: HeldChunks::Complete,
    };
    machine.handle(ms(0), have(far));
    machine.handle_timeout(ms(100));
    assert!(origin_fetches(&mut machine).is_empty());
    connect(&mut machine, ms(100), PeerSlot(4), HeldChunks::Complete);
    assert_eq!(origin_fetches(&mut machine).len(), 1, "a near one is used");
}
