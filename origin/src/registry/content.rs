//! The bytes of blobs: ranges over segments, and small blobs from memory.

use core::ops::Range;
use core::time::Duration;
use std::fs::File;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotilla_common::digest::{Digest, DigestHasher};
use flotilla_common::name::RepositoryName;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{FoundBlob, Need, Registry, RegistryError};
use crate::layout;
use crate::record::Segment;
use crate::storage::{ByteStream, Key, Storage, StorageError};
use crate::upload::id::Generation;

/// Maximum bytes of a blob that is cached in memory.
const SMALL_BLOB_LEN: u64 = 64 << 10;
/// How long a presigned URL is valid. Together with L, for which a record counts as live, it is far
/// below W, for which a condemned blob is kept.
const PRESIGNED_LIFETIME: Duration = Duration::from_mins(15);
/// Maximum files that one response keeps open.
const MAX_FILES: usize = 8;

/// A stored blob is not what its digest says.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the bytes do not match the digest")]
struct WrongBytes;

/// Whether a read failed because the bytes that it gave so far are wrong: they must not be
/// completed from elsewhere.
pub(crate) fn gave_wrong_bytes(error: &StorageError) -> bool {
    matches!(error, StorageError::Unavailable { source, .. } if source.is::<WrongBytes>())
}

impl Registry {
    /// Reads a range, which must lie within the blob.
    ///
    /// If a segment is missing because the cached record is of a generation that has died, the blob
    /// is looked up again.
    pub(crate) async fn read_blob(
        &self,
        repository: &RepositoryName,
        blob: &FoundBlob,
        range: Range<u64>,
    ) -> Result<ByteStream, RegistryError> {
        match self.open_range(blob, range.clone()).await {
            Err(StorageError::Missing { key, .. }) => {
                let digest = blob.record.facts.digest;
                tracing::warn!(%digest, key, "a segment of a blob is missing in the storage; reading the blob's record again");
                self.forget_blob(repository, &digest, &blob.generation);
                let blob = self
                    .blob(repository, &digest, Need::Bytes)
                    .await?
                    .ok_or(RegistryError::BlobUnknown)?;
                Ok(self.open_range(&blob, range).await?)
            }
            opened => Ok(opened?),
        }
    }

    /// A URL at which the blob can be read from storage without credentials, for
    /// [`PRESIGNED_LIFETIME`]. `None` if the blob is small, or in several segments, or the storage
    /// signs no URLs.
    pub(crate) async fn presigned_blob(
        &self,
        blob: &FoundBlob,
    ) -> Result<Option<String>, RegistryError> {
        match &*blob.record.segments {
            [segment] if blob.size() > SMALL_BLOB_LEN => {
                let key = layout::segment(&blob.generation, segment.nonce);
                Ok(self.storage.presigned_get(&key, PRESIGNED_LIFETIME).await?)
            }
            _ => Ok(None),
        }
    }

    /// The files that hold a range of a blob, with the range of each. `None` if the storage keeps
    /// no files, if there are too many or one is missing, or if the blob is small: use
    /// [`Self::read_blob`] then.
    pub(crate) async fn blob_files(
        &self,
        blob: &FoundBlob,
        range: Range<u64>,
    ) -> Result<Option<Vec<(Arc<File>, Range<u64>)>>, RegistryError> {
        let ranges = segment_ranges(&blob.generation, &blob.record.segments, range);
        if blob.size() <= SMALL_BLOB_LEN || ranges.len() > MAX_FILES {
            return Ok(None);
        }
        let mut files = Vec::new();
        for (key, within) in ranges {
            let Some(file) = self.storage.open_file(&key).await? else {
                return Ok(None);
            };
            files.push((file, within));
        }
        Ok(Some(files))
    }

