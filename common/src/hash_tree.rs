//! The BLAKE3 tree of a blob: chaining values of parts, chunks and the whole.
//!
//! BLAKE3 (paper, section 2.1) hashes a tree whose left subtrees are complete powers of two. A
//! subtree of 256 KiB or more that starts at a multiple of its size has a chaining value, and the
//! values of all chunks merge to the root. So a single chunk can be verified against a list of
//! values, which is itself verified against the root that a seal signs.

use bincode::{Decode, Encode};
/// A chaining value, or the root's hash: 32 bytes.
pub use blake3::hazmat::ChainingValue;
use blake3::hazmat::{self, HasherExt, Mode};

use crate::chunk::{Geometry, MAX_CHUNK_LOG2, PART_LOG2, PART_SIZE};

/// A stored tree state is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed hash tree state")]
pub struct TreeStateError;

/// The chaining value of `bytes` as the subtree that starts at `offset` of a larger blob.
///
/// `offset` must be a multiple of [`PART_SIZE`] and the bytes at most the subtree that starts
/// there: a part, or a chunk. For a blob that is only this subtree use [`root_of`].
pub fn subtree_value(offset: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// The BLAKE3 hash of a whole blob.
pub fn root_of(bytes: &[u8]) -> ChainingValue {
    blake3::hash(bytes).into()
}

/// Merges the values of consecutive units (all complete but the last, first at a multiple of their
/// joint size rounded up to a power of two) into the value of the subtree that they cover; `None`
/// for none.
pub fn merge(values: &[ChainingValue]) -> Option<ChainingValue> {
    match values {
        [] => None,
        [value] => Some(*value),
        _ => {
            let (left, right) = values.split_at(left_len(values.len()));
            Some(hazmat::merge_subtrees_non_root(
                &merge(left)?,
                &merge(right)?,
                Mode::Hash,
            ))
        }
    }
}

/// The root over the values of all chunks, two at least; `None` for fewer (a single chunk's digest
/// is its check).
fn merge_root(values: &[ChainingValue]) -> Option<ChainingValue> {
    if values.len() < 2 {
        return None;
    }
    let (left, right) = values.split_at(left_len(values.len()));
    Some(hazmat::merge_subtrees_root(&merge(left)?, &merge(right)?, Mode::Hash).into())
}

/// The largest power of two below `len`: how many units the left subtree has.
const fn left_len(len: usize) -> usize {
    len.next_power_of_two() / 2
}

/// The chaining values of all chunks of one blob, two or more.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChunkTable {
    values: Vec<ChainingValue>,
}

impl ChunkTable {
    /// Validates a table from an untrusted source: `None` unless it has a value for each chunk of
    /// `geometry` and merges to `root`.
    pub fn checked(
        values: Vec<ChainingValue>,
        geometry: &Geometry,
        root: &ChainingValue,
    ) -> Option<Self> {
        let complete = values.len() == geometry.chunks() as usize;
        (complete && merge_root(&values).as_ref() == Some(root)).then_some(Self { values })
    }

    /// Whether this received table merges to `root`.
    pub fn proves(&self, geometry: &Geometry, root: &ChainingValue) -> bool {
        self.values.len() == geometry.chunks() as usize
            && merge_root(&self.values).as_ref() == Some(root)
    }

    /// The values, one per chunk.
    pub fn values(&self) -> &[ChainingValue] {
        &self.values
    }

    /// Whether `bytes` are the chunk's.
    pub fn verifies_chunk(&self, geometry: &Geometry, chunk: u32, bytes: &[u8]) -> bool {
        let range = geometry.chunk_range(chunk);
        range.end - range.start == bytes.len() as u64
            && self.values.get(chunk as usize) == Some(&subtree_value(range.start, bytes))
    }

