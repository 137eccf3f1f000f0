//! The exchange of one blob: which chunks we hold, which are being fetched, and which each
//! neighbour holds.
//!
//! Everything about chunks is kept in words of 64 of them: the chunks of each neighbour in a
//! [`HolderTable`], and the number of neighbours that hold each chunk as [`ChunkWords`]. So an
//! announced chunk touches two cache lines, and the picker looks at 64 chunks at once. Flags of
//! neighbours are bits of a word, by the neighbour's index. `unavailable` is the number of chunks
//! that neither we nor any neighbour holds. The fields are private so that every change goes
//! through a method that keeps them consistent.

mod table;
mod words;

use core::time::Duration;

use self::table::HolderTable;
use self::words::ChunkWords;
use super::io::{HaveBatch, HeldChunks, PeerSlot};
use crate::chunk::Geometry;
use crate::chunk_map::{ChunkMap, bits};
use crate::time::Time;

/// Maximum number of neighbours of a blob: one bit each in a word.
pub(super) const MAX_NEIGHBOURS: u32 = u64::BITS;

/// Whether this peer wants the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interest {
    /// Not wanted: it is only served.
    Idle,
    /// Wanted, and chunks are missing.
    Wanted,
    /// Wanted, and complete.
    Complete,
}

/// The state of one neighbour of the blob that few messages need.
#[derive(Debug, Default)]
struct NeighbourState {
    /// When our chunk map was last sent to it, if it was.
    map_sent_at: Time,
    /// Its chunks, kept here while they do not count because it is unresponsive.
    set_aside: Option<Box<[u64]>>,
}

/// The effect of a neighbour's Have message.
#[derive(Clone, Copy, Debug)]
pub(super) struct HaveEffect {
    /// The neighbour holds a chunk that it was not known to hold, and that we lack.
    pub(super) has_new_chunks: bool,
    /// The neighbour lacks a chunk that it was known to hold.
    pub(super) is_correction: bool,
}

/// One blob's chunks and neighbours.
#[derive(Debug)]
pub(super) struct BlobExchange {
    geometry: Geometry,
    /// How long one chunk takes at the own rate.
    chunk_time: Duration,
    interest: Interest,
    held: ChunkMap,
    held_count: u32,
    /// The counters of the chunks, and which of them are missing.
    words: Vec<ChunkWords>,
    /// The neighbours. An index in this list is the index of the neighbour in the tables and its
    /// bit in the words below.
    neighbours: Vec<PeerSlot>,
    /// The chunks that each neighbour holds.
    holders: HolderTable,
    /// Number of chunks that each neighbour is known to hold.
    held_counts: Vec<u32>,
    states: Vec<NeighbourState>,
    /// The neighbours that hold every chunk.
    seeders: u64,
    /// The neighbours to which our chunk map was sent.
    have_map: u64,
    /// The neighbours that have sent a Have message for the blob.
    have_announced: u64,
    /// Number of chunks that neither we nor any neighbour holds.
    unavailable: u32,
    /// How often a neighbour left or was set aside, and chunks may have become unavailable.
    departures: u64,
}

impl BlobExchange {
    /// A blob of which `held` is in the store. A map of the wrong length counts as empty.
    pub(super) fn new(geometry: Geometry, held: ChunkMap, chunk_time: Duration) -> Self {
        let chunks = geometry.chunks();
        let held = if held.len() == chunks {
            held
        } else {
            ChunkMap::empty(chunks)
        };
        let held_count = held.count();
        let words = held.words().iter().enumerate().map(|(word, held)| {
            let missing = !held & chunks_in(chunks, word);
            ChunkWords::new(missing)
        });
        Self {
            geometry,
            chunk_time,
            interest: Interest::Idle,
            words: words.collect(),
            holders: HolderTable::new(held.words().len()),
            held,
            held_count,
            neighbours: Vec::new(),
            held_counts: Vec::new(),
            states: Vec::new(),
            seeders: 0,
            have_map: 0,
            have_announced: 0,
            unavailable: chunks - held_count,
            departures: 0,
        }
    }

