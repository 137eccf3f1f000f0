//! Tests of the store through its public functions.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod corruption;
mod crash;
mod open_files;

use bytes::Bytes;
use flotilla_common::chunk::PART_SIZE;
use flotilla_common::hash_tree::{self, TreeHasher};
use flotilla_common::seal::{BlobFacts, SealKey};

use super::*;

/// Open files of the stores in tests: so few that files are closed and opened again all the time.
const MAX_OPEN_FILES: usize = 2;

impl Store {
    /// Opens a store that keeps few files open.
    pub(super) fn open_small(
        dir: &Path,
        quota: ByteSize,
        trusted: &TrustedKeys,
    ) -> Result<Self, StoreError> {
        Self::open(dir, quota, MAX_OPEN_FILES, trusted)
    }
}

const PART: usize = PART_SIZE as usize;

/// A sealed blob and the keys that its seal is checked with.
struct Sample {
    bytes: Bytes,
    proof: Proof,
    geometry: Geometry,
    trusted: TrustedKeys,
}

/// A sealed blob of three chunks, the last one short. Different salts give different blobs.
fn sample(salt: u8) -> Sample {
    sample_of_length(salt, 2 * PART + 100)
}

/// A sealed blob of `length` bytes.
fn sample_of_length(salt: u8, length: usize) -> Sample {
    sample_of(content(salt, length).collect())
}

fn content(salt: u8, length: usize) -> impl Iterator<Item = u8> {
    (0..length).map(move |n| (n / 7) as u8 ^ salt)
}

/// A sealed blob with these bytes.
fn sample_of(bytes: Vec<u8>) -> Sample {
    sealed(Digest::sha256(&bytes), bytes)
}

/// As [`sample_of_length`], but its seal names `digest`.
fn sample_with_digest(digest: Digest, salt: u8, length: usize) -> Sample {
    sealed(digest, content(salt, length).collect())
}

