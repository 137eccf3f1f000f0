//! Decodes every file of the corpora in `fuzz/corpus`, unchanged and mutated: no decoder panics,
//! and each decoded message survives encoding and decoding. The corpora contain the inputs on which
//! fuzzing failed, so this is their regression test.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "the test reads the corpora")]

use std::fs;
use std::path::Path;

use bincode::{Decode, Encode};
use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::codec;
use flotilla_common::digest::{Algorithm, DigestHasher};
use flotilla_common::grant::Grant;
use flotilla_common::hash_tree::{TreeHasher, TreeState};
use flotilla_common::manifest::Manifest;
use flotilla_common::proof::Proof;
use flotilla_common::seal::TrustedKeys;
use flotilla_common::wire::frame::{HEADER_LEN, Header, Message};
use flotilla_common::wire::origin::{ClosureAnswer, ClosureRequest};
use flotilla_common::wire::peer::{Chunk, Control};
use flotilla_common::wire::tracker::{
    AnnounceAnswer, AnnounceRequest, LeaseAnswer, LeaseRequest, v1,
};
use proptest::prelude::*;

fn corpus() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut files: Vec<_> = fs::read_dir(corpus)
        .unwrap()
        .flat_map(|target| fs::read_dir(target.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    files.sort_unstable();
    files
        .into_iter()
        .map(|file| fs::read(file).unwrap())
        .collect()
}

/// Decodes a value, encodes it, decodes it again and compares. `None` if the bytes are not valid.
fn round_trip<T: Encode + Decode<()> + PartialEq + core::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let value = codec::decode::<T>(bytes).ok()?;
    assert_eq!(
        codec::decode::<T>(&codec::encode(&value).unwrap()).unwrap(),
        value
    );
    Some(value)
}

/// 1 if the bytes begin with a valid frame of this kind of message, which survives a round trip.
fn count_framed<M: Message + PartialEq + core::fmt::Debug>(bytes: &[u8]) -> usize {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return 0;
    };
    let Ok(header) = Header::parse(*header) else {
        return 0;
    };
    let Ok(Some(message)) = M::decode(header.kind, body) else {
        return 0;
    };
    let (kind, body) = message.encode().unwrap();
    assert_eq!(M::decode(kind, &body).unwrap(), Some(message));
    1
}

/// Runs every decoder on the bytes and returns how many accepted them.
fn count_accepting(bytes: &[u8]) -> usize {
    let mut accepted = count_framed::<Control>(bytes) + count_framed::<Chunk>(bytes);
    accepted += usize::from(
        Manifest::parse(bytes).is_ok_and(|manifest| manifest.blobs().len() < usize::MAX),
    );
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        accepted += usize::from(DigestHasher::from_midstate(algorithm, bytes).is_ok());
    }
    // In some corpora the first byte selects the message type.
    for bytes in [bytes, bytes.get(1..).unwrap_or_default()] {
        accepted += usize::from(round_trip::<AnnounceRequest>(bytes).is_some());
        accepted += usize::from(round_trip::<AnnounceAnswer>(bytes).is_some());
        accepted += usize::from(round_trip::<v1::AnnounceRequest>(bytes).is_some());
        accepted += usize::from(round_trip::<v1::AnnounceAnswer>(bytes).is_some());
        accepted += usize::from(round_trip::<LeaseRequest>(bytes).is_some());
        accepted += usize::from(round_trip::<LeaseAnswer>(bytes).is_some());
        accepted += usize::from(round_trip::<ClosureRequest>(bytes).is_some());
        accepted += usize::from(round_trip::<ClosureAnswer>(bytes).is_some());
        accepted += usize::from(round_trip::<ChunkMap>(bytes).is_some());
        accepted += usize::from(round_trip::<Grant>(bytes).is_some());
        if let Some(proof) = round_trip::<Proof>(bytes) {
            let _ = proof.check(&TrustedKeys::none());
            accepted += 1;
        }
        if let Some(state) = round_trip::<TreeState>(bytes) {
            let _ = state.covered();
            let _ = TreeHasher::from_state(state, bytes).map(TreeHasher::finish);
            accepted += 1;
        }
    }
    accepted
}

#[test]
fn every_corpus_message_is_accepted_by_a_decoder() {
    let corpus = corpus();
    assert!(corpus.len() > 30, "corpora are missing");
    let accepted = corpus
        .iter()
        .filter(|bytes| count_accepting(bytes) > 0)
        .count();
    // The corpus of texts has no binary messages.
    assert!(accepted >= 25, "{accepted} of {}", corpus.len());
}

proptest! {
    #[test]
    fn mutated_messages_do_not_panic(
        file: prop::sample::Index,
        replaced_bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        truncate_at in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = file.get(&corpus()).clone();
        for (position, byte) in replaced_bytes {
            let position = position.index(bytes.len());
            bytes[position] = byte;
        }
        if let Some(length) = truncate_at {
            bytes.truncate(length.index(bytes.len()));
        }
        count_accepting(&bytes);
    }
}
