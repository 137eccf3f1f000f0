//! Downloads of blobs that only their digest proves (`Proof::DigestOnly`).
//!
//! No piece of such a blob can be verified alone, so it is held only after all of it was received
//! and hashed. Until then:
//! - [`DirectDownload`]: bytes from an origin go into the blob's file in order. Local readers can
//!   have them at once, because the container runtime checks the digest itself. An interrupted
//!   download resumes at the same offset.
//! - [`StagedDownload`]: bytes from a neighbour go into a staging file that is never read. It
//!   replaces the blob's file if the digest matches, and is deleted otherwise.
//!
//! Bytes are hashed and written on the blocking pool, piece by piece, so memory does not grow with
//! the blob. A write that has begun is finished and counted even when its download is cancelled;
//! the next download resumes after it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;

use super::blob::IncrementalDigest;
use super::file::{BlobFile, run_blocking};
use super::{StoreError, StoredBlob, paths};

/// The number of the next staging file.
static NEXT_STAGING: AtomicU64 = AtomicU64::new(0);

/// A download of a blob from an origin into the blob's file. A blob has at most one.
#[derive(Debug)]
pub(crate) struct DirectDownload {
    blob: Arc<StoredBlob>,
    /// Open for the whole download: the digest is of the bytes that were written to this file.
    file: BlobFile,
    digest_so_far: OwnedMutexGuard<IncrementalDigest>,
}

impl StoredBlob {
    /// Begins a download from an origin, or resumes the last one where it ended. Waits until no
    /// other is in progress.
    ///
    /// # Errors
    /// The blob's file cannot be opened or created.
    pub(crate) async fn start_direct_download(
        self: &Arc<Self>,
    ) -> Result<DirectDownload, StoreError> {
        let mut digest_so_far = Arc::clone(&self.digest_so_far).lock_owned().await;
        let file = self.open()?;
        // The bytes are gone if the file was deleted while it was closed.
        if digest_so_far.position() > 0 && !self.is_readable(0) {
            *digest_so_far = IncrementalDigest::default();
        }
        Ok(DirectDownload {
            blob: Arc::clone(self),
            file,
            digest_so_far,
        })
    }

    /// Begins a download from a neighbour.
    ///
    /// # Errors
    /// The staging file cannot be created.
    pub(crate) fn start_staged_download(self: &Arc<Self>) -> Result<StagedDownload, StoreError> {
        let path = paths::staging(self.path(), NEXT_STAGING.fetch_add(1, Ordering::Relaxed));
        let file = BlobFile::create(&path, self.geometry().size())
            .map_err(|error| StoreError::opening(&path, error))?;
        Ok(StagedDownload {
            file,
            digest_so_far: IncrementalDigest::default(),
            staging: StagingPath(path),
            blob: Arc::clone(self),
        })
    }
}

impl DirectDownload {
    /// Bytes downloaded so far.
    pub(crate) fn position(&self) -> u64 {
        self.digest_so_far.position()
    }

    /// Writes the next bytes, whole parts or the last ones, and makes them readable.
    pub(crate) async fn write(mut self, bytes: Bytes) -> Result<Self, StoreError> {
        if self.blob.is_removed() {
            return Err(self.blob.removed());
        }
        let path = self.blob.path().to_owned();
        let work = move || {
            let range = self.position()..self.position() + bytes.len() as u64;
            self.file.write_now(range.start, &bytes)?;
            self.digest_so_far.update(self.blob.digest(), &bytes);
            self.blob.mark_readable(&range);
            Ok(self)
        };
        run_blocking(work)
            .await
            .map_err(|error| StoreError::writing(&path, error))
    }

    /// Ends a download of all bytes. If they have the blob's digest it is held from now on, and the
    /// result is true; otherwise its bytes are discarded.
    pub(crate) fn finish(mut self) -> Result<bool, StoreError> {
        if self.blob.is_removed() {
            return Err(self.blob.removed());
        }
        let matches = core::mem::take(&mut *self.digest_so_far).matches(self.blob.digest());
        if matches {
            self.blob.mark_whole();
        } else {
            self.blob.clear_readable();
        }
        Ok(matches)
    }
}

/// A download of a blob from a neighbour into a staging file.
#[derive(Debug)]
pub(crate) struct StagedDownload {
    blob: Arc<StoredBlob>,
    file: BlobFile,
    digest_so_far: IncrementalDigest,
    staging: StagingPath,
}

impl StagedDownload {
    /// Writes the next bytes to the staging file.
    pub(crate) async fn write(mut self, bytes: Bytes) -> Result<Self, StoreError> {
        let path = self.staging.0.clone();
        let work = move || {
            self.file.write_now(self.digest_so_far.position(), &bytes)?;
            self.digest_so_far.update(self.blob.digest(), &bytes);
            Ok(self)
        };
        run_blocking(work)
            .await
            .map_err(|error| StoreError::writing(&path, error))
    }

