//! Chunks that no source can deliver at present.

use core::time::Duration;

use crate::chunk::Geometry;
use crate::chunk_map::ChunkMap;
use crate::swarm::{
    BlobSlot, ChunkSource, DownloadFailure, HeldChunks, Input, Nearness, Output, PeerFacts,
    PeerMachine, PeerSlot, SwarmConfig,
};
use crate::time::Time;

const BLOB: BlobSlot = BlobSlot(0);
const NEIGHBOUR: PeerFacts = PeerFacts {
    peer: PeerSlot(0),
    nearness: Nearness::SameZone,
};

fn wanting_one_chunk(now: Time) -> PeerMachine {
    let mut machine = PeerMachine::new(SwarmConfig::default(), 1);
    let held = ChunkMap::empty(1);
    machine.handle(now, Input::TrackerUnreachable);
    machine.handle(
        now,
        Input::AddBlob {
            blob: BLOB,
            geometry: Geometry::for_size(10),
            held,
        },
    );
    machine.handle(now, Input::Want { blob: BLOB });
    machine.handle_timeout(now);
    machine
}

#[test]
fn chunk_is_out_of_reach_without_holder_and_usable_origin() {
    let now = Time::ZERO;
    let mut machine = wanting_one_chunk(now);
    let outputs: Vec<_> = core::iter::from_fn(|| machine.poll_output()).collect();
    let fetch = outputs.iter().find_map(|output| match output {
        Output::Fetch {
            transfer,
            source: ChunkSource::Origin,
            ..
        } => Some(*transfer),
        _ => None,
    });
    let transfer = fetch.expect("alone, it asks the origin at once");
    assert!(
        !machine.is_out_of_reach(now, BLOB, 0),
        "it is being fetched"
    );
    machine.handle(
        now,
        Input::Failed {
            transfer,
            why: DownloadFailure::Link,
        },
    );
    assert!(machine.is_out_of_reach(now, BLOB, 0));
    machine.handle(
        now,
        Input::Connected {
            facts: NEIGHBOUR,
            round_trip: Duration::ZERO,
        },
    );
    machine.handle(
        now,
        Input::Have {
            peer: NEIGHBOUR.peer,
            blob: BLOB,
            have: HeldChunks::Complete,
        },
    );
    assert!(
        !machine.is_out_of_reach(now, BLOB, 0),
        "a neighbour holds it"
    );
}
