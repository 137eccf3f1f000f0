//! Many blobs with few open files, and files that disappear while they are closed.

use std::collections::BTreeSet;

use super::*;

/// The files below `dir` that this process has open.
fn open_below(dir: &Path) -> BTreeSet<PathBuf> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    // Another test may have closed a descriptor meanwhile.
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let dir = dir.join("blobs");
    targets.filter(|target| target.starts_with(&dir)).collect()
}

/// A sealed blob of one part. Different numbers give different blobs.
fn small_blob(number: u32) -> Sample {
    let bytes = format!("blob {number}").into_bytes();
    sample_of(bytes)
}

async fn store_whole(store: &Store, sample: &Sample) {
    let (pin, _) = store.insert(sample.proof.clone(), sample.geometry).unwrap();
    for chunk in 0..sample.geometry.chunks() {
        store_chunk(sample, pin.blob(), chunk).await;
    }
    pin.blob().mark_complete();
}

async fn read_whole(store: &Store, sample: &Sample) -> Result<Bytes, StoreError> {
    let blob = store.get(sample.proof.digest()).unwrap();
    blob.read(0..sample.geometry.size()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_blobs_are_stored_and_read_with_few_open_files() {
    const BLOBS: u32 = 5000;
    const OPEN: usize = 16;
    let dir = tempfile::tempdir().unwrap();
    let trusted = small_blob(0).trusted;
    let open = || Store::open(dir.path(), ByteSize(1 << 30), OPEN, &trusted).unwrap();
    let samples: Vec<Sample> = (0..BLOBS).map(small_blob).collect();
    let store = open();
    for sample in &samples {
        store_whole(&store, sample).await;
    }
    assert_eq!(open_below(dir.path()).len(), OPEN);
    for sample in &samples {
        assert_eq!(read_whole(&store, sample).await.unwrap(), sample.bytes);
    }
    assert_eq!(open_below(dir.path()).len(), OPEN);
    store.save();
    drop(store);
    assert!(open_below(dir.path()).is_empty());

    let store = open();
    assert!(open_below(dir.path()).is_empty(), "loading opens no file");
    let reads = samples.iter().map(|sample| read_whole(&store, sample));
    for (read, sample) in futures_util::future::join_all(reads)
        .await
        .iter()
        .zip(&samples)
    {
        assert_eq!(read.as_ref().unwrap(), &sample.bytes);
    }
    assert_eq!(open_below(dir.path()).len(), OPEN);
}

#[tokio::test]
async fn read_in_progress_keeps_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let [large, small] = [sample(0), small_blob(1)];
    let store = Store::open(dir.path(), ByteSize(1 << 30), 1, &large.trusted).unwrap();
    store_whole(&store, &large).await;
    let file = store.get(large.proof.digest()).unwrap().open().unwrap();
    store_whole(&store, &small).await;
    assert_eq!(open_below(dir.path()).len(), 2);
    assert_eq!(file.read_now(0, PART).unwrap(), large.bytes.slice(..PART));
    drop(file);
    assert_eq!(open_below(dir.path()).len(), 1);
}

#[tokio::test]
async fn partial_blob_goes_on_after_its_file_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let [blob, other] = [sample(0), sample(1)];
    let store = Store::open(dir.path(), ByteSize(1 << 30), 1, &blob.trusted).unwrap();
    let (pin, _) = store.insert(blob.proof.clone(), blob.geometry).unwrap();
    // No chunk is held yet: only the first part of one is written and readable.
    pin.blob()
        .write_verified(0, blob.bytes.slice(..PART))
        .await
        .unwrap();
    store_whole(&store, &other).await;
    assert_eq!(
        pin.blob().read(0..10).await.unwrap(),
        blob.bytes.slice(..10),
        "the file was not truncated"
    );
    for chunk in [2, 1, 0] {
        store_chunk(&blob, pin.blob(), chunk).await;
        store_whole(&store, &other).await;
        let _ = read_whole(&store, &other).await.unwrap();
    }
    assert!(pin.blob().check_digest().await.unwrap());
}

#[tokio::test]
async fn file_that_was_deleted_while_closed_is_downloaded_again() {
    let dir = tempfile::tempdir().unwrap();
    let [blob, other] = [sample(0), sample(1)];
    let store = Store::open(dir.path(), ByteSize(1 << 30), 1, &blob.trusted).unwrap();
    let (pin, _) = store.insert(blob.proof.clone(), blob.geometry).unwrap();
    store_chunk(&blob, pin.blob(), 0).await;
    pin.blob()
        .write_verified(PART_SIZE, blob.bytes.slice(PART..2 * PART))
        .await
        .unwrap();
    store_whole(&store, &other).await;
    fs::remove_file(pin.blob().path()).unwrap();
    assert!(matches!(
        pin.blob().read(0..10).await,
        Err(StoreError::Damaged { chunk: 0, .. })
    ));
    assert_eq!(pin.blob().availability(0), Availability::Waiting);
    assert_eq!(pin.blob().availability(PART_SIZE), Availability::Waiting);
    for chunk in 0..3 {
        store_chunk(&blob, pin.blob(), chunk).await;
    }
    let whole = pin.blob().read(0..blob.geometry.size()).await;
    assert_eq!(whole.unwrap(), blob.bytes);
}

#[tokio::test]
async fn evicted_blob_keeps_no_file_open() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [sample(0), sample(1)];
    let quota = ByteSize(a.geometry.size());
    let store = Store::open(dir.path(), quota, 8, &a.trusted).unwrap();
    store_whole(&store, &a).await;
    let evicted = store.get(a.proof.digest()).unwrap();
    store_whole(&store, &b).await;
    assert!(matches!(
        evicted.read(0..10).await,
        Err(StoreError::Removed { .. })
    ));
    assert_eq!(open_below(dir.path()).len(), 1);
}