fn sealed(digest: Digest, bytes: Vec<u8>) -> Sample {
    let mut hasher = TreeHasher::new();
    hasher.update(&bytes);
    let tree = hasher.finish();
    let key = SealKey::from_secret("eu-1".parse().unwrap(), &[1; 32]);
    let mut trusted = TrustedKeys::none();
    trusted.add(key.issuer(), &key.public()).unwrap();
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

/// Writes a chunk of the sample and marks it as held.
async fn store_chunk(sample: &Sample, blob: &Arc<StoredBlob>, chunk: u32) {
    let range = sample.geometry.chunk_range(chunk);
    let bytes = sample.bytes.slice(range.start as usize..range.end as usize);
    let values = hash_tree::part_values(range.start, &bytes);
    blob.write_verified(range.start, bytes).await.unwrap();
    blob.mark_held(chunk, &values);
}

#[tokio::test]
async fn partial_blob_survives_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(0);
    let digest = *sample.proof.digest();
    {
        let store = Store::open_small(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
        let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
        let blob = pin.blob();
        store_chunk(&sample, blob, 0).await;
        store_chunk(&sample, blob, 2).await;
        store.save();
    }
    let store = Store::open_small(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
    let blob = store.get(&digest).unwrap();
    assert_eq!(blob.held().iter().collect::<Vec<_>>(), [0, 2]);
    assert_eq!(blob.availability(5), Availability::Ready(PART_SIZE));
    assert_eq!(blob.availability(PART_SIZE), Availability::Waiting);
    assert_eq!(blob.read(10..20).await.unwrap(), sample.bytes.slice(10..20));
    let sent = blob.chunk(2).await.unwrap().unwrap();
    assert_eq!(
        sent.values,
        hash_tree::part_values(2 * PART_SIZE, &sample.bytes[2 * PART..])
    );

    store_chunk(&sample, &blob, 1).await;
    assert!(blob.held().is_full());
    assert!(!blob.is_complete());
    assert!(blob.check_digest().await.unwrap());
}

#[tokio::test]
async fn digest_is_hashed_incrementally_in_any_chunk_order() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let dir = tempfile::tempdir().unwrap();
        let sample = sample(0);
        let store = Store::open_small(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
        let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
        for chunk in order {
            store_chunk(&sample, pin.blob(), chunk).await;
        }
        assert_eq!(
            pin.blob().digest_so_far.lock().await.position(),
            sample.geometry.size(),
            "no byte is left to hash"
        );
        assert!(pin.blob().check_digest().await.unwrap());
        assert!(
            pin.blob().check_digest().await.unwrap(),
            "the whole file has the digest too"
        );
    }
}

#[tokio::test]
async fn blob_sealed_with_wrong_digest_fails_digest_check() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample_with_digest(Digest::sha256(b"another"), 0, 2 * PART + 100);
    let store = Store::open_small(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
    let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
    for chunk in 0..3 {
        store_chunk(&sample, pin.blob(), chunk).await;
    }
    assert!(!pin.blob().check_digest().await.unwrap());
}

#[tokio::test]
async fn damaged_chunk_is_dropped_at_first_read() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(0);
    let digest = *sample.proof.digest();
    {
        let store = Store::open_small(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
        let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
        let blob = pin.blob();
        for chunk in 0..3 {
            store_chunk(&sample, blob, chunk).await;
        }
        blob.mark_complete();
        store.save();
    }
    let path = paths::data(&dir.path().join("blobs"), &digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[PART + 3] ^= 1;
    fs::write(&path, bytes).unwrap();

    let store = Store::open_small(dir.path(), ByteSize(1 << 30), &sample.trusted).unwrap();
    let blob = store.get(&digest).unwrap();
    assert!(blob.is_complete());
    assert!(matches!(
        blob.chunk(1).await,
        Err(StoreError::Damaged { chunk: 1, .. })
    ));
    assert!(!blob.is_complete());
    assert_eq!(blob.held().iter().collect::<Vec<_>>(), [0, 2]);
    assert_eq!(blob.availability(PART_SIZE), Availability::Waiting);
    assert_eq!(blob.read(0..10).await.unwrap(), sample.bytes.slice(0..10));
}

#[tokio::test]
async fn quota_evicts_least_recently_used_but_never_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c, d] = [0, 1, 2, 3].map(sample);
    let size = a.geometry.size();
    let store = Store::open_small(dir.path(), ByteSize(3 * size), &a.trusted).unwrap();
    for sample in [&a, &b, &c] {
        let (pin, evicted) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
        store_chunk(sample, pin.blob(), 0).await;
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
async fn blob_that_cannot_fit_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [0, 1].map(sample);
    let store = Store::open_small(dir.path(), ByteSize(a.geometry.size()), &a.trusted).unwrap();
    let _pin = store.insert(a.proof.clone(), a.geometry).unwrap();
    let reader = store.get(a.proof.digest()).unwrap().pin(PinReason::Reader);
    let error = store.insert(b.proof.clone(), b.geometry).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Full { .. }), "{text}");
    assert!(
        text.contains("1 are being read (512.1KiB), 0 more"),
        "{text}"
    );
    drop(reader);
    let error = store.insert(b.proof.clone(), b.geometry).unwrap_err();
    assert!(
        error.to_string().contains("1 more are being pulled"),
        "{error}"
    );

    let large = sample_of_length(2, 5 * PART);
    let error = store
        .insert(large.proof.clone(), large.geometry)
        .unwrap_err();
    assert!(matches!(error, StoreError::OverQuota { .. }));
}

#[test]
fn unusable_folder_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = Store::open_small(&file, ByteSize(1), &TrustedKeys::none()).unwrap_err();
    assert!(matches!(error, StoreError::Unusable { .. }));
    assert!(error.to_string().starts_with("open store "), "{error}");
}

#[test]
fn two_stores_cannot_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open_small(dir.path(), ByteSize(1), &TrustedKeys::none()).unwrap();
    let error = Store::open_small(dir.path(), ByteSize(1), &TrustedKeys::none()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }));
}

#[test]
fn unreadable_records_are_deleted_with_their_data() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let data = paths::data(&blobs, &Digest::sha256(b"x"));
    fs::write(&data, b"x").unwrap();
    fs::write(paths::record(&data), b"rubbish").unwrap();
    let store = Store::open_small(dir.path(), ByteSize(1), &TrustedKeys::none()).unwrap();
    assert!(store.blobs().is_empty());
    assert!(!data.exists());
}
