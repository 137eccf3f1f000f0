//! Taking in a blob that only its digest proves (`Proof::DigestOnly`), from its first byte to its
//! last.
//!
//! Nothing can be said of a piece of it, so it is held only when all of it is here and was hashed.
//! Until then:
//! - [`Direct`]: what comes from an origin goes into the blob's file in order, and local readers
//!   may have it at once, for the container runtime checks the digest itself. A download that broke
//!   off goes on where it ended.
//! - [`Aside`]: what comes from a neighbour goes into a file of its own, which nobody reads. It
//!   takes the place of the blob's file when its digest is right, and is deleted otherwise.
//!
//! Hashing and writing happen on the blocking pool, piece by piece: memory does not grow with the
//! blob. What is written when a download is given up is written to its end and counted, so that the
//! next one goes on from what is there.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flotilla_common::digest::{Digest, DigestHasher};
use tokio::sync::OwnedMutexGuard;

use super::file::{BlobFile, blocking};
use super::{StoreError, StoredBlob, meta};

/// Numbers the files beside data files.
static NEXT_ASIDE: AtomicU64 = AtomicU64::new(0);

/// The bytes of a blob up to a place, hashed.
#[derive(Debug, Default)]
pub(crate) struct Prefix {
    at: u64,
    hasher: Option<DigestHasher>,
}

impl Prefix {
    /// Bytes so far.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn take(&mut self, digest: &Digest, bytes: &[u8]) {
        self.hasher
            .get_or_insert_with(|| DigestHasher::new(digest.algorithm()))
            .update(bytes);
        self.at += bytes.len() as u64;
    }

    /// Whether all bytes that were taken are the blob.
    pub(super) fn is(&mut self, digest: &Digest) -> bool {
        let hasher = self
            .hasher
            .take()
            .unwrap_or_else(|| DigestHasher::new(digest.algorithm()));
        hasher.finish() == *digest
    }
}

/// A blob on its way in from an origin. There is one at a time.
#[derive(Debug)]
pub(crate) struct Direct {
    blob: Arc<StoredBlob>,
    prefix: OwnedMutexGuard<Prefix>,
}

impl StoredBlob {
    /// Goes on with the blob where the last download from an origin ended.
    pub(crate) async fn direct(self: &Arc<Self>) -> Direct {
        Direct {
            blob: Arc::clone(self),
            prefix: Arc::clone(&self.prefix).lock_owned().await,
        }
    }

    /// Begins a download from a neighbour.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(crate) fn aside(self: &Arc<Self>) -> Result<Aside, StoreError> {
        let path = meta::aside_path(self.path(), NEXT_ASIDE.fetch_add(1, Ordering::Relaxed));
        let file = BlobFile::create(&path, self.geometry().size())
            .map_err(|error| StoreError::writing(&path, error))?;
        Ok(Aside {
            file,
            prefix: Prefix::default(),
            leftover: Leftover(path),
            blob: Arc::clone(self),
        })
    }
}

impl Direct {
    /// Bytes that are there already.
    pub(crate) fn at(&self) -> u64 {
        self.prefix.at
    }

    /// Takes the next bytes, whole parts or the last ones, and lets readers have them.
    pub(crate) async fn push(mut self, bytes: Bytes) -> Result<Self, StoreError> {
        let path = self.blob.path().to_owned();
        let file = self.blob.open()?;
        let work = move || {
            let range = self.at()..self.at() + bytes.len() as u64;
            file.write_now(range.start, &bytes)?;
            self.prefix.take(self.blob.digest(), &bytes);
            self.blob.emit(&range);
            Ok(self)
        };
        blocking(work)
            .await
            .map_err(|error| StoreError::writing(&path, error))
    }

    /// All bytes are there: held if they are the blob, and otherwise gone. Says which.
    pub(crate) fn finish(mut self) -> Result<bool, StoreError> {
        let file = self.blob.open()?;
        let is_right = self.prefix.is(self.blob.digest());
        *self.prefix = Prefix::default();
        if is_right {
            self.blob.adopt(file);
        } else {
            self.blob.retract();
        }
        Ok(is_right)
    }
}

/// A blob on its way in from a neighbour.
#[derive(Debug)]
pub(crate) struct Aside {
    blob: Arc<StoredBlob>,
    file: BlobFile,
    prefix: Prefix,
    leftover: Leftover,
}

