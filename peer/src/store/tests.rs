#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::Bytes;
use flotilla_common::chunk::PART_SIZE;
use flotilla_common::seal::{BlobFacts, SealKey};
use flotilla_common::tree::{self, TreeHasher};

use super::*;

const PART: usize = PART_SIZE as usize;

pub(super) struct Sample {
    pub(super) bytes: Bytes,
    pub(super) proof: Proof,
    pub(super) geometry: Geometry,
    pub(super) trusted: TrustedKeys,
}

/// A sealed blob of three chunks, the last one short; `salt` makes it another blob.
pub(super) fn sample(salt: u8) -> Sample {
    sample_of(salt, 2 * PART + 100)
}

/// A sealed blob of `length` bytes.
pub(super) fn sample_of(salt: u8, length: usize) -> Sample {
    let bytes: Vec<u8> = bytes_of(salt, length).collect();
    sample_under(Digest::sha256(&bytes), salt, length)
}

fn bytes_of(salt: u8, length: usize) -> impl Iterator<Item = u8> {
    (0..length).map(move |n| (n / 7) as u8 ^ salt)
}

/// The same, sealed as if this were its digest.
fn sample_under(digest: Digest, salt: u8, length: usize) -> Sample {
    let bytes: Vec<u8> = bytes_of(salt, length).collect();
    let mut hasher = TreeHasher::new();
    hasher.update(&bytes);
    let tree = hasher.finish();
    let key = SealKey::from_secret("eu-1".parse().unwrap(), &[1; 32]);
    let mut trusted = TrustedKeys::none();
    trusted.add(&key.public()).unwrap();
    let seal = key.seal(BlobFacts {
        digest,
        size: tree.geometry.size(),
        chunk_log2: tree.geometry.chunk_log2(),
        root: tree.root,
    });
    let proof = Proof::Sealed {
        seal,
        table: tree.table,
    };
    Sample {
        bytes: bytes.into(),
        geometry: proof.check(&trusted).unwrap(),
        proof,
        trusted,
    }
}

pub(super) async fn hold(sample: &Sample, blob: &Arc<StoredBlob>, chunk: u32) {
    let range = sample.geometry.chunk_range(chunk);
    let bytes = sample.bytes.slice(range.start as usize..range.end as usize);
    let values = tree::part_values(range.start, &bytes);
    blob.write_verified(range.start, bytes).await.unwrap();
    blob.hold(chunk, &values);
}

#[tokio::test]
async fn a_partial_blob_is_taken_up_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(0);
    let digest = *sample.proof.digest();
    {
        let store = Store::open(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
        let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
        let blob = pin.blob();
        hold(&sample, blob, 0).await;
        hold(&sample, blob, 2).await;
        store.save();
    }
    let store = Store::open(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
    let blob = store.get(&digest).unwrap();
    assert_eq!(blob.held().iter().collect::<Vec<_>>(), [0, 2]);
    assert_eq!(blob.availability(5), Availability::Ready(PART_SIZE));
    assert_eq!(blob.availability(PART_SIZE), Availability::Waiting);
    assert_eq!(blob.read(10..20).await.unwrap(), sample.bytes.slice(10..20));
    let sent = blob.chunk(2).await.unwrap().unwrap();
    assert_eq!(
        sent.values,
        tree::part_values(2 * PART_SIZE, &sample.bytes[2 * PART..])
    );

    hold(&sample, &blob, 1).await;
    assert!(blob.held().is_full());
    assert!(!blob.is_complete());
    assert!(blob.check_digest().await.unwrap());
}

#[tokio::test]
async fn the_digest_is_hashed_along_in_whatever_order_chunks_come() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let dir = tempfile::tempdir().unwrap();
        let sample = sample(0);
        let store = Store::open(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
        let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
        for chunk in order {
            hold(&sample, pin.blob(), chunk).await;
        }
        assert_eq!(
            pin.blob().prefix.lock().await.at(),
            sample.geometry.size(),
            "nothing is left to read"
        );
        assert!(pin.blob().check_digest().await.unwrap());
        assert!(
            pin.blob().check_digest().await.unwrap(),
            "and when all is read again"
        );
    }
}

