//! The suite that every storage backend must pass: one function per guarantee of the trait.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_origin::storage::{
    self, Key, PAGE_LEN, Prefix, Storage, StorageError, StorageTime, Version,
};
use futures_util::{TryStreamExt, future};

type SharedStorage = Arc<dyn Storage>;

/// Features that a test server lacks and that origins do not need.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limitations {
    /// The server cannot keep both a key and keys below it. The layout of origins has no such keys.
    pub(crate) no_keys_under_keys: bool,
    /// The storage cannot remove on a condition, and says so.
    pub(crate) no_conditional_removal: bool,
}

pub(crate) async fn check(storage: SharedStorage, limitations: Limitations) {
    storage::probe(&*storage).await.unwrap();
    create_requires_absence(&storage).await;
    if !limitations.no_keys_under_keys {
        keys_under_keys(&storage).await;
    }
    swap_requires_the_current_version(&storage).await;
    one_of_concurrent_swaps_wins(&storage).await;
    one_of_concurrent_creates_wins(&storage).await;
    listing_pages_are_in_byte_order(&storage, limitations).await;
    streamed_writes_read_back_by_range(&storage).await;
    dropped_writer_leaves_nothing(&storage).await;
    streamed_write_never_replaces(&storage).await;
    delete_is_unconditional(&storage).await;
    removal_requires_the_current_version(&storage, limitations).await;
    modification_times_are_told(&storage).await;
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn conflicts<T>(outcome: &Result<T, StorageError>) -> bool {
    matches!(outcome, Err(StorageError::Conflict { .. }))
}

async fn text(storage: &SharedStorage, name: &str) -> Option<String> {
    let object = storage.read(&key(name)).await.unwrap()?;
    Some(String::from_utf8(object.body.to_vec()).unwrap())
}

async fn create_requires_absence(storage: &SharedStorage) {
    let name = key("create/a");
    assert!(storage.read(&name).await.unwrap().is_none());
    let version = storage.create(&name, "one".into()).await.unwrap();
    assert!(conflicts(&storage.create(&name, "two".into()).await));
    let object = storage.read(&name).await.unwrap().unwrap();
    assert_eq!((object.body, object.version), (Bytes::from("one"), version));
}

/// A key and a key below it do not hide each other.
async fn keys_under_keys(storage: &SharedStorage) {
    storage
        .create(&key("create/a/b"), "below".into())
        .await
        .unwrap();
    assert_eq!(text(storage, "create/a").await.as_deref(), Some("one"));
    assert_eq!(text(storage, "create/a/b").await.as_deref(), Some("below"));
}

async fn swap_requires_the_current_version(storage: &SharedStorage) {
    let name = key("swap/a");
    let first = storage.create(&name, "one".into()).await.unwrap();
    let second = storage.swap(&name, &first, "two".into()).await.unwrap();
    assert!(conflicts(
        &storage.swap(&name, &first, "three".into()).await
    ));
    assert_eq!(text(storage, "swap/a").await.as_deref(), Some("two"));
    storage.swap(&name, &second, "three".into()).await.unwrap();
    assert_eq!(text(storage, "swap/a").await.as_deref(), Some("three"));
    assert!(conflicts(
        &storage.swap(&key("swap/absent"), &first, "x".into()).await
    ));
    assert_eq!(text(storage, "swap/absent").await, None);
}

async fn one_of_concurrent_swaps_wins(storage: &SharedStorage) {
    let name = key("race/swap");
    let mut version = storage.create(&name, "0".into()).await.unwrap();
    for round in 0..8 {
        let attempts =
            (0..8).map(|rival| storage.swap(&name, &version, format!("{round}.{rival}").into()));
        let attempts = attempts.collect::<Vec<_>>();
        let outcomes = future::join_all(attempts).await;
        assert_eq!(
            outcomes.iter().filter(|outcome| conflicts(outcome)).count(),
            7
        );
        let winner = outcomes.iter().position(Result::is_ok).unwrap();
        assert_eq!(
            text(storage, "race/swap").await,
            Some(format!("{round}.{winner}"))
        );
        version = storage.read(&name).await.unwrap().unwrap().version;
    }
}

async fn one_of_concurrent_creates_wins(storage: &SharedStorage) {
    let name = key("race/create");
    let attempts = (0..8)
        .map(|rival| storage.create(&name, format!("{rival}").into()))
        .collect::<Vec<_>>();
    let outcomes = future::join_all(attempts).await;
    assert_eq!(
        outcomes.iter().filter(|outcome| conflicts(outcome)).count(),
        7
    );
    let winner = outcomes.iter().position(Result::is_ok).unwrap();
    assert_eq!(
        text(storage, "race/create").await,
        Some(format!("{winner}"))
    );
}

async fn listing_pages_are_in_byte_order(storage: &SharedStorage, limitations: Limitations) {
    let mut sorted = [
        "app-1/x",
        "app.2",
        "app/_/v1",
        "app/_/v10",
        "app/_/v2/x",
        "app0",
        "b/c/d",
    ]
    .to_vec();
    if !limitations.no_keys_under_keys {
        sorted.extend(["app", "app/_/v2"]);
    }
    let mut sorted: Vec<_> = sorted
        .into_iter()
        .map(|name| format!("list/{name}"))
        .collect();
    sorted.sort_unstable();
    for name in &sorted {
        storage
            .create(&key(name), name.clone().into())
            .await
            .unwrap();
    }
    storage
        .create(&key("listed"), "outside".into())
        .await
        .unwrap();
    for limit in 1..=sorted.len() + 1 {
        assert_eq!(
            walk(storage, "list/", limit).await,
            sorted,
            "pages of {limit}"
        );
    }
    let under: Vec<_> = sorted
        .iter()
        .filter(|name| name.starts_with("list/app/_/"))
        .cloned()
        .collect();
    assert_eq!(walk(storage, "list/app/_/", 2).await, under);
    assert!(walk(storage, "nothing/here/", 5).await.is_empty());
    // The key after which a page begins need not exist.
    let page = storage
        .list(&prefix("list/"), Some(&key("list/app/_/v11")), 1)
        .await
        .unwrap();
    assert_eq!(page.entries[0].key.as_str(), under[2]);
    assert_eq!(page.entries[0].size, under[2].len() as u64);
    assert!(page.more);
}

fn prefix(text: &str) -> Prefix {
    Prefix::new(text).unwrap()
}

async fn walk(storage: &SharedStorage, under: &str, limit: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let page = storage
            .list(&prefix(under), after.as_ref(), limit)
            .await
            .unwrap();
        assert!(page.entries.len() <= limit);
        names.extend(page.entries.iter().map(|entry| entry.key.to_string()));
        if !page.more {
            return names;
        }
        after = page.entries.last().map(|entry| entry.key.clone());
    }
}

