//! What becomes of a store that is damaged behind its back, shared by many at once, or given less
//! room than it had.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::os::unix::fs::FileExt;
use std::sync::Barrier;

use flotilla_common::chunk::PART_SIZE;
use flotilla_common::seal::SealKey;

use super::tests::{Sample, hold, sample, sample_of};
use super::*;

const ROOM: ByteSize = ByteSize(1 << 30);

fn data(dir: &Path, sample: &Sample) -> PathBuf {
    meta::data_path(&dir.join("blobs"), sample.proof.digest())
}

/// A store in `dir` that held these blobs, complete, when it was closed.
async fn closed_store(dir: &Path, samples: &[&Sample]) {
    let store = Store::open(dir, ROOM, &samples[0].trusted).unwrap();
    for sample in samples {
        fill(&store, sample).await;
        // One after the other, so that they differ in age.
        store.save();
    }
}

async fn fill(store: &Store, sample: &Sample) -> Pin {
    let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
    for chunk in 0..sample.geometry.chunks() {
        hold(sample, pin.blob(), chunk).await;
    }
    assert!(pin.blob().check_digest().await.unwrap());
    pin.blob().complete();
    pin
}

/// Reads all of a blob: every byte is right, or the store says which chunk it has lost. The chunks
/// lost.
async fn lost(store: &Store, sample: &Sample) -> Vec<u32> {
    let blob = store.get(sample.proof.digest()).unwrap();
    let mut lost = Vec::new();
    for chunk in 0..sample.geometry.chunks() {
        let range = sample.geometry.chunk_range(chunk);
        match blob.read(range.clone()).await {
            Ok(bytes) => assert_eq!(
                bytes,
                sample.bytes.slice(range.start as usize..range.end as usize)
            ),
            Err(StoreError::Doubtful { chunk, .. }) => lost.push(chunk),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(
            blob.chunk(chunk).await.unwrap().is_some(),
            !lost.contains(&chunk)
        );
    }
    assert_eq!(blob.is_complete(), lost.is_empty());
    lost
}

/// Fetches again what was lost: the blob is whole as before.
async fn heals(store: &Store, sample: &Sample, lost: &[u32]) {
    let blob = store.get(sample.proof.digest()).unwrap();
    for chunk in lost {
        hold(sample, &blob, *chunk).await;
    }
    assert!(blob.held().is_full() && blob.check_digest().await.unwrap());
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[tokio::test]
async fn flipped_bits_are_found_and_only_their_chunks_lost() {
    let (dir, sample) = (tempfile::tempdir().unwrap(), sample(0));
    closed_store(dir.path(), &[&sample]).await;
    flip(&data(dir.path(), &sample), PART_SIZE + 9);
    let store = Store::open(dir.path(), ROOM, &sample.trusted).unwrap();
    assert_eq!(lost(&store, &sample).await, [1]);
    heals(&store, &sample, &[1]).await;
}

#[tokio::test]
async fn bits_that_flip_while_the_peer_runs_are_found_at_the_next_read() {
    let (dir, [large, small]) = (
        tempfile::tempdir().unwrap(),
        [sample(0), sample_of(1, 1000)],
    );
    let store = Store::open(dir.path(), ROOM, &large.trusted).unwrap();
    let _pins = [fill(&store, &large).await, fill(&store, &small).await];
    for sample in [&large, &small] {
        flip(&data(dir.path(), sample), 7);
        assert_eq!(lost(&store, sample).await, [0]);
        heals(&store, sample, &[0]).await;
    }
}

#[tokio::test]
async fn a_file_cut_short_while_the_peer_runs_is_filled_again() {
    let (dir, sample) = (tempfile::tempdir().unwrap(), sample(0));
    let store = Store::open(dir.path(), ROOM, &sample.trusted).unwrap();
    let _pin = fill(&store, &sample).await;
    File::options()
        .write(true)
        .open(data(dir.path(), &sample))
        .unwrap()
        .set_len(PART_SIZE + 5)
        .unwrap();
    assert_eq!(lost(&store, &sample).await, [1, 2]);
    heals(&store, &sample, &[1, 2]).await;
}

#[tokio::test]
async fn a_file_that_is_deleted_or_cut_before_it_is_opened_is_made_anew() {
    let sample = sample(0);
    for delete in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        closed_store(dir.path(), &[&sample]).await;
        let store = Store::open(dir.path(), ROOM, &sample.trusted).unwrap();
        let path = data(dir.path(), &sample);
        if delete {
            fs::remove_file(&path).unwrap();
        } else {
            File::create(&path).unwrap();
        }
        assert_eq!(lost(&store, &sample).await, [0, 1, 2]);
        heals(&store, &sample, &[0, 1, 2]).await;
    }
}

#[tokio::test]
async fn a_blob_whose_files_do_not_fit_each_other_is_not_taken_up() {
    let [left, right] = [sample(0), sample_of(1, 3 * PART_SIZE as usize)];
    type Damage = fn(&Path, &Path);
    let damages: [Damage; 5] = [
        |left, _| fs::remove_file(left).unwrap(),
        |left, _| {
            File::options()
                .write(true)
                .open(left)
                .unwrap()
                .set_len(5)
                .unwrap()
        },
        |left, right| {
            assert!(fs::copy(meta::record_path(right), meta::record_path(left)).unwrap() > 0)
        },
        |left, right| assert!(fs::copy(right, left).unwrap() > 0),
        |left, _| flip(&meta::record_path(left), 40),
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        closed_store(dir.path(), &[&left, &right]).await;
        damage(&data(dir.path(), &left), &data(dir.path(), &right));
        let store = Store::open(dir.path(), ROOM, &left.trusted).unwrap();
        assert!(store.get(left.proof.digest()).is_none());
        assert!(!data(dir.path(), &left).exists(), "nothing is left of it");
        assert!(
            lost(&store, &right).await.is_empty(),
            "its neighbour is as it was"
        );
        assert_eq!(store.bytes(), right.geometry.size());
    }
}

#[tokio::test]
async fn files_of_two_blobs_of_one_size_that_were_swapped_are_found_out() {
    let (dir, [left, right]) = (tempfile::tempdir().unwrap(), [sample(0), sample(1)]);
    closed_store(dir.path(), &[&left, &right]).await;
    let (here, there) = (data(dir.path(), &left), data(dir.path(), &right));
    let aside = dir.path().join("aside");
    for (from, to) in [(&here, &aside), (&there, &here), (&aside, &there)] {
        fs::rename(from, to).unwrap();
    }
    let store = Store::open(dir.path(), ROOM, &left.trusted).unwrap();
    for sample in [&left, &right] {
        assert_eq!(lost(&store, sample).await, [0, 1, 2]);
        heals(&store, sample, &[0, 1, 2]).await;
    }
}

#[tokio::test]
async fn a_blob_sealed_with_a_key_that_is_not_trusted_any_more_is_dropped_at_the_start() {
    let (dir, sample) = (tempfile::tempdir().unwrap(), sample(0));
    closed_store(dir.path(), &[&sample]).await;
    let mut others = TrustedKeys::none();
    others
        .add(&SealKey::from_secret("eu-1".parse().unwrap(), &[9; 32]).public())
        .unwrap();
    let store = Store::open(dir.path(), ROOM, &others).unwrap();
    assert!(store.blobs().is_empty() && store.bytes() == 0);
}

#[tokio::test]
async fn eviction_goes_by_last_use_after_a_restart_too_and_a_smaller_quota_holds_at_once() {
    let (dir, [a, b, c]) = (
        tempfile::tempdir().unwrap(),
        [sample(0), sample(1), sample(2)],
    );
    closed_store(dir.path(), &[&a, &b, &c]).await;
    {
        let store = Store::open(dir.path(), ROOM, &a.trusted).unwrap();
        store.get(a.proof.digest()).unwrap();
        store.save();
    }
    let quota = ByteSize(2 * a.geometry.size());
    let store = Store::open(dir.path(), quota, &a.trusted).unwrap();
    assert!(store.bytes() <= quota.0);
    assert!(
        store.get(b.proof.digest()).is_none(),
        "it was used longest ago"
    );
    assert!(store.get(a.proof.digest()).is_some(), "it was used last");
}

#[test]
fn many_who_insert_at_once_share_one_blob_and_never_pass_the_quota() {
    let dir = tempfile::tempdir().unwrap();
    let samples: Vec<_> = (0..8).map(sample).collect();
    let quota = ByteSize(3 * samples[0].geometry.size() + 1);
    let store = Store::open(dir.path(), quota, &samples[0].trusted).unwrap();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, samples, start) = (&store, &samples, &start);
            scope.spawn(move || {
                start.wait();
                for turn in 0..2000 {
                    // All at the same blobs at about the same time.
                    let sample = &samples[(turn / 3 + thread / 3) % samples.len()];
                    if let Ok((pin, _)) = store.insert(sample.proof.clone(), sample.geometry) {
                        let known = store.get(sample.proof.digest()).unwrap();
                        assert!(
                            Arc::ptr_eq(&known, pin.blob()),
                            "what is pinned stays, and there is one of it"
                        );
                    }
                    assert!(store.bytes() <= quota.0);
                }
            });
        }
    });
    let sizes: u64 = store
        .blobs()
        .iter()
        .map(|blob| blob.geometry().size())
        .sum();
    assert_eq!(sizes, store.bytes());
}

