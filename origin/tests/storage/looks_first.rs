//! A storage that looks whether the condition of a write holds, and writes afterwards. The probe
//! must refuse it, although every single write behaves well.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_origin::storage::{
    self, ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError,
    StorageResult, Version,
};
use tokio::task::yield_now;

/// Which conditions are checked before the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Careless {
    Creates,
    Swaps,
}

#[derive(Debug)]
struct LooksFirst {
    inner: Arc<dyn Storage>,
    careless: Careless,
}

impl LooksFirst {
    /// Writes whatever is there, if the condition held a moment ago.
    async fn look_then_write(
        &self,
        key: &Key,
        seen: Option<&Version>,
        body: Bytes,
    ) -> StorageResult<Version> {
        let present = self.inner.read(key).await?.map(|object| object.version);
        if present.as_ref() != seen {
            return Err(StorageError::Conflict {
                may_have_applied: false,
                action: "write object",
                key: key.to_string(),
            });
        }
        yield_now().await;
        loop {
            let present = self.inner.read(key).await?.map(|object| object.version);
            let written = match present {
                None => self.inner.create(key, body.clone()).await,
                Some(version) => self.inner.swap(key, &version, body.clone()).await,
            };
            if !matches!(written, Err(StorageError::Conflict { .. })) {
                return written;
            }
        }
    }
}

#[async_trait]
impl Storage for LooksFirst {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        if self.careless == Careless::Creates {
            return self.look_then_write(key, None, body).await;
        }
        self.inner.create(key, body).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        if self.careless == Careless::Swaps {
            return self.look_then_write(key, Some(seen), body).await;
        }
        self.inner.swap(key, seen, body).await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        self.inner.read(key).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        self.inner.read_range(key, range).await
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        self.inner.list(prefix, after, limit).await
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        self.inner.begin_write(key).await
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.inner.delete(key).await
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        self.inner.remove(key, seen).await
    }

    fn is_remote(&self) -> bool {
        false
    }

    async fn presigned_get(&self, _: &Key, _: Duration) -> StorageResult<Option<String>> {
        Ok(None)
    }
}

#[tokio::test]
async fn probe_refuses_storage_that_looks_first_and_writes_then() {
    for (careless, step) in [
        (Careless::Creates, "create an object at once"),
        (Careless::Swaps, "swap a version at once"),
    ] {
        let inner = storage::open("memory:///", 0).unwrap();
        storage::probe(&*inner).await.unwrap();
        let storage = LooksFirst {
            inner: Arc::clone(&inner),
            careless,
        };
        let error = storage::probe(&storage).await.unwrap_err().to_string();
        assert!(
            error.contains(step) && error.contains("8 of 8") && error.contains("atomically"),
            "{error}"
        );
        let left = inner.list(&Prefix::new("probe/").unwrap(), None, 1).await;
        assert!(left.unwrap().entries.is_empty(), "the probe left an object");
    }
}
