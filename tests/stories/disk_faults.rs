//! The disk of an origin or a peer is full, or corrupts a peer's store.

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

use crate::harness::lab::{SLOW_SIZE, TestLab, slow_peers, slow_region};
use crate::harness::small_disk::SmallDisk;

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_of_a_peer_does_not_fail_pulls() {
    let Some(disk) = SmallDisk::mount("the full disk of a peer", "4m") else {
        return;
    };
    let mut peers = slow_peers(3);
    peers[0].store = Some(disk.path().join("store"));
    let mut lab = TestLab::with_plan(slow_region(), SLOW_SIZE, &peers).await;
    lab.expect_error("the store cannot take a blob");
    for pull in lab.pull_everywhere() {
        lab.finish_pull(pull).await;
    }
    let stats = lab.stats(0).await.unwrap();
    assert!(
        stats.bytes_passed_through > 0,
        "blobs that the store cannot take are passed through"
    );
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupted_store_is_detected_and_not_served() {
    let lab = TestLab::with_plan(slow_region(), SLOW_SIZE, &slow_peers(2)).await;
    lab.finish_pull(lab.pull(0)).await;
    corrupt_blobs(&lab.dir().join("stores/peer-1/blobs"));
    // The client verifies every digest, as a container runtime does.
    lab.finish_pull(lab.pull(1)).await;
    lab.finish_pull(lab.pull(0)).await;
    for peer in 0..2 {
        let stats = lab.stats(peer).await.unwrap();
        assert_eq!(
            stats.corrupt_chunks, 0,
            "corrupt chunks were sent to the other peer"
        );
        assert_eq!(
            stats.quarantined_peers, 0,
            "a damaged disk must not quarantine its peer"
        );
    }
}

/// Flips a bit in every 100,000th byte of all blobs in a store.
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
    assert!(changed > 100, "the store had blobs to corrupt");
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_of_an_origin_is_507() {
    let Some(disk) = SmallDisk::mount("the full disk of an origin", "4m") else {
        return;
    };
    let storage = disk.path().join("origin");
    let region = "eu-1".parse().unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
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
        let response = push(vec![2; 6 << 20].into()).await;
        assert_eq!(response.status(), StatusCode::INSUFFICIENT_STORAGE);
        let message = response.text().await.unwrap();
        assert!(
            message.contains("STORAGE_FULL") && message.contains("the change was not made"),
            "{message}"
        );
    }
    assert_eq!(
        fs::read_dir(storage.join(".tmp")).unwrap().count(),
        0,
        "no partial file remains"
    );
    // Acknowledged blobs are still there, and blobs that fit are accepted.
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
        report.is_complete() && report.leftovers.count == 0,
        "{report:?}"
    );
    origin.shutdown().await;
}