pub(crate) fn sample(len: usize) -> Bytes {
    (0..len)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect::<Vec<_>>()
        .into()
}

pub(crate) async fn stream(
    storage: &SharedStorage,
    name: &Key,
    content: &Bytes,
    piece: usize,
) -> Result<(), StorageError> {
    let mut writer = storage.begin_write(name).await?;
    for start in (0..content.len()).step_by(piece) {
        writer
            .write(content.slice(start..content.len().min(start + piece)))
            .await?;
    }
    writer.finish().await
}

async fn streamed_writes_read_back_by_range(storage: &SharedStorage) {
    for (len, piece) in [
        (0, 1),
        (1, 1),
        (100_000, 333),
        (3 << 20, 1 << 20),
        ((17 << 20) + 5, (1 << 20) + 7),
    ] {
        let name = key(&format!("stream/{len}"));
        let content = sample(len);
        stream(storage, &name, &content, piece).await.unwrap();
        for range in [
            0..len,
            0..len.min(1),
            len / 3..len / 2,
            len - len.min(9)..len,
        ] {
            let read = storage
                .read_range(&name, range.start as u64..range.end as u64)
                .await
                .unwrap();
            let pieces: Vec<Bytes> = read.try_collect().await.unwrap();
            assert!(
                pieces.concat() == content[range.clone()],
                "{len} bytes, {range:?}"
            );
        }
        let beyond = match storage.read_range(&name, 0..len as u64 + 1).await {
            Ok(read) => read.try_collect::<Vec<_>>().await.map(drop),
            Err(error) => Err(error),
        };
        assert!(
            beyond.is_err(),
            "a range beyond the end must fail, not end early"
        );
    }
    let absent = storage.read_range(&key("stream/absent"), 0..1).await;
    assert!(matches!(absent, Err(StorageError::Missing { .. })));
}

