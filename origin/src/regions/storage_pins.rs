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
//! A region is known by the storage that was recorded at the first contact (`region/<name>`). A
//! storage that was restored from an old copy gets another id (`flotilla origin format renew`), and
//! says which ids it had before. The follower records the new id in place of the known one, which
//! is retired: an origin that still uses it is refused from then on.

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

/// The storage that a region is known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownStorage {
    /// `None` before the first contact.
    pub(crate) id: Option<StorageId>,
    /// The ids that it had before it was renewed.
    pub(crate) retired: Vec<StorageId>,
}

impl KnownStorage {
    pub(crate) fn of(record: &RegionRecord) -> Self {
        Self {
            id: Some(record.storage_id),
            retired: record.retired.clone(),
        }
    }
}

/// What a storage that a region uses is to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FoundStorage {
    /// The known one, or the first one.
    Known,
    /// The known one, renewed. It must be recorded before anything is exchanged.
    Renewed,
    /// A wrong one. The reason and the fix are for people.
    Refused(&'static str),
}

/// Compares the storage `found`, which had the ids `replaced` before, with what is known.
pub(crate) fn compare(
    own: StorageId,
    known: &KnownStorage,
    found: StorageId,
    replaced: &[StorageId],
) -> FoundStorage {
    if found == own {
        let reason = "it uses the storage of this region; give each region a bucket of its own";
        return FoundStorage::Refused(reason);
    }
    if known.retired.contains(&found) {
        return FoundStorage::Refused(
            "its storage was replaced by a renewed one (`flotilla origin format renew`), but this origin still uses the old one; stop it, or start it with the renewed storage",
        );
    }
    match known.id {
        None => FoundStorage::Known,
        Some(known) if known == found => FoundStorage::Known,
        Some(known) if replaced.contains(&known) => FoundStorage::Renewed,
        Some(_) => FoundStorage::Refused(
            "its storage is another one than before; start it with its own storage. A region that lost its storage joins under a new name, and one that was restored from a backup needs `flotilla origin format renew`",
        ),
    }
}

/// The storages that one region is known by, and whether it is refused.
#[derive(Clone, Debug, Default)]
struct Pin {
    /// As recorded in the own storage.
    recorded: KnownStorage,
    /// As seen by this process, before it was recorded.
    seen: Option<StorageId>,
    is_refused: bool,
    /// Why the region refuses this one, as it said last.
    refuses: Option<String>,
}

impl Pin {
    fn known(&self) -> KnownStorage {
        KnownStorage {
            id: self.recorded.id.or(self.seen),
            retired: self.recorded.retired.clone(),
        }
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
        self.lock().get(region)?.known().id
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

    /// Compares the storage that a region uses, which had the ids `replaced` before, with what is
    /// known of it.
    ///
    /// # Errors
    /// The region is refused, which is logged; the text is for people.
    pub(crate) async fn check(
        &self,
        region: &RegionName,
        found: StorageId,
        replaced: &[StorageId],
    ) -> Result<(), &'static str> {
        let known = self.expected(region);
        // The record is read if it may say something new: probes of other regions must not wait for
        // an own storage that hangs. Without an answer in time, what was seen counts.
        if known != Some(found)
            && let Ok(Ok(recorded)) = timeout(RECORD_TIMEOUT, self.recorded(region)).await
            && recorded.id.is_some()
        {
            self.lock().entry(region.clone()).or_default().recorded = recorded;
        }
        let mut pins = self.lock();
        let pin = pins.entry(region.clone()).or_default();
        let compared = compare(self.own, &pin.known(), found, replaced);
        let refused = match compared {
            FoundStorage::Refused(reason) => Some(reason),
            FoundStorage::Known | FoundStorage::Renewed => None,
        };
        let was_refused = core::mem::replace(&mut pin.is_refused, refused.is_some());
        if compared == FoundStorage::Known {
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

    /// Notes that a region has answered 421, with its reason: this origin may be the one whose
    /// storage is wrong.
    pub(super) fn refused_by(&self, region: &RegionName, reason: &str) {
        let mut pins = self.lock();
        let before = &mut pins.entry(region.clone()).or_default().refuses;
        if before.as_deref() != Some(reason) {
            tracing::warn!(%region, storage_id = %self.own, reason, "a region refuses the requests of this origin; check the storage of both");
            *before = Some(reason.to_owned());
        }
    }

    /// Notes that a region answers.
    fn accepted_by(&self, region: &RegionName) {
        let mut pins = self.lock();
        let Some(pin) = pins.get_mut(region) else {
            return;
        };
        if pin.refuses.take().is_some() {
            tracing::info!(%region, "the region accepts the requests of this origin again");
        }
    }

    /// The storage that was recorded at the first contact, or since.
    async fn recorded(&self, region: &RegionName) -> Result<KnownStorage, StorageError> {
        let key = layout::region(region);
        let Some(object) = self.storage.read(&key).await? else {
            return Ok(KnownStorage::default());
        };
        let record: RegionRecord = decode(&key, &object.body)?;
        Ok(KnownStorage::of(&record))
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
        let checked = self
            .pins
            .check(self.region(), state.storage_id, &state.replaced)
            .await;
        checked.map_err(|reason| self.error(reason))?;
        Ok(state)
    }

    async fn journal(
        &self,
        after: Option<EntryId>,
        limit: usize,
    ) -> Result<JournalPage, SourceError> {
        self.admit().await?;
        let page = self.inner.journal(after, limit).await?;
        self.pins.accepted_by(self.region());
        Ok(page)
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
        let check =
            async |storage, replaced: &[StorageId]| pins.check(&us, storage, replaced).await;
        assert!(check(id(1), &[]).await.is_err(), "the own storage");
        assert_eq!(pins.expected(&us), None);
        assert_eq!(check(id(2), &[]).await, Ok(()));
        assert_eq!(pins.expected(&us), Some(id(2)));
        assert!(check(id(3), &[]).await.is_err(), "another storage");
        assert!(
            check(id(3), &[id(4)]).await.is_err(),
            "renewed from another"
        );
        assert_eq!(check(id(2), &[]).await, Ok(()), "corrected");
        assert_eq!(check(id(3), &[id(2)]).await, Ok(()), "renewed");
        assert_eq!(pins.expected(&us), Some(id(2)), "not before it is recorded");
    }

    /// Once the renewed storage is recorded, an origin with the old one is refused, and so is
    /// another storage that was renewed from the same copy.
    #[test]
    fn retired_storages_are_refused() {
        let known = KnownStorage {
            id: Some(id(3)),
            retired: vec![id(2)],
        };
        let compare = |found, replaced: &[StorageId]| compare(id(1), &known, found, replaced);
        assert_eq!(compare(id(3), &[id(2)]), FoundStorage::Known);
        assert_eq!(compare(id(5), &[id(2), id(3)]), FoundStorage::Renewed);
        let FoundStorage::Refused(reason) = compare(id(2), &[]) else {
            panic!("the old storage is accepted")
        };
        assert!(
            reason.contains("start it with the renewed storage"),
            "{reason}"
        );
        assert!(matches!(compare(id(4), &[id(2)]), FoundStorage::Refused(_)));
    }
}
