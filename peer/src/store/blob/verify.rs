//! Detects bytes that changed on disk: at the first read after a restart, and at every read.
//!
//! A damaged chunk is dropped and reported as [`StoreError::Damaged`], so that it is fetched again.
//! It is never served, and no neighbour is blamed for it.

use core::ops::Range;

use flotilla_common::hash_tree::ChainingValue;
use flotilla_common::proof::Proof;

use super::{IncrementalDigest, StoredBlob};
use crate::store::StoreError;

impl StoredBlob {
    /// Verifies a chunk that was held before the restart, once; drops it if it is damaged.
    pub(super) async fn verify_after_restart(&self, chunk: u32) -> Result<(), StoreError> {
        if !self.is_unverified(chunk) {
            return Ok(());
        }
        // One reader hashes a blob that has no table; the others wait for the result.
        let mut hashed = match self.proof {
            Proof::DigestOnly { .. } => Some(self.digest_so_far.lock().await),
            Proof::Sealed { .. } => None,
        };
        if !self.is_unverified(chunk) {
            return Ok(());
        }
        if let Some(values) = self.verify_chunk(chunk).await? {
            self.lock().chunks.mark_verified(chunk, &values);
            return Ok(());
        }
        if let Some(hashed) = &mut hashed {
            **hashed = IncrementalDigest::default();
        }
        Err(self.drop_damaged(chunk))
    }

    fn is_unverified(&self, chunk: u32) -> bool {
        self.lock().chunks.is_unverified(chunk)
    }

    /// Reads a chunk from disk and checks it against the proof. The chaining values of its parts
    /// (none without a table) if it is intact.
    ///
    /// # Errors
    /// The file cannot be opened now, which says nothing about the chunk.
    async fn verify_chunk(&self, chunk: u32) -> Result<Option<Vec<ChainingValue>>, StoreError> {
        let verified = match self.table() {
            None => {
                let intact = self.hash_rest(IncrementalDigest::default()).await;
                intact.map(|intact| intact.then(Vec::new))
            }
            Some(table) => {
                let range: Range<u64> = self.geometry.chunk_range(chunk);
                let read = self.read_parts(range).await;
                read.map(|(_, values)| {
                    let is_intact = table.verifies_parts(&self.geometry, chunk, &values);
                    is_intact.then_some(values)
                })
            }
        };
        match verified {
            Err(error) if error.is_about_content() => Ok(None),
            verified => verified,
        }
    }

    /// The first damaged chunk among whole parts that were read from `start` on, with their
    /// chaining values. A blob without chunk proofs is not compared: its whole file would have to
    /// be hashed at each read.
    pub(super) fn first_damaged(
        &self,
        start: u64,
        bytes: &[u8],
        values: &[ChainingValue],
    ) -> Option<u32> {
        match &self.proof {
            Proof::Sealed { table: Some(_), .. } => {
                self.lock().chunks.first_mismatch(start, values)
            }
            Proof::Sealed { table: None, .. } => (!self.digest().matches(bytes)).then_some(0),
            Proof::DigestOnly { .. } => None,
        }
    }

    /// Reads all chunks and returns those that are missing or damaged. Damaged ones are dropped.
    pub(crate) async fn damaged_chunks(&self) -> Result<Vec<u32>, StoreError> {
        let mut damaged = Vec::new();
        for chunk in 0..self.geometry.chunks() {
            if !self.holds(chunk) {
                damaged.push(chunk);
                continue;
            }
            // The caller has just hashed the whole file, which is this one chunk, and it may be
            // large.
            if matches!(self.proof, Proof::DigestOnly { .. }) {
                continue;
            }
            match self.read(self.geometry.chunk_range(chunk)).await {
                Err(StoreError::Damaged { chunk, .. }) => damaged.push(chunk),
                read => drop(read?),
            }
        }
        Ok(damaged)
    }

    pub(super) fn drop_damaged(&self, chunk: u32) -> StoreError {
        self.lock().drop_chunk(chunk);
        StoreError::Damaged {
            digest: *self.digest(),
            chunk,
        }
    }
}
