//! The digest of a blob, hashed in order while its bytes arrive.
//!
//! The parts of a sealed blob are proved by the seal's hash tree, in any order. Its digest covers
//! all bytes in order, and hashing them only when the last chunk is held would delay a pull by 0.6
//! s for a GiB. Therefore each task that has written a part continues the hash if the next bytes in
//! order are there: from memory if it has just written them, otherwise from the page cache.
//!
//! This is an optimisation that no task waits for. Bytes that are not hashed when all chunks are
//! held are read and hashed then. A mismatch counts only after the whole file was read again.

use flotilla_common::chunk::PART_SIZE;
use flotilla_common::digest::{Digest, DigestHasher};
use flotilla_common::proof::Proof;

use super::StoredBlob;
use crate::store::StoreError;
use crate::store::file::BlobFile;

/// Parts that are read back and hashed after a write at most, so that the write does not take much
/// longer.
const MAX_READ_BACK: usize = 4;

/// The digest of a blob's bytes from offset 0 up to [`IncrementalDigest::position`].
#[derive(Debug, Default)]
pub(crate) struct IncrementalDigest {
    position: u64,
    hasher: Option<DigestHasher>,
}

impl IncrementalDigest {
    /// Bytes hashed so far.
    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    /// Hashes the next bytes. `digest` names the algorithm.
    pub(crate) fn update(&mut self, digest: &Digest, bytes: &[u8]) {
        self.hasher
            .get_or_insert_with(|| DigestHasher::new(digest.algorithm()))
            .update(bytes);
        self.position += bytes.len() as u64;
    }

    /// Whether the hashed bytes have this digest.
    pub(crate) fn matches(self, digest: &Digest) -> bool {
        let hasher = self
            .hasher
            .unwrap_or_else(|| DigestHasher::new(digest.algorithm()));
        hasher.finish() == *digest
    }
}

impl StoredBlob {
    /// Continues the hash after `bytes` were written at `offset` and made readable. Blocking.
    pub(super) fn hash_written(&self, file: &BlobFile, offset: u64, bytes: &[u8]) {
        if matches!(self.proof, Proof::DigestOnly { .. }) {
            return;
        }
        // Another task is hashing, or the last chunk is held and the rest is being hashed.
        let Ok(mut hashed) = self.digest_so_far.try_lock() else {
            return;
        };
        if hashed.position() == offset {
            hashed.update(self.digest(), bytes);
        }
        for _ in 0..MAX_READ_BACK {
            let next = hashed.position();
            if next == self.geometry.size() || !self.lock().chunks.is_readable(next) {
                return;
            }
            let length = PART_SIZE.min(self.geometry.size() - next);
            // The final check meets the same error and reports it.
            let Ok(read) = file.read_now(next, length as usize) else {
                return;
            };
            hashed.update(self.digest(), &read);
        }
    }

    /// Whether the blob, all of whose chunks are held, has its digest.
    pub(crate) async fn check_digest(&self) -> Result<bool, StoreError> {
        if matches!(self.proof, Proof::Sealed { .. }) {
            let hashed = core::mem::take(&mut *self.digest_so_far.lock().await);
            if hashed.position() > 0 && self.hash_rest(hashed).await? {
                return Ok(true);
            }
        }
        self.hash_rest(IncrementalDigest::default()).await
    }

    /// Hashes the rest of the file after `hashed`. True if the whole has the blob's digest.
    pub(super) async fn hash_rest(&self, hashed: IncrementalDigest) -> Result<bool, StoreError> {
        let digest = *self.digest();
        let rest = hashed.position()..self.geometry.size();
        let update = move |hashed: &mut IncrementalDigest, piece: &[u8]| {
            hashed.update(&digest, piece);
        };
        let hashed = self
            .open()?
            .fold_pieces(rest, hashed, update)
            .await
            .map_err(|error| StoreError::reading(&self.path, error))?;
        Ok(hashed.matches(&digest))
    }
}
