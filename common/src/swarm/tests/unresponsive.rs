//! Neighbours that are connected but do not answer.

use super::support::{BLOB, PEER, connect, ms, outputs, wanting};
use crate::swarm::{ChunkSource, HeldChunks, Input, Output, PeerMachine};

/// A machine that wants a blob of two chunks, which its one neighbour holds.
fn machine_with_holder() -> PeerMachine {
    let mut machine = wanting(2);
    connect(&mut machine, ms(0), PEER, HeldChunks::Complete);
    machine
}

fn pass_time(machine: &mut PeerMachine, from: u64, to: u64) -> Vec<Output> {
    let mut all = Vec::new();
    for now in (from..to).step_by(10) {
        machine.handle_timeout(ms(now));
        all.extend(outputs(machine));
    }
    all
}

fn has_starving_request(outputs: &[Output]) -> bool {
    let is_starving = |output: &Output| match output {
        Output::LeaseTake {
            missing, starving, ..
        } => *starving && missing.count() == 2,
        _ => false,
    };
    outputs.iter().any(is_starving)
}

#[test]
fn unresponsive_neighbour_triggers_lease_requests() {
    let mut machine = machine_with_holder();
    let outputs = pass_time(&mut machine, 0, 2000);
    assert!(has_starving_request(&outputs), "{outputs:?}");
    assert_eq!(
        machine
            .unreachable(ms(2000), Some(BLOB))
            .collect::<Vec<_>>(),
        [PEER]
    );
}

#[test]
fn any_message_makes_a_neighbour_responsive() {
    let mut machine = machine_with_holder();
    pass_time(&mut machine, 0, 2000);
    machine.handle(
        ms(2000),
        Input::Have {
            peer: PEER,
            blob: BLOB,
            have: HeldChunks::Complete,
        },
    );
    let outputs = pass_time(&mut machine, 2000, 2010);
    assert!(
        outputs
            .iter()
            .any(|output| matches!(output, Output::Fetch { .. })),
        "{outputs:?}"
    );
    assert_eq!(machine.unreachable(ms(2010), Some(BLOB)).count(), 0);
}

#[test]
fn unresponsive_neighbour_is_retried_after_a_while() {
    let mut machine = machine_with_holder();
    pass_time(&mut machine, 0, 2000);
    let is_request = |output: &&Output| {
        matches!(
            output,
            Output::Fetch {
                source: ChunkSource::Peer(_),
                ..
            }
        )
    };
    let fetches = |outputs: &[Output]| outputs.iter().filter(is_request).count();
    let before = pass_time(&mut machine, 2000, 9000);
    assert_eq!(fetches(&before), 0);
    let later = pass_time(&mut machine, 9000, 16_000);
    assert_eq!(fetches(&later), 1, "once, then it is unresponsive again");
}

#[test]
fn answer_to_the_second_request_keeps_a_neighbour_responsive() {
    let mut machine = machine_with_holder();
    let outputs = pass_time(&mut machine, 0, 400);
    let second = outputs.iter().rev().find_map(|output| match output {
        Output::Fetch { transfer, .. } => Some(*transfer),
        _ => None,
    });
    machine.handle(
        ms(400),
        Input::FirstByte {
            transfer: second.expect("asked again"),
        },
    );
    pass_time(&mut machine, 400, 2000);
    assert_eq!(machine.unreachable(ms(2000), Some(BLOB)).count(), 0);
}
