//! Uploads: slots, refusals, and which neighbours are told of a free slot.

use core::time::Duration;

use super::support::{BLOB, PEER, connect, fetches_from_peers, ms, outputs, wanting};
use crate::chunk::Geometry;
use crate::chunk_map::ChunkMap;
use crate::swarm::{
    DownloadFailure, HaveBatch, HeldChunks, Input, Output, PeerMachine, PeerSlot, RefusalReason,
    SwarmConfig, TransferId, UploadId,
};

const CHUNKS: u64 = 64;

/// A machine that holds a whole blob, with so many neighbours that lack all of it.
fn seeding(neighbours: u32) -> PeerMachine {
    let mut machine = PeerMachine::new(SwarmConfig::default(), 1);
    let geometry = Geometry::for_size(CHUNKS << 18);
    let held = ChunkMap::full(geometry.chunks());
    let add = Input::AddBlob {
        blob: BLOB,
        geometry,
        held,
    };
    machine.handle(ms(0), add);
    for peer in (0..neighbours).map(PeerSlot) {
        let nothing = ChunkMap::empty(geometry.chunks());
        connect(&mut machine, ms(0), peer, HeldChunks::Map(nothing));
    }
    outputs(&mut machine);
    machine
}

/// A request of a neighbour for the chunk of the same number. Whether it is served.
fn request(machine: &mut PeerMachine, peer: u32) -> bool {
    let upload = UploadId(peer.into());
    let request = Input::UploadRequest {
        peer: PeerSlot(peer),
        blob: BLOB,
        chunk: peer,
        upload,
    };
    machine.handle(ms(1), request);
    let answers = outputs(machine);
    let reason = RefusalReason::Busy;
    assert!(
        [
            vec![Output::Serve { upload }],
            vec![Output::Refuse { upload, reason }]
        ]
        .contains(&answers),
        "{answers:?}"
    );
    answers == [Output::Serve { upload }]
}

fn told(machine: &mut PeerMachine) -> Vec<u32> {
    let told = |output| match output {
        Output::TellSlotFree { peer } => Some(peer.0),
        _ => None,
    };
    outputs(machine).into_iter().filter_map(told).collect()
}

/// The first transfer from a neighbour among the outputs so far, and the neighbour.
fn fetched_from(machine: &mut PeerMachine) -> Option<(TransferId, PeerSlot)> {
    fetches_from_peers(machine).first().copied()
}

/// Ends the upload to a neighbour.
fn end(machine: &mut PeerMachine, peer: u32) {
    let upload = UploadId(peer.into());
    machine.handle(ms(2), Input::UploadEnded { upload });
}

#[test]
fn the_neighbours_refused_last_are_told_of_a_free_slot_once() {
    let mut machine = seeding(10);
    let slots = machine.slots();
    assert!((0..slots).all(|peer| request(&mut machine, peer)));
    assert!(!(slots..8).any(|peer| request(&mut machine, peer)));
    end(&mut machine, 0);
    assert_eq!(told(&mut machine), [7, 6]);
    assert!(request(&mut machine, 5), "any neighbour may take the slot");
    end(&mut machine, 1);
    assert_eq!(told(&mut machine), [4, 3], "5 is being served");
    end(&mut machine, 2);
    assert!(
        told(&mut machine).is_empty(),
        "no other neighbour was refused"
    );
}

#[test]
fn an_upload_that_took_no_slot_tells_of_none() {
    let mut machine = seeding(8);
    let slots = machine.slots();
    for peer in 0..slots - 1 {
        request(&mut machine, peer);
    }
    end(&mut machine, 7);
    assert!(told(&mut machine).is_empty(), "no neighbour was refused");
    for peer in slots - 1..slots + 2 {
        request(&mut machine, peer);
    }
    end(&mut machine, 7);
    assert!(told(&mut machine).is_empty(), "the upload is unknown");
    end(&mut machine, 0);
    assert_eq!(told(&mut machine), [slots + 1, slots]);
}

#[test]
fn neighbours_that_left_are_not_told_and_their_slots_are_free() {
    let mut machine = seeding(8);
    let slots = machine.slots();
    for peer in 0..slots + 2 {
        request(&mut machine, peer);
    }
    let gone = PeerSlot(slots + 1);
    machine.handle(ms(2), Input::Disconnected { peer: gone });
    assert!(told(&mut machine).is_empty(), "it held no slot");
    machine.handle(ms(2), Input::Disconnected { peer: PEER });
    assert_eq!(told(&mut machine), [slots]);
}

/// A machine that lacks two chunks, of which the neighbours hold the first, and whose request for
/// it was answered with a refusal by the first neighbour and a failure by the second.
fn refused_and_failed() -> PeerMachine {
    let mut machine = wanting(2);
    for peer in [PEER, PeerSlot(1)] {
        let mut first = HaveBatch::default();
        first.push(0);
        connect(&mut machine, ms(0), peer, HeldChunks::Chunks(first));
        let (transfer, source) = fetched_from(&mut machine).expect("the neighbour is asked");
        assert_eq!(source, peer);
        let answer = if peer == PEER {
            let reason = RefusalReason::Busy;
            Input::Refused { transfer, reason }
        } else {
            let why = DownloadFailure::Timeout;
            Input::Failed { transfer, why }
        };
        machine.handle(ms(1), answer);
    }
    assert_eq!(fetched_from(&mut machine), None);
    machine
}

