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
use futures_util::StreamExt;
use tokio::sync::{Notify, watch};

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

/// A way in which a whole storage fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Every call fails at once.
    Refuses,
    /// No call returns, and bodies stop.
    Hangs,
    /// Reads of data objects do not return; all else works, probes too.
    HangsForData,
    /// Every call fails after a second, as a storage that throttles.
    Throttles,
    /// Bodies end with an error after their first piece; all else works.
    TearsBodies,
    /// Data objects are gone; all else works.
    LosesObjects,
    /// Writes fail for want of space.
    Full,
}

impl Outage {
    pub(crate) const ALL: [Self; 6] = [
        Self::Refuses,
        Self::Hangs,
        Self::Throttles,
        Self::TearsBodies,
        Self::LosesObjects,
        Self::Full,
    ];
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
    outage: watch::Sender<Option<Outage>>,
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

    /// Injects no more faults into writes.
    pub(crate) fn disarm(&self) {
        self.writes.lock().unwrap().clear();
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
        self.set_outage(down.then_some(Outage::Refuses));
    }

    /// Begins an outage, or ends it. Calls that hang go on when it ends.
    pub(crate) fn set_outage(&self, outage: Option<Outage>) {
        self.outage.send_replace(outage);
    }

    fn present(&self) -> Option<Outage> {
        *self.outage.borrow()
    }

    fn take_fault(&self, key: &Key) -> Option<WriteFault> {
        let mut armed = self.writes.lock().unwrap();
        let armed = armed
            .iter_mut()
            .find(|armed| armed.remaining > 0 && key.as_str().starts_with(&armed.prefix))?;
        armed.remaining -= 1;
        Some(armed.fault.clone())
    }

    async fn check_up(&self, key: &(dyn core::fmt::Display + Sync)) -> StorageResult<()> {
        match self.present() {
            Some(Outage::Refuses) => Err(injected(key)),
            Some(Outage::Throttles) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(injected(key))
            }
            Some(Outage::Hangs) => {
                self.until_it_goes_on().await;
                Ok(())
            }
            Some(
                Outage::HangsForData | Outage::TearsBodies | Outage::LosesObjects | Outage::Full,
            )
            | None => Ok(()),
        }
    }

    /// Waits while the storage hangs.
    async fn until_it_goes_on(&self) {
        let mut outage = self.outage.subscribe();
        let hangs =
            |outage: &Option<Outage>| matches!(outage, Some(Outage::Hangs | Outage::HangsForData));
        let _ended = outage.wait_for(|outage| !hangs(outage)).await;
    }

    /// A body with the faults of the present outage.
    fn with_faults(&self, key: &Key, bytes: ByteStream) -> ByteStream {
        let faults = self.clone();
        let key = key.clone();
        let mut pieces = 0;
        let bytes = bytes.then(move |piece| {
            let (faults, key) = (faults.clone(), key.clone());
            pieces += 1;
            let is_first = pieces == 1;
            async move {
                match faults.present() {
                    Some(Outage::Hangs) => faults.until_it_goes_on().await,
                    Some(Outage::TearsBodies) if !is_first => return Err(injected(&key)),
                    Some(Outage::Refuses | Outage::Throttles) => return Err(injected(&key)),
                    _ => {}
                }
                piece
            }
        });
        bytes.boxed()
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

    /// The same storage with the faults of another handle.
    pub(crate) fn sharing(inner: Arc<dyn Storage>, faults: Faults) -> Self {
        Self { inner, faults }
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
        self.faults.check_up(key).await?;
        if self.faults.present() == Some(Outage::Full) {
            return Err(StorageError::Full {
                action: "write object",
                key: key.to_string(),
            });
        }
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
        self.faults.check_up(key).await?;
        self.inner.read(key).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        self.faults.check_up(key).await?;
        if self.faults.present() == Some(Outage::HangsForData) {
            self.faults.until_it_goes_on().await;
        }
        if self.faults.present() == Some(Outage::LosesObjects) {
            return Err(StorageError::Missing {
                action: "read object",
                key: key.to_string(),
            });
        }
        let bytes = self.inner.read_range(key, range).await?;
        Ok(self.faults.with_faults(key, bytes))
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        self.faults.check_up(prefix).await?;
        self.inner.list(prefix, after, limit).await
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        let call = self.inner.begin_write(key);
        self.write_with_faults(key, call).await
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.faults.check_up(key).await?;
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
