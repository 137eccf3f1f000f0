//! Recordings of the machines of real peers in a burst, replayed.

use std::path::Path;

use flotilla_common::recording::{ReplayError, replay};
use flotilla_peer::Config;

use crate::harness::{Fleet, pull, random_bytes};

/// The number of an entry's kind, which follows the length and the version of its encoding.
const INPUT: u8 = 1;
const OUTPUT: u8 = 3;
const KIND: usize = 5;

/// Three peers pull an image at once. Their recordings are in folders of `dir`.
async fn record_burst(dir: &Path) {
    let fleet = Fleet::new().await;
    let image = vec![random_bytes(700, 1), random_bytes(5 << 20, 2)];
    fleet.origin.push(&image);
    let mut peers = Vec::new();
    for name in ["vm-1", "vm-2", "vm-3"] {
        let config = Config {
            record: Some(dir.join(name)),
            ..fleet.config(name)
        };
        peers.push(fleet.start(config).await);
    }
    let pulls = futures_util::future::join_all(peers.iter().map(pull)).await;
    assert!(pulls.iter().all(|pulled| *pulled == image));
    for peer in peers {
        peer.shutdown().await;
    }
}

/// A recording without the last input to which the machine had an answer.
fn without_an_input(recording: &[u8]) -> Vec<u8> {
    let line = recording.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let (line, mut rest) = recording.split_at(line);
    let mut entries = Vec::new();
    while let Some(len) = rest.first_chunk() {
        let (entry, next) = rest.split_at(4 + u32::from_le_bytes(*len) as usize);
        entries.push(entry);
        rest = next;
    }
    let answered = entries
        .windows(2)
        .rposition(|pair| pair[0][KIND] == INPUT && pair[1][KIND] == OUTPUT);
    entries.remove(answered.unwrap());
    [line, &entries.concat()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_burst_replays_to_the_same_outputs() {
    let dir = tempfile::tempdir().unwrap();
    record_burst(dir.path()).await;
    for name in ["vm-1", "vm-2", "vm-3"] {
        for (machine, least) in [("peer", 60), ("session", 10)] {
            let path = dir.path().join(name).join(format!("{machine}.recording"));
            let recording = std::fs::read(path).unwrap();
            let replayed = replay(&recording).unwrap();
            assert_eq!(replayed.machine, machine);
            assert!(replayed.inputs >= least, "{replayed:?}");
            assert!(replayed.outputs >= least / 2, "{replayed:?}");
            let error = replay(&without_an_input(&recording)).unwrap_err();
            assert!(matches!(error, ReplayError::Differs { .. }), "{error}");
        }
    }
}
