//! Why pulls stall, and for how long.

use core::time::Duration;

use super::support::{BLOB, PEER, connect, facts, fetches, ms, wanting};
use crate::swarm::{DownloadFailure, HeldChunks, Input, Nearness, RefusalReason, StallReason};

#[test]
fn pull_waits_for_lease_then_first_byte() {
    let mut machine = wanting(8);
    assert_eq!(machine.stall_reason(BLOB), Some(StallReason::Lease));
    let term = Duration::from_secs(1);
    machine.handle(
        ms(200),
        Input::LeaseGranted {
            blob: BLOB,
            chunk: 0,
            term,
            from: None,
            is_out: false,
        },
    );
    assert_eq!(machine.stall_reason(BLOB), Some(StallReason::FirstByte));
    let transfer = fetches(&mut machine)[0];
    machine.handle(ms(250), Input::FirstByte { transfer });
    assert_eq!(machine.stall_reason(BLOB), None);
    machine.handle(ms(900), Input::Received { transfer });
    let waited = machine.stall_times(ms(1000), BLOB);
    assert_eq!(waited[StallReason::Lease], Duration::from_millis(200 + 100));
    assert_eq!(waited[StallReason::FirstByte], Duration::from_millis(50));
    assert_eq!(waited.longest()[0].0, StallReason::Lease);
    assert_eq!(
        machine.total_stall_times(ms(1000)),
        waited,
        "no other blob is wanted"
    );
}

#[test]
fn busy_holder_is_the_reason() {
    let mut machine = wanting(8);
    connect(&mut machine, ms(10), PEER, HeldChunks::Complete);
    let transfer = fetches(&mut machine)[0];
    machine.handle(
        ms(20),
        Input::Refused {
            transfer,
            reason: RefusalReason::Busy,
        },
    );
    assert_eq!(machine.stall_reason(BLOB), Some(StallReason::Holders));
}

#[test]
fn quarantined_holder_and_failed_origin_are_distinguished() {
    let mut machine = wanting(8);
    machine.handle(ms(1), Input::TrackerUnreachable);
    let peers = vec![facts(PEER, Nearness::SameZone)];
    machine.handle(ms(1), Input::Handout { blob: BLOB, peers });
    connect(&mut machine, ms(2), PEER, HeldChunks::Complete);
    for transfer in fetches(&mut machine) {
        machine.handle(
            ms(3),
            Input::Failed {
                transfer,
                why: DownloadFailure::Corrupt,
            },
        );
    }
    machine.handle(ms(3), Input::OriginUnusable);
    for transfer in fetches(&mut machine) {
        machine.handle(
            ms(4),
            Input::Failed {
                transfer,
                why: DownloadFailure::Link,
            },
        );
    }
    assert_eq!(machine.stall_reason(BLOB), Some(StallReason::Quarantine));
    machine.handle(
        ms(5),
        Input::Forgot {
            peer: PEER,
            blob: BLOB,
        },
    );
    // Wanting it anew drops the candidates.
    machine.handle(ms(5), Input::Unwant { blob: BLOB });
    machine.handle(ms(5), Input::Want { blob: BLOB });
    machine.handle(ms(5), Input::OriginUnusable);
    machine.handle(ms(5), Input::TrackerUnreachable);
    assert_eq!(machine.stall_reason(BLOB), Some(StallReason::Origin));
}

#[test]
fn unwanted_blob_has_no_stall_reason() {
    let mut machine = wanting(8);
    machine.handle(ms(500), Input::Unwant { blob: BLOB });
    assert_eq!(machine.stall_reason(BLOB), None);
    assert_eq!(
        machine.stall_times(ms(9000), BLOB).total(),
        Duration::from_millis(500)
    );
    assert_eq!(
        machine.total_stall_times(ms(9000)).total(),
        Duration::from_millis(500)
    );
}