async fn dropped_writer_leaves_nothing(storage: &SharedStorage) {
    let name = key("abandoned/a");
    let mut writer = storage.begin_write(&name).await.unwrap();
    writer.write(sample(3 << 20)).await.unwrap();
    drop(writer);
    assert!(storage.read(&name).await.unwrap().is_none());
    assert!(walk(storage, "abandoned/", 5).await.is_empty());
}

async fn streamed_write_never_replaces(storage: &SharedStorage) {
    let name = key("stream/once");
    stream(storage, &name, &"first".into(), 2).await.unwrap();
    assert!(conflicts(
        &stream(storage, &name, &"second".into(), 2).await
    ));
    assert!(conflicts(
        &stream(storage, &name, &sample(20 << 20), 1 << 20).await
    ));
    assert_eq!(text(storage, "stream/once").await.as_deref(), Some("first"));
}

async fn delete_is_unconditional(storage: &SharedStorage) {
    let name = key("delete/a/b");
    storage.create(&name, "x".into()).await.unwrap();
    storage.delete(&name).await.unwrap();
    storage.delete(&name).await.unwrap();
    assert!(storage.read(&name).await.unwrap().is_none());
    storage.create(&name, "again".into()).await.unwrap();
    assert_eq!(text(storage, "delete/a/b").await.as_deref(), Some("again"));
}

async fn removal_requires_the_current_version(storage: &SharedStorage, limitations: Limitations) {
    let name = key("remove/a");
    let first = storage.create(&name, "one".into()).await.unwrap();
    let second = storage.swap(&name, &first, "two".into()).await.unwrap();
    let by_old_version = storage.remove(&name, &first).await;
    assert_eq!(text(storage, "remove/a").await.as_deref(), Some("two"));
    let is_unsupported = matches!(by_old_version, Err(StorageError::Unsupported { .. }));
    assert_eq!(
        is_unsupported, limitations.no_conditional_removal,
        "{by_old_version:?}"
    );
    if is_unsupported {
        return;
    }
    assert!(conflicts(&by_old_version), "{by_old_version:?}");
    storage.remove(&name, &second).await.unwrap();
    assert_eq!(text(storage, "remove/a").await, None);
    let repeated = storage.remove(&name, &second).await;
    assert!(conflicts(&repeated), "{repeated:?}");
    let third = storage.create(&name, "three".into()).await.unwrap();
    assert!(conflicts(&storage.remove(&name, &second).await));
    one_of_swap_and_removal_wins(storage, &name, third).await;
}

async fn one_of_swap_and_removal_wins(storage: &SharedStorage, name: &Key, mut version: Version) {
    for round in 0..8 {
        let (swapped, removed) = future::join(
            storage.swap(name, &version, format!("{round}").into()),
            storage.remove(name, &version),
        )
        .await;
        match (swapped, removed) {
            (Ok(swapped), Err(StorageError::Conflict { .. })) => version = swapped,
            (Err(StorageError::Conflict { .. }), Ok(())) => {
                let again = storage.create(name, format!("{round} again").into()).await;
                version = again.unwrap();
            }
            other => panic!("round {round}: {other:?}"),
        }
    }
}

/// The times of objects and of listings are those of one clock, which moves forward.
async fn modification_times_are_told(storage: &SharedStorage) {
    const RESOLUTION: Duration = Duration::from_secs(1);
    let mut last = StorageTime::from_unix_ms(0);
    for name in ["modified/a", "modified/b"] {
        storage.create(&key(name), name.into()).await.unwrap();
        let object = storage.read(&key(name)).await.unwrap().unwrap();
        let page = storage
            .list(&prefix("modified/"), None, PAGE_LEN)
            .await
            .unwrap();
        let entry = page.entries.last().unwrap();
        let (read, listed) = (object.modified.unwrap(), entry.modified.unwrap());
        let apart = read.saturating_since(listed) + listed.saturating_since(read);
        assert!(apart <= RESOLUTION, "read {read:?}, listed {listed:?}");
        assert!(last.saturating_since(listed) <= RESOLUTION);
        last = listed;
        let version = entry.version.clone().unwrap_or(object.version.clone());
        assert_eq!(version, object.version);
    }
}
