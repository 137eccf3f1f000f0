//! Test fixtures: a machine that wants a blob, and neighbours that hold it.

use core::time::Duration;

use crate::chunk::Geometry;
use crate::chunk_map::ChunkMap;
use crate::swarm::{
    BlobSlot, ChunkSource, HeldChunks, Input, Nearness, Output, PeerFacts, PeerMachine, PeerSlot,
    SwarmConfig, TransferId,
};
use crate::time::Time;

pub(super) const BLOB: BlobSlot = BlobSlot(0);
pub(super) const PEER: PeerSlot = PeerSlot(0);

/// The time `millis` milliseconds after the start.
pub(super) fn ms(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

/// A machine that wants a blob of `chunks` chunks from the start on, and holds none of them.
pub(super) fn wanting(chunks: u64) -> PeerMachine {
    let mut machine = PeerMachine::new(SwarmConfig::default(), 1);
    let geometry = Geometry::for_size(chunks << 18);
    let held = ChunkMap::empty(geometry.chunks());
    machine.handle(
        ms(0),
        Input::AddBlob {
            blob: BLOB,
            geometry,
            held,
        },
    );
    machine.handle(ms(0), Input::Want { blob: BLOB });
    machine
}

pub(super) fn facts(peer: PeerSlot, nearness: Nearness) -> PeerFacts {
    PeerFacts { peer, nearness }
}

/// Connects a neighbour in the own zone with this round trip, and announces what it holds.
pub(super) fn connect_far(
    machine: &mut PeerMachine,
    now: Time,
    peer: PeerSlot,
    have: HeldChunks,
    round_trip: Duration,
) {
    let facts = facts(peer, Nearness::SameZone);
    machine.handle(now, Input::Connected { facts, round_trip });
    machine.handle(
        now,
        Input::Have {
            peer,
            blob: BLOB,
            have,
        },
    );
}

/// Connects a neighbour in the own zone, and announces what it holds.
pub(super) fn connect(machine: &mut PeerMachine, now: Time, peer: PeerSlot, have: HeldChunks) {
    connect_far(machine, now, peer, have, Duration::ZERO);
}

/// The tracker grants a lease on a chunk at the start.
pub(super) fn grant_lease(machine: &mut PeerMachine, chunk: u32, term: Duration) {
    grant_lease_at(machine, ms(0), chunk, term);
}

/// The tracker grants a lease on a chunk, and leaves the choice of the origin to the peer.
pub(super) fn grant_lease_at(machine: &mut PeerMachine, now: Time, chunk: u32, term: Duration) {
    machine.handle(
        now,
        Input::LeaseGranted {
            blob: BLOB,
            chunk,
            term,
            from: None,
            is_out: false,
        },
    );
}

/// All outputs of the machine so far.
pub(super) fn outputs(machine: &mut PeerMachine) -> Vec<Output> {
    core::iter::from_fn(|| machine.poll_output()).collect()
}

/// The transfers from neighbours among the outputs so far, and the neighbours.
pub(super) fn fetches_from_peers(machine: &mut PeerMachine) -> Vec<(TransferId, PeerSlot)> {
    let fetch = |output| match output {
        Output::Fetch {
            transfer,
            source: ChunkSource::Peer(peer),
            ..
        } => Some((transfer, peer)),
        _ => None,
    };
    outputs(machine).into_iter().filter_map(fetch).collect()
}

/// The transfers among the outputs so far.
pub(super) fn fetches(machine: &mut PeerMachine) -> Vec<TransferId> {
    let fetch = |output| match output {
        Output::Fetch { transfer, .. } => Some(transfer),
        _ => None,
    };
    outputs(machine).into_iter().filter_map(fetch).collect()
}