    pub(super) fn chunks(&self) -> u32 {
        self.held.len()
    }

    /// Length of a chunk in bytes.
    pub(super) fn chunk_len(&self, chunk: u32) -> u64 {
        self.geometry.chunk_len(chunk)
    }

    /// Whether the blob is one chunk that can only be verified as a whole.
    pub(super) fn is_single_chunk(&self) -> bool {
        self.geometry.is_whole()
    }

    /// How long one chunk takes at the own rate.
    pub(super) fn chunk_time(&self) -> Duration {
        self.chunk_time
    }

    /// Wanted and not complete.
    pub(super) fn is_wanted(&self) -> bool {
        self.interest == Interest::Wanted
    }

    /// Whether a neighbour may gain from exchanging the blob with us.
    pub(super) fn is_useful(&self) -> bool {
        self.is_wanted() || self.held_count > 0
    }

    /// Starts wanting the blob; false if it is wanted or complete already.
    pub(super) fn start_wanting(&mut self) -> bool {
        self.transition(Interest::Idle, Interest::Wanted)
    }

    pub(super) fn stop_wanting(&mut self) {
        self.interest = Interest::Idle;
    }

    /// Ends the want if every chunk is held; false if it is not wanted or lacks a chunk.
    pub(super) fn finish(&mut self) -> bool {
        self.held_count == self.chunks() && self.transition(Interest::Wanted, Interest::Complete)
    }

    /// Wants the blob again that was complete; false if it was not.
    pub(super) fn reopen(&mut self) -> bool {
        self.transition(Interest::Complete, Interest::Wanted)
    }

    fn transition(&mut self, from: Interest, to: Interest) -> bool {
        let applies = self.interest == from;
        if applies {
            self.interest = to;
        }
        applies
    }

    /// The chunks held.
    pub(super) fn held(&self) -> &ChunkMap {
        &self.held
    }

    pub(super) fn held_count(&self) -> u32 {
        self.held_count
    }

    /// Marks a chunk as held; false if it was.
    pub(super) fn hold(&mut self, chunk: u32) -> bool {
        let is_new = self.held.insert(chunk);
        if is_new {
            let (word, bit) = position(chunk);
            self.words[word].missing &= !bit;
            self.held_count += 1;
            self.unavailable -= u32::from(self.availability(chunk) == 0);
        }
        is_new
    }

    /// Marks a chunk as not held; false if it was not.
    pub(super) fn lose(&mut self, chunk: u32) -> bool {
        let was_held = self.held.remove(chunk);
        if was_held {
            let (word, bit) = position(chunk);
            self.words[word].missing |= bit;
            self.held_count -= 1;
            self.unavailable += u32::from(self.availability(chunk) == 0);
        }
        was_held
    }

    /// Marks a missing chunk as being fetched.
    pub(super) fn mark_pending(&mut self, chunk: u32) {
        let (word, bit) = position(chunk);
        if let Some(words) = self.words.get_mut(word) {
            words.missing &= !bit;
        }
    }

    /// Marks a chunk as not being fetched.
    pub(super) fn clear_pending(&mut self, chunk: u32) {
        let (word, bit) = position(chunk);
        if chunk < self.chunks() && !self.held.contains(chunk) {
            self.words[word].missing |= bit;
        }
    }

    /// The neighbours with which the blob is exchanged.
    pub(super) fn neighbours(&self) -> &[PeerSlot] {
        &self.neighbours
    }

    /// The neighbour's index in [`Self::neighbours`].
    pub(super) fn index_of(&self, peer: PeerSlot) -> Option<usize> {
        self.neighbours.iter().position(|other| *other == peer)
    }

    /// Adds a neighbour that is not one yet; there must be room for it. Returns its index.
    pub(super) fn add_neighbour(&mut self, peer: PeerSlot) -> usize {
        self.neighbours.push(peer);
        self.holders.push();
        self.held_counts.push(0);
        self.states.push(NeighbourState::default());
        self.neighbours.len() - 1
    }

