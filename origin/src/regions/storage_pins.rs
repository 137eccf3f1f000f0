//! Which storage each other region uses, so that a region with a wrong one is refused.
//!
//! ```text
//! request to another region ── from: own storage, to: the expected one ──▶ 421 if `to` is not the
//!                                          receiver's storage, or `from` is refused there
//! first request of a process ── state ──▶ the storage is compared before anything else is asked
//! ```
//! Two regions on one storage would drop each other's journal entries, and a region that lost its
//! storage would drop entries into an empty one. So nothing is replicated, read or forwarded
//! between such regions, in neither direction, until an operator corrects them.
//!
//! A region is known by the storage that was recorded at the first contact (`region/<name>`).

use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use axum::body::Body;
use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::storage_id::StorageId;
use flotilla_common::wire::region::{
    EntryId, Fact, FactKey, FactKind, JournalPage, KeysPage, RegionState, TakeAnswer, TakeRequest,
};
use http::{Request, Response, StatusCode};
use tokio::time::timeout;

use super::counts::RegionCounts;
use super::source::{Source, SourceBlob, SourceError};
use crate::layout;
use crate::record::{RegionRecord, decode};
use crate::storage::{Storage, StorageError};

/// How long the own storage may take to say which storage of a region was recorded. Without an
/// answer, what this process has seen counts.
const RECORD_TIMEOUT: Duration = Duration::from_millis(300);

/// Why a region with the storage `found` is refused; `None` if it is not.
pub(crate) fn refusal(
    own: StorageId,
    known: Option<StorageId>,
    found: StorageId,
) -> Option<&'static str> {
    if found == own {
        return Some("it uses the storage of this region; give each region a bucket of its own");
    }
    known.filter(|known| *known != found).map(|_| {
        "its storage is another one than before; a region that lost its storage joins under a new name"
    })
}

/// The storages that one region is known by, and whether it is refused.
#[derive(Clone, Copy, Debug, Default)]
struct Pin {
    /// As recorded in the own storage; it never changes.
    recorded: Option<StorageId>,
    /// As seen by this process, before it was recorded.
    seen: Option<StorageId>,
    is_refused: bool,
}

impl Pin {
    fn known(&self) -> Option<StorageId> {
        self.recorded.or(self.seen)
    }
}

/// The storages of all other regions.
#[derive(Debug)]
pub(crate) struct StoragePins {
    own: StorageId,
    storage: Arc<dyn Storage>,
    pins: Mutex<HashMap<RegionName, Pin>>,
    counts: Arc<RegionCounts>,
}

impl StoragePins {
    pub(crate) fn new(
        own: StorageId,
        storage: Arc<dyn Storage>,
        counts: Arc<RegionCounts>,
    ) -> Arc<Self> {
        Arc::new(Self {
            own,
            storage,
            pins: Mutex::default(),
            counts,
        })
    }

    /// The storage of this region.
    pub(crate) const fn own(&self) -> StorageId {
        self.own
    }

    /// The storage that a region is expected to use; `None` before it was compared.
    pub(crate) fn expected(&self, region: &RegionName) -> Option<StorageId> {
        self.lock().get(region)?.known()
    }

    /// Learns which storages were recorded, so that they are known while the own storage is out.
    ///
    /// # Errors
    /// The own storage's.
    pub(crate) async fn load(&self, regions: &[RegionName]) -> Result<(), StorageError> {
        for region in regions {
            let recorded = self.recorded(region).await?;
            self.lock().entry(region.clone()).or_default().recorded = recorded;
        }
        Ok(())
    }

