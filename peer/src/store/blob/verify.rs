//! Whether what lies on disk is what was verified: asked again after a restart, and at every read.
//!
//! A damaged chunk is dropped from the maps and said to be [`StoreError::Doubtful`], so that it is
//! fetched again; it is never given away, and nobody else is blamed for it.

use core::ops::Range;

use flotilla_common::chunk::PART_SIZE;
use flotilla_common::proof::Proof;
use flotilla_common::tree::Value;

use super::super::StoreError;
use super::super::whole::Prefix;
use super::{StoredBlob, part_of};

impl StoredBlob {
    /// Reads a chunk that was held before the restart once, and drops it if it is damaged.
    pub(super) async fn settle_doubt(&self, chunk: u32) -> Result<(), StoreError> {
        if !self.lock().doubtful.contains(chunk) {
            return Ok(());
        }
        // One reader checks a blob that has no table; the others wait for what it finds.
        let mut prefix = match self.proof {
            Proof::DigestOnly { .. } => Some(self.prefix.lock().await),
            Proof::Sealed { .. } => None,
        };
        if !self.lock().doubtful.contains(chunk) {
            return Ok(());
        }
        let range = self.geometry.chunk_range(chunk);
        let values = match self.table() {
            Some(table) => {
                let read = self.read_parts(range.clone()).await.ok();
                let values = read.map(|(_, values)| values);
                values.filter(|values| table.verifies_parts(&self.geometry, chunk, values))
            }
            None => matches!(self.hash_on(Prefix::default()).await, Ok(true)).then(Vec::new),
        };
        let mut state = self.lock();
        match values {
            Some(values) => {
                state.doubtful.remove(chunk);
                state.keep_values(&self.geometry, chunk, &values);
                Ok(())
            }
            None => {
                if let Some(prefix) = &mut prefix {
                    **prefix = Prefix::default();
                }
                drop(state);
                Err(self.drop_damaged(chunk))
            }
        }
    }

    /// The first held chunk that is not what was verified, among whole parts read from `start` on,
    /// with their values. Of a blob that only its digest proves, all would have to be hashed each
    /// time: there nothing is compared.
    pub(super) fn first_damaged(&self, start: u64, bytes: &[u8], values: &[Value]) -> Option<u32> {
        let Proof::Sealed { table, .. } = &self.proof else {
            return None;
        };
        if table.is_none() {
            return (!self.digest().matches(bytes)).then_some(0);
        }
        let state = self.lock();
        let is_damaged = |(offset, value): (u64, &Value)| {
            let chunk = self.geometry.chunk_at(offset);
            let known = state.values.get(part_of(offset) as usize);
            (state.held.contains(chunk) && known.is_some_and(|known| known != value))
                .then_some(chunk)
        };
        let offsets = (start..).step_by(PART_SIZE as usize);
        offsets.zip(values).find_map(is_damaged)
    }

    /// The chunks that are not on disk as they were verified; they are dropped.
    pub(crate) async fn damaged_chunks(&self) -> Result<Vec<u32>, StoreError> {
        let mut damaged = Vec::new();
        for chunk in 0..self.geometry.chunks() {
            if !self.holds(chunk) {
                damaged.push(chunk);
                continue;
            }
            // Of a blob in one piece the digest has just been hashed, and it may be large.
            if matches!(self.proof, Proof::DigestOnly { .. }) {
                continue;
            }
            match self.read(self.geometry.chunk_range(chunk)).await {
                Err(StoreError::Doubtful { chunk, .. }) => damaged.push(chunk),
                read => drop(read?),
            }
        }
        Ok(damaged)
    }

    /// The parts that a range touches, as a range of bytes.
    pub(super) fn whole_parts(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.div_ceil(PART_SIZE).saturating_mul(PART_SIZE);
        range.start / PART_SIZE * PART_SIZE..end.min(self.geometry.size())
    }

    pub(super) fn drop_damaged(&self, chunk: u32) -> StoreError {
        self.lock().drop_chunk(&self.geometry, chunk);
        StoreError::Doubtful {
            digest: *self.digest(),
            chunk,
        }
    }
}
