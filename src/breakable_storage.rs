//! A storage decorator whose storage can be broken and healed while an origin uses it, for
//! `flotilla demo --outage` and `flotilla up break`. Production never uses it.
//!
//! An outage applies to every call and, where it says so, to streams and writers that are open when
//! it begins: an origin that has opened an object must not be able to read on from a storage that
//! no longer answers. So this storage never hands out files ([`Storage::open_file`]).

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use clap::ValueEnum;
use flotilla_origin::storage::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError, StorageResult,
    Version,
};
use futures_util::{StreamExt, stream};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use tokio::sync::watch;

/// How long a call takes while the storage is slow.
const SLOW_CALL: Duration = Duration::from_secs(3);
/// The seed of the choice of the calls that fail: the same calls in each run.
const RNG_SEED: u64 = 1;

/// A form of outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Outage {
    /// No call, stream or write gets an answer until the storage is healed
    Hang,
    /// Every call fails at once; open streams and writes break
    Refuse,
    /// Half of the calls fail, chosen at random; open streams and writes go on
    Errors,
    /// Every call takes 3 s longer; open streams and writes go on
    Slow,
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hang => "hang",
            Self::Refuse => "refuse",
            Self::Errors => "errors",
            Self::Slow => "slow",
        })
    }
}

impl FromStr for Outage {
    type Err = String;

    /// Fails if no form of outage has this name.
    fn from_str(name: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(name, false)
            .map_err(|_| format!("'{name}' is not a form of outage: hang, refuse, errors or slow"))
    }
}

/// Breaks and heals a storage. Clones belong to the same storage.
#[derive(Clone, Debug)]
pub struct OutageSwitch(Arc<Switch>);

#[derive(Debug)]
struct Switch {
    outage: watch::Sender<Option<Outage>>,
    rng: Mutex<Pcg32>,
}

impl OutageSwitch {
    fn new() -> Self {
        Self(Arc::new(Switch {
            outage: watch::Sender::new(None),
            rng: Mutex::new(Pcg32::seed_from_u64(RNG_SEED)),
        }))
    }

    /// Begins an outage, or changes its form.
    pub fn break_storage(&self, outage: Outage) {
        self.0.outage.send_replace(Some(outage));
    }

    /// Ends the outage. Calls that hang continue.
    pub fn heal(&self) {
        self.0.outage.send_replace(None);
    }

    /// Waits or fails, as the outage demands of a new call.
    async fn enter(
        &self,
        action: &'static str,
        key: &(impl fmt::Display + Sync),
    ) -> StorageResult<()> {
        let mut outage = self.0.outage.subscribe();
        let now = *outage.borrow_and_update();
        match now {
            None => Ok(()),
            Some(Outage::Hang) => self.wait_while_hung(&mut outage).await,
            Some(Outage::Refuse) => Err(broken(action, key)),
            Some(Outage::Errors) if self.fails() => Err(broken(action, key)),
            Some(Outage::Errors) => Ok(()),
            Some(Outage::Slow) => {
                tokio::time::sleep(SLOW_CALL).await;
                Ok(())
            }
        }
    }

    /// Waits or fails, as the outage demands of a stream or a write that is open.
    async fn go_on(
        &self,
        action: &'static str,
        key: &(impl fmt::Display + Sync),
    ) -> StorageResult<()> {
        let mut outage = self.0.outage.subscribe();
        let now = *outage.borrow_and_update();
        match now {
            Some(Outage::Hang) => self.wait_while_hung(&mut outage).await,
            Some(Outage::Refuse) => Err(broken(action, key)),
            None | Some(Outage::Errors | Outage::Slow) => Ok(()),
        }
    }

    /// Returns once the storage does not hang any more. The sender lives as long as the switch.
    async fn wait_while_hung(
        &self,
        outage: &mut watch::Receiver<Option<Outage>>,
    ) -> StorageResult<()> {
        let _ = outage
            .wait_for(|outage| *outage != Some(Outage::Hang))
            .await;
        Ok(())
    }

    fn fails(&self) -> bool {
        let mut rng = self.0.rng.lock().unwrap_or_else(PoisonError::into_inner);
        rng.random()
    }
}

fn broken(action: &'static str, key: &impl fmt::Display) -> StorageError {
    StorageError::unavailable(action, key, "the storage was broken on purpose")
}

/// Storage that can be broken.
#[derive(Debug)]
pub struct BreakableStorage {
    inner: Arc<dyn Storage>,
    switch: OutageSwitch,
}

impl BreakableStorage {
    /// Makes `inner` breakable. It works until the switch is used.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            switch: OutageSwitch::new(),
        }
    }

    /// What breaks and heals it.
    pub fn switch(&self) -> OutageSwitch {
        self.switch.clone()
    }
}

