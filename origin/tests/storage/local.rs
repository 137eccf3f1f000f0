//! The local directory: arbitrary sets of keys, several openers, no temporary files left.

use std::collections::BTreeSet;
use std::sync::Arc;

use flotilla_origin::storage::{self, Key, LocalDirectory, OpenError, Prefix, Storage};
use futures_util::future;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Few distinct letters, so that keys share segments and are prefixes of each other.
    #[test]
    fn keys_are_independent_and_listings_sorted(
        names in prop::collection::btree_set("x(/[a-b_.-]{0,2}[a-b0_]{1,2}){1,4}", 1..24),
        limit in 1_usize..9,
    ) {
        let keys: BTreeSet<Key> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let storage = LocalDirectory::open(directory.path()).unwrap();
            for key in &keys {
                storage.create(key, key.to_string().into()).await.unwrap();
            }
            for key in &keys {
                assert_eq!(storage.read(key).await.unwrap().unwrap().body, key.as_str());
            }
            let mut listed = Vec::new();
            loop {
                let page = storage.list(&Prefix::new("x/").unwrap(), listed.last(), limit).await.unwrap();
                listed.extend(page.entries.into_iter().map(|entry| entry.key));
                if !page.more {
                    break;
                }
            }
            assert!(listed.iter().eq(keys.iter()), "{listed:?} for {keys:?}");
        });
    }
}

#[tokio::test]
async fn swaps_exclude_each_other_across_openers() {
    let directory = tempfile::tempdir().unwrap();
    let openers: Vec<_> = (0..2)
        .map(|_| Arc::new(LocalDirectory::open(directory.path()).unwrap()))
        .collect();
    let key: Key = "counter/a".parse().unwrap();
    openers[0].create(&key, "0".into()).await.unwrap();
    // Each task increments twenty times by compare-and-swap: no increment is lost.
    let adders = openers
        .iter()
        .flat_map(|opener| [Arc::clone(opener), Arc::clone(opener)]);
    let tasks = adders.map(|storage| {
        let key = key.clone();
        tokio::spawn(async move {
            let mut added = 0;
            while added < 20 {
                let object = storage.read(&key).await.unwrap().unwrap();
                let count: u32 = std::str::from_utf8(&object.body).unwrap().parse().unwrap();
                let next = (count + 1).to_string().into();
                added += u32::from(storage.swap(&key, &object.version, next).await.is_ok());
            }
        })
    });
    future::try_join_all(tasks).await.unwrap();
    assert_eq!(openers[1].read(&key).await.unwrap().unwrap().body, "80");
}

#[tokio::test]
async fn concurrent_creates_and_deletes_in_one_directory() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Arc::new(LocalDirectory::open(directory.path()).unwrap());
    let tasks = (0..8).map(|worker| {
        let storage = Arc::clone(&storage);
        tokio::spawn(async move {
            let key: Key = format!("seg/shared/{worker}").parse().unwrap();
            for _ in 0..25 {
                storage.create(&key, "x".into()).await.unwrap();
                storage.delete(&key).await.unwrap();
            }
        })
    });
    future::try_join_all(tasks).await.unwrap();
}

#[tokio::test]
async fn temporary_files_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalDirectory::open(directory.path()).unwrap();
    let key: Key = "a/b".parse().unwrap();
    let version = storage.create(&key, "1".into()).await.unwrap();
    storage.swap(&key, &version, "2".into()).await.unwrap();
    assert!(storage.swap(&key, &version, "3".into()).await.is_err());
    assert!(storage.create(&key, "4".into()).await.is_err());
    let mut writer = storage.begin_write(&"a/c".parse().unwrap()).await.unwrap();
    writer.write("x".into()).await.unwrap();
    drop(writer);
    assert_eq!(
        std::fs::read_dir(directory.path().join(".tmp"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn probe_detects_missing_directory() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}", directory.path().display());
    let storage = storage::open(&url, 0).unwrap();
    std::fs::remove_dir_all(directory.path().join(".tmp")).unwrap();
    let error = storage::probe(&*storage).await.unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Probe {
                step: "create an object",
                ..
            }
        ),
        "{error}"
    );
}