    /// Ends a download of all bytes. If they have the blob's digest it is held from now on, and the
    /// result is true; otherwise they are deleted.
    pub(crate) async fn finish(self) -> Result<bool, StoreError> {
        if !self.digest_so_far.matches(self.blob.digest()) {
            return Ok(false);
        }
        let (blob, from, file) = (
            Arc::clone(&self.blob),
            self.staging.0.clone(),
            self.file.clone(),
        );
        // Fails if the blob has left the store; its path may belong to a later insertion by now.
        let replaced = run_blocking(move || Ok(blob.replace_file(&from, file))).await;
        replaced.map_err(|error| StoreError::writing(self.blob.path(), error))??;
        self.blob.mark_whole();
        Ok(true)
    }
}

/// Deletes a staging file that did not become the blob's file.
#[derive(Debug)]
struct StagingPath(PathBuf);

impl Drop for StagingPath {
    fn drop(&mut self) {
        // The file is gone after a successful download. If deletion fails, the next start deletes
        // the file.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use flotilla_common::chunk::PART_SIZE;
    use flotilla_common::digest::Digest;
    use flotilla_common::proof::Proof;
    use flotilla_common::seal::TrustedKeys;
    use flotilla_common::units::ByteSize;
    use tempfile::TempDir;

    use super::super::{Availability, Store};
    use super::*;

    const PART: usize = PART_SIZE as usize;

    fn bytes() -> Bytes {
        (0..2 * PART + 5)
            .map(|n| (n / 7) as u8)
            .collect::<Vec<_>>()
            .into()
    }

    fn store(dir: &TempDir) -> Store {
        Store::open_small(dir.path(), ByteSize(1 << 30), &TrustedKeys::none()).unwrap()
    }

    fn blob(store: &Store) -> Arc<StoredBlob> {
        let proof = Proof::DigestOnly {
            digest: Digest::sha256(&bytes()),
            size: bytes().len() as u64,
        };
        let geometry = proof.check(&TrustedKeys::none()).unwrap();
        Arc::clone(store.insert(proof, geometry).unwrap().0.blob())
    }

    #[tokio::test]
    async fn origin_bytes_are_readable_before_the_digest_check() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let blob = blob(&store);
        let download = blob
            .start_direct_download()
            .await
            .unwrap()
            .write(bytes().slice(..PART))
            .await
            .unwrap();
        assert_eq!(blob.availability(0), Availability::Ready(PART_SIZE));
        assert!(blob.held().is_empty() && !blob.is_complete());
        // The download is interrupted, and the next one resumes.
        drop(download);
        let download = blob.start_direct_download().await.unwrap();
        assert_eq!(download.position(), PART_SIZE);
        let download = download.write(bytes().slice(PART..2 * PART)).await.unwrap();
        let download = download.write(bytes().slice(2 * PART..)).await.unwrap();
        assert!(download.finish().unwrap());
        assert!(blob.holds(0) && blob.is_complete());
        assert_eq!(blob.read(0..bytes().len() as u64).await.unwrap(), bytes());

        store.save();
        drop((blob, store));
        let reopened =
            Store::open_small(dir.path(), ByteSize(1 << 30), &TrustedKeys::none()).unwrap();
        let blob = reopened.get(&Digest::sha256(&bytes())).unwrap();
        assert_eq!(blob.read(5..9).await.unwrap(), bytes().slice(5..9));
    }

    #[tokio::test]
    async fn origin_bytes_with_wrong_digest_are_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let blob = blob(&store);
        let mut download = blob.start_direct_download().await.unwrap();
        for part in [&[1; PART][..], &[2; PART], &[3; 5]] {
            download = download.write(Bytes::copy_from_slice(part)).await.unwrap();
        }
        assert!(!download.finish().unwrap());
        assert_eq!(blob.availability(0), Availability::Waiting);
        assert!(blob.held().is_empty());
        let next = blob.start_direct_download().await.unwrap();
        assert_eq!(
            next.position(),
            0,
            "the next download starts at the beginning"
        );
    }

    #[tokio::test]
    async fn neighbour_bytes_are_readable_only_when_digest_matches() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let blob = blob(&store);
        let download = blob
            .start_staged_download()
            .unwrap()
            .write(bytes().slice(..PART))
            .await
            .unwrap();
        assert_eq!(blob.availability(0), Availability::Waiting);
        let download = download
            .write(Bytes::copy_from_slice(&[9; PART + 5]))
            .await
            .unwrap();
        assert!(!download.finish().await.unwrap());
        assert!(blob.held().is_empty());

        let download = blob
            .start_staged_download()
            .unwrap()
            .write(bytes())
            .await
            .unwrap();
        assert!(download.finish().await.unwrap());
        assert!(blob.holds(0) && blob.is_complete());
        assert_eq!(blob.read(0..bytes().len() as u64).await.unwrap(), bytes());
        let files = fs::read_dir(dir.path().join("blobs")).unwrap();
        let leftovers = files.filter(|file| paths::is_leftover(&file.as_ref().unwrap().path()));
        assert_eq!(leftovers.count(), 0, "no staging file is left behind");
    }
}
