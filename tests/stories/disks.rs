//! An origin's or a peer's disk is full, or changes its bytes behind the peer's back.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use std::sync::Arc;

use bytes::Bytes;
use flotilla::client::http_client;
use flotilla_common::digest::Digest;
use flotilla_common::seal::SealKey;
use flotilla_origin::check::check;
use flotilla_origin::storage::LocalDirectory;
use flotilla_origin::{Config, Origin};
use flotilla_runtime::clock::Clock;
use reqwest::StatusCode;

use crate::harness::disk::SmallDisk;
use crate::harness::lab_scene::{LabScene, SLOW_SIZE, slow_peers, slow_region};

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_a_peer_is_full() {
    let Some(disk) = SmallDisk::mount("the disk of a peer is full", "4m") else {
        return;
    };
    let mut peers = slow_peers(3);
    peers[0].store = Some(disk.path().join("store"));
    let mut scene = LabScene::of(slow_region(), SLOW_SIZE, &peers).await;
    scene.lab.expect_error("the store cannot take a blob");
    for pull in scene.pull_everywhere() {
        scene.completes(pull).await;
    }
    let stats = scene.lab.stats(0).await.unwrap();
    assert!(
        stats.bytes_passed_through > 0,
        "what the store cannot take goes past it"
    );
    scene.lab.finish().unwrap();
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
        assert_eq!(
            stats.corrupt_chunks, 0,
            "damaged bytes left the machine that they were damaged on"
        );
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

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_an_origin_is_full() {
    let Some(disk) = SmallDisk::mount("the disk of an origin is full", "4m") else {
        return;
    };
    let storage = disk.path().join("origin");
    let (region, listen) = ("eu-1".parse().unwrap(), "127.0.0.1:0".parse().unwrap());
    let seal_key = SealKey::from_secret("eu-1".parse().unwrap(), &[7; 32]);
    let config = Config::new(
        listen,
        format!("file://{}", storage.display()),
        region,
        seal_key,
        Clock::system(),
    );
    let origin = Origin::start(config).await.unwrap();
    let push = |bytes: Bytes| {
        let url = format!(
            "http://{}/v2/app/blobs/uploads/?digest={}",
            origin.addr(),
            Digest::sha256(&bytes)
        );
        async move {
            http_client()
                .unwrap()
                .post(url)
                .body(bytes)
                .send()
                .await
                .unwrap()
        }
    };
    let small = Bytes::from(vec![1; 1 << 20]);
    assert_eq!(push(small.clone()).await.status(), StatusCode::CREATED);
    for _ in 0..3 {
        let answer = push(vec![2; 6 << 20].into()).await;
        assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
        let message = answer.text().await.unwrap();
        assert!(
            message.contains("STORAGE_FULL") && message.contains("nothing was written"),
            "{message}"
        );
    }
    assert_eq!(
        fs::read_dir(storage.join(".tmp")).unwrap().count(),
        0,
        "nothing half-written stays"
    );
    // What was acknowledged is there, and what fits is taken.
    assert_eq!(
        push(vec![3; 1 << 20].into()).await.status(),
        StatusCode::CREATED
    );
    let url = format!(
        "http://{}/v2/app/blobs/{}",
        origin.addr(),
        Digest::sha256(&small)
    );
    let pulled = http_client()
        .unwrap()
        .get(url)
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert!(pulled == small);
    let report = check(Arc::new(LocalDirectory::open(&storage).unwrap()), true)
        .await
        .unwrap();
    assert!(
        report.is_sound() && report.leftovers.count == 0,
        "{report:?}"
    );
    origin.shutdown().await;
}
