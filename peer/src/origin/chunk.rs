//! A chunk from an origin: one ranged request, checked like a neighbour's bytes before it is held.
//!
//! The chunk is kept in memory until its parts' values, computed while it arrives, merge to its
//! entry in the table: written earlier, it could overwrite good bytes with bad ones.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotilla_common::chunk::PART_SIZE;
use flotilla_common::name::RepositoryName;
use flotilla_common::proof::Proof;
use flotilla_common::swarm::OriginSlot;
use flotilla_common::tree::{self, Value};
use flotilla_runtime::rate::Limiter;
use reqwest::Response;

use super::{OriginError, Origins, client, whole};
use crate::store::{StoreError, StoredBlob};

/// Bytes taken from the download cap at once.
const SIP: usize = 64 << 10;

/// Why a chunk did not come from an origin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OriginFetchError {
    #[error("{0}")]
    Origin(#[from] OriginError),
    #[error("the bytes are not what their proof says")]
    Corrupt,
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Fetches one chunk from one origin into the store. `progress` is told the bytes received so far,
/// first of all 0 when the answer has begun.
pub(crate) async fn fetch_chunk(
    origins: &Origins,
    origin: OriginSlot,
    repository: &RepositoryName,
    blob: &Arc<StoredBlob>,
    chunk: u32,
    cap: &Limiter,
    mut progress: impl FnMut(u64),
) -> Result<(), OriginFetchError> {
    if matches!(blob.proof(), Proof::DigestOnly { .. }) {
        return whole::fetch(origins, origin, repository, blob, cap, progress).await;
    }
    let range = blob.geometry().chunk_range(chunk);
    let length = usize::try_from(range.end - range.start).map_err(|_| OriginFetchError::Corrupt)?;
    let open = origins
        .open_part_at(origin, repository, blob.digest(), &range)
        .await?;
    progress(0);
    let mut arriving = Arriving::new(range.start, length);
    arriving.receive(open.response, cap, progress).await?;
    let (bytes, values) = arriving.finish().ok_or_else(|| {
        OriginError::Unavailable(format!("sent fewer than the {length} bytes of a chunk"))
    })?;
    let is_proved = match blob.table() {
        Some(table) => table.verifies_parts(blob.geometry(), chunk, &values),
        None => blob.digest().matches(&bytes),
    };
    if !is_proved {
        return Err(OriginFetchError::Corrupt);
    }
    blob.write_verified(range.start, bytes).await?;
    blob.hold(chunk, if blob.table().is_some() { &values } else { &[] });
    Ok(())
}

/// A chunk on its way in.
struct Arriving {
    start: u64,
    length: usize,
    bytes: BytesMut,
    values: Vec<Value>,
}

impl Arriving {
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
        mut response: Response,
        cap: &Limiter,
        mut progress: impl FnMut(u64),
    ) -> Result<(), OriginError> {
        let mut owed = 0;
        while self.bytes.len() < self.length {
            let piece = response
                .chunk()
                .await
                .map_err(|error| OriginError::Unavailable(client::explain(&error)))?;
            let Some(piece) = piece else { break };
            self.take(&piece);
            progress(self.bytes.len() as u64);
            // In the same sips as a neighbour's stream: the cap serves its takers in turn, and
            // smaller ones would get less of the link.
            owed += piece.len();
            while owed >= SIP {
                cap.take(SIP).await;
                owed -= SIP;
            }
        }
        cap.take(owed).await;
        Ok(())
    }

    /// Takes bytes, no more than are wanted, and hashes each part that they complete.
    fn take(&mut self, bytes: &[u8]) {
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
        self.values.push(tree::subtree_value(
            self.start + from as u64,
            &self.bytes[from..until],
        ));
    }

    /// The bytes and their parts' values; `None` if some are lacking.
    fn finish(mut self) -> Option<(Bytes, Vec<Value>)> {
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
    fn values_computed_on_the_way_are_those_of_the_chunk() {
        let part = PART_SIZE as usize;
        for length in [1, part - 1, part, part + 1, 3 * part, 3 * part + 77] {
            let bytes: Vec<u8> = (0..length).map(|n| (n / 3) as u8).collect();
            for cut in [1000, part / 2 + 1, part, 5 * part] {
                let mut arriving = Arriving::new(4 << 20, length);
                bytes.chunks(cut).for_each(|piece| arriving.take(piece));
                let (got, values) = arriving.finish().unwrap();
                assert_eq!(got, bytes);
                assert_eq!(values, tree::part_values(4 << 20, &bytes));
            }
        }
    }

    #[test]
    fn more_than_was_asked_for_is_left_out_and_less_is_nothing() {
        let mut arriving = Arriving::new(0, 10);
        arriving.take(&[1; 9]);
        assert!(
            Arriving {
                bytes: arriving.bytes.clone(),
                values: Vec::new(),
                ..arriving
            }
            .finish()
            .is_none()
        );
        let mut arriving = Arriving::new(0, 10);
        arriving.take(&[1; 12]);
        assert_eq!(arriving.finish().unwrap().0.len(), 10);
    }
}