#[tokio::test]
async fn an_evicted_blob_that_is_taken_in_again_keeps_its_files() {
    let (dir, [a, b]) = (tempfile::tempdir().unwrap(), [sample(0), sample(1)]);
    let store = Store::open(dir.path(), ByteSize(a.geometry.size()), &a.trusted).unwrap();
    for _ in 0..20 {
        for sample in [&a, &b] {
            drop(fill(&store, sample).await);
            store.save();
            assert!(data(dir.path(), sample).exists());
        }
    }
    drop(store);
    let store = Store::open(dir.path(), ROOM, &a.trusted).unwrap();
    assert!(lost(&store, &b).await.is_empty());
}

#[tokio::test]
async fn a_blob_out_of_the_store_leaves_no_file_behind() {
    let (dir, sample) = (tempfile::tempdir().unwrap(), sample(0));
    let store = Store::open(dir.path(), ROOM, &sample.trusted).unwrap();
    let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
    store.ban(sample.proof.digest());
    let refused = pin
        .blob()
        .write_verified(0, sample.bytes.slice(..PART_SIZE as usize))
        .await
        .unwrap_err();
    assert!(matches!(refused, StoreError::Removed { .. }), "{refused}");
    assert!(!data(dir.path(), &sample).exists());
}

/// Bytes that this thread has asked the system for.
fn bytes_read() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    io.lines()
        .find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
        .unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_start_reads_records_and_no_content() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let (count, size) = (20_u8, 64_u64 << 30);
    for number in 0..count {
        let proof = Proof::DigestOnly {
            digest: Digest::sha256(&[number]),
            size,
        };
        let data = meta::data_path(&blobs, proof.digest());
        File::create(&data).unwrap().set_len(size).unwrap();
        Record {
            proof,
            held: ChunkMap::full(1),
            complete: true,
        }
        .save(&data)
        .unwrap();
    }
    let before = bytes_read();
    let store = Store::open(dir.path(), ByteSize(2 << 40), &TrustedKeys::none()).unwrap();
    let read = bytes_read() - before;
    assert_eq!(store.blobs().len(), usize::from(count));
    assert_eq!(store.bytes(), u64::from(count) * size);
    assert!(
        read < u64::from(count) * 4096,
        "{read} bytes read for {count} blobs of {size}"
    );
}
