//! Storage with faults that a story arms: by kind of key, and by what happens to the operation.

use core::ops::Range;
use core::time::Duration;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flotilla_origin::storage::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError, StorageFuture,
    Version,
};
use futures_util::FutureExt;
use tokio::sync::Notify;

/// What happens to a write.
#[derive(Clone)]
pub(crate) enum Fate {
    /// It does not apply, and says so: a replica that dies before it.
    Refused,
    /// It applies, and says that it failed: an answer that is lost.
    Unheard,
    /// It waits until the story goes on.
    Held {
        reached: Arc<Notify>,
        go_on: Arc<Notify>,
    },
}

struct Armed {
    prefix: String,
    times: u32,
    fate: Fate,
}

/// The faults of a storage, shared with the story.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    writes: Arc<Mutex<Vec<Armed>>>,
    down: Arc<Mutex<bool>>,
}

impl Faults {
    /// The next `times` writes of keys under `prefix` meet this fate.
    pub(crate) fn arm(&self, prefix: &str, times: u32, fate: Fate) {
        self.writes.lock().unwrap().push(Armed {
            prefix: prefix.to_owned(),
            times,
            fate,
        });
    }

    /// The next write under `prefix` waits; what tells that it was reached, and what lets it go on.
    pub(crate) fn hold(&self, prefix: &str) -> (Arc<Notify>, Arc<Notify>) {
        let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        self.arm(
            prefix,
            1,
            Fate::Held {
                reached: Arc::clone(&reached),
                go_on: Arc::clone(&go_on),
            },
        );
        (reached, go_on)
    }

    /// Whether nothing answers.
    pub(crate) fn set_down(&self, down: bool) {
        *self.down.lock().unwrap() = down;
    }

    fn fate(&self, key: &Key) -> Option<Fate> {
        let mut armed = self.writes.lock().unwrap();
        let fault = armed
            .iter_mut()
            .find(|fault| fault.times > 0 && key.as_str().starts_with(&fault.prefix))?;
        fault.times -= 1;
        Some(fault.fate.clone())
    }

    fn check(&self, key: &dyn core::fmt::Display) -> Result<(), StorageError> {
        if *self.down.lock().unwrap() {
            Err(injected(key))
        } else {
            Ok(())
        }
    }
}

fn injected(key: &dyn core::fmt::Display) -> StorageError {
    StorageError::unavailable("reach storage", key, "injected fault")
}

#[derive(Clone)]
pub(crate) struct Faulty {
    inner: Arc<dyn Storage>,
    faults: Faults,
}

impl core::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Faulty({:?})", self.inner)
    }
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            faults: Faults::default(),
        }
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// A write as its fate has it.
    fn write_under<'a, T: Send + 'a>(
        &'a self,
        key: &'a Key,
        write: StorageFuture<'a, T>,
    ) -> StorageFuture<'a, T> {
        async move {
            self.faults.check(key)?;
            match self.faults.fate(key) {
                None => write.await,
                Some(Fate::Refused) => Err(injected(key)),
                Some(Fate::Unheard) => {
                    write.await?;
                    Err(injected(key))
                }
                Some(Fate::Held { reached, go_on }) => {
                    reached.notify_one();
                    go_on.notified().await;
                    write.await
                }
            }
        }
        .boxed()
    }
}

impl Storage for Faulty {
    fn create<'a>(&'a self, key: &'a Key, body: Bytes) -> StorageFuture<'a, Version> {
        self.write_under(key, self.inner.create(key, body))
    }

    fn swap<'a>(
        &'a self,
        key: &'a Key,
        seen: &'a Version,
        body: Bytes,
    ) -> StorageFuture<'a, Version> {
        self.write_under(key, self.inner.swap(key, seen, body))
    }

    fn read<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Object>> {
        async move {
            self.faults.check(key)?;
            self.inner.read(key).await
        }
        .boxed()
    }

    fn read_range<'a>(&'a self, key: &'a Key, range: Range<u64>) -> StorageFuture<'a, ByteStream> {
        async move {
            self.faults.check(key)?;
            self.inner.read_range(key, range).await
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> StorageFuture<'a, Page> {
        async move {
            self.faults.check(prefix)?;
            self.inner.list(prefix, after, limit).await
        }
        .boxed()
    }

    fn write<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Box<dyn ObjectWriter>> {
        self.write_under(key, self.inner.write(key))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, ()> {
        async move {
            self.faults.check(key)?;
            self.inner.delete(key).await
        }
        .boxed()
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn presigned_get<'a>(
        &'a self,
        key: &'a Key,
        valid_for: Duration,
    ) -> StorageFuture<'a, Option<String>> {
        self.inner.presigned_get(key, valid_for)
    }
}