#[async_trait]
impl Storage for BreakableStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        self.switch.enter("create object", key).await?;
        self.inner.create(key, body).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        self.switch.enter("swap object", key).await?;
        self.inner.swap(key, seen, body).await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        self.switch.enter("read object", key).await?;
        self.inner.read(key).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        self.switch.enter("open object", key).await?;
        let bytes = self.inner.read_range(key, range).await?;
        let (switch, key) = (self.switch.clone(), key.clone());
        let breakable = stream::unfold(Some((bytes, switch, key)), |source| async move {
            let (mut bytes, switch, key) = source?;
            let piece = bytes.next().await?;
            // After the read, so that what was read ahead does not pass either.
            match switch.go_on("read bytes", &key).await {
                Ok(()) => Some((piece, Some((bytes, switch, key)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(breakable.boxed())
    }

    async fn open_file(&self, _key: &Key) -> StorageResult<Option<Arc<File>>> {
        Ok(None)
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        self.switch.enter("list objects", prefix).await?;
        self.inner.list(prefix, after, limit).await
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        self.switch.enter("begin object", key).await?;
        Ok(Box::new(BreakableWriter {
            inner: self.inner.begin_write(key).await?,
            switch: self.switch.clone(),
            key: key.clone(),
        }))
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.switch.enter("delete object", key).await?;
        self.inner.delete(key).await
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        self.switch.enter("remove object", key).await?;
        self.inner.remove(key, seen).await
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    async fn presigned_get(&self, key: &Key, valid_for: Duration) -> StorageResult<Option<String>> {
        self.inner.presigned_get(key, valid_for).await
    }
}

/// An object that is being written to a storage that can be broken.
struct BreakableWriter {
    inner: Box<dyn ObjectWriter>,
    switch: OutageSwitch,
    key: Key,
}

#[async_trait]
impl ObjectWriter for BreakableWriter {
    async fn reserve(&mut self, pending: usize) -> StorageResult<usize> {
        self.inner.reserve(pending).await
    }

    async fn write(&mut self, bytes: Bytes) -> StorageResult<()> {
        self.switch.go_on("write bytes", &self.key).await?;
        self.inner.write(bytes).await
    }

    async fn flush(&mut self) -> StorageResult<()> {
        self.switch.go_on("write bytes", &self.key).await?;
        self.inner.flush().await
    }

    async fn finish(self: Box<Self>) -> StorageResult<()> {
        self.switch.go_on("finish object", &self.key).await?;
        self.inner.finish().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use flotilla_origin::storage::open;
    use futures_util::poll;
    use tokio::pin;
    use tokio::time::Instant;

    use super::*;

    /// A storage with one object of three bytes.
    async fn storage() -> (BreakableStorage, Key) {
        let storage = BreakableStorage::new(open("memory:///", 1 << 20).unwrap());
        let key = Key::new("seg/a").unwrap();
        storage
            .create(&key, Bytes::from_static(b"abc"))
            .await
            .unwrap();
        (storage, key)
    }

    #[tokio::test(start_paused = true)]
    async fn hung_calls_and_open_streams_continue_once_the_storage_is_healed() {
        let (storage, key) = storage().await;
        let mut open = storage.read_range(&key, 0..3).await.unwrap();
        storage.switch().break_storage(Outage::Hang);
        let call = storage.read(&key);
        pin!(call);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(poll!(&mut call).is_pending());
        assert!(poll!(open.next()).is_pending());
        storage.switch().heal();
        assert_eq!(call.await.unwrap().unwrap().body, "abc");
    }

    #[tokio::test]
    async fn refusing_storage_breaks_open_streams_and_writes_too() {
        let (storage, key) = storage().await;
        let mut open = storage.read_range(&key, 0..3).await.unwrap();
        let mut writer = storage
            .begin_write(&Key::new("seg/b").unwrap())
            .await
            .unwrap();
        storage.switch().break_storage(Outage::Refuse);
        let message = storage.read(&key).await.unwrap_err().to_string();
        assert_eq!(
            message,
            "read object seg/a: the storage was broken on purpose"
        );
        assert!(open.next().await.unwrap().is_err());
        assert!(open.next().await.is_none());
        assert!(writer.write(Bytes::from_static(b"x")).await.is_err());
        storage.switch().heal();
        assert!(storage.read(&key).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn half_of_the_calls_fail() {
        let (storage, key) = storage().await;
        storage.switch().break_storage(Outage::Errors);
        let mut failed = 0;
        for _ in 0..1_000 {
            failed += u32::from(storage.read(&key).await.is_err());
        }
        assert!((400..=600).contains(&failed), "{failed} of 1000 failed");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_calls_take_three_seconds() {
        let (storage, key) = storage().await;
        storage.switch().break_storage(Outage::Slow);
        let started = Instant::now();
        storage.read(&key).await.unwrap();
        assert_eq!(started.elapsed(), SLOW_CALL);
    }

    #[test]
    fn names_of_outages() {
        for outage in Outage::value_variants() {
            assert_eq!(outage.to_string().parse::<Outage>(), Ok(*outage));
        }
        assert!("hangs".parse::<Outage>().unwrap_err().contains("refuse"));
    }
}
