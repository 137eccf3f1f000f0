//! Saved states of unfinished hashes, as read from the origin's storage: BLAKE3 trees and SHA-2.
#![no_main]

use flotilla_common::chunk::PART_SIZE;
use flotilla_common::digest::{Algorithm, DigestHasher};
use flotilla_common::hash_tree::{TreeHasher, TreeState};
use flotilla_fuzz::round_trip;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        if let Ok(mut hasher) = DigestHasher::from_midstate(algorithm, bytes) {
            hasher.update(bytes);
            let _ = hasher.finish();
        }
    }
    let Some(state) = round_trip::<TreeState>(bytes) else {
        return;
    };
    let covered = state.covered();
    if let Ok(mut hasher) = TreeHasher::from_state(state, &bytes[..bytes.len().min(64)]) {
        assert!(hasher.len() >= covered);
        hasher.update(bytes);
        assert!(hasher.state().covered() <= hasher.len());
        assert!(hasher.len() - hasher.tail_len() <= hasher.len() && hasher.tail_len() <= PART_SIZE);
        let _ = hasher.finish();
    }
});
