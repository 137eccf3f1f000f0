//! Copies blobs from other regions, by an ordinary upload: digest and BLAKE3 tree are computed
//! here, and no region's word is taken for them.

use core::time::Duration;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::name::RepositoryName;
use flotilla_runtime::rate::Limiter;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::copy_lease::{CopyLease, LEASED_SIZE, Turn};
use super::copy_turns::{CopyTurn, CopyTurns, Urgency};
use super::counts::RegionCounts;
use super::replicate::Blob;
use super::resuming_body::ResumingBody;
use super::source::{Source, SourceBlob};
use crate::registry::{LostGeneration, Need, Registry, RegistryError, UploadBody, UploadProgress};
use crate::upload::id::UploadTicket;

/// How often the end of a copy is tried that replaces lost data, and the pause between two tries.
const FINISH_TRIES: u32 = 5;
const FINISH_PAUSE: Duration = Duration::from_secs(1);

/// What came of a copy.
enum Brought {
    Done(Blob),
    /// Nothing yet: a blob of this size is copied under a lease.
    NeedsLease,
}

/// Copies blobs into this region.
#[derive(Debug)]
pub(crate) struct BlobCopier {
    registry: Arc<Registry>,
    /// Bytes of background copies pass through it.
    down: Limiter,
    turns: CopyTurns,
    counts: Arc<RegionCounts>,
}

impl BlobCopier {
    pub(crate) fn new(registry: Arc<Registry>, down: Limiter, counts: Arc<RegionCounts>) -> Self {
        Self {
            registry,
            down,
            turns: CopyTurns::default(),
            counts,
        }
    }

    /// The counters.
    pub(super) const fn counts(&self) -> &Arc<RegionCounts> {
        &self.counts
    }

    /// Makes sure that the repository has a live blob here. `size` is what a manifest says of it, if
    /// one does.
    pub(super) async fn bring(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        digest: &Digest,
        size: Option<u64>,
        need: Need,
        urgency: Urgency,
    ) -> Result<Blob, RegistryError> {
        if self.is_here(repository, digest, need).await? {
            return Ok(Blob::Here);
        }
        let turn = self.turns.turn(*digest, urgency).await;
        let is_large = size.is_some_and(|size| size >= LEASED_SIZE);
        if !is_large {
            match self
                .copy_from_any(&turn, sources, repository, digest, need, false)
                .await?
            {
                Brought::Done(blob) => return Ok(blob),
                // The manifest gave another size, or none.
                Brought::NeedsLease => {}
            }
        }
        let is_here = || self.is_here(repository, digest, need);
        match CopyLease::acquire(&self.registry, digest, is_here).await? {
            Turn::Copied => Ok(Blob::Here),
            Turn::TimedOut => Ok(Blob::Blocked(format!(
                "another replica has been copying {digest} for long"
            ))),
            Turn::Mine(lease) => {
                let copied = self.copy_from_any(&turn, sources, repository, digest, need, true);
                match lease.during(copied).await? {
                    Brought::Done(blob) => Ok(blob),
                    Brought::NeedsLease => Ok(Blob::Nowhere),
                }
            }
        }
    }

