//! Requests for leases.

use core::time::Duration;

use super::support::{PEER, connect, grant_lease, ms, outputs, wanting};
use crate::chunk::Geometry;
use crate::chunk_map::ChunkMap;
use crate::swarm::{BlobSlot, HaveBatch, HeldChunks, Input, Output, PeerMachine, SwarmConfig};

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

/// Wants blobs of these sizes, in chunks of 256 KiB, and returns those for which leases are
/// requested.
fn requested_of(sizes: &[u64]) -> Vec<u32> {
    let mut machine = PeerMachine::new(SwarmConfig::default(), 1);
    for (blob, size) in (0..).map(BlobSlot).zip(sizes) {
        let geometry = Geometry::for_size(size << 18);
        let held = ChunkMap::empty(geometry.chunks());
        let add = Input::AddBlob {
            blob,
            geometry,
            held,
        };
        machine.handle(ms(0), add);
        machine.handle(ms(0), Input::Want { blob });
    }
    let requested = |output| match output {
        Output::LeaseTake { blob, .. } => Some(blob.0),
        _ => None,
    };
    outputs(&mut machine)
        .into_iter()
        .filter_map(requested)
        .collect()
}

#[test]
fn small_blobs_do_not_wait_for_large_ones() {
    assert_eq!(requested_of(&[100, 100, 100, 100]), [0, 1]);
    assert_eq!(requested_of(&[100, 100, 100, 1, 100, 1]), [0, 1, 3, 5]);
    let small = vec![1; 20];
    assert_eq!(requested_of(&small).len(), 8, "they are bounded, too");
}

/// The number of chunks that each request for a lease names.
fn requested(machine: &mut PeerMachine) -> Vec<u32> {
    let missing = |output| match output {
        Output::LeaseTake { missing, .. } => Some(missing.count()),
        _ => None,
    };
    outputs(machine).into_iter().filter_map(missing).collect()
}

#[test]
fn lease_without_progress_is_reported_as_waiting() {
    let mut machine = wanting(8);
    grant_lease(&mut machine, 0, Duration::from_secs(1));
    let started = outputs(&mut machine);
    let fetch = |output: &Output| match output {
        Output::Fetch { transfer, .. } => Some(*transfer),
        _ => None,
    };
    let fetches: Vec<_> = started.iter().filter_map(fetch).collect();
    assert_eq!(reports(&started), vec![Report::Renewed(0)], "{started:?}");
    let received = 7;
    let progress = Input::Progress {
        transfer: fetches[0],
        received,
    };
    machine.handle(ms(400), progress);
    let mut reported = Vec::new();
    for at in [500, 750, 1000] {
        machine.handle_timeout(ms(at));
        reported.extend(reports(&outputs(&mut machine)));
    }
    assert_eq!(
        reported,
        vec![Report::Renewed(received), Report::Waiting, Report::Waiting]
    );
}

#[test]
fn deadline_in_the_past_is_handled_once_per_call() {
    let mut machine = wanting(8);
    grant_lease(&mut machine, 0, Duration::ZERO);
    outputs(&mut machine);
    machine.handle_timeout(ms(1));
    assert!(outputs(&mut machine).len() <= 2, "a report, and no loop");
}

#[derive(Debug, PartialEq, Eq)]
enum Report {
    Renewed(u64),
    Waiting,
}

/// What the tracker is told of held leases.
fn reports(outputs: &[Output]) -> Vec<Report> {
    let report = |output: &Output| match output {
        Output::LeaseRenew { received, .. } => Some(Report::Renewed(*received)),
        Output::LeaseWaiting { .. } => Some(Report::Waiting),
        _ => None,
    };
    outputs.iter().filter_map(report).collect()
}
