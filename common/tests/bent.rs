//! Every message of the corpora in `fuzz/corpus`, as it is and bent: nothing panics, and what is
//! decoded is encoded and decoded again as the same. Inputs that fuzzing found are in the corpora,
//! so this also is their regression test.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a test reads its examples")]

use std::fs;
use std::path::Path;

use bincode::{Decode, Encode};
use flotilla_common::codec;
use flotilla_common::digest::{Algorithm, DigestHasher};
use flotilla_common::grant::Grant;
use flotilla_common::manifest::Manifest;
use flotilla_common::map::ChunkMap;
use flotilla_common::proof::Proof;
use flotilla_common::seal::TrustedKeys;
use flotilla_common::tree::{TreeHasher, TreeState};
use flotilla_common::wire::frame::{HEADER_LEN, Header, Message};
use flotilla_common::wire::origin::{ClosureAnswer, ClosureRequest};
use flotilla_common::wire::peer::{Chunk, Control};
use flotilla_common::wire::tracker::{AnnounceAnswer, AnnounceRequest, LeaseAnswer, LeaseRequest};
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

/// The value, if the bytes are one; it survives another round.
fn round_trip<T: Encode + Decode<()> + PartialEq + core::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let value = codec::decode::<T>(bytes).ok()?;
    assert_eq!(
        codec::decode::<T>(&codec::encode(&value).unwrap()).unwrap(),
        value
    );
    Some(value)
}

fn framed<M: Message + PartialEq + core::fmt::Debug>(bytes: &[u8]) -> usize {
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

/// Hands the bytes to everything that reads bytes; how many took them.
fn decode_all(bytes: &[u8]) -> usize {
    let mut taken = framed::<Control>(bytes) + framed::<Chunk>(bytes);
    taken += usize::from(
        Manifest::parse(bytes).is_ok_and(|manifest| manifest.blobs().len() < usize::MAX),
    );
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        taken += usize::from(DigestHasher::from_midstate(algorithm, bytes).is_ok());
    }
    // In some corpora a byte in front says which message it is.
    for bytes in [bytes, bytes.get(1..).unwrap_or_default()] {
        taken += usize::from(round_trip::<AnnounceRequest>(bytes).is_some());
        taken += usize::from(round_trip::<AnnounceAnswer>(bytes).is_some());
        taken += usize::from(round_trip::<LeaseRequest>(bytes).is_some());
        taken += usize::from(round_trip::<LeaseAnswer>(bytes).is_some());
        taken += usize::from(round_trip::<ClosureRequest>(bytes).is_some());
        taken += usize::from(round_trip::<ClosureAnswer>(bytes).is_some());
        taken += usize::from(round_trip::<ChunkMap>(bytes).is_some());
        taken += usize::from(round_trip::<Grant>(bytes).is_some());
        if let Some(proof) = round_trip::<Proof>(bytes) {
            let _ = proof.check(&TrustedKeys::none());
            taken += 1;
        }
        if let Some(state) = round_trip::<TreeState>(bytes) {
            let _ = state.covered();
            let _ = TreeHasher::from_state(state, bytes).map(TreeHasher::finish);
            taken += 1;
        }
    }
    taken
}

#[test]
fn every_example_is_taken_by_somebody() {
    let corpus = corpus();
    assert!(corpus.len() > 30, "the corpora are there");
    let taken = corpus.iter().filter(|bytes| decode_all(bytes) > 0).count();
    // All but the texts.
    assert!(taken >= 25, "{taken} of {}", corpus.len());
}

proptest! {
    #[test]
    fn a_bent_example_is_decoded_or_refused(
        which: prop::sample::Index,
        bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = which.get(&corpus()).clone();
        for (place, byte) in bends {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        decode_all(&bytes);
    }
}