    /// Copies a blob from the first source that delivers it.
    async fn copy_from_any(
        &self,
        turn: &CopyTurn<'_>,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        digest: &Digest,
        need: Need,
        has_lease: bool,
    ) -> Result<Brought, RegistryError> {
        let Some(_permit) = turn.permit().await else {
            let reason = "this replica is stopping".to_owned();
            return Ok(Brought::Done(Blob::Blocked(reason)));
        };
        // Another copy may have brought it while this one waited.
        if self.is_here(repository, digest, need).await? {
            return Ok(Brought::Done(Blob::Here));
        }
        let mut unsure = None;
        for (at, source) in sources.iter().enumerate() {
            match source.blob(repository, digest, 0).await {
                Ok(Some(blob)) if blob.size >= LEASED_SIZE && !has_lease => {
                    return Ok(Brought::NeedsLease);
                }
                Ok(Some(blob)) => {
                    let sources = [&sources[at..], &sources[..at]].concat();
                    match self.copy(turn, &sources, repository, digest, blob).await {
                        Ok(()) => return Ok(Brought::Done(Blob::Here)),
                        // The bytes were wrong or ended early; another region may have them whole.
                        Err(
                            error @ (RegistryError::DigestInvalid(_)
                            | RegistryError::UploadInvalid(_)
                            | RegistryError::SizeInvalid(_)
                            | RegistryError::Stalled),
                        ) => {
                            tracing::warn!(region = %source.region(), %digest, %error, "copy of a blob failed; trying another region");
                            unsure = Some(error.to_string());
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(None) => {}
                Err(error) => unsure = Some(error.to_string()),
            }
        }
        Ok(Brought::Done(unsure.map_or(Blob::Nowhere, Blob::Blocked)))
    }

    async fn is_here(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        need: Need,
    ) -> Result<bool, RegistryError> {
        if self
            .registry
            .blob(repository, digest, need)
            .await?
            .is_some()
        {
            return Ok(true);
        }
        let mounted = self.registry.mount(None, repository, digest).await?;
        Ok(mounted.is_some())
    }

    async fn copy(
        &self,
        turn: &CopyTurn<'_>,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        digest: &Digest,
        blob: SourceBlob,
    ) -> Result<(), RegistryError> {
        let (ticket, progress) = self.begin_upload(repository, digest);
        let body = self.body(turn, sources, repository, digest, blob);
        self.registry
            .finish(repository, ticket, Some(progress.hint), *digest, body)
            .await
    }

    fn begin_upload(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> (UploadTicket, UploadProgress) {
        let hash_sha512 = digest.algorithm() == Algorithm::Sha512;
        self.registry.begin_upload(repository, hash_sha512)
    }

    /// The bytes of a blob of the first source, as the body of an upload.
    fn body(
        &self,
        turn: &CopyTurn<'_>,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        digest: &Digest,
        blob: SourceBlob,
    ) -> UploadBody {
        let size = blob.size;
        let body = ResumingBody::new(sources.to_vec(), repository.clone(), *digest, blob);
        let bytes = body.into_stream();
        let (pace, counts) = (turn.pace(self.down.clone()), Arc::clone(&self.counts));
        let first = sources.first().map(|source| source.region().clone());
        let limited = bytes.then(move |piece| {
            let (pace, counts, first) = (pace.clone(), Arc::clone(&counts), first.clone());
            async move {
                let piece: Bytes = piece?;
                pace.take(piece.len()).await;
                if let Some(region) = first {
                    counts.copied(&region, piece.len());
                }
                Ok(piece)
            }
        });
        UploadBody {
            bytes: limited.boxed(),
            len: Some(size),
            offset: None,
        }
    }

    /// Copies a blob anew whose data is missing in the own storage. `false` if it is whole, or no
    /// source has it.
    ///
    /// # Errors
    /// Those of this region's storage.
    pub(super) async fn replace(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let turn = self.turns.turn(*digest, Urgency::Background).await;
        let Some(lost) = self.registry.lost_generation(repository, digest).await? else {
            return Ok(false);
        };
        let is_whole = || async {
            let lost = self.registry.lost_generation(repository, digest).await?;
            Ok(lost.is_none())
        };
        let lease = if lost.size() >= LEASED_SIZE {
            match CopyLease::acquire(&self.registry, digest, is_whole).await? {
                Turn::Mine(lease) => Some(lease),
                Turn::Copied | Turn::TimedOut => return Ok(false),
            }
        } else {
            None
        };
        let replaced = self.replace_from_any(&turn, sources, repository, digest, lost);
        match lease {
            Some(lease) => lease.during(replaced).await,
            None => replaced.await,
        }
    }

    async fn replace_from_any(
        &self,
        turn: &CopyTurn<'_>,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        digest: &Digest,
        lost: LostGeneration,
    ) -> Result<bool, RegistryError> {
        let Some(_permit) = turn.permit().await else {
            return Ok(false);
        };
        for (at, source) in sources.iter().enumerate() {
            let Ok(Some(blob)) = source.blob(repository, digest, 0).await else {
                continue;
            };
            let sources = [&sources[at..], &sources[..at]].concat();
            let (ticket, progress) = self.begin_upload(repository, digest);
            let hasher = Arc::new(Mutex::new(DigestHasher::new(digest.algorithm())));
            let mut body = self.body(turn, &sources, repository, digest, blob);
            body.bytes = hashed(body.bytes, &hasher);
            let hint = Some(progress.hint);
            let progress = match self.registry.append(ticket, hint, body).await {
                Ok(progress) => progress,
                Err(error @ (RegistryError::UploadInvalid(_) | RegistryError::Stalled)) => {
                    tracing::warn!(region = %source.region(), %digest, %error, "copy of a lost blob failed; trying another region");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let hasher = hasher
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if hasher.finish() != *digest {
                tracing::warn!(region = %source.region(), %digest, "another region sent wrong bytes of a lost blob; trying another region");
                continue;
            }
            if !self.registry.bury_generation(lost).await? {
                return Ok(false);
            }
            self.finish_surely(repository, ticket, progress, digest)
                .await?;
            tracing::warn!(region = %source.region(), %digest, "the data of a blob was missing in the storage; copied it anew");
            return Ok(true);
        }
        Ok(false)
    }

    /// Finishes an upload whose bytes are stored. Repeats it: the blob is absent meanwhile.
    async fn finish_surely(
        &self,
        repository: &RepositoryName,
        ticket: UploadTicket,
        progress: UploadProgress,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let finish = || {
            let body = UploadBody {
                bytes: stream::empty().boxed(),
                len: Some(0),
                offset: None,
            };
            let hint = Some(progress.hint);
            self.registry
                .finish(repository, ticket, hint, *digest, body)
        };
        for _ in 1..FINISH_TRIES {
            if finish().await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(FINISH_PAUSE).await;
        }
        finish().await
    }
}

/// Passes bytes through a hasher.
fn hashed(
    bytes: BoxStream<'static, Result<Bytes, String>>,
    hasher: &Arc<Mutex<DigestHasher>>,
) -> BoxStream<'static, Result<Bytes, String>> {
    let hasher = Arc::clone(hasher);
    let bytes = bytes.inspect_ok(move |piece| {
        let mut hasher = hasher.lock().unwrap_or_else(PoisonError::into_inner);
        hasher.update(piece);
    });
    bytes.boxed()
}