    /// Removes a neighbour and the chunks it held.
    pub(super) fn remove_neighbour(&mut self, peer: PeerSlot) {
        let Some(index) = self.index_of(peer) else {
            return;
        };
        self.departures += 1;
        self.clear_neighbour(index);
        self.neighbours.remove(index);
        self.holders.remove(index);
        self.held_counts.remove(index);
        self.states.remove(index);
        for bits in [
            &mut self.seeders,
            &mut self.have_map,
            &mut self.have_announced,
        ] {
            *bits = without_bit(*bits, index);
        }
    }

    /// When our chunk map was last sent to the neighbour.
    pub(super) fn map_sent_at(&self, index: usize) -> Option<Time> {
        (self.have_map >> index & 1 != 0).then(|| self.states[index].map_sent_at)
    }

    pub(super) fn mark_map_sent(&mut self, index: usize, now: Time) {
        self.have_map |= 1 << index;
        self.states[index].map_sent_at = now;
    }

    /// Whether the neighbour has sent a Have message for the blob.
    pub(super) fn has_announced(&self, index: usize) -> bool {
        self.have_announced >> index & 1 != 0
    }

    /// Whether the peer is a neighbour that has sent a Have message for the blob.
    pub(super) fn knows(&self, peer: PeerSlot) -> bool {
        let index = self.index_of(peer);
        index.is_some_and(|index| self.has_announced(index))
    }

    /// Whether any neighbour has sent a Have message for the blob.
    pub(super) fn has_any_announced(&self) -> bool {
        self.have_announced != 0
    }

    /// Whether the peer is a neighbour that holds every chunk.
    pub(super) fn is_seeder(&self, peer: PeerSlot) -> bool {
        self.index_of(peer)
            .is_some_and(|index| self.seeders >> index & 1 != 0)
    }

    /// Whether there are neighbours, and each of them holds every chunk.
    pub(super) fn has_only_seeders(&self) -> bool {
        !self.neighbours.is_empty() && self.seeders.count_ones() as usize == self.neighbours.len()
    }

    /// Whether any neighbour holds any chunk.
    pub(super) fn is_offered(&self) -> bool {
        self.held_counts.iter().any(|count| *count > 0)
    }

