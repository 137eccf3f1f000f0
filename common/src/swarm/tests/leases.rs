//! Requests for leases.

use super::support::{PEER, connect, ms, outputs, wanting};
use crate::swarm::{HaveBatch, HeldChunks, Input, Output, PeerMachine};

#[test]
fn chunks_of_a_neighbour_that_left_are_requested_again() {
    let mut machine = wanting(8);
    let mut batch = HaveBatch::default();
    batch.push(0);
    connect(&mut machine, ms(0), PEER, HeldChunks::Chunks(batch));
    assert_eq!(
        requested(&mut machine),
        vec![8],
        "before the neighbour was known"
    );
    machine.handle(ms(50), Input::Disconnected { peer: PEER });
    machine.handle_timeout(ms(99));
    assert!(
        requested(&mut machine).is_empty(),
        "not before the request interval has passed"
    );
    machine.handle_timeout(ms(100));
    assert_eq!(requested(&mut machine), vec![8]);
}

/// The number of chunks that each request for a lease names.
fn requested(machine: &mut PeerMachine) -> Vec<u32> {
    let missing = |output| match output {
        Output::LeaseTake { missing, .. } => Some(missing.count()),
        _ => None,
    };
    outputs(machine).into_iter().filter_map(missing).collect()
}
