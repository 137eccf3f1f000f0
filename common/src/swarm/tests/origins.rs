//! When origins are asked for chunks, and when they are left alone.

use core::time::Duration;

use super::support::{BLOB, fetches, ms, outputs, wanting};
use crate::swarm::{DownloadFailure, Input, Output, PeerMachine, StallReason, TransferId};
use crate::time::Time;

/// A machine that wants a blob of one chunk, without tracker and neighbours.
fn alone() -> PeerMachine {
    let mut machine = wanting(1);
    machine.handle(ms(0), Input::TrackerUnreachable);
    machine
}

fn fail(machine: &mut PeerMachine, now: Time, transfer: TransferId) {
    let why = DownloadFailure::Link;
    machine.handle(now, Input::Failed { transfer, why });
}

/// Lets time pass until the next fetch; returns the fetch and the time that passed.
fn next_fetch(machine: &mut PeerMachine, from: Time) -> (TransferId, Duration) {
    for millis in 0..60_000 {
        let passed = Duration::from_millis(millis);
        machine.handle_timeout(from + passed);
        if let Some(transfer) = fetches(machine).first() {
            return (*transfer, passed);
        }
    }
    panic!("no fetch within a minute")
}

#[test]
fn no_origin_is_asked_while_none_is_usable() {
    let mut machine = alone();
    machine.handle(ms(0), Input::OriginUnusable);
    for second in 1..20 {
        machine.handle_timeout(ms(second * 1000));
        assert!(fetches(&mut machine).is_empty());
    }
    assert_eq!(machine.stall_reason(BLOB), Some(StallReason::Origin));
    machine.handle(ms(20_000), Input::OriginUsable);
    machine.handle_timeout(ms(20_000));
    assert_eq!(fetches(&mut machine).len(), 1);
}

#[test]
fn no_lease_is_requested_or_used_while_no_origin_is_usable() {
    let mut machine = wanting(1);
    outputs(&mut machine);
    machine.handle(ms(0), Input::OriginUnusable);
    let lease = Input::LeaseGranted {
        blob: BLOB,
        chunk: 0,
        term: Duration::from_secs(1),
        from: None,
        is_out: false,
    };
    machine.handle(ms(1), lease);
    machine.handle_timeout(ms(1_000));
    let refused = outputs(&mut machine);
    let is_returned = |output: &Output| matches!(output, Output::LeaseFailed { .. });
    assert_eq!(refused.iter().filter(|it| is_returned(it)).count(), 1);
    assert!(
        !refused
            .iter()
            .any(|it| matches!(it, Output::LeaseTake { .. }))
    );
    machine.handle(ms(2_000), Input::OriginUsable);
    let requested = outputs(&mut machine);
    assert!(
        requested
            .iter()
            .any(|it| matches!(it, Output::LeaseTake { .. }))
    );
}

#[test]
fn delay_after_a_failure_doubles_until_an_origin_is_usable_again() {
    let mut machine = alone();
    let (mut transfer, mut passed) = next_fetch(&mut machine, ms(0));
    assert_eq!(passed, Duration::ZERO);
    let mut now = ms(0);
    for seconds in [1, 2, 4, 8, 16, 16] {
        fail(&mut machine, now, transfer);
        (transfer, passed) = next_fetch(&mut machine, now);
        assert_eq!(passed, Duration::from_secs(seconds));
        now += passed;
    }
    fail(&mut machine, now, transfer);
    machine.handle(now, Input::OriginUnusable);
    machine.handle(now, Input::OriginUsable);
    (transfer, passed) = next_fetch(&mut machine, now);
    assert_eq!(passed, Duration::ZERO);
    fail(&mut machine, now, transfer);
    assert_eq!(next_fetch(&mut machine, now).1, Duration::from_secs(1));
}