    /// The neighbours that have our chunk map and still lack chunks.
    pub(super) fn leechers_with_map(&self) -> impl Iterator<Item = PeerSlot> + '_ {
        self.at(self.have_map & !self.seeders)
    }

    /// The recipients of a Have message for these chunks: neighbours that have our chunk map and
    /// are not known to hold all of the chunks. Neighbours that hold them learn that we do from
    /// the chunk map that is sent when we are complete, or when we lack one again.
    pub(super) fn have_recipients(&self, batch: &HaveBatch) -> impl Iterator<Item = PeerSlot> {
        let holders = batch.chunks().iter().map(|chunk| self.holders_of(*chunk));
        let holders_of_all = holders.fold(u64::MAX, |all, holders| all & holders);
        self.at(self.have_map & !holders_of_all)
    }

    /// The neighbours that hold a chunk, one bit each; none beyond the end.
    pub(super) fn holders_of(&self, chunk: u32) -> u64 {
        let word = chunk as usize / 64;
        if word < self.words.len() {
            self.holders.holders(word, chunk % 64)
        } else {
            0
        }
    }

    /// How many neighbours hold a chunk; 0 beyond the end.
    pub(super) fn availability(&self, chunk: u32) -> u8 {
        self.words
            .get(chunk as usize / 64)
            .map_or(0, |words| words.availability(chunk % 64))
    }

    /// Applies a neighbour's Have message.
    pub(super) fn apply_have(&mut self, index: usize, have: &HeldChunks) -> HaveEffect {
        self.have_announced |= 1 << index;
        let mut effect = HaveEffect {
            has_new_chunks: false,
            is_correction: false,
        };
        match have {
            HeldChunks::Chunks(batch) => {
                for chunk in batch.chunks() {
                    let (word, bit) = position(*chunk);
                    if *chunk < self.chunks() {
                        let added = self.add_chunks(index, word, bit);
                        effect.has_new_chunks |= self.lacks_any(word, added);
                    }
                }
            }
            HeldChunks::Map(map) if map.len() == self.chunks() => {
                for (word, named) in map.words().iter().enumerate() {
                    effect.is_correction |= self.remove_chunks(index, word, !named) != 0;
                    self.add_chunks(index, word, *named);
                    effect.has_new_chunks |= self.lacks_any(word, *named);
                }
            }
            HeldChunks::Map(_) => {}
            HeldChunks::Complete => {
                for word in 0..self.words.len() {
                    let added = self.add_chunks(index, word, chunks_in(self.chunks(), word));
                    effect.has_new_chunks |= self.lacks_any(word, added);
                }
            }
        }
        effect
    }

    /// Records that a neighbour does not hold a chunk.
    pub(super) fn mark_lacking(&mut self, peer: PeerSlot, chunk: u32) {
        if let Some(index) = self.index_of(peer)
            && chunk < self.chunks()
        {
            let (word, bit) = position(chunk);
            self.remove_chunks(index, word, bit);
        }
    }

    /// Stops counting the chunks of an unresponsive neighbour until [`Self::restore`].
    pub(super) fn set_aside(&mut self, peer: PeerSlot) {
        let Some(index) = self
            .index_of(peer)
            .filter(|index| self.states[*index].set_aside.is_none())
        else {
            return;
        };
        self.departures += 1;
        let words = (0..self.words.len()).map(|word| self.holders.word(index, word));
        let chunks = words.collect();
        self.clear_neighbour(index);
        self.states[index].set_aside = Some(chunks);
    }

    /// Counts the chunks of a neighbour again.
    pub(super) fn restore(&mut self, peer: PeerSlot) {
        let Some(index) = self.index_of(peer) else {
            return;
        };
        if let Some(words) = self.states[index].set_aside.take() {
            for (word, chunks) in words.iter().enumerate() {
                self.add_chunks(index, word, *chunks);
            }
        }
    }

    /// Removes all neighbours; the counters are not updated, for the blob is removed next.
    pub(super) fn take_neighbours(&mut self) -> Vec<PeerSlot> {
        self.holders.clear();
        self.held_counts.clear();
        self.states.clear();
        self.seeders = 0;
        self.have_map = 0;
        self.have_announced = 0;
        core::mem::take(&mut self.neighbours)
    }

    /// Number of chunks that neither we nor any neighbour holds.
    pub(super) fn unavailable(&self) -> u32 {
        self.unavailable
    }

    /// How often a neighbour left or was set aside. Unequal numbers say that the unavailable chunks
    /// may differ, too.
    pub(super) fn departures(&self) -> u64 {
        self.departures
    }

    /// The chunks that neither we nor any neighbour holds and that are not being fetched,
    /// ascending.
    pub(super) fn unavailable_chunks(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.words.len()).flat_map(|word| {
            let unavailable = self.missing_in(word) & self.words[word].unavailable();
            chunks_of(word, unavailable)
        })
    }

    /// The chunks of [`Self::unavailable_chunks`] as a map.
    pub(super) fn unavailable_map(&self) -> ChunkMap {
        let mut map = ChunkMap::empty(self.chunks());
        for chunk in self.unavailable_chunks() {
            map.insert(chunk);
        }
        map
    }

    /// Number of words: each stands for 64 chunks.
    pub(super) fn word_count(&self) -> usize {
        self.words.len()
    }

    /// The chunks of a word that are neither held nor being fetched.
    pub(super) fn missing_in(&self, word: usize) -> u64 {
        self.words[word].missing
    }

    /// Those of these chunks of a word that any of these neighbours, one bit each, holds.
    pub(super) fn held_by_any(&self, word: usize, chunks: u64, neighbours: u64) -> u64 {
        // Chunks that no neighbour holds are not looked for.
        let available = chunks & !self.words[word].unavailable();
        if available == 0 || neighbours == 0 {
            return 0;
        }
        self.holders.held_by_any(word, available, neighbours)
    }

    /// The rarest of these chunks of a word, at least one, and how many neighbours hold each.
    pub(super) fn rarest_in(&self, word: usize, chunks: u64) -> (u64, u8) {
        self.words[word].rarest(chunks)
    }

    /// The lowest chunk that is neither held nor being fetched.
    pub(super) fn lowest_missing(&self) -> Option<u32> {
        (0..self.words.len())
            .flat_map(|word| chunks_of(word, self.missing_in(word)))
            .next()
    }

    /// The lowest chunk that is neither held nor being fetched, and that a neighbour holds.
    pub(super) fn lowest_offered(&self) -> Option<u32> {
        (0..self.words.len())
            .flat_map(|word| {
                chunks_of(
                    word,
                    self.missing_in(word) & !self.words[word].unavailable(),
                )
            })
            .next()
    }

    /// The chunks being fetched.
    #[cfg(test)]
    pub(super) fn pending(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.chunks()).filter(|chunk| {
            let (word, bit) = position(*chunk);
            !self.held.contains(*chunk) && self.words[word].missing & bit == 0
        })
    }

    /// Whether we lack any of these chunks of a word.
    fn lacks_any(&self, word: usize, chunks: u64) -> bool {
        // Most are missing, and those that are being fetched are lacking, too.
        chunks & self.words[word].missing != 0 || chunks & !self.held.words()[word] != 0
    }

    /// The neighbours at these indices, one bit each.
    fn at(&self, indices: u64) -> impl Iterator<Item = PeerSlot> + '_ {
        bits(indices).map(|index| self.neighbours[index as usize])
    }

    /// Records that a neighbour holds these chunks of a word. Returns those that it was not known
    /// to hold.
    fn add_chunks(&mut self, index: usize, word: usize, chunks: u64) -> u64 {
        let held = self.holders.word_mut(index, word);
        let added = chunks & !*held;
        *held |= added;
        if added != 0 {
            self.held_counts[index] += added.count_ones();
            let is_seeder = self.held_counts[index] == self.chunks();
            self.seeders |= u64::from(is_seeder) << index;
            let had_none = self.words[word].add_holder(added);
            if had_none != 0 {
                self.unavailable -= (had_none & !self.held.words()[word]).count_ones();
            }
        }
        added
    }

    /// Records that a neighbour does not hold these chunks of a word. Returns those that it was
    /// known to hold.
    fn remove_chunks(&mut self, index: usize, word: usize, chunks: u64) -> u64 {
        let held = self.holders.word_mut(index, word);
        let removed = chunks & *held;
        *held &= !removed;
        if removed != 0 {
            self.held_counts[index] -= removed.count_ones();
            self.seeders &= !(1 << index);
            let have_none = self.words[word].remove_holder(removed);
            self.unavailable += (have_none & !self.held.words()[word]).count_ones();
        }
        removed
    }

    fn clear_neighbour(&mut self, index: usize) {
        for word in 0..self.words.len() {
            self.remove_chunks(index, word, u64::MAX);
        }
    }
}

/// The word of a chunk, and its bit there.
const fn position(chunk: u32) -> (usize, u64) {
    (chunk as usize / 64, 1 << (chunk % 64))
}

/// The chunks of a word that exist, of `chunks` in all: 64 but in the last word.
const fn chunks_in(chunks: u32, word: usize) -> u64 {
    match chunks - word as u32 * 64 {
        rest @ 0..64 => (1 << rest) - 1,
        64.. => u64::MAX,
    }
}

/// These bits without the one at `index`; those above it move down by one.
const fn without_bit(bits: u64, index: usize) -> u64 {
    let below = (1 << index) - 1;
    bits & below | bits >> 1 & !below
}

/// The numbers of these chunks of a word, ascending.
pub(super) fn chunks_of(word: usize, chunks: u64) -> impl Iterator<Item = u32> {
    bits(chunks).map(move |bit| word as u32 * 64 + bit)
}

#[cfg(test)]
mod tests;
