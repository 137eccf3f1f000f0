//! Which bytes of a blob may be used, and for what. Pure: no file, lock or clock.
//!
//! - *Readable parts*: verified (or, for a blob without chunk proofs, received from an origin) and
//!   written. Local readers may have them.
//! - *Held chunks*: whole, verified chunks. They may be advertised and served to neighbours.
//! - *Unverified chunks*: held before the process started, and not yet verified again since. They
//!   are verified at their first read, so nothing here needs ordered or synchronous writes.

use core::ops::Range;

use flotilla_common::chunk::{Geometry, PART_SIZE};
use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::hash_tree::ChainingValue;

/// The state of a blob's chunks and parts.
#[derive(Debug)]
pub(super) struct StoredChunks {
    geometry: Geometry,
    held: ChunkMap,
    /// A subset of `held`.
    unverified: ChunkMap,
    /// One bit for each part of the blob that is readable.
    readable: ChunkMap,
    /// The chaining value of each part; set for the parts of held, verified chunks. Empty until the
    /// first value is known.
    values: Vec<ChainingValue>,
    is_complete: bool,
}

impl StoredChunks {
    /// The state after a restart: the chunks in `held` are held and unverified.
    pub(super) fn new(geometry: Geometry, held: ChunkMap, is_complete: bool) -> Self {
        let part_count =
            u32::try_from(geometry.size().div_ceil(PART_SIZE).max(1)).unwrap_or(u32::MAX);
        let mut state = Self {
            geometry,
            is_complete: is_complete && held.is_full(),
            unverified: held.clone(),
            readable: ChunkMap::empty(part_count),
            held,
            values: Vec::new(),
        };
        for chunk in state.held.clone().iter() {
            state.mark_readable(&geometry.chunk_range(chunk));
        }
        state
    }

    pub(super) const fn held(&self) -> &ChunkMap {
        &self.held
    }

    pub(super) fn is_held(&self, chunk: u32) -> bool {
        self.held.contains(chunk)
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.held
            .iter()
            .map(|chunk| self.geometry.chunk_len(chunk))
            .sum()
    }

    pub(super) fn is_unverified(&self, chunk: u32) -> bool {
        self.unverified.contains(chunk)
    }

    /// Whether all chunks are held and the digest of the whole blob was checked.
    pub(super) const fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether the part that contains `offset` is readable.
    pub(super) fn is_readable(&self, offset: u64) -> bool {
        self.readable.contains(part_index(offset))
    }

    /// The end (exclusive) of the readable bytes that begin at `offset`; `None` if there are none.
    pub(super) fn readable_until(&self, offset: u64) -> Option<u64> {
        if !self.is_readable(offset) {
            return None;
        }
        let size = self.geometry.size();
        let missing = self.readable.first_missing(part_index(offset));
        Some(missing.map_or(size, |part| (u64::from(part) * PART_SIZE).min(size)))
    }

    /// The chaining values of a chunk's parts, as far as they are known.
    pub(super) fn part_values(&self, chunk: u32) -> &[ChainingValue] {
        let first = part_index(self.geometry.chunk_range(chunk).start) as usize;
        self.values
            .get(first..first + self.geometry.part_count(chunk))
            .unwrap_or_default()
    }

    /// The first held chunk whose known values differ from `values`, those of the parts from offset
    /// `start` on.
    pub(super) fn first_mismatch(&self, start: u64, values: &[ChainingValue]) -> Option<u32> {
        let offsets = (start..).step_by(PART_SIZE as usize);
        offsets.zip(values).find_map(|(offset, value)| {
            let chunk = self.geometry.chunk_at(offset);
            let known = self.values.get(part_index(offset) as usize);
            let differs = self.is_held(chunk) && known.is_some_and(|known| known != value);
            differs.then_some(chunk)
        })
    }

    /// Makes bytes readable: a range that begins at a part and ends at one or at the blob's end.
    pub(super) fn mark_readable(&mut self, range: &Range<u64>) {
        for part in part_indices(range) {
            self.readable.insert(part);
        }
    }

    /// Makes no byte readable any more.
    pub(super) fn clear_readable(&mut self) {
        self.readable = ChunkMap::empty(self.readable.len());
    }

    /// Records that a chunk is written and verified. True if it was not held before.
    pub(super) fn mark_held(&mut self, chunk: u32, values: &[ChainingValue]) -> bool {
        self.mark_verified(chunk, values);
        self.mark_readable(&self.geometry.chunk_range(chunk));
        self.held.insert(chunk)
    }

    /// Records that a chunk held before the restart was verified again, with the values of its
    /// parts (none for a blob without a chunk table).
    pub(super) fn mark_verified(&mut self, chunk: u32, values: &[ChainingValue]) {
        self.unverified.remove(chunk);
        if values.is_empty() {
            return;
        }
        if self.values.is_empty() {
            self.values = vec![ChainingValue::default(); self.readable.len() as usize];
        }
        let first = part_index(self.geometry.chunk_range(chunk).start) as usize;
        if let Some(known) = self.values.get_mut(first..first + values.len()) {
            known.copy_from_slice(values);
        }
    }

