//! Files that are damaged, swapped or deleted outside of the store's control; concurrent
//! insertions; a quota that became smaller.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;

use flotilla_common::chunk::PART_SIZE;
use flotilla_common::seal::SealKey;

use super::*;
use crate::store::record::Record;

const LARGE_QUOTA: ByteSize = ByteSize(1 << 30);

fn data_file(dir: &Path, sample: &Sample) -> PathBuf {
    paths::data(&dir.join("blobs"), sample.proof.digest())
}

/// Creates a store in `dir` with these complete blobs, and closes it.
async fn create_closed_store(dir: &Path, samples: &[&Sample]) {
    let store = Store::open_small(dir, LARGE_QUOTA, &samples[0].trusted).unwrap();
    for sample in samples {
        fill(&store, sample).await;
        // Saved one by one, so that their times of last use differ.
        store.save();
    }
}

/// Stores a complete blob.
async fn fill(store: &Store, sample: &Sample) -> Pin {
    let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
    for chunk in 0..sample.geometry.chunks() {
        store_chunk(sample, pin.blob(), chunk).await;
    }
    assert!(pin.blob().check_digest().await.unwrap());
    pin.blob().mark_complete();
    pin
}

/// Reads all chunks of a blob and checks that each one is intact or reported as damaged. Returns
/// the damaged ones.
async fn damaged_chunks(store: &Store, sample: &Sample) -> Vec<u32> {
    let blob = store.get(sample.proof.digest()).unwrap();
    let mut damaged = Vec::new();
    for chunk in 0..sample.geometry.chunks() {
        let range = sample.geometry.chunk_range(chunk);
        match blob.read(range.clone()).await {
            Ok(bytes) => assert_eq!(
                bytes,
                sample.bytes.slice(range.start as usize..range.end as usize)
            ),
            Err(StoreError::Damaged { chunk, .. }) => damaged.push(chunk),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(
            blob.chunk(chunk).await.unwrap().is_some(),
            !damaged.contains(&chunk)
        );
    }
    assert_eq!(blob.is_complete(), damaged.is_empty());
    damaged
}

/// Stores the damaged chunks again and checks that the blob is complete.
async fn repair(store: &Store, sample: &Sample, damaged: &[u32]) {
    let blob = store.get(sample.proof.digest()).unwrap();
    for chunk in damaged {
        store_chunk(sample, &blob, *chunk).await;
    }
    assert!(blob.held().is_full() && blob.check_digest().await.unwrap());
}

/// Flips a bit of the byte at `offset`.
fn flip_bit(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[tokio::test]
async fn flipped_bit_loses_only_its_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(0);
    create_closed_store(dir.path(), &[&sample]).await;
    flip_bit(&data_file(dir.path(), &sample), PART_SIZE + 9);
    let store = Store::open_small(dir.path(), LARGE_QUOTA, &sample.trusted).unwrap();
    assert_eq!(damaged_chunks(&store, &sample).await, [1]);
    repair(&store, &sample, &[1]).await;
}

#[tokio::test]
async fn bit_flipped_at_run_time_is_found_at_next_read() {
    let dir = tempfile::tempdir().unwrap();
    let [large, small] = [sample(0), sample_of_length(1, 1000)];
    let store = Store::open_small(dir.path(), LARGE_QUOTA, &large.trusted).unwrap();
    let _pins = [fill(&store, &large).await, fill(&store, &small).await];
    for sample in [&large, &small] {
        flip_bit(&data_file(dir.path(), sample), 7);
        assert_eq!(damaged_chunks(&store, sample).await, [0]);
        repair(&store, sample, &[0]).await;
    }
}

#[tokio::test]
async fn file_truncated_at_run_time_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(0);
    let store = Store::open_small(dir.path(), LARGE_QUOTA, &sample.trusted).unwrap();
    let _pin = fill(&store, &sample).await;
    File::options()
        .write(true)
        .open(data_file(dir.path(), &sample))
        .unwrap()
        .set_len(PART_SIZE + 5)
        .unwrap();
    assert_eq!(damaged_chunks(&store, &sample).await, [1, 2]);
    repair(&store, &sample, &[1, 2]).await;
}

#[tokio::test]
async fn file_deleted_or_emptied_before_first_open_is_recreated() {
    let sample = sample(0);
    for delete in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        create_closed_store(dir.path(), &[&sample]).await;
        let store = Store::open_small(dir.path(), LARGE_QUOTA, &sample.trusted).unwrap();
        let path = data_file(dir.path(), &sample);
        if delete {
            fs::remove_file(&path).unwrap();
        } else {
            File::create(&path).unwrap();
        }
        assert_eq!(damaged_chunks(&store, &sample).await, [0, 1, 2]);
        repair(&store, &sample, &[0, 1, 2]).await;
    }
}

#[tokio::test]
async fn blob_with_inconsistent_files_is_deleted_at_start() {
    let [left, right] = [sample(0), sample_of_length(1, 3 * PART_SIZE as usize)];
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
        |left, right| assert!(fs::copy(paths::record(right), paths::record(left)).unwrap() > 0),
        |left, right| assert!(fs::copy(right, left).unwrap() > 0),
        |left, _| flip_bit(&paths::record(left), 40),
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        create_closed_store(dir.path(), &[&left, &right]).await;
        damage(
            &data_file(dir.path(), &left),
            &data_file(dir.path(), &right),
        );
        let store = Store::open_small(dir.path(), LARGE_QUOTA, &left.trusted).unwrap();
        assert!(store.get(left.proof.digest()).is_none());
        assert!(
            !data_file(dir.path(), &left).exists(),
            "its data file is deleted"
        );
        assert!(
            damaged_chunks(&store, &right).await.is_empty(),
            "the other blob is intact"
        );
        assert_eq!(store.bytes(), right.geometry.size());
    }
}

