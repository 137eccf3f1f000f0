//! The division of a blob: chunks are the unit of exchange, parts the unit of verification in a
//! chunk.
//!
//! Chunk size is a pure function of the blob's size: a power of two from 256 KiB to 4 MiB, the
//! smallest that gives at most 400 chunks; above 1.6 GiB the number of chunks grows instead.

use core::ops::Range;

use bincode::{Decode, Encode};

use crate::chunk_map::MAX_CHUNKS;

/// Bytes of a part, the unit of verification, writing and emission. Also the smallest chunk.
pub const PART_SIZE: u64 = 256 << 10;
/// log2 of [`PART_SIZE`].
pub const PART_LOG2: u8 = 18;
/// log2 of the largest chunk, 4 MiB.
pub const MAX_CHUNK_LOG2: u8 = 22;
/// The maximum size of a blob, 16 TiB. Limits the state per chunk.
pub const MAX_BLOB_SIZE: u64 = (MAX_CHUNKS as u64) << MAX_CHUNK_LOG2;
/// Marks a blob that is not divided into chunks.
const WHOLE_LOG2: u8 = 63;
/// The number of chunks above which the chunk size doubles, up to the largest.
const TARGET_CHUNKS: u64 = 400;

/// The division of one blob: its size and its chunk size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode)]
pub struct Geometry {
    size: u64,
    chunk_log2: u8,
}

impl Geometry {
    /// The geometry of a blob of `size` bytes.
    pub const fn for_size(size: u64) -> Self {
        let mut chunk_log2 = PART_LOG2;
        while chunk_log2 < MAX_CHUNK_LOG2 && size.div_ceil(1 << chunk_log2) > TARGET_CHUNKS {
            chunk_log2 += 1;
        }
        Self { size, chunk_log2 }
    }

    /// A blob with chunks of another size than [`Self::for_size`] chooses, to compare sizes in
    /// simulations. Peers reject such a geometry.
    pub const fn with_chunk_log2(size: u64, chunk_log2: u8) -> Self {
        Self { size, chunk_log2 }
    }

    /// A blob that is exchanged only as a whole, because no part of it can be verified alone
    /// (`Proof::DigestOnly`): one chunk of any size.
    pub const fn whole(size: u64) -> Self {
        Self {
            size,
            chunk_log2: WHOLE_LOG2,
        }
    }

    /// Validates a received geometry: `None` unless the chunk size is the one of the blob size, and
    /// the size is within the limit.
    pub fn checked(size: u64, chunk_log2: u8) -> Option<Self> {
        let geometry = Self::for_size(size);
        (geometry.chunk_log2 == chunk_log2 && size <= MAX_BLOB_SIZE).then_some(geometry)
    }

    /// Bytes of the blob.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// log2 of the chunk size.
    pub const fn chunk_log2(&self) -> u8 {
        self.chunk_log2
    }

    /// Bytes of every chunk but the last.
    pub const fn chunk_size(&self) -> u64 {
        1 << self.chunk_log2
    }

    /// Number of chunks; an empty blob has one, of no bytes.
    pub fn chunks(&self) -> u32 {
        let chunks = self.size.div_ceil(self.chunk_size()).max(1);
        u32::try_from(chunks).unwrap_or(u32::MAX)
    }

    /// Whether this is [`Self::whole`]: one chunk of any size, whose parts cannot be verified.
    pub const fn is_whole(&self) -> bool {
        self.chunk_log2 == WHOLE_LOG2
    }

    /// Whether the blob is at most one chunk, so that its digest verifies it without a chunk table.
    pub fn is_single_chunk(&self) -> bool {
        self.chunks() == 1
    }

    /// The bytes of a chunk within the blob; empty beyond the last.
    pub fn chunk_range(&self, chunk: u32) -> Range<u64> {
        let start = u64::from(chunk)
            .saturating_mul(self.chunk_size())
            .min(self.size);
        start..start.saturating_add(self.chunk_size()).min(self.size)
    }

    /// Bytes of a chunk.
    pub fn chunk_len(&self, chunk: u32) -> u64 {
        let range = self.chunk_range(chunk);
        range.end - range.start
    }

    /// The chunk that holds the byte at `offset`.
    pub fn chunk_at(&self, offset: u64) -> u32 {
        u32::try_from(offset >> self.chunk_log2).unwrap_or(u32::MAX)
    }

    /// The parts of a chunk, as ranges within the blob, in order. At least one, empty for an empty
    /// chunk.
    pub fn parts(&self, chunk: u32) -> impl Iterator<Item = Range<u64>> + use<> {
        let range = self.chunk_range(chunk);
        let parts = (range.end - range.start).div_ceil(PART_SIZE).max(1);
        (0..parts).map(move |part| {
            let start = range.start + part * PART_SIZE;
            start..(start + PART_SIZE).min(range.end)
        })
    }

    /// Number of parts of a chunk.
    pub fn part_count(&self, chunk: u32) -> usize {
        self.chunk_len(chunk).div_ceil(PART_SIZE).max(1) as usize
    }
}

impl<Context> Decode<Context> for Geometry {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let (size, chunk_log2) = <(u64, u8)>::decode(decoder)?;
        let whole = (chunk_log2 == WHOLE_LOG2).then_some(Self::whole(size));
        whole
            .or_else(|| Self::checked(size, chunk_log2))
            .ok_or(bincode::error::DecodeError::Other(
                "chunks of another size than the blob has",
            ))
    }
}

bincode::impl_borrow_decode!(Geometry);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunk_sizes_by_blob_size() {
        let cut = |size| {
            let geometry = Geometry::for_size(size);
            (geometry.chunk_size(), geometry.chunks())
        };
        assert_eq!(cut(0), (256 << 10, 1));
        assert_eq!(cut(1), (256 << 10, 1));
        assert_eq!(cut(64 << 20), (256 << 10, 256));
        assert_eq!(cut(256 << 20), (1 << 20, 256));
        assert_eq!(cut(1 << 30), (4 << 20, 256));
        assert_eq!(cut(10 << 30), (4 << 20, 2560));
    }

    #[test]
    fn blob_size_is_limited() {
        assert_eq!(Geometry::for_size(MAX_BLOB_SIZE).chunks(), MAX_CHUNKS);
        assert!(Geometry::checked(MAX_BLOB_SIZE, MAX_CHUNK_LOG2).is_some());
        assert_eq!(Geometry::checked(MAX_BLOB_SIZE + 1, MAX_CHUNK_LOG2), None);
    }

    proptest! {
        #[test]
        fn chunks_and_parts_tile_the_blob(size in 0_u64..40 << 20) {
            let geometry = Geometry::for_size(size);
            let mut offset = 0;
            for chunk in 0..geometry.chunks() {
                let parts: Vec<_> = geometry.parts(chunk).collect();
                prop_assert_eq!(parts.len(), geometry.part_count(chunk));
                for part in parts {
                    prop_assert_eq!(part.start, offset);
                    offset = part.end;
                }
                prop_assert_eq!(geometry.chunk_range(chunk).end, offset);
            }
            prop_assert_eq!(offset, size);
            prop_assert_eq!(Geometry::checked(size, geometry.chunk_log2()), Some(geometry));
        }
    }
}