    /// Compares the storage that a region uses with what is known of it.
    ///
    /// # Errors
    /// The region is refused, which is logged; the text is for people.
    pub(crate) async fn check(
        &self,
        region: &RegionName,
        found: StorageId,
    ) -> Result<(), &'static str> {
        let known = self.lock().get(region).and_then(|pin| pin.known());
        // The record is read if it may say something new: probes of other regions must not wait for
        // an own storage that hangs. Without an answer in time, what was seen counts.
        if known != Some(found)
            && let Ok(Ok(Some(recorded))) = timeout(RECORD_TIMEOUT, self.recorded(region)).await
        {
            self.lock().entry(region.clone()).or_default().recorded = Some(recorded);
        }
        let mut pins = self.lock();
        let pin = pins.entry(region.clone()).or_default();
        let refused = refusal(self.own, pin.known(), found);
        let was_refused = core::mem::replace(&mut pin.is_refused, refused.is_some());
        if refused.is_none() {
            pin.seen = Some(found);
        }
        drop(pins);
        self.counts
            .update(region, |counts| counts.is_refused = refused.is_some());
        match refused {
            Some(reason) if !was_refused => {
                tracing::error!(%region, storage_id = %found, reason, "refusing a region: nothing is replicated, read or forwarded between it and this one");
            }
            None if was_refused => {
                tracing::info!(%region, storage_id = %found, "the storage of a region is the known one again");
            }
            _ => {}
        }
        refused.map_or(Ok(()), Err)
    }

    /// The storage that was recorded at the first contact.
    async fn recorded(&self, region: &RegionName) -> Result<Option<StorageId>, StorageError> {
        let known = self.lock().get(region).and_then(|pin| pin.recorded);
        if known.is_some() {
            return Ok(known);
        }
        let key = layout::region(region);
        let Some(object) = self.storage.read(&key).await? else {
            return Ok(None);
        };
        let record: RegionRecord = decode(&key, &object.body)?;
        Ok(Some(record.storage_id))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RegionName, Pin>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A region that is asked only while it uses the storage that it is known by.
#[derive(Debug)]
pub(crate) struct PinnedSource<S> {
    inner: S,
    pins: Arc<StoragePins>,
}

impl<S: Source> PinnedSource<S> {
    pub(crate) const fn new(inner: S, pins: Arc<StoragePins>) -> Self {
        Self { inner, pins }
    }

    /// Compares the storage before the first request. Later ones carry the expected storage, and
    /// the region itself compares.
    async fn admit(&self) -> Result<(), SourceError> {
        if self.pins.expected(self.inner.region()).is_some() {
            return Ok(());
        }
        self.state().await.map(drop)
    }

    fn error(&self, reason: &str) -> SourceError {
        SourceError {
            region: self.inner.region().clone(),
            reason: reason.to_owned(),
        }
    }
}

#[async_trait]
impl<S: Source> Source for PinnedSource<S> {
    fn region(&self) -> &RegionName {
        self.inner.region()
    }

    async fn state(&self) -> Result<RegionState, SourceError> {
        let state = self.inner.state().await?;
        let checked = self.pins.check(self.region(), state.storage_id).await;
        checked.map_err(|reason| self.error(reason))?;
        Ok(state)
    }

    async fn journal(
        &self,
        after: Option<EntryId>,
        limit: usize,
    ) -> Result<JournalPage, SourceError> {
        self.admit().await?;
        self.inner.journal(after, limit).await
    }

    async fn done(&self, entries: Vec<EntryId>, sweep: Option<u128>) -> Result<(), SourceError> {
        self.admit().await?;
        self.inner.done(entries, sweep).await
    }

    async fn facts(&self, keys: &[FactKey]) -> Result<Vec<Fact>, SourceError> {
        self.admit().await?;
        self.inner.facts(keys).await
    }

    async fn keys(
        &self,
        kind: FactKind,
        after: Option<&FactKey>,
        limit: usize,
    ) -> Result<KeysPage, SourceError> {
        self.admit().await?;
        self.inner.keys(kind, after, limit).await
    }

    async fn take(&self, request: TakeRequest) -> Result<TakeAnswer, SourceError> {
        self.admit().await?;
        self.inner.take(request).await
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, SourceError> {
        self.admit().await?;
        let response = self.inner.send(request).await?;
        if response.status() == StatusCode::MISDIRECTED_REQUEST {
            return Err(self.error("it refused the request, since one of the two regions uses another storage than before"));
        }
        Ok(response)
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<SourceBlob>, SourceError> {
        self.admit().await?;
        self.inner.blob(repository, digest, offset).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::open;

    fn id(byte: u8) -> StorageId {
        StorageId::from_bytes([byte; 16])
    }

    #[tokio::test]
    async fn shared_and_changed_storages_are_refused() {
        let us: RegionName = "us-1".parse().expect("a label");
        let storage = open("memory:///", 0).expect("storage");
        let pins = StoragePins::new(id(1), storage, Arc::default());
        assert!(pins.check(&us, id(1)).await.is_err(), "the own storage");
        assert_eq!(pins.expected(&us), None);
        assert_eq!(pins.check(&us, id(2)).await, Ok(()));
        assert_eq!(pins.expected(&us), Some(id(2)));
        assert!(pins.check(&us, id(3)).await.is_err(), "another storage");
        assert_eq!(pins.check(&us, id(2)).await, Ok(()), "corrected");
    }
}
