//! Another region, as the follower sees it.

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::wire::region::{
    EntryId, Fact, FactKey, FactKind, JournalPage, KeysPage, RegionState, StorageStanding,
    TakeAnswer, TakeRequest,
};
use futures_util::stream::{self, BoxStream, StreamExt};
use http::{Request, Response};

/// Keys that are asked for one by one, concurrently.
const SINGLE_FACTS_AT_ONCE: usize = 8;

/// A region did not answer, or not as it should. Says nothing about what it has.
#[derive(Clone, Debug, thiserror::Error)]
#[error("ask region {region}: {reason}")]
pub(crate) struct SourceError {
    pub(crate) region: RegionName,
    pub(crate) reason: String,
}

/// The bytes of a blob from an offset to its end.
pub(crate) struct SourceBlob {
    /// Of the whole blob, in bytes.
    pub(crate) size: u64,
    /// Ends early only with an error.
    pub(crate) bytes: BoxStream<'static, Result<Bytes, String>>,
}

impl core::fmt::Debug for SourceBlob {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SourceBlob")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A region that is followed. Every answer comes from its own storage, past its caches.
#[async_trait]
pub(crate) trait Source: core::fmt::Debug + Send + Sync + 'static {
    /// The name.
    fn region(&self) -> &RegionName;

    /// Its storage, clock and standing.
    async fn state(&self) -> Result<RegionState, SourceError>;

    /// Entries that are owed to this region.
    async fn journal(
        &self,
        after: Option<EntryId>,
        limit: usize,
    ) -> Result<JournalPage, SourceError>;

    /// Drops entries that are merged, and the mark of a sweep that has ended.
    async fn done(&self, entries: Vec<EntryId>, sweep: Option<u128>) -> Result<(), SourceError>;

    /// The values of the first of the keys, at least one.
    async fn facts(&self, keys: &[FactKey]) -> Result<Vec<Fact>, SourceError>;

    /// A page of keys.
    async fn keys(
        &self,
        kind: FactKind,
        after: Option<&FactKey>,
        limit: usize,
    ) -> Result<KeysPage, SourceError>;

    /// Asks the region to copy keys from this one.
    async fn take(&self, request: TakeRequest) -> Result<TakeAnswer, SourceError>;

    /// Sends a client's request to an origin of the region, under this region's certificate, so that
    /// it is answered from the region's own storage.
    async fn send(&self, _request: Request<Body>) -> Result<Response<Body>, SourceError> {
        Err(SourceError {
            region: self.region().clone(),
            reason: "it takes no requests of clients".to_owned(),
        })
    }

    /// The bytes of a blob from `offset`; `None` if the region does not have it.
    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<SourceBlob>, SourceError>;
}

/// The values of the first of some keys, at least one, each or why it cannot be read: one record
/// that the region cannot read does not keep the others.
///
/// # Errors
/// The region does not answer, or its storage is out.
pub(crate) async fn readable_facts(
    source: &dyn Source,
    keys: &[FactKey],
) -> Result<Vec<Result<Fact, SourceError>>, SourceError> {
    let error = match source.facts(keys).await {
        Ok(facts) if facts.is_empty() => {
            return Err(SourceError {
                region: source.region().clone(),
                reason: "it answered without facts".to_owned(),
            });
        }
        Ok(facts) => return Ok(facts.into_iter().map(Ok).collect()),
        Err(error) => error,
    };
    if source.state().await?.standing == StorageStanding::Out {
        return Err(error);
    }
    let each = stream::iter(keys.to_vec())
        .map(|key| async move { one_fact(source, &key).await })
        .buffered(SINGLE_FACTS_AT_ONCE);
    Ok(each.collect().await)
}

/// The value of one key.
///
/// # Errors
/// The region does not answer, or cannot read the key.
pub(crate) async fn one_fact(source: &dyn Source, key: &FactKey) -> Result<Fact, SourceError> {
    let facts = source.facts(core::slice::from_ref(key)).await?;
    facts.into_iter().next().ok_or_else(|| SourceError {
        region: source.region().clone(),
        reason: "it answered without the fact that was asked for".to_owned(),
    })
}

/// A region to which no client could be made.
#[derive(Debug)]
pub(crate) struct Unreachable {
    region: RegionName,
    reason: String,
}

impl Unreachable {
    pub(crate) const fn new(region: RegionName, reason: String) -> Self {
        Self { region, reason }
    }

    fn error<T>(&self) -> Result<T, SourceError> {
        Err(SourceError {
            region: self.region.clone(),
            reason: self.reason.clone(),
        })
    }
}

#[async_trait]
impl Source for Unreachable {
    fn region(&self) -> &RegionName {
        &self.region
    }

    async fn state(&self) -> Result<RegionState, SourceError> {
        self.error()
    }

    async fn journal(
        &self,
        _after: Option<EntryId>,
        _limit: usize,
    ) -> Result<JournalPage, SourceError> {
        self.error()
    }

    async fn done(&self, _entries: Vec<EntryId>, _sweep: Option<u128>) -> Result<(), SourceError> {
        self.error()
    }

    async fn facts(&self, _keys: &[FactKey]) -> Result<Vec<Fact>, SourceError> {
        self.error()
    }

    async fn keys(
        &self,
        _kind: FactKind,
        _after: Option<&FactKey>,
        _limit: usize,
    ) -> Result<KeysPage, SourceError> {
        self.error()
    }

    async fn take(&self, _request: TakeRequest) -> Result<TakeAnswer, SourceError> {
        self.error()
    }

    async fn blob(
        &self,
        _repository: &RepositoryName,
        _digest: &Digest,
        _offset: u64,
    ) -> Result<Option<SourceBlob>, SourceError> {
        self.error()
    }
}
