//! A peer's disk is full, or changes its bytes behind the peer's back.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::harness::disk::SmallDisk;
use crate::harness::lab::{LabScene, SLOW_SIZE, slow_peers, slow_region};

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_a_peer_is_full() {
    let Some(disk) = SmallDisk::mount("the disk of a peer is full", "4m") else { return };
    let mut peers = slow_peers(3);
    peers[0].store = Some(disk.path().join("store"));
    let mut scene = LabScene::of(slow_region(), SLOW_SIZE, &peers).await;
    scene.lab.expect_error("the store cannot take a blob");
    for pull in scene.pull_everywhere() {
        scene.completes(pull).await;
    }
    let stats = scene.lab.stats(0).await.unwrap();
    assert!(stats.bytes_passed_through > 0, "what the store cannot take goes past it");
    scene.lab.end().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_corrupted_behind_the_peers_back() {
    let scene = LabScene::of(slow_region(), SLOW_SIZE, &slow_peers(2)).await;
    scene.completes(scene.pull(0)).await;
    corrupt_blobs(&scene.lab.dir().join("stores/peer-1/blobs"));
    // The client checks every blob's digest, as a container runtime does.
    scene.completes(scene.pull(1)).await;
    scene.completes(scene.pull(0)).await;
    for peer in 0..2 {
        let stats = scene.lab.stats(peer).await.unwrap();
        assert_eq!(stats.corrupt_chunks, 0, "damaged bytes left the machine that they were damaged on");
        assert_eq!(stats.quarantined_peers, 0, "a damaged disk is no lie");
    }
}

/// Changes a byte in every 100,000 of each blob in a store, where it lies.
fn corrupt_blobs(store: &Path) {
    let mut changed = 0;
    for entry in fs::read_dir(store).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some() {
            continue;
        }
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        for offset in (50..len).step_by(100_000) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.write_all(&[byte[0] ^ 0x10]).unwrap();
            changed += 1;
        }
    }
    assert!(changed > 100, "there was something to damage");
}
