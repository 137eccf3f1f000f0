//! The bytes of blobs: ranges over segments, and small blobs from memory.

use core::ops::Range;
use core::time::Duration;
use std::fs::File;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotilla_common::digest::{Digest, DigestHasher};
use flotilla_common::name::RepositoryName;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Blob, Need, Registry, RegistryError};
use crate::layout;
use crate::record::Segment;
use crate::storage::{ByteStream, Key, Storage, StorageError};
use crate::upload::id::Generation;

/// Bytes of a blob that is kept in memory.
const SMALL: u64 = 64 << 10;
/// How long a client may begin to read at a presigned URL. With L, for which a record counts as
/// live, far below the time that a condemned blob has.
const PRESIGNED_FOR: Duration = Duration::from_mins(15);
/// Files that one response holds open at most.
const MAX_FILES: usize = 8;

impl Registry {
    /// The bytes of a range of a blob, which must lie within it.
    ///
    /// Data that is not where the record says (its generation died, and memory did not know) is
    /// looked for once more.
    pub(crate) async fn read_blob(
        &self,
        repository: &RepositoryName,
        blob: &Blob,
        range: Range<u64>,
    ) -> Result<ByteStream, RegistryError> {
        match self.open_range(blob, range.clone()).await {
            Err(StorageError::Missing { key, .. }) => {
                let digest = blob.record.facts.digest;
                tracing::warn!(%digest, key, "read blob: a segment is not there, reading the record again");
                self.forget(repository, &digest, &blob.generation);
                let blob = self
                    .blob(repository, &digest, Need::Bytes)
                    .await?
                    .ok_or(RegistryError::BlobUnknown)?;
                Ok(self.open_range(&blob, range).await?)
            }
            opened => Ok(opened?),
        }
    }

    /// A URL of the storage at which anybody may read the blob for a while; `None` if the blob is
    /// better, or only, read here: it is in memory, or in several segments, or this storage signs
    /// no URLs.
    pub(crate) async fn presigned_blob(
        &self,
        blob: &Blob,
    ) -> Result<Option<String>, RegistryError> {
        match &*blob.record.segments {
            [segment] if blob.size() > SMALL => {
                let key = layout::segment(&blob.generation, segment.nonce);
                Ok(self.storage.presigned_get(&key, PRESIGNED_FOR).await?)
            }
            _ => Ok(None),
        }
    }

    /// The files that hold a range of a blob, with what is wanted of each; `None` where the storage
    /// keeps no files, or too many, or one is not where the record says, or the blob is small: then
    /// [`Self::read_blob`] has its bytes.
    pub(crate) async fn blob_files(
        &self,
        blob: &Blob,
        range: Range<u64>,
    ) -> Result<Option<Vec<(Arc<File>, Range<u64>)>>, RegistryError> {
        let cuts = cuts(&blob.generation, &blob.record.segments, range);
        if blob.size() <= SMALL || cuts.len() > MAX_FILES {
            return Ok(None);
        }
        let mut files = Vec::new();
        for (key, within) in cuts {
            let Some(file) = self.storage.open_file(&key).await? else {
                return Ok(None);
            };
            files.push((file, within));
        }
        Ok(Some(files))
    }

    async fn open_range(&self, blob: &Blob, range: Range<u64>) -> Result<ByteStream, StorageError> {
        let digest = blob.record.facts.digest;
        if blob.size() > SMALL {
            let is_whole = range == (0..blob.size());
            let bytes = read_segments(
                &self.storage,
                &blob.generation,
                &blob.record.segments,
                range,
            )
            .await?;
            let checks = is_whole && self.storage.is_remote();
            return Ok(if checks {
                checked(bytes, digest, blob.size())
            } else {
                bytes
            });
        }
        let fill = || {
            let (storage, blob) = (Arc::clone(&self.storage), blob.clone());
            async move { read_small(&storage, &blob, &digest).await.map(Some) }
        };
        let whole = match self.small_blobs.get(&(digest, blob.generation), fill).await {
            Ok(cached) => cached.map(|cached| cached.value).unwrap_or_default(),
            Err(error) => return Err(own(error)),
        };
        // A range of a blob of at most 64 KiB.
        let piece = whole.slice(range.start as usize..range.end as usize);
        Ok(stream::iter([Ok(piece)]).boxed())
    }
}

/// The error of a fill, which others may have waited for, too.
fn own(error: Arc<StorageError>) -> StorageError {
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

/// A whole small blob, checked: what is kept in memory must be right.
async fn read_small(
    storage: &Arc<dyn Storage>,
    blob: &Blob,
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
        tracing::error!(%digest, "read blob: the storage holds other bytes than were pushed");
        return Err(StorageError::unavailable(
            "read bytes",
            digest,
            "the bytes are not those of the digest",
        ));
    }
    Ok(bytes)
}

/// Passes all bytes of a blob on, but the last of them only if they have its digest: whoever reads
/// gets an error in their place, and never a whole body that is wrong.
fn checked(bytes: ByteStream, digest: Digest, size: u64) -> ByteStream {
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
                tracing::error!(%digest, "read blob: other bytes came from the storage than were pushed");
                return Err(StorageError::unavailable(
                    "read bytes",
                    digest,
                    "they are not those of the digest",
                ));
            }
            Ok(Some((piece, (bytes, hasher, left))))
        },
    );
    passed.boxed()
}

/// The bytes of `range` of consecutive segments. The first is opened at once, so that its absence
/// is told here.
pub(crate) async fn read_segments(
    storage: &Arc<dyn Storage>,
    generation: &Generation,
    segments: &[Segment],
    range: Range<u64>,
) -> Result<ByteStream, StorageError> {
    let mut cuts = cuts(generation, segments, range).into_iter();
    let Some((key, within)) = cuts.next() else {
        return Ok(stream::empty().boxed());
    };
    let first = storage.read_range(&key, within).await?;
    let storage = Arc::clone(storage);
    let rest = stream::iter(cuts).then(move |(key, within)| {
        let storage = Arc::clone(&storage);
        async move { storage.read_range(&key, within).await }
    });
    Ok(first.chain(rest.try_flatten()).boxed())
}

/// Which bytes of which objects a range covers.
fn cuts(
    generation: &Generation,
    segments: &[Segment],
    range: Range<u64>,
) -> Vec<(Key, Range<u64>)> {
    let mut cuts = Vec::new();
    let mut start = 0;
    for segment in segments {
        let end = start + segment.size;
        let covered = range.start.max(start)..range.end.min(end);
        if !covered.is_empty() {
            let key = layout::segment(generation, segment.nonce);
            cuts.push((key, covered.start - start..covered.end - start));
        }
        start = end;
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upload::id::UploadIdSigner;

    #[test]
    fn a_range_touches_only_the_segments_that_it_needs() {
        let repository: RepositoryName = "app".parse().expect("a name");
        let generation = UploadIdSigner::new([0; 32]).issue(&repository, 1, false).id;
        let segments = [3, 5, 2].map(|size| Segment {
            nonce: size.into(),
            size,
        });
        let ranges = |range| {
            let within = cuts(&generation, &segments, range)
                .into_iter()
                .map(|cut| cut.1);
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
