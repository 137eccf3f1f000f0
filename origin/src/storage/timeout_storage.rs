//! A decorator that gives every storage call a timeout, so that storage that hangs becomes storage
//! that is unavailable.
//!
//! A write that times out may still apply later; [`StorageError::Unavailable`] says so.

use core::fmt::Display;
use core::ops::Range;
use core::time::Duration;
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError, StorageResult,
    Version,
};

/// Storage whose calls end within a timeout. The duration of a streaming write depends on the
/// client that sends the bytes, so [`ObjectWriter`]s are not limited.
#[derive(Debug)]
pub struct TimeoutStorage {
    inner: Arc<dyn Storage>,
    timeout: Duration,
}

impl TimeoutStorage {
    /// Limits each call to `inner`, and each wait for the next bytes of a stream, to `timeout`.
    pub fn new(inner: Arc<dyn Storage>, timeout: Duration) -> Self {
        Self { inner, timeout }
    }

    async fn limit<T>(
        &self,
        action: &'static str,
        key: &(dyn Display + Sync),
        call: impl Future<Output = StorageResult<T>> + Send,
    ) -> StorageResult<T> {
        tokio::time::timeout(self.timeout, call)
            .await
            .unwrap_or_else(|_| Err(timed_out(action, key)))
    }
}

fn timed_out(action: &'static str, key: &(dyn Display + Sync)) -> StorageError {
    StorageError::unavailable(action, key, "the storage did not answer in time")
}

#[async_trait]
impl Storage for TimeoutStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        let call = self.inner.create(key, body);
        self.limit("create object", key, call).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        let call = self.inner.swap(key, seen, body);
        self.limit("swap object", key, call).await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        self.limit("read object", key, self.inner.read(key)).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        let call = self.inner.read_range(key, range);
        let bytes = self.limit("open object", key, call).await?;
        let (timeout, key) = (self.timeout, key.clone());
        let limited = stream::unfold(Some((bytes, key)), move |source| async move {
            let (mut bytes, key) = source?;
            match tokio::time::timeout(timeout, bytes.next()).await {
                Ok(piece) => piece.map(|piece| (piece, Some((bytes, key)))),
                Err(_) => Some((Err(timed_out("read bytes", &key)), None)),
            }
        });
        Ok(limited.boxed())
    }

    async fn open_file(&self, key: &Key) -> StorageResult<Option<Arc<File>>> {
        self.limit("open object", key, self.inner.open_file(key))
            .await
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        let call = self.inner.list(prefix, after, limit);
        self.limit("list objects", prefix, call).await
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        self.limit("begin object", key, self.inner.begin_write(key))
            .await
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.limit("delete object", key, self.inner.delete(key))
            .await
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        self.limit("remove object", key, self.inner.remove(key, seen))
            .await
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    async fn presigned_get(&self, key: &Key, valid_for: Duration) -> StorageResult<Option<String>> {
        let call = self.inner.presigned_get(key, valid_for);
        self.limit("sign URL", key, call).await
    }
}
