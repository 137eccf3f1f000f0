//! Dials: how many at once, and when they are late.

use core::time::Duration;

use super::support::{BLOB, connect, facts, fetches, ms, outputs, wanting};
use crate::swarm::{
    DownloadFailure, HeldChunks, Input, Nearness, Output, PeerMachine, PeerSlot, SwarmConfig,
};
use crate::time::Time;

/// A machine that wants a blob of eight chunks and has this many candidates.
fn machine_with_candidates(peers: u32, nearness: Nearness) -> PeerMachine {
    let mut machine = wanting(8);
    let peers = (0..peers)
        .map(|peer| facts(PeerSlot(peer), nearness))
        .collect();
    machine.handle(ms(0), Input::Handout { blob: BLOB, peers });
    machine
}

fn count_dials(outputs: &[Output]) -> usize {
    outputs
        .iter()
        .filter(|output| matches!(output, Output::Dial { .. }))
        .count()
}

fn has_starving_request(outputs: &[Output]) -> bool {
    outputs
        .iter()
        .any(|output| matches!(output, Output::LeaseTake { starving: true, .. }))
}

fn outputs_until(machine: &mut PeerMachine, now: Time) -> Vec<Output> {
    machine.handle_timeout(now);
    outputs(machine)
}

#[test]
fn unanswered_dials_lead_to_starving_requests_before_they_fail() {
    let mut machine = machine_with_candidates(2, Nearness::SameZone);
    let before = outputs_until(&mut machine, ms(249));
    assert_eq!(
        (count_dials(&before), has_starving_request(&before)),
        (2, false)
    );
    assert_eq!(machine.unreachable(ms(249), Some(BLOB)).count(), 0);
    assert!(has_starving_request(&outputs_until(&mut machine, ms(250))));
    assert_eq!(
        machine.unreachable(ms(250), Some(BLOB)).count(),
        2,
        "and both are reported as unreachable"
    );
    let slots = machine.slots();
    for chunk in 0..slots {
        let granted = Input::LeaseGranted {
            blob: BLOB,
            chunk,
            term: Duration::from_secs(1),
            from: None,
            is_out: false,
        };
        machine.handle(ms(251), granted);
        let continues = has_starving_request(&outputs_until(&mut machine, ms(251)));
        assert_eq!(
            continues,
            chunk + 1 < slots,
            "one lease for each slot while others run"
        );
    }
}

#[test]
fn dial_timeout_is_longer_for_another_region() {
    let mut machine = machine_with_candidates(2, Nearness::Elsewhere);
    // Peers of other regions are dialed only while no origin is usable.
    assert_eq!(machine.unreachable(ms(0), None).count(), 0);
    machine.handle(ms(0), Input::OriginUnusable);
    assert!(!has_starving_request(&outputs_until(&mut machine, ms(250))));
    outputs_until(&mut machine, ms(1000));
    assert_eq!(machine.unreachable(ms(1000), None).count(), 2);
}

#[test]
fn late_answer_makes_a_neighbour() {
    let mut machine = machine_with_candidates(2, Nearness::SameZone);
    outputs_until(&mut machine, ms(250));
    let facts = facts(PeerSlot(1), Nearness::SameZone);
    machine.handle(
        ms(800),
        Input::Connected {
            facts,
            round_trip: Duration::from_millis(400),
        },
    );
    let unreachable: Vec<_> = machine.unreachable(ms(800), Some(BLOB)).collect();
    assert_eq!(unreachable, [PeerSlot(0)]);
    assert!(
        outputs_until(&mut machine, ms(800)).contains(&Output::SendChunkMap {
            peer: PeerSlot(1),
            blob: BLOB
        })
    );
    machine.handle(ms(3000), Input::DialFailed { peer: PeerSlot(0) });
    let (_, neighbours, _) = machine.parts();
    assert_eq!(neighbours.dialing(), 0);
}

#[test]
fn requested_dials_keep_the_limits() {
    let mut machine = machine_with_candidates(0, Nearness::SameZone);
    let most = SwarmConfig::default().max_dials;
    for peer in 0..most + 5 {
        // A second request for a peer that is being dialed does nothing.
        for _ in 0..2 {
            let facts = facts(PeerSlot(peer), Nearness::SameZone);
            machine.handle(ms(0), Input::Dial { facts });
        }
    }
    assert_eq!(count_dials(&outputs(&mut machine)), most as usize);
    machine.handle(ms(1), Input::DialFailed { peer: PeerSlot(0) });
    let failed = facts(PeerSlot(0), Nearness::SameZone);
    machine.handle(ms(2), Input::Dial { facts: failed });
    let dials = count_dials(&outputs(&mut machine));
    assert_eq!(dials, 0, "redial time not reached");
    let quarantined = facts(PeerSlot(most), Nearness::SameZone);
    connect(&mut machine, ms(3), quarantined.peer, HeldChunks::Complete);
    let why = DownloadFailure::Corrupt;
    for transfer in fetches(&mut machine) {
        machine.handle(ms(3), Input::Failed { transfer, why });
    }
    let end = ms(3) + SwarmConfig::default().quarantine_time;
    for (now, expected) in [(ms(2000), 0), (end, 1)] {
        machine.handle(now, Input::Dial { facts: quarantined });
        assert_eq!(count_dials(&outputs(&mut machine)), expected, "at {now:?}");
    }
}

#[test]
fn requested_dial_does_not_wait_after_a_closed_connection() {
    let mut machine = machine_with_candidates(0, Nearness::SameZone);
    let facts = facts(PeerSlot(0), Nearness::SameZone);
    let round_trip = Duration::from_millis(1);
    machine.handle(ms(0), Input::Connected { facts, round_trip });
    machine.handle(ms(10), Input::Disconnected { peer: facts.peer });
    outputs(&mut machine);
    machine.handle(ms(20), Input::Dial { facts });
    assert_eq!(count_dials(&outputs(&mut machine)), 1);
}

#[test]
fn dials_to_dead_peers_are_bounded_and_failed_ones_make_room() {
    let mut machine = machine_with_candidates(64, Nearness::SameZone);
    let most = SwarmConfig::default().max_dials as usize;
    let mut under_way = 0;
    for tick in 0..12 {
        let now = ms(tick * 250);
        under_way += count_dials(&outputs_until(&mut machine, now));
        assert!(under_way <= most, "{under_way} at {now:?}");
    }
    assert_eq!(under_way, most);
    for peer in 0..10 {
        machine.handle(
            ms(3000),
            Input::DialFailed {
                peer: PeerSlot(peer),
            },
        );
    }
    assert_eq!(
        count_dials(&outputs_until(&mut machine, ms(3000))),
        10,
        "other candidates are dialed"
    );
}