#[tokio::test]
async fn a_blob_sealed_under_a_wrong_digest_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample_under(Digest::sha256(b"another"), 0, 2 * PART + 100);
    let store = Store::open(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
    let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
    for chunk in 0..3 {
        hold(&sample, pin.blob(), chunk).await;
    }
    assert!(!pin.blob().check_digest().await.unwrap());
}

#[tokio::test]
async fn a_chunk_damaged_on_disk_is_dropped_at_its_first_read() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(0);
    let digest = *sample.proof.digest();
    {
        let store = Store::open(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
        let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
        let blob = pin.blob();
        for chunk in 0..3 {
            hold(&sample, blob, chunk).await;
        }
        blob.complete();
        store.save();
    }
    let path = meta::data_path(&dir.path().join("blobs"), &digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[PART + 3] ^= 1;
    fs::write(&path, bytes).unwrap();

    let store = Store::open(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
    let blob = store.get(&digest).unwrap();
    assert!(blob.is_complete());
    assert!(matches!(
        blob.chunk(1).await,
        Err(StoreError::Doubtful { chunk: 1, .. })
    ));
    assert!(!blob.is_complete());
    assert_eq!(blob.held().iter().collect::<Vec<_>>(), [0, 2]);
    assert_eq!(blob.availability(PART_SIZE), Availability::Waiting);
    assert_eq!(blob.read(0..10).await.unwrap(), sample.bytes.slice(0..10));
}

#[tokio::test]
async fn the_quota_evicts_what_was_used_longest_ago_and_never_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c, d] = [0, 1, 2, 3].map(sample);
    let size = a.geometry.size();
    let store = Store::open(dir.path(), ByteSize(3 * size), &a.trusted).unwrap();
    for sample in [&a, &b, &c] {
        let (pin, evicted) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
        hold(sample, pin.blob(), 0).await;
        assert!(evicted.is_empty());
    }
    let pin = store.pin(a.proof.digest()).unwrap();
    store.get(b.proof.digest()).unwrap();
    let (_, evicted) = store.insert(d.proof.clone(), d.geometry).unwrap();
    assert_eq!(evicted[0], *c.proof.digest());
    assert!(!evicted.contains(a.proof.digest()));
    assert!(store.bytes() <= 3 * size);
    drop(pin);
}

#[tokio::test]
async fn what_cannot_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [0, 1].map(sample);
    let store = Store::open(dir.path(), ByteSize(a.geometry.size()), &a.trusted).unwrap();
    let _pin = store.insert(a.proof.clone(), a.geometry).unwrap();
    let refused = store.insert(b.proof.clone(), b.geometry).unwrap_err();
    assert!(matches!(refused, StoreError::OverQuota { .. }));
}

#[test]
fn an_unwritable_store_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = Store::open(&file, ByteSize(1), &TrustedKeys::none()).unwrap_err();
    assert!(matches!(error, StoreError::Unusable { .. }));
    assert!(error.to_string().starts_with("open store "), "{error}");
}

#[test]
fn two_peers_cannot_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(dir.path(), ByteSize(1), &TrustedKeys::none()).unwrap();
    let error = Store::open(dir.path(), ByteSize(1), &TrustedKeys::none()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }));
}

#[test]
fn records_that_cannot_be_read_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let data = meta::data_path(&blobs, &Digest::sha256(b"x"));
    fs::write(&data, b"x").unwrap();
    fs::write(meta::record_path(&data), b"rubbish").unwrap();
    let store = Store::open(dir.path(), ByteSize(1), &TrustedKeys::none()).unwrap();
    assert!(store.blobs().is_empty());
    assert!(!data.exists());
}
