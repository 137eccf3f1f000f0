//! Storage with injected faults, by key prefix and outcome of the operation.

use core::ops::Range;
use core::time::Duration;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_origin::storage::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError, StorageResult,
    Version,
};
use tokio::sync::Notify;

/// A fault of a write.
#[derive(Clone)]
pub(crate) enum WriteFault {
    /// The write fails without effect, as if the replica died before it.
    Rejected,
    /// The write applies, but its response is lost.
    ResponseLost,
    /// The write waits until the test resumes it.
    Held {
        reached: Arc<Notify>,
        resume: Arc<Notify>,
    },
}

struct ArmedFault {
    prefix: String,
    remaining: u32,
    fault: WriteFault,
}

/// The faults of a storage, shared with the test.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    writes: Arc<Mutex<Vec<ArmedFault>>>,
    down: Arc<Mutex<bool>>,
}

impl Faults {
    /// Injects `fault` into the next `times` writes of keys under `prefix`.
    pub(crate) fn arm(&self, prefix: &str, times: u32, fault: WriteFault) {
        self.writes.lock().unwrap().push(ArmedFault {
            prefix: prefix.to_owned(),
            remaining: times,
            fault,
        });
    }

    /// Holds the next write under `prefix`. Returns what signals that the write was reached, and
    /// what resumes it.
    pub(crate) fn hold(&self, prefix: &str) -> (Arc<Notify>, Arc<Notify>) {
        let reached = Arc::new(Notify::new());
        let resume = Arc::new(Notify::new());
        let held = WriteFault::Held {
            reached: Arc::clone(&reached),
            resume: Arc::clone(&resume),
        };
        self.arm(prefix, 1, held);
        (reached, resume)
    }

    /// Makes all calls fail, or none.
    pub(crate) fn set_down(&self, down: bool) {
        *self.down.lock().unwrap() = down;
    }

    fn take_fault(&self, key: &Key) -> Option<WriteFault> {
        let mut armed = self.writes.lock().unwrap();
        let armed = armed
            .iter_mut()
            .find(|armed| armed.remaining > 0 && key.as_str().starts_with(&armed.prefix))?;
        armed.remaining -= 1;
        Some(armed.fault.clone())
    }

    fn check_up(&self, key: &(dyn core::fmt::Display + Sync)) -> StorageResult<()> {
        if *self.down.lock().unwrap() {
            Err(injected(key))
        } else {
            Ok(())
        }
    }
}

fn injected(key: &(dyn core::fmt::Display + Sync)) -> StorageError {
    StorageError::unavailable("reach storage", key, "injected fault")
}

#[derive(Clone)]
pub(crate) struct FaultyStorage {
    inner: Arc<dyn Storage>,
    faults: Faults,
}

impl core::fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FaultyStorage({:?})", self.inner)
    }
}

impl FaultyStorage {
    pub(crate) fn new(inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            faults: Faults::default(),
        }
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// Performs a write with the fault that is armed for its key.
    async fn write_with_faults<T>(
        &self,
        key: &Key,
        write: impl Future<Output = StorageResult<T>> + Send,
    ) -> StorageResult<T> {
        self.faults.check_up(key)?;
        match self.faults.take_fault(key) {
            None => write.await,
            Some(WriteFault::Rejected) => Err(injected(key)),
            Some(WriteFault::ResponseLost) => {
                write.await?;
                Err(injected(key))
            }
            Some(WriteFault::Held { reached, resume }) => {
                reached.notify_one();
                resume.notified().await;
                write.await
            }
        }
    }
}

#[async_trait]
impl Storage for FaultyStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        let call = self.inner.create(key, body);
        self.write_with_faults(key, call).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        let call = self.inner.swap(key, seen, body);
        self.write_with_faults(key, call).await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        self.faults.check_up(key)?;
        self.inner.read(key).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        self.faults.check_up(key)?;
        self.inner.read_range(key, range).await
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        self.faults.check_up(prefix)?;
        self.inner.list(prefix, after, limit).await
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        let call = self.inner.begin_write(key);
        self.write_with_faults(key, call).await
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.faults.check_up(key)?;
        self.inner.delete(key).await
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        let call = self.inner.remove(key, seen);
        self.write_with_faults(key, call).await
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    async fn presigned_get(&self, key: &Key, valid_for: Duration) -> StorageResult<Option<String>> {
        self.inner.presigned_get(key, valid_for).await
    }
}