#[tokio::test]
async fn swapped_data_files_of_equal_size_are_detected() {
    let dir = tempfile::tempdir().unwrap();
    let [left, right] = [sample(0), sample(1)];
    create_closed_store(dir.path(), &[&left, &right]).await;
    let left_file = data_file(dir.path(), &left);
    let right_file = data_file(dir.path(), &right);
    let temporary = dir.path().join("temporary");
    for (from, to) in [
        (&left_file, &temporary),
        (&right_file, &left_file),
        (&temporary, &right_file),
    ] {
        fs::rename(from, to).unwrap();
    }
    let store = Store::open_small(dir.path(), LARGE_QUOTA, &left.trusted).unwrap();
    for sample in [&left, &right] {
        assert_eq!(damaged_chunks(&store, sample).await, [0, 1, 2]);
        repair(&store, sample, &[0, 1, 2]).await;
    }
}

#[tokio::test]
async fn blob_with_untrusted_seal_is_deleted_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(0);
    create_closed_store(dir.path(), &[&sample]).await;
    let mut others = TrustedKeys::none();
    let other = SealKey::from_secret("eu-1".parse().unwrap(), &[9; 32]);
    others.add(other.issuer(), &other.public()).unwrap();
    let store = Store::open_small(dir.path(), LARGE_QUOTA, &others).unwrap();
    assert!(store.blobs().is_empty() && store.bytes() == 0);
}

#[tokio::test]
async fn smaller_quota_after_restart_evicts_least_recently_used() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = [sample(0), sample(1), sample(2)];
    create_closed_store(dir.path(), &[&a, &b, &c]).await;
    {
        let store = Store::open_small(dir.path(), LARGE_QUOTA, &a.trusted).unwrap();
        store.get(a.proof.digest()).unwrap();
        store.save();
    }
    let quota = ByteSize(2 * a.geometry.size());
    let store = Store::open_small(dir.path(), quota, &a.trusted).unwrap();
    assert!(store.bytes() <= quota.0);
    assert!(store.get(b.proof.digest()).is_none(), "least recently used");
    assert!(store.get(a.proof.digest()).is_some(), "most recently used");
}

#[test]
fn concurrent_insertions_share_one_blob_and_respect_the_quota() {
    let dir = tempfile::tempdir().unwrap();
    let samples: Vec<_> = (0..8).map(sample).collect();
    let quota = ByteSize(3 * samples[0].geometry.size() + 1);
    let store = Store::open_small(dir.path(), quota, &samples[0].trusted).unwrap();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            let samples = &samples;
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for round in 0..2000 {
                    // All threads insert the same blobs at about the same time.
                    let sample = &samples[(round / 3 + thread / 3) % samples.len()];
                    if let Ok((pin, _)) = store.insert(sample.proof.clone(), sample.geometry) {
                        let known = store.get(sample.proof.digest()).unwrap();
                        assert!(
                            Arc::ptr_eq(&known, pin.blob()),
                            "a pinned blob stays, and exists once"
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
async fn reinserted_blob_keeps_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [sample(0), sample(1)];
    let store = Store::open_small(dir.path(), ByteSize(a.geometry.size()), &a.trusted).unwrap();
    for _ in 0..20 {
        for sample in [&a, &b] {
            drop(fill(&store, sample).await);
            store.save();
            assert!(data_file(dir.path(), sample).exists());
        }
    }
    drop(store);
    let store = Store::open_small(dir.path(), LARGE_QUOTA, &a.trusted).unwrap();
    assert!(damaged_chunks(&store, &b).await.is_empty());
}

#[tokio::test]
async fn quarantined_blob_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(0);
    let store = Store::open_small(dir.path(), LARGE_QUOTA, &sample.trusted).unwrap();
    let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
    store.quarantine(sample.proof.digest());
    let error = pin
        .blob()
        .write_verified(0, sample.bytes.slice(..PART_SIZE as usize))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Removed { .. }), "{error}");
    assert!(!data_file(dir.path(), &sample).exists());
}

/// Bytes that this thread has read by system calls.
fn bytes_read() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    io.lines()
        .find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
        .unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn start_reads_records_but_no_content() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let count = 20_u8;
    let size = 64_u64 << 30;
    for number in 0..count {
        let proof = Proof::DigestOnly {
            digest: Digest::sha256(&[number]),
            size,
        };
        let data = paths::data(&blobs, proof.digest());
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
    let store = Store::open_small(dir.path(), ByteSize(2 << 40), &TrustedKeys::none()).unwrap();
    let read = bytes_read() - before;
    assert_eq!(store.blobs().len(), usize::from(count));
    assert_eq!(store.bytes(), u64::from(count) * size);
    assert!(
        read < u64::from(count) * 4096,
        "{read} bytes read for {count} blobs of {size}"
    );
}
