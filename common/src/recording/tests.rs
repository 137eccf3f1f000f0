//! A machine is recorded in memory and replayed.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use core::time::Duration;
use std::sync::{Arc, Mutex};

use super::*;
use crate::chunk::Geometry;
use crate::chunk_map::ChunkMap;
use crate::swarm::{
    BlobSlot, HeldChunks, Input, Nearness, PeerFacts, PeerMachine, PeerSlot, SwarmConfig,
};

/// The number of an entry's kind, which follows the length and the version of its encoding.
const INPUT: u8 = 1;
const OUTPUT: u8 = 3;
const BLOB: BlobSlot = BlobSlot(0);
const PEER: PeerFacts = PeerFacts {
    peer: PeerSlot(3),
    nearness: Nearness::SameZone,
};

/// Memory that takes a limited number of bytes.
#[derive(Clone, Debug)]
struct Memory(Arc<Mutex<Vec<u8>>>, usize);

impl Memory {
    fn new(limit: usize) -> Self {
        Self(Arc::default(), limit)
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Sink for Memory {
    fn write(&mut self, bytes: &[u8]) -> bool {
        let mut written = self.0.lock().unwrap();
        let fits = written.len() + bytes.len() <= self.1;
        if fits {
            written.extend_from_slice(bytes);
        }
        fits
    }
}

/// A peer that connects to a neighbour, and fetches its chunks in an order that depends on the
/// seed.
fn exchange(sink: Memory, rng_seed: u64) {
    let setup = (SwarmConfig::default(), rng_seed);
    let mut machine = Recorded::<PeerMachine>::new(setup, Some(Box::new(sink)));
    let geometry = Geometry::for_size(40 << 20);
    let mut half = ChunkMap::empty(geometry.chunks());
    (0..geometry.chunks() / 2).for_each(|chunk| {
        half.insert(chunk);
    });
    let inputs = [
        Input::TrackerReachable,
        Input::AddBlob {
            blob: BLOB,
            geometry,
            held: ChunkMap::empty(geometry.chunks()),
        },
        Input::Want { blob: BLOB },
        Input::Handout {
            blob: BLOB,
            peers: vec![PEER],
        },
        Input::Connected {
            facts: PEER,
            round_trip: Duration::from_millis(1),
        },
        Input::Have {
            peer: PEER.peer,
            blob: BLOB,
            have: HeldChunks::Map(half),
        },
    ];
    for (input, number) in inputs.into_iter().zip(1..) {
        let now = Time::from_nanos(number * 1_000_000);
        machine.handle(now, input);
        while machine.poll_output().is_some() {}
    }
    let later = Time::from_nanos(10_000_000_000);
    machine.handle_timeout(later);
    while machine.poll_output().is_some() {}
}

fn recorded(rng_seed: u64) -> Vec<u8> {
    let memory = Memory::new(1 << 20);
    exchange(memory.clone(), rng_seed);
    memory.bytes()
}

#[test]
fn replay_makes_the_recorded_outputs() {
    let replayed = replay(&recorded(1)).unwrap();
    assert_eq!(replayed.machine, "peer");
    assert_eq!(replayed.inputs, 7);
    assert!(replayed.outputs > 5, "{replayed:?}");
    assert_eq!(replayed.until, Time::from_nanos(10_000_000_000));
}

/// The first line of a recording, and its entries with their lengths.
fn frames(recording: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let line = recording.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let (line, mut rest) = recording.split_at(line);
    let mut frames = Vec::new();
    while let Some(len) = rest.first_chunk() {
        let (frame, next) = rest.split_at(4 + u32::from_le_bytes(*len) as usize);
        frames.push(frame.to_vec());
        rest = next;
    }
    (line.to_vec(), frames)
}

#[test]
fn missing_input_other_seed_and_missing_output_are_noticed() {
    let differs = |line: &[u8], frames: &[Vec<u8>]| {
        let error = replay(&[line, &frames.concat()].concat()).unwrap_err();
        assert!(matches!(error, ReplayError::Differs { .. }), "{error}");
        error.to_string()
    };
    let (line, recorded) = frames(&recorded(1));
    // The twin does not learn what its neighbour holds.
    let mut without_have = recorded.clone();
    let have = recorded
        .iter()
        .rposition(|frame| frame[5] == INPUT)
        .unwrap();
    without_have.remove(have);
    assert!(differs(&line, &without_have).contains("replayed: none"));
    // The twin chooses other chunks.
    let mut other_seed = recorded.clone();
    *other_seed[0].last_mut().unwrap() += 1;
    differs(&line, &other_seed);
    // The twin asks for something that the recorded machine did not ask for.
    let mut without_output = recorded.clone();
    let output = recorded
        .iter()
        .position(|frame| frame[5] == OUTPUT)
        .unwrap();
    without_output.remove(output);
    differs(&line, &without_output);
}

#[test]
fn cut_off_recording_is_replayed_as_far_as_it_goes() {
    let whole = recorded(1);
    let inputs = replay(&whole).unwrap().inputs;
    let cut = replay(&whole[..whole.len() - 9]).unwrap();
    assert!(cut.inputs <= inputs && cut.inputs > 0, "{cut:?}");
    // A sink that is full ends the recording, not the machine.
    let memory = Memory::new(whole.len() / 2);
    exchange(memory.clone(), 1);
    let half = replay(&memory.bytes()).unwrap();
    assert!(half.inputs < inputs, "{half:?}");
}

#[test]
fn other_bytes_are_refused() {
    let refused = |bytes: &[u8]| replay(bytes).unwrap_err();
    assert!(matches!(refused(b""), ReplayError::NotARecording));
    assert!(matches!(refused(b"\n"), ReplayError::NotARecording));
    let origin = format!("{MAGIC}origin\n");
    assert!(matches!(
        refused(origin.as_bytes()),
        ReplayError::UnknownMachine(name) if name == "origin"
    ));
    let mut altered = recorded(1);
    let setup = format!("{MAGIC}peer\n").len() + 4;
    altered[setup] ^= 0xff;
    assert!(matches!(
        refused(&altered),
        ReplayError::Entry { entry: 0, .. }
    ));
}
