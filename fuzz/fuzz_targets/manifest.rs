//! A manifest or index: JSON from clients that push, read by origins and peers.
#![no_main]

use std::collections::HashSet;

use flotilla_common::manifest::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::parse(bytes) else {
        return;
    };
    let blobs = manifest.blobs();
    let digests: HashSet<_> = blobs.iter().map(|blob| blob.digest).collect();
    assert_eq!(digests.len(), blobs.len(), "each blob is listed once");
    let _ = manifest.is_index();
});
