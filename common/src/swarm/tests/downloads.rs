//! Downloads: slots and timeouts.

use core::time::Duration;

use super::support::{PEER, connect, connect_far, fetches, grant_lease, ms, outputs, wanting};
use crate::swarm::{HeldChunks, Input, Output, PeerMachine, PeerSlot, TransferId};

#[test]
fn late_requests_free_their_slots_up_to_a_limit() {
    let mut machine = wanting(16);
    let slots = machine.slots() as usize;
    for peer in (0..16).map(PeerSlot) {
        connect_far(
            &mut machine,
            ms(0),
            peer,
            HeldChunks::Complete,
            Duration::from_millis(100),
        );
    }
    assert_eq!(fetches(&mut machine).len(), slots);
    machine.handle_timeout(ms(2));
    assert_eq!(fetches(&mut machine).len(), 0);
    machine.handle_timeout(ms(3));
    assert_eq!(
        fetches(&mut machine).len(),
        slots,
        "other neighbours are asked"
    );
    machine.handle_timeout(ms(99));
    assert_eq!(
        fetches(&mut machine).len(),
        0,
        "late requests have a limit, too"
    );
}

#[test]
fn first_byte_timeout_is_shorter_than_the_stall_timeout() {
    let mut machine = wanting(2);
    for peer in [PEER, PeerSlot(1)] {
        connect(&mut machine, ms(0), peer, HeldChunks::Complete);
    }
    let ids: Vec<TransferId> = transfers(&machine);
    assert_eq!(ids.len(), 2);
    machine.handle(ms(1), Input::FirstByte { transfer: ids[0] });
    machine.handle_timeout(ms(250));
    assert!(cancelled(&mut machine).is_empty());
    machine.handle_timeout(ms(260));
    assert_eq!(cancelled(&mut machine), [ids[1]]);
    machine.handle_timeout(ms(2001));
    assert!(cancelled(&mut machine).contains(&ids[0]));
}

fn transfers(machine: &PeerMachine) -> Vec<TransferId> {
    let (_, _, downloads) = machine.parts();
    downloads.transfers().map(|transfer| transfer.id).collect()
}

fn cancelled(machine: &mut PeerMachine) -> Vec<TransferId> {
    let cancelled = |output| match output {
        Output::Cancel { transfer } => Some(transfer),
        _ => None,
    };
    outputs(machine).into_iter().filter_map(cancelled).collect()
}

/// The number of chunks that fast neighbours deliver, before any answer is late, until a transfer
/// that only began takes no slot any more.
fn chunks_until_slot_is_free(machine: &mut PeerMachine, slow: TransferId) -> u32 {
    let slots = machine.slots() as usize;
    machine.handle(ms(1), Input::FirstByte { transfer: slow });
    for chunk in 0.. {
        let running = transfers(machine);
        if running.len() > slots {
            assert!(running.contains(&slow));
            return chunk;
        }
        let mut fast = running.into_iter().filter(|id| *id != slow);
        let next = fast.next().expect("a fast neighbour is asked");
        let now = ms(2);
        machine.handle(now, Input::FirstByte { transfer: next });
        machine.handle(now, Input::Received { transfer: next });
    }
    unreachable!("the loop returns")
}

#[test]
fn slow_transfer_frees_its_slot() {
    let mut machine = wanting(64);
    for peer in (0..16).map(PeerSlot) {
        connect(&mut machine, ms(0), peer, HeldChunks::Complete);
    }
    let slow = fetches(&mut machine)[0];
    // More than 6 x 2 other slots x the quarter of a chunk that may have arrived unreported.
    assert_eq!(chunks_until_slot_is_free(&mut machine, slow), 4);
}

#[test]
fn slow_transfer_under_a_lease_frees_its_slot_sooner() {
    let mut machine = wanting(64);
    grant_lease(&mut machine, 0, Duration::from_secs(1));
    let slow = fetches(&mut machine)[0];
    for peer in (0..16).map(PeerSlot) {
        connect(&mut machine, ms(0), peer, HeldChunks::Complete);
    }
    // More than 2 x 2 x a quarter of a chunk.
    assert_eq!(chunks_until_slot_is_free(&mut machine, slow), 2);
}