    /// The bytes of a small blob, if they and the proof that the repository has it are in memory.
    /// `None` also if that proof is due to be renewed.
    pub(crate) fn blob_in_memory(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Option<Bytes> {
        let membership = self.memberships.fresh(&(repository.clone(), *digest))?;
        let cache_key = (*digest, membership.generation);
        self.records.peek(&cache_key)?;
        Some(self.small_blobs.peek(&cache_key)?.value)
    }

    /// The size of a blob, if its record is in memory.
    pub(crate) fn known_blob_size(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Option<u64> {
        let membership = self.memberships.fresh(&(repository.clone(), *digest))?;
        let record = self.records.peek(&(*digest, membership.generation))?;
        Some(record.value.facts.size)
    }

    async fn open_range(
        &self,
        blob: &FoundBlob,
        range: Range<u64>,
    ) -> Result<ByteStream, StorageError> {
        let digest = blob.record.facts.digest;
        if blob.size() > SMALL_BLOB_LEN {
            let is_whole = range == (0..blob.size());
            let bytes = read_segments(
                &self.storage,
                &blob.generation,
                &blob.record.segments,
                range,
            )
            .await?;
            let needs_check = is_whole && self.storage.is_remote();
            return Ok(if needs_check {
                with_digest_check(bytes, digest, blob.size())
            } else {
                bytes
            });
        }
        let fill = || {
            let storage = Arc::clone(&self.storage);
            let blob = blob.clone();
            async move { read_small_blob(&storage, &blob, &digest).await.map(Some) }
        };
        let whole = match self.small_blobs.get(&(digest, blob.generation), fill).await {
            Ok(cached) => cached.map(|cached| cached.value).unwrap_or_default(),
            Err(error) => return Err(into_owned(error)),
        };
        // A range of a blob of at most 64 KiB.
        let piece = whole.slice(range.start as usize..range.end as usize);
        Ok(stream::iter([Ok(piece)]).boxed())
    }
}

/// The error of a cache fill, which other readers may share.
fn into_owned(error: Arc<StorageError>) -> StorageError {
    match Arc::try_unwrap(error) {
        Ok(error) => error,
        Err(shared) => match &*shared {
            StorageError::Missing { action, key } => StorageError::Missing {
                action,
                key: key.clone(),
            },
            _ => StorageError::unavailable("read bytes", "blob", shared),
        },
    }
}

/// Reads a whole small blob and checks its digest, since it will be served from memory.
async fn read_small_blob(
    storage: &Arc<dyn Storage>,
    blob: &FoundBlob,
    digest: &Digest,
) -> Result<Bytes, StorageError> {
    let read = read_segments(
        storage,
        &blob.generation,
        &blob.record.segments,
        0..blob.size(),
    )
    .await?;
    let bytes = read.try_fold(BytesMut::new(), |mut bytes, piece| async move {
        bytes.extend_from_slice(&piece);
        Ok(bytes)
    });
    let bytes = bytes.await?.freeze();
    if !digest.matches(&bytes) {
        tracing::error!(%digest, "stored blob does not match its digest; not serving it");
        return Err(StorageError::unavailable("read bytes", digest, WrongBytes));
    }
    Ok(bytes)
}

/// Passes the bytes of a whole blob through, but the last piece only if all bytes match the digest:
/// a reader of corrupt data gets an error instead, never a complete body.
fn with_digest_check(bytes: ByteStream, digest: Digest, size: u64) -> ByteStream {
    let hasher = DigestHasher::new(digest.algorithm());
    let passed = stream::try_unfold(
        (bytes, hasher, size),
        move |(mut bytes, mut hasher, left)| async move {
            let Some(piece) = bytes.try_next().await? else {
                return Ok(None);
            };
            hasher.update(&piece);
            let left = left.saturating_sub(piece.len() as u64);
            if left == 0 && hasher.clone().finish() != digest {
                tracing::error!(%digest, "stored blob does not match its digest; response aborted");
                return Err(StorageError::unavailable("read bytes", digest, WrongBytes));
            }
            Ok(Some((piece, (bytes, hasher, left))))
        },
    );
    passed.boxed()
}

/// Reads a range of consecutive segments. The first segment is opened before this returns, so a
/// missing one is an error here.
pub(crate) async fn read_segments(
    storage: &Arc<dyn Storage>,
    generation: &Generation,
    segments: &[Segment],
    range: Range<u64>,
) -> Result<ByteStream, StorageError> {
    let mut ranges = segment_ranges(generation, segments, range).into_iter();
    let Some((key, within)) = ranges.next() else {
        return Ok(stream::empty().boxed());
    };
    let first = storage.read_range(&key, within).await?;
    let storage = Arc::clone(storage);
    let rest = stream::iter(ranges).then(move |(key, within)| {
        let storage = Arc::clone(&storage);
        async move { storage.read_range(&key, within).await }
    });
    Ok(first.chain(rest.try_flatten()).boxed())
}

/// The objects that a range covers, with the range within each.
fn segment_ranges(
    generation: &Generation,
    segments: &[Segment],
    range: Range<u64>,
) -> Vec<(Key, Range<u64>)> {
    let mut ranges = Vec::new();
    let mut start = 0;
    for segment in segments {
        let end = start + segment.size;
        let covered = range.start.max(start)..range.end.min(end);
        if !covered.is_empty() {
            let key = layout::segment(generation, segment.nonce);
            ranges.push((key, covered.start - start..covered.end - start));
        }
        start = end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upload::id::UploadIdSigner;

    #[test]
    fn ranges_spanning_segments() {
        let repository: RepositoryName = "app".parse().expect("a name");
        let generation = UploadIdSigner::new([0; 32]).issue(&repository, 1, false).id;
        let segments = [3, 5, 2].map(|size| Segment {
            nonce: size.into(),
            size,
        });
        let ranges = |range| {
            let within = segment_ranges(&generation, &segments, range)
                .into_iter()
                .map(|(_, within)| within);
            within
                .map(|within| (within.start, within.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(ranges(0..10), [(0, 3), (0, 5), (0, 2)]);
        assert_eq!(ranges(2..4), [(2, 3), (0, 1)]);
        assert_eq!(ranges(3..8), [(0, 5)]);
        assert_eq!(ranges(9..10), [(1, 2)]);
        assert!(ranges(4..4).is_empty());
    }
}
