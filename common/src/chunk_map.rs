//! The chunk map: a bitset of the chunks that a peer holds.

use bincode::{Decode, Encode};

/// The maximum number of chunks of a map: a blob of 16 TiB. Limits the memory that a message can
/// make its receiver allocate.
pub const MAX_CHUNKS: u32 = 1 << 22;

/// A bitset over the chunks of one blob.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct ChunkMap {
    chunks: u32,
    words: Vec<u64>,
}

impl ChunkMap {
    /// A map over `chunks` chunks, none of them held.
    pub fn empty(chunks: u32) -> Self {
        Self {
            chunks,
            words: vec![0; (chunks as usize).div_ceil(64)],
        }
    }

    /// A map over `chunks` chunks, all of them held.
    pub fn full(chunks: u32) -> Self {
        let mut map = Self {
            chunks,
            words: vec![u64::MAX; (chunks as usize).div_ceil(64)],
        };
        if let (Some(last), used @ 1..) = (map.words.last_mut(), chunks % 64) {
            *last = (1 << used) - 1;
        }
        map
    }

    /// How many chunks the map covers.
    pub const fn len(&self) -> u32 {
        self.chunks
    }

    /// Whether no chunk is held.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether every chunk is held.
    pub fn is_full(&self) -> bool {
        self.count() == self.chunks
    }

    /// How many chunks are held.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether `chunk` is held; never beyond the end.
    pub fn contains(&self, chunk: u32) -> bool {
        chunk < self.chunks && self.words[chunk as usize / 64] >> (chunk % 64) & 1 == 1
    }

    /// Marks `chunk` as held; true if it was not. Nothing happens beyond the end.
    pub fn insert(&mut self, chunk: u32) -> bool {
        let new = chunk < self.chunks && !self.contains(chunk);
        if new {
            self.words[chunk as usize / 64] |= 1 << (chunk % 64);
        }
        new
    }

    /// Marks `chunk` as not held; true if it was.
    pub fn remove(&mut self, chunk: u32) -> bool {
        let held = self.contains(chunk);
        if held {
            self.words[chunk as usize / 64] &= !(1 << (chunk % 64));
        }
        held
    }

    /// The words, 64 chunks each, lowest chunk in the lowest bit; bits beyond the end are zero.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The chunks held, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words
            .iter()
            .zip(0_u32..)
            .flat_map(|(word, index)| bits(*word).map(move |bit| index * 64 + bit))
    }

    /// The lowest chunk at or after `from` that is not held.
    pub fn first_missing(&self, from: u32) -> Option<u32> {
        if from >= self.chunks {
            return None;
        }
        let first = from as usize / 64;
        self.words[first..]
            .iter()
            .enumerate()
            .find_map(|(index, word)| {
                let mut free = !word;
                if index == 0 {
                    free &= u64::MAX << (from % 64);
                }
                let chunk = ((first + index) * 64) as u32 + free.trailing_zeros();
                (free != 0 && chunk < self.chunks).then_some(chunk)
            })
    }

    /// Adds what `other` holds. Maps of different lengths are not mixed: then nothing happens.
    pub fn union(&mut self, other: &Self) {
        if self.chunks == other.chunks {
            for (word, more) in self.words.iter_mut().zip(&other.words) {
                *word |= more;
            }
        }
    }
}

/// The set bits of a word, ascending.
pub(crate) fn bits(word: u64) -> impl Iterator<Item = u32> {
    Bits(word)
}

struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

impl<Context> Decode<Context> for ChunkMap {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let chunks = u32::decode(decoder)?;
        if chunks > MAX_CHUNKS {
            return Err(bincode::error::DecodeError::Other(
                "chunk map longer than any blob",
            ));
        }
        let words = Vec::<u64>::decode(decoder)?;
        let spare_bits = words
            .last()
            .is_some_and(|last| chunks % 64 != 0 && last >> (chunks % 64) != 0);
        if words.len() != (chunks as usize).div_ceil(64) || spare_bits {
            return Err(bincode::error::DecodeError::Other(
                "chunk map of another length than it says",
            ));
        }
        Ok(Self { chunks, words })
    }
}

bincode::impl_borrow_decode!(ChunkMap);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::codec;

    proptest! {
        #[test]
        fn map_behaves_like_a_set(chunks in 0_u32..200, steps in prop::collection::vec((0_u32..220, any::<bool>()), 0..100)) {
            let mut map = ChunkMap::empty(chunks);
            let mut set = BTreeSet::new();
            for (chunk, insert) in steps {
                if insert {
                    prop_assert_eq!(map.insert(chunk), chunk < chunks && set.insert(chunk));
                } else {
                    prop_assert_eq!(map.remove(chunk), set.remove(&chunk));
                }
            }
            prop_assert_eq!(map.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(map.count() as usize, set.len());
            for from in 0..chunks + 2 {
                prop_assert_eq!(map.first_missing(from), (from..chunks).find(|chunk| !set.contains(chunk)));
            }
            let bytes = codec::encode(&map).expect("a map encodes");
            prop_assert_eq!(codec::decode::<ChunkMap>(&bytes).expect("own bytes"), map);
        }

        #[test]
        fn full_map_holds_every_chunk(chunks in 0_u32..200) {
            let map = ChunkMap::full(chunks);
            prop_assert!(map.is_full());
            prop_assert_eq!(map.count(), chunks);
            prop_assert_eq!(map.first_missing(0), None);
        }
    }
}