    /// Whether `parts`, the received values of a chunk's parts, merge to the value of the chunk.
    pub fn verifies_parts(&self, geometry: &Geometry, chunk: u32, parts: &[ChainingValue]) -> bool {
        parts.len() == geometry.part_count(chunk)
            && merge(parts)
                .as_ref()
                .is_some_and(|value| self.values.get(chunk as usize) == Some(value))
    }
}

/// The values of a chunk's parts, computed from its bytes, which start at `offset` of the blob.
pub fn part_values(offset: u64, bytes: &[u8]) -> Vec<ChainingValue> {
    let parts = bytes.chunks(PART_SIZE as usize).zip(0_u64..);
    parts
        .map(|(part, index)| subtree_value(offset + index * PART_SIZE, part))
        .collect()
}

/// The state of a [`TreeHasher`] after whole parts; stored with an upload, so that any replica can
/// resume it.
///
/// It excludes the bytes after the last whole part. It also excludes a part that is the only one so
/// far, because the blob may end there, and then it has a root and no chaining value. A resuming
/// replica reads that tail of at most 256 KiB again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct TreeState {
    /// log2 of the unit of `values`.
    unit_log2: u8,
    /// Values of whole units, in order.
    values: Vec<ChainingValue>,
    /// Values of whole parts after the last whole unit, in order.
    pending: Vec<ChainingValue>,
}

impl TreeState {
    /// Bytes that the state covers: a multiple of [`PART_SIZE`].
    pub fn covered(&self) -> u64 {
        // A state from storage may be corrupt: one with an impossible unit covers nothing.
        let units = (self.values.len() as u64)
            .checked_mul(1_u64.checked_shl(self.unit_log2.into()).unwrap_or(0));
        units.unwrap_or(0) + self.pending.len() as u64 * PART_SIZE
    }
}

/// Computes the hash tree of a stream whose size is not known beforehand, from pieces of any
/// length.
///
/// The values are of units of the chunk size that the bytes so far would have. They are merged
/// pairwise as the size grows: at most some thousands of values for any blob below 16 GiB.
#[derive(Clone, Debug)]
pub struct TreeHasher {
    unit_log2: u8,
    values: Vec<ChainingValue>,
    pending: Vec<ChainingValue>,
    part: blake3::Hasher,
    part_len: u64,
}

/// A finished tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The division of the blob.
    pub geometry: Geometry,
    /// The BLAKE3 hash of the blob.
    pub root: ChainingValue,
    /// The chunk table; `None` for a blob of one chunk or less.
    pub table: Option<ChunkTable>,
}

impl Default for TreeHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl TreeHasher {
    /// A hasher of no bytes yet.
    pub fn new() -> Self {
        Self {
            unit_log2: PART_LOG2,
            values: Vec::new(),
            pending: Vec::new(),
            part: blake3::Hasher::new(),
            part_len: 0,
        }
    }

    /// Resumes after the bytes that `state` covers and the `tail` that it does not.
    ///
    /// # Errors
    /// [`TreeStateError`] if [`state`](Self::state) never returns this state with such a tail.
    pub fn from_state(state: TreeState, tail: &[u8]) -> Result<Self, TreeStateError> {
        let unit = u32::from(
            state
                .unit_log2
                .checked_sub(PART_LOG2)
                .ok_or(TreeStateError)?,
        );
        if state.unit_log2 > MAX_CHUNK_LOG2 || state.pending.len() >= 1 << unit {
            return Err(TreeStateError);
        }
        // Units grow with the chunk size: larger ones than the bytes give have no chunks to be
        // merged into.
        let bytes = state.covered() + tail.len() as u64;
        if Geometry::for_size(bytes).chunk_log2() < state.unit_log2 {
            return Err(TreeStateError);
        }
        if state.covered() == PART_SIZE && tail.is_empty() {
            return Err(TreeStateError);
        }
        let mut hasher = Self {
            unit_log2: state.unit_log2,
            values: state.values,
            pending: state.pending,
            part: blake3::Hasher::new(),
            part_len: 0,
        };
        hasher.start_part();
        hasher.update(tail);
        Ok(hasher)
    }