    /// Records that the digest of the whole blob was checked.
    pub(super) const fn mark_complete(&mut self) {
        self.is_complete = true;
    }

    /// Drops a chunk whose bytes on disk are damaged or missing.
    pub(super) fn drop_chunk(&mut self, chunk: u32) {
        self.unverified.remove(chunk);
        self.held.remove(chunk);
        for part in part_indices(&self.geometry.chunk_range(chunk)) {
            self.readable.remove(part);
        }
        self.is_complete = false;
    }

    /// Records that the bytes on disk may be gone: held chunks are verified again, and parts of
    /// other chunks are no longer readable.
    pub(super) fn mark_lost(&mut self) {
        self.unverified = self.held.clone();
        self.clear_readable();
        for chunk in self.held.clone().iter() {
            self.mark_readable(&self.geometry.chunk_range(chunk));
        }
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.held = ChunkMap::empty(self.held.len());
        self.unverified = ChunkMap::empty(self.held.len());
        self.clear_readable();
        self.is_complete = false;
    }
}

/// The whole parts that a byte range touches, as a byte range within `geometry`.
pub(super) fn align_to_parts(geometry: &Geometry, range: &Range<u64>) -> Range<u64> {
    let end = range.end.div_ceil(PART_SIZE).saturating_mul(PART_SIZE);
    range.start / PART_SIZE * PART_SIZE..end.min(geometry.size())
}

fn part_index(offset: u64) -> u32 {
    u32::try_from(offset / PART_SIZE).unwrap_or(u32::MAX)
}

/// The parts of a range; of an empty one, the part at its start.
fn part_indices(range: &Range<u64>) -> impl Iterator<Item = u32> + use<> {
    part_index(range.start)..=part_index(range.end.saturating_sub(1).max(range.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three chunks, each of one part, the last one short.
    const SIZE: u64 = 2 * PART_SIZE + 100;

    fn state(held: &[u32]) -> StoredChunks {
        let geometry = Geometry::for_size(SIZE);
        let mut map = ChunkMap::empty(geometry.chunks());
        for chunk in held {
            map.insert(*chunk);
        }
        StoredChunks::new(geometry, map, false)
    }

    #[test]
    fn readable_range_ends_at_first_missing_part_or_at_end() {
        let mut state = state(&[]);
        assert_eq!(state.readable_until(0), None);
        state.mark_readable(&(0..PART_SIZE));
        assert_eq!(state.readable_until(5), Some(PART_SIZE));
        state.mark_readable(&(PART_SIZE..SIZE));
        assert_eq!(state.readable_until(5), Some(SIZE));
        assert!(state.held().is_empty());
    }

    #[test]
    fn chunks_held_before_restart_are_unverified_until_marked() {
        let mut state = state(&[1]);
        assert!(state.is_held(1) && state.is_unverified(1) && !state.is_unverified(0));
        state.mark_verified(1, &[[7; 32]]);
        assert!(state.is_held(1) && !state.is_unverified(1));
        assert_eq!(state.part_values(1), [[7; 32]]);
    }

    #[test]
    fn mismatch_is_found_among_held_chunks_only() {
        let mut state = state(&[]);
        assert!(state.mark_held(1, &[[1; 32]]));
        assert!(!state.mark_held(1, &[[1; 32]]));
        assert_eq!(state.first_mismatch(0, &[[9; 32], [1; 32]]), None);
        assert_eq!(state.first_mismatch(0, &[[9; 32], [2; 32]]), Some(1));
    }

    #[test]
    fn lost_file_leaves_only_held_chunks_which_are_unverified() {
        let mut state = state(&[]);
        state.mark_held(0, &[[7; 32]]);
        state.mark_readable(&(PART_SIZE..2 * PART_SIZE));
        state.mark_lost();
        assert!(state.is_held(0) && state.is_unverified(0) && state.is_readable(0));
        assert!(!state.is_readable(PART_SIZE));
    }

    #[test]
    fn dropped_chunk_is_neither_held_nor_readable() {
        let mut state = state(&[0, 1, 2]);
        state.mark_complete();
        state.drop_chunk(1);
        assert_eq!(state.held().iter().collect::<Vec<_>>(), [0, 2]);
        assert!(!state.is_readable(PART_SIZE) && !state.is_complete());
        assert_eq!(state.held_bytes(), PART_SIZE + 100);
    }

    #[test]
    fn ranges_are_aligned_to_parts_within_the_blob() {
        let geometry = Geometry::for_size(SIZE);
        let aligned = |range| align_to_parts(&geometry, &range);
        assert_eq!(aligned(5..6), 0..PART_SIZE);
        assert_eq!(aligned(PART_SIZE - 1..PART_SIZE + 1), 0..2 * PART_SIZE);
        assert_eq!(aligned(SIZE - 1..SIZE), 2 * PART_SIZE..SIZE);
    }
}
