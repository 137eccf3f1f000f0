//! The digest of a sealed blob, hashed while its parts come in.
//!
//! What proves a part is the seal's tree. The digest is of all bytes in order, and hashing them
//! only when the last chunk is held would keep a pull waiting (0.6 s for a GiB). So whoever has
//! written a part goes on with the hash if the next bytes in order are there: from memory if they
//! are those just written, and otherwise from the page cache. Nobody waits for another's turn at
//! it, and nothing depends on it: what is not hashed when all chunks are held is read then, and a
//! digest that turns out wrong is believed only after the whole file was read.

use flotilla_common::chunk::PART_SIZE;
use flotilla_common::proof::Proof;

use super::super::StoreError;
use super::super::file::BlobFile;
use super::super::whole::Prefix;
use super::{StoredBlob, part_of};

/// Parts that one turn reads back at most, besides hashing those just written: a write must not
/// take much longer for it.
const MAX_CAUGHT_UP: usize = 4;

impl StoredBlob {
    /// Goes on with the hash after `bytes` were written and emitted at `offset`. Blocking.
    pub(super) fn hash_along(&self, file: &BlobFile, offset: u64, bytes: &[u8]) {
        if matches!(self.proof, Proof::DigestOnly { .. }) {
            return;
        }
        // Somebody is at it, or the last chunk is held and the rest is being hashed.
        let Ok(mut prefix) = self.prefix.try_lock() else {
            return;
        };
        if prefix.at() == offset {
            prefix.take(self.digest(), bytes);
        }
        for _ in 0..MAX_CAUGHT_UP {
            let at = prefix.at();
            if at == self.geometry.size() || !self.lock().parts.contains(part_of(at)) {
                return;
            }
            let length = PART_SIZE.min(self.geometry.size() - at);
            // The check of the whole will meet the same error, and say so.
            let Ok(read) = file.read_now(at, length as usize) else {
                return;
            };
            prefix.take(self.digest(), &read);
        }
    }

    /// Whether the blob, all of whose chunks are held, is what its digest says.
    pub(crate) async fn check_digest(&self) -> Result<bool, StoreError> {
        if matches!(self.proof, Proof::Sealed { .. }) {
            let prefix = core::mem::take(&mut *self.prefix.lock().await);
            if prefix.at() > 0 && self.hash_on(prefix).await? {
                return Ok(true);
            }
        }
        self.hash_on(Prefix::default()).await
    }

    /// Hashes the rest of the file: whether all of it is what the digest says.
    pub(super) async fn hash_on(&self, prefix: Prefix) -> Result<bool, StoreError> {
        let (from, digest) = (prefix.at(), *self.digest());
        let take = move |prefix: &mut Prefix, piece: &[u8]| prefix.take(&digest, piece);
        let mut prefix = self
            .open()?
            .scan(from..self.geometry.size(), prefix, take)
            .await
            .map_err(|error| StoreError::reading(&self.path, error))?;
        Ok(prefix.is(&digest))
    }
}