impl Aside {
    /// Takes the next bytes. Nobody sees them.
    pub(crate) async fn push(mut self, bytes: Bytes) -> Result<Self, StoreError> {
        let path = self.leftover.0.clone();
        let work = move || {
            self.file.write_now(self.prefix.at, &bytes)?;
            self.prefix.take(self.blob.digest(), &bytes);
            Ok(self)
        };
        blocking(work)
            .await
            .map_err(|error| StoreError::writing(&path, error))
    }

    /// All bytes are there: held if they are the blob, and otherwise gone. Says which.
    pub(crate) async fn finish(mut self) -> Result<bool, StoreError> {
        if !self.prefix.is(self.blob.digest()) {
            return Ok(false);
        }
        // Of a blob that has left the store the place may be another's by now.
        self.blob.open()?;
        let from = self.leftover.0.clone();
        let to = self.blob.path().to_owned();
        blocking({
            let to = to.clone();
            move || fs::rename(from, to)
        })
        .await
        .map_err(|error| StoreError::writing(&to, error))?;
        self.blob.adopt(self.file.clone());
        Ok(true)
    }
}

/// Deletes a file that was not put to use.
#[derive(Debug)]
struct Leftover(PathBuf);

impl Drop for Leftover {
    fn drop(&mut self) {
        // After a download that went well there is none; any other is deleted at the next start at
        // the latest.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use flotilla_common::chunk::PART_SIZE;
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
        Store::open(dir.path(), ByteSize(1 << 30), &TrustedKeys::none()).unwrap()
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
    async fn what_an_origin_sends_is_read_at_once_and_held_when_all_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let blob = blob(&store);
        let direct = blob
            .direct()
            .await
            .push(bytes().slice(..PART))
            .await
            .unwrap();
        assert_eq!(blob.availability(0), Availability::Ready(PART_SIZE));
        assert!(blob.held().is_empty() && !blob.is_complete());
        // It breaks off, and the next one goes on.
        drop(direct);
        let direct = blob.direct().await;
        assert_eq!(direct.at(), PART_SIZE);
        let direct = direct.push(bytes().slice(PART..2 * PART)).await.unwrap();
        let direct = direct.push(bytes().slice(2 * PART..)).await.unwrap();
        assert!(direct.finish().unwrap());
        assert!(blob.holds(0) && blob.is_complete());
        assert_eq!(blob.read(0..bytes().len() as u64).await.unwrap(), bytes());

        store.save();
        drop((blob, store));
        let again = Store::open(dir.path(), ByteSize(1 << 30), &TrustedKeys::none()).unwrap();
        let blob = again.get(&Digest::sha256(&bytes())).unwrap();
        assert_eq!(blob.read(5..9).await.unwrap(), bytes().slice(5..9));
    }

    #[tokio::test]
    async fn wrong_bytes_of_an_origin_are_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let blob = blob(&store);
        let mut direct = blob.direct().await;
        for part in [&[1; PART][..], &[2; PART], &[3; 5]] {
            direct = direct.push(Bytes::copy_from_slice(part)).await.unwrap();
        }
        assert!(!direct.finish().unwrap());
        assert_eq!(blob.availability(0), Availability::Waiting);
        assert!(blob.held().is_empty());
        assert_eq!(blob.direct().await.at(), 0, "the next one begins anew");
    }

    #[tokio::test]
    async fn what_a_neighbour_sends_is_seen_only_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let blob = blob(&store);
        let aside = blob
            .aside()
            .unwrap()
            .push(bytes().slice(..PART))
            .await
            .unwrap();
        assert_eq!(blob.availability(0), Availability::Waiting);
        let aside = aside
            .push(Bytes::copy_from_slice(&[9; PART + 5]))
            .await
            .unwrap();
        assert!(!aside.finish().await.unwrap());
        assert!(blob.held().is_empty());

        let aside = blob.aside().unwrap().push(bytes()).await.unwrap();
        assert!(aside.finish().await.unwrap());
        assert!(blob.holds(0) && blob.is_complete());
        assert_eq!(blob.read(0..bytes().len() as u64).await.unwrap(), bytes());
        let files = fs::read_dir(dir.path().join("blobs")).unwrap();
        let aside = files.filter(|file| meta::is_leftover(&file.as_ref().unwrap().path()));
        assert_eq!(aside.count(), 0, "nothing is left behind");
    }
}
