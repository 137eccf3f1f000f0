//! Downloads of a chunk from an origin, with one range request. The bytes are verified like those
//! of a neighbour before the chunk is held.
//!
//! The chunk stays in memory until its chaining values, computed while it arrives, are verified
//! against the chunk table. If it were written before, corrupt bytes could overwrite valid ones.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotilla_common::chunk::PART_SIZE;
use flotilla_common::failover::SourceId;
use flotilla_common::hash_tree::{self, ChainingValue};
use flotilla_common::name::RepositoryName;
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::proof::Proof;
use flotilla_runtime::rate::Limiter;

use super::blob::OpenBlob;
use super::client::{OriginClient, content};
use super::error::{OriginError, OriginFetchError};
use super::unsealed;
use crate::store::StoredBlob;

/// The bytes for which the download limit is asked at a time. It is the amount that a neighbour's
/// stream asks for: the limiter serves its waiters in turn, so smaller amounts would get a smaller
/// share of the link.
const LIMIT_STEP: usize = 64 << 10;

/// What the download of a chunk reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkProgress {
    /// An origin's response has begun; it may be the second one, after the first broke off.
    Begun(SourceId),
    /// The bytes received so far.
    Received(u64),
}

/// Downloads one chunk from the origins into the store, those of the region `first` before the
/// others, and reports its progress.
pub(crate) async fn fetch_chunk(
    origins: &OriginClient,
    repository: &RepositoryName,
    blob: &Arc<StoredBlob>,
    (chunk, first): (u32, Option<OriginRegion>),
    limit: &Limiter,
    mut progress: impl FnMut(ChunkProgress),
) -> Result<(), OriginFetchError> {
    if matches!(blob.proof(), Proof::DigestOnly { .. }) {
        return unsealed::fetch(origins, repository, blob, limit, progress).await;
    }
    let mut attempts = origins.attempts();
    loop {
        let range = blob.geometry().chunk_range(chunk);
        let open = origins.open_exactly(repository, blob.digest(), &range, first);
        let open = open.await?;
        let origin = open.origin;
        progress(ChunkProgress::Begun(origin));
        let error = match receive(origins, open, blob, chunk, limit, &mut progress).await {
            Ok(()) => return Ok(()),
            Err(error @ OriginFetchError::Store(_)) => return Err(error),
            Err(error) => error,
        };
        let broken = OriginError::Unavailable(error.to_string());
        origins.report_broken(origin, content(blob.digest()), &broken);
        attempts -= 1;
        if attempts == 0 {
            return Err(error);
        }
    }
}

/// Receives, verifies and stores a chunk.
async fn receive(
    origins: &OriginClient,
    open: OpenBlob,
    blob: &Arc<StoredBlob>,
    chunk: u32,
    limit: &Limiter,
    progress: &mut impl FnMut(ChunkProgress),
) -> Result<(), OriginFetchError> {
    let range = blob.geometry().chunk_range(chunk);
    let length = usize::try_from(range.end - range.start).map_err(|_| OriginFetchError::Corrupt)?;
    let mut buffer = ChunkBuffer::new(range.start, length);
    buffer.receive(origins, open, limit, progress).await?;
    let (bytes, values) = buffer.finish().ok_or_else(|| {
        OriginError::Unavailable(format!(
            "response ended before the {length} bytes of the chunk"
        ))
    })?;
    let is_valid = match blob.table() {
        Some(table) => table.verifies_parts(blob.geometry(), chunk, &values),
        None => blob.digest().matches(&bytes),
    };
    if !is_valid {
        return Err(OriginFetchError::Corrupt);
    }
    blob.write_verified(range.start, bytes).await?;
    blob.mark_held(chunk, if blob.table().is_some() { &values } else { &[] });
    Ok(())
}

/// A chunk that is being received.
struct ChunkBuffer {
    /// The chunk's offset in the blob, in bytes.
    start: u64,
    /// The chunk's length, in bytes.
    length: usize,
    bytes: BytesMut,
    /// The chaining values of the complete parts.
    values: Vec<ChainingValue>,
}

impl ChunkBuffer {
    fn new(start: u64, length: usize) -> Self {
        Self {
            start,
            length,
            bytes: BytesMut::with_capacity(length),
            values: Vec::new(),
        }
    }

    async fn receive(
        &mut self,
        origins: &OriginClient,
        mut open: OpenBlob,
        limit: &Limiter,
        progress: &mut impl FnMut(ChunkProgress),
    ) -> Result<(), OriginError> {
        let mut owed = 0;
        while self.bytes.len() < self.length {
            let piece = origins.next_piece(open.origin, &mut open.response).await?;
            let Some(piece) = piece else { break };
            self.append(&piece);
            progress(ChunkProgress::Received(self.bytes.len() as u64));
            owed += piece.len();
            while owed >= LIMIT_STEP {
                limit.take(LIMIT_STEP).await;
                owed -= LIMIT_STEP;
            }
        }
        limit.take(owed).await;
        Ok(())
    }

    /// Appends bytes up to the chunk's length, and hashes each part that is complete.
    fn append(&mut self, bytes: &[u8]) {
        let room = self.length - self.bytes.len();
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        let part = PART_SIZE as usize;
        while self.bytes.len() >= (self.values.len() + 1) * part {
            self.hash_part((self.values.len() + 1) * part);
        }
    }

    fn hash_part(&mut self, until: usize) {
        let from = self.values.len() * PART_SIZE as usize;
        self.values.push(hash_tree::subtree_value(
            self.start + from as u64,
            &self.bytes[from..until],
        ));
    }

    /// The bytes and the chaining values of their parts; `None` if bytes are missing.
    fn finish(mut self) -> Option<(Bytes, Vec<ChainingValue>)> {
        if self.bytes.len() < self.length {
            return None;
        }
        if self.values.len() * (PART_SIZE as usize) < self.length {
            self.hash_part(self.length);
        }
        Some((self.bytes.freeze(), self.values))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn incremental_values_equal_those_of_the_chunk() {
        let part = PART_SIZE as usize;
        for length in [1, part - 1, part, part + 1, 3 * part, 3 * part + 77] {
            let bytes: Vec<u8> = (0..length).map(|n| (n / 3) as u8).collect();
            for cut in [1000, part / 2 + 1, part, 5 * part] {
                let mut buffer = ChunkBuffer::new(4 << 20, length);
                bytes.chunks(cut).for_each(|piece| buffer.append(piece));
                let (got, values) = buffer.finish().unwrap();
                assert_eq!(got, bytes);
                assert_eq!(values, hash_tree::part_values(4 << 20, &bytes));
            }
        }
    }

    #[test]
    fn surplus_bytes_are_dropped_and_missing_bytes_fail() {
        let mut buffer = ChunkBuffer::new(0, 10);
        buffer.append(&[1; 9]);
        assert!(
            ChunkBuffer {
                bytes: buffer.bytes.clone(),
                values: Vec::new(),
                ..buffer
            }
            .finish()
            .is_none()
        );
        let mut buffer = ChunkBuffer::new(0, 10);
        buffer.append(&[1; 12]);
        assert_eq!(buffer.finish().unwrap().0.len(), 10);
    }
}