#[test]
fn a_busy_neighbour_is_asked_again_when_it_has_a_free_slot() {
    let mut machine = refused_and_failed();
    machine.handle(ms(2), Input::SlotFree { peer: PeerSlot(1) });
    assert_eq!(fetched_from(&mut machine), None, "it did not deliver");
    machine.handle(ms(2), Input::SlotFree { peer: PeerSlot(9) });
    assert_eq!(fetched_from(&mut machine), None, "it is not connected");
    machine.handle(ms(2), Input::SlotFree { peer: PEER });
    let (transfer, source) = fetched_from(&mut machine).expect("it is asked");
    assert_eq!(source, PEER);
    let why = DownloadFailure::Link;
    machine.handle(ms(3), Input::Failed { transfer, why });
    machine.handle(ms(3), Input::SlotFree { peer: PEER });
    assert_eq!(fetched_from(&mut machine), None, "it was not busy");
}

#[test]
fn a_busy_neighbour_that_failed_before_is_asked_again_when_it_has_a_free_slot() {
    let mut machine = refused_and_failed();
    machine.handle(ms(2), Input::Disconnected { peer: PEER });
    machine.handle_timeout(ms(101));
    let (transfer, source) = fetched_from(&mut machine).expect("its pause is over");
    assert_eq!(source, PeerSlot(1));
    let reason = RefusalReason::Busy;
    machine.handle(ms(102), Input::Refused { transfer, reason });
    machine.handle(ms(102), Input::SlotFree { peer: source });
    let again = fetched_from(&mut machine).map(|(_, source)| source);
    assert_eq!(again, Some(source));
}

#[test]
fn a_busy_neighbour_is_asked_again_after_a_few_chunk_times() {
    let mut machine = refused_and_failed();
    let chunk_time = Duration::from_nanos((1 << 18) * 8);
    machine.handle_timeout(ms(1) + chunk_time * 5 - Duration::from_nanos(1));
    assert_eq!(fetched_from(&mut machine), None);
    machine.handle_timeout(ms(1) + chunk_time * 5);
    let source = fetched_from(&mut machine).map(|(_, source)| source);
    assert_eq!(source, Some(PEER));
}

#[test]
fn the_neighbour_that_delivered_is_asked_for_the_next_chunk() {
    let mut machine = wanting(CHUNKS);
    for peer in (0..16).map(PeerSlot) {
        connect(&mut machine, ms(0), peer, HeldChunks::Complete);
    }
    let fetches = fetches_from_peers(&mut machine);
    assert_eq!(fetches.len(), machine.slots() as usize);
    for (transfer, source) in fetches {
        machine.handle(ms(2), Input::Received { transfer });
        let next = fetched_from(&mut machine).map(|(_, source)| source);
        assert_eq!(next, Some(source));
    }
}

/// A request of a neighbour for a chunk. Whether it is served.
fn request_chunk(machine: &mut PeerMachine, peer: u32, chunk: u32) -> bool {
    let upload = UploadId((u64::from(peer) << 32) | u64::from(chunk));
    let request = Input::UploadRequest {
        peer: PeerSlot(peer),
        blob: BLOB,
        chunk,
        upload,
    };
    machine.handle(ms(1), request);
    outputs(machine).contains(&Output::Serve { upload })
}

#[test]
fn one_neighbour_does_not_get_all_upload_slots() {
    let mut machine = seeding(2);
    assert!(machine.slots() > 2);
    let served: Vec<bool> = (0..3)
        .map(|chunk| request_chunk(&mut machine, 0, chunk))
        .collect();
    assert_eq!(served, [true, true, false]);
    assert!(request_chunk(&mut machine, 1, 0));
}

#[test]
fn slow_upload_frees_its_slot() {
    let slots = PeerMachine::new(SwarmConfig::default(), 1).slots();
    let mut machine = seeding(32);
    for peer in 0..slots {
        assert!(request_chunk(&mut machine, peer, 0));
    }
    assert!(!request_chunk(&mut machine, slots, 0));
    // Neighbour 0 takes nothing. The others take four chunks: more than 6 x 2 quarters of one.
    for chunk in 0..4 {
        let peer = 1 + chunk % (slots - 1);
        let upload = UploadId((u64::from(peer) << 32) | u64::from(chunk / (slots - 1)));
        let progress = Input::UploadProgress {
            upload,
            sent: 1 << 18,
        };
        machine.handle(ms(2), progress);
        machine.handle(ms(3), Input::UploadEnded { upload });
        outputs(&mut machine);
        assert!(request_chunk(&mut machine, peer, chunk / (slots - 1) + 1));
    }
    assert!(request_chunk(&mut machine, slots, 0), "beside the slow one");
    assert!(!request_chunk(&mut machine, slots + 1, 0));
}
