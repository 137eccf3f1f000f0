//! A decorator that bounds every call in time: storage that hangs becomes storage that is
//! unavailable.
//!
//! A write that is given up may still apply later; that is what `Unavailable` says.

use core::ops::Range;
use core::time::Duration;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};

use super::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError, StorageFuture,
    Version,
};

/// Storage that answers in time or not at all. What a streamed write takes is its client's affair.
#[derive(Debug)]
pub struct Bounded {
    inner: Arc<dyn Storage>,
    timeout: Duration,
}

impl Bounded {
    /// Gives each call to `inner`, and each piece of a body that is read, at most `timeout`.
    pub fn new(inner: Arc<dyn Storage>, timeout: Duration) -> Self {
        Self { inner, timeout }
    }

    fn within<'a, T: Send + 'a>(
        &self,
        action: &'static str,
        key: &'a (dyn core::fmt::Display + Sync),
        call: StorageFuture<'a, T>,
    ) -> StorageFuture<'a, T> {
        let timeout = self.timeout;
        async move {
            let outcome = tokio::time::timeout(timeout, call).await;
            outcome.unwrap_or_else(|_| Err(late(action, key)))
        }
        .boxed()
    }
}

fn late(action: &'static str, key: &(dyn core::fmt::Display + Sync)) -> StorageError {
    StorageError::unavailable(action, key, "the storage did not answer in time")
}

impl Storage for Bounded {
    fn create<'a>(&'a self, key: &'a Key, body: Bytes) -> StorageFuture<'a, Version> {
        self.within("create object", key, self.inner.create(key, body))
    }

    fn swap<'a>(
        &'a self,
        key: &'a Key,
        seen: &'a Version,
        body: Bytes,
    ) -> StorageFuture<'a, Version> {
        self.within("swap object", key, self.inner.swap(key, seen, body))
    }

    fn read<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Object>> {
        self.within("read object", key, self.inner.read(key))
    }

    fn read_range<'a>(&'a self, key: &'a Key, range: Range<u64>) -> StorageFuture<'a, ByteStream> {
        let opened = self.within("open object", key, self.inner.read_range(key, range));
        let (timeout, key) = (self.timeout, key.clone());
        async move {
            let bounded = stream::unfold(Some((opened.await?, key)), move |source| async move {
                let (mut bytes, key) = source?;
                match tokio::time::timeout(timeout, bytes.next()).await {
                    Ok(piece) => piece.map(|piece| (piece, Some((bytes, key)))),
                    Err(_) => Some((Err(late("read bytes", &key)), None)),
                }
            });
            Ok(bounded.boxed())
        }
        .boxed()
    }

    fn file<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Arc<File>>> {
        self.within("open object", key, self.inner.file(key))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> StorageFuture<'a, Page> {
        self.within(
            "list objects",
            prefix,
            self.inner.list(prefix, after, limit),
        )
    }

    fn write<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Box<dyn ObjectWriter>> {
        self.within("begin object", key, self.inner.write(key))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, ()> {
        self.within("delete object", key, self.inner.delete(key))
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn presigned_get<'a>(
        &'a self,
        key: &'a Key,
        valid_for: Duration,
    ) -> StorageFuture<'a, Option<String>> {
        self.within("sign URL", key, self.inner.presigned_get(key, valid_for))
    }
}