    /// Bytes hashed so far.
    pub fn len(&self) -> u64 {
        ((self.values.len() as u64) << self.unit_log2)
            + self.pending.len() as u64 * PART_SIZE
            + self.part_len
    }

    /// Whether no byte was hashed yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes at the end that a stored state does not cover: less than a part, or the only part.
    pub fn tail_len(&self) -> u64 {
        if self.is_one_part() {
            self.part_len
        } else {
            self.part_len % PART_SIZE
        }
    }

    /// Whether all bytes so far are in one part.
    fn is_one_part(&self) -> bool {
        self.values.is_empty() && self.pending.is_empty()
    }

    /// Hashes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.part_len == PART_SIZE {
                self.end_part();
            }
            let room = (PART_SIZE - self.part_len) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.part.update(now);
            self.part_len += now.len() as u64;
            bytes = later;
        }
    }

    /// The state after the last whole part. The bytes at the end, [`tail_len`](Self::tail_len), are
    /// not covered.
    pub fn state(&self) -> TreeState {
        let mut whole = self.clone();
        if whole.part_len == PART_SIZE && !whole.is_one_part() {
            whole.end_part();
        }
        TreeState {
            unit_log2: whole.unit_log2,
            values: whole.values,
            pending: whole.pending,
        }
    }

    /// The tree of all bytes.
    pub fn finish(mut self) -> Tree {
        let size = self.len();
        let geometry = Geometry::for_size(size);
        if self.is_one_part() {
            // One part: its hash as a root. It was set up at offset 0, so it may be finalized as
            // one.
            return Tree {
                geometry,
                root: self.part.finalize().into(),
                table: None,
            };
        }
        self.end_part();
        self.values.extend(merge(&self.pending));
        let units_per_chunk = 1 << (geometry.chunk_log2() - self.unit_log2);
        let values: Vec<_> = self
            .values
            .chunks(units_per_chunk)
            .filter_map(merge)
            .collect();
        match merge_root(&values) {
            Some(root) => Tree {
                geometry,
                root,
                table: Some(ChunkTable { values }),
            },
            None => {
                unreachable!(
                    "two parts or more are two chunks or more, since the smallest chunk is a part"
                )
            }
        }
    }

    fn start_part(&mut self) {
        self.part = blake3::Hasher::new();
        self.part_len = 0;
        self.part.set_input_offset(self.len());
    }

    fn end_part(&mut self) {
        if self.part_len > 0 {
            self.pending.push(self.part.finalize_non_root());
            self.part_len = 0;
        }
        if self.pending.len() == 1 << (self.unit_log2 - PART_LOG2) {
            self.values.extend(merge(&self.pending));
            self.pending.clear();
        }
        self.grow_unit();
        self.start_part();
    }

    /// Merges units pairwise once the size so far asks for larger chunks and the units pair up.
    fn grow_unit(&mut self) {
        let wanted = Geometry::for_size(self.len()).chunk_log2();
        while self.unit_log2 < wanted
            && self.pending.is_empty()
            && self.values.len().is_multiple_of(2)
        {
            self.values = self.values.chunks_exact(2).filter_map(merge).collect();
            self.unit_log2 += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that differ everywhere, without randomness.
    fn sample(len: usize) -> Vec<u8> {
        (0..len)
            .map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    }

    fn tree_of(bytes: &[u8]) -> Tree {
        let mut hasher = TreeHasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    #[test]
    fn single_part_blob_has_no_table() {
        for len in [0, 1, 1024, 1025, PART_SIZE as usize] {
            let bytes = sample(len);
            let tree = tree_of(&bytes);
            assert_eq!(tree.root, root_of(&bytes));
            assert_eq!(tree.table, None);
        }
    }

    #[test]
    fn resume_at_part_boundaries() {
        let part = PART_SIZE as usize;
        for len in [part, 2 * part] {
            let bytes = sample(len);
            for cut in [0, 1, part, len] {
                let mut hasher = TreeHasher::new();
                hasher.update(&bytes[..cut]);
                let state = hasher.state();
                let covered = state.covered() as usize;
                assert_eq!(covered + hasher.tail_len() as usize, cut);
                let mut hasher =
                    TreeHasher::from_state(state, &bytes[covered..cut]).expect("own state");
                hasher.update(&bytes[cut..]);
                assert_eq!(
                    hasher.finish().root,
                    root_of(&bytes),
                    "{len} bytes, cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn impossible_states_are_errors() {
        let state = |unit_log2, values, pending| TreeState {
            unit_log2,
            values: vec![[0; 32]; values],
            pending: vec![[0; 32]; pending],
        };
        for bad in [
            state(17, 0, 0),
            state(23, 2, 0),
            state(18, 1, 0),
            state(19, 0, 1),
            state(19, 2, 2),
        ] {
            assert!(TreeHasher::from_state(bad.clone(), &[]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn root_is_independent_of_chunk_size() {
        // 401, 402 and 403 parts and a bit: the unit doubles in between.
        for parts in [400, 401, 402, 403, 801] {
            let bytes = sample(parts * PART_SIZE as usize + 77);
            let tree = tree_of(&bytes);
            let table = tree.table.expect("many chunks");
            assert_eq!(tree.root, root_of(&bytes));
            assert_eq!(table.values().len(), tree.geometry.chunks() as usize);
            assert!(table.proves(&tree.geometry, &tree.root));
            for chunk in [0, 1, tree.geometry.chunks() - 1] {
                let range = tree.geometry.chunk_range(chunk);
                let content = &bytes[range.start as usize..range.end as usize];
                assert!(table.verifies_chunk(&tree.geometry, chunk, content));
                let parts = part_values(range.start, content);
                assert!(table.verifies_parts(&tree.geometry, chunk, &parts));
            }
        }
    }

    #[test]
    fn altered_bytes_parts_and_tables_fail_verification() {
        let mut bytes = sample(3 * PART_SIZE as usize + 5);
        let tree = tree_of(&bytes);
        let (geometry, table) = (tree.geometry, tree.table.expect("four chunks"));
        bytes[PART_SIZE as usize + 9] ^= 1;
        let altered = &bytes[PART_SIZE as usize..2 * PART_SIZE as usize];
        assert!(!table.verifies_chunk(&geometry, 1, altered));
        assert!(!table.verifies_parts(&geometry, 1, &part_values(PART_SIZE, altered)));
        assert!(!table.verifies_parts(&geometry, 1, &[]));
        assert!(!table.verifies_chunk(&geometry, 9, altered));
        let mut values = table.values().to_vec();
        assert!(ChunkTable::checked(values.clone(), &geometry, &tree.root).is_some());
        values.swap(0, 1);
        assert!(ChunkTable::checked(values.clone(), &geometry, &tree.root).is_none());
        values.pop();
        assert!(ChunkTable::checked(values, &geometry, &tree.root).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_split_and_resume_gives_the_same_tree(
            len in 0_usize..9 * PART_SIZE as usize,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = sample(len);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(len + 1)).collect();
            cuts.sort_unstable();
            let mut hasher = TreeHasher::new();
            let mut from = 0;
            for cut in cuts {
                hasher.update(&bytes[from..cut]);
                let covered = hasher.state().covered();
                prop_assert_eq!(covered + hasher.tail_len(), cut as u64);
                hasher = TreeHasher::from_state(hasher.state(), &bytes[covered as usize..cut]).expect("own state");
                from = cut;
            }
            hasher.update(&bytes[from..]);
            let tree = hasher.finish();
            prop_assert_eq!(tree.root, root_of(&bytes));
            prop_assert_eq!(tree.geometry, Geometry::for_size(len as u64));
        }
    }
}
