//! The exchange of one blob: which chunks we hold, which are being fetched, and which each
//! neighbour holds.
//!
//! The holders are kept by chunk: one word per chunk with one bit per neighbour. An
//! announced chunk touches one word, and the picker looks only at chunks that are missing. Counters
//! follow: `availability` is the number of neighbours that hold a chunk, `unavailable` the number
//! of chunks that neither we nor any neighbour holds. The fields are private so that every change
//! goes through a method that keeps them consistent.

use core::time::Duration;

use super::io::{HeldChunks, PeerSlot};
use crate::chunk::Geometry;
use crate::chunk_map::{ChunkMap, bits};
use crate::time::Time;

/// Maximum number of neighbours of a blob: one bit each.
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

/// The state of one neighbour of the blob.
#[derive(Debug, Default)]
struct NeighbourState {
    /// Number of chunks it is known to hold.
    held_count: u32,
    /// Whether these are all chunks.
    is_complete: bool,
    /// When our chunk map was last sent to it.
    map_sent_at: Option<Time>,
    /// Whether it has sent a Have message for the blob.
    has_announced: bool,
    /// The chunks it holds, kept here while they do not count because it is unresponsive.
    set_aside: Option<ChunkMap>,
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
    /// Being fetched; never held at the same time.
    pending: ChunkMap,
    /// The neighbours; `states[i]` belongs to `neighbours[i]`.
    neighbours: Vec<PeerSlot>,
    states: Vec<NeighbourState>,
    /// Which neighbours hold each chunk: bit `i` stands for `neighbours[i]`.
    holders: Vec<u64>,
    /// How many neighbours hold each chunk.
    availability: Vec<u8>,
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
        Self {
            geometry,
            chunk_time,
            interest: Interest::Idle,
            held,
            held_count,
            pending: ChunkMap::empty(chunks),
            neighbours: Vec::new(),
            states: Vec::new(),
            holders: vec![0; chunks as usize],
            availability: vec![0; chunks as usize],
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
            self.held_count += 1;
            self.unavailable -= u32::from(self.availability[chunk as usize] == 0);
        }
        is_new
    }

    /// Marks a chunk as not held; false if it was not.
    pub(super) fn lose(&mut self, chunk: u32) -> bool {
        let was_held = self.held.remove(chunk);
        if was_held {
            self.held_count -= 1;
            self.unavailable += u32::from(self.availability[chunk as usize] == 0);
        }
        was_held
    }

    /// Marks a chunk as being fetched.
    pub(super) fn mark_pending(&mut self, chunk: u32) {
        self.pending.insert(chunk);
    }

    /// Marks a chunk as not being fetched.
    pub(super) fn clear_pending(&mut self, chunk: u32) {
        self.pending.remove(chunk);
    }

    /// The neighbours with which the blob is exchanged, in the order of their bits.
    pub(super) fn neighbours(&self) -> &[PeerSlot] {
        &self.neighbours
    }

    /// The neighbour's index, which is its bit in [`Self::holders`].
    pub(super) fn index_of(&self, peer: PeerSlot) -> Option<usize> {
        self.neighbours.iter().position(|other| *other == peer)
    }

    /// Adds a neighbour that is not one yet; there must be room for it. Returns its index.
    pub(super) fn add_neighbour(&mut self, peer: PeerSlot) -> usize {
        self.neighbours.push(peer);
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
        self.states.remove(index);
        let below = (1 << index) - 1;
        for holders in &mut self.holders {
            *holders = (*holders & below) | ((*holders >> 1) & !below);
        }
    }

    /// When our chunk map was last sent to the neighbour.
    pub(super) fn map_sent_at(&self, index: usize) -> Option<Time> {
        self.states[index].map_sent_at
    }

    pub(super) fn mark_map_sent(&mut self, index: usize, now: Time) {
        self.states[index].map_sent_at = Some(now);
    }

    /// Whether the neighbour has sent a Have message for the blob.
    pub(super) fn has_announced(&self, index: usize) -> bool {
        self.states[index].has_announced
    }

    /// Whether any neighbour has sent a Have message for the blob.
    pub(super) fn has_any_announced(&self) -> bool {
        self.states.iter().any(|state| state.has_announced)
    }

    /// Whether the peer is a neighbour that holds every chunk.
    pub(super) fn is_seeder(&self, peer: PeerSlot) -> bool {
        self.index_of(peer)
            .is_some_and(|index| self.states[index].is_complete)
    }

    /// Whether there are neighbours, and each of them holds every chunk.
    pub(super) fn has_only_seeders(&self) -> bool {
        !self.states.is_empty() && self.states.iter().all(|state| state.is_complete)
    }

    /// Whether any neighbour holds any chunk.
    pub(super) fn is_offered(&self) -> bool {
        self.states.iter().any(|state| state.held_count > 0)
    }

    /// The neighbours that have our chunk map and still lack chunks.
    pub(super) fn leechers_with_map(&self) -> impl Iterator<Item = PeerSlot> + '_ {
        let states = self.neighbours.iter().zip(&self.states);
        states
            .filter(|(_, state)| state.map_sent_at.is_some() && !state.is_complete)
            .map(|(peer, _)| *peer)
    }

    /// The recipients of a Have message for these chunks: neighbours that have our chunk map and
    /// are not known to hold all of the chunks. Neighbours that hold them learn that we do from
    /// the chunk map that is sent when we are complete, or when we lack one again.
    pub(super) fn have_recipients(&self, chunks: &[u32]) -> impl Iterator<Item = PeerSlot> + '_ {
        let holders = self.holders_of_all(chunks);
        let states = self.neighbours.iter().zip(&self.states).zip(0_u32..);
        states
            .filter(move |((_, state), bit)| state.map_sent_at.is_some() && holders >> bit & 1 == 0)
            .map(|((peer, _), _)| *peer)
    }

    /// The neighbours that hold all of these chunks, one bit each.
    fn holders_of_all(&self, chunks: &[u32]) -> u64 {
        chunks.iter().fold(u64::MAX, |all, chunk| {
            all & self.holders.get(*chunk as usize).copied().unwrap_or(0)
        })
    }

    /// The neighbours that hold a chunk, one bit each.
    pub(super) fn holders(&self, chunk: u32) -> u64 {
        self.holders[chunk as usize]
    }

    /// How many neighbours hold a chunk; 0 beyond the end.
    pub(super) fn availability(&self, chunk: u32) -> u8 {
        self.availability.get(chunk as usize).copied().unwrap_or(0)
    }

    /// Applies a neighbour's Have message.
    pub(super) fn apply_have(&mut self, index: usize, have: &HeldChunks) -> HaveEffect {
        let chunks = self.chunks();
        self.states[index].has_announced = true;
        let mut has_new_chunks = false;
        let mut is_correction = false;
        match have {
            HeldChunks::Chunks(batch) => {
                for chunk in batch.chunks() {
                    has_new_chunks |= self.add_holder(index, *chunk);
                }
            }
            HeldChunks::Map(map) if map.len() == chunks => {
                let bit = 1 << index;
                is_correction =
                    (0..chunks).any(|c| self.holders[c as usize] & bit != 0 && !map.contains(c));
                self.clear_neighbour(index);
                for chunk in map.iter() {
                    has_new_chunks |= self.add_holder(index, chunk);
                }
            }
            HeldChunks::Map(_) => {}
            HeldChunks::Complete => {
                for chunk in 0..chunks {
                    has_new_chunks |= self.add_holder(index, chunk);
                }
            }
        }
        self.update_is_complete(index);
        HaveEffect {
            has_new_chunks,
            is_correction,
        }
    }

    /// Records that a neighbour does not hold a chunk.
    pub(super) fn mark_lacking(&mut self, peer: PeerSlot, chunk: u32) {
        if let Some(index) = self.index_of(peer)
            && chunk < self.chunks()
        {
            self.remove_holder(index, chunk);
            self.states[index].is_complete = false;
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
        let mut held = ChunkMap::empty(self.chunks());
        for chunk in
            (0..self.chunks()).filter(|chunk| self.holders[*chunk as usize] >> index & 1 == 1)
        {
            held.insert(chunk);
        }
        self.clear_neighbour(index);
        self.states[index].is_complete = false;
        self.states[index].set_aside = Some(held);
    }

    /// Counts the chunks of a neighbour again.
    pub(super) fn restore(&mut self, peer: PeerSlot) {
        let Some(index) = self.index_of(peer) else {
            return;
        };
        if let Some(held) = self.states[index].set_aside.take() {
            for chunk in held.iter() {
                self.add_holder(index, chunk);
            }
            self.update_is_complete(index);
        }
    }

    /// Removes all neighbours; the counters are not updated, for the blob is removed next.
    pub(super) fn take_neighbours(&mut self) -> Vec<PeerSlot> {
        self.states.clear();
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
        self.missing_chunks(0)
            .filter(|chunk| self.availability[*chunk as usize] == 0)
    }

    /// The chunks of [`Self::unavailable_chunks`] as a map.
    pub(super) fn unavailable_map(&self) -> ChunkMap {
        let mut map = ChunkMap::empty(self.chunks());
        for chunk in self.unavailable_chunks() {
            map.insert(chunk);
        }
        map
    }

    /// The chunks at or after `from` that are neither held nor being fetched, ascending.
    pub(super) fn missing_chunks(&self, from: u32) -> impl Iterator<Item = u32> + '_ {
        let end = self.chunks();
        let words = self
            .held
            .words()
            .iter()
            .zip(self.pending.words())
            .zip(0_u32..);
        words
            .skip(from as usize / 64)
            .flat_map(move |((held, pending), index)| {
                let first = index * 64;
                let mut word = !(held | pending);
                if first < from {
                    word &= u64::MAX << (from - first);
                }
                if end - first < 64 {
                    word &= (1 << (end - first)) - 1;
                }
                bits(word).map(move |bit| first + bit)
            })
    }

    /// The lowest chunk that is neither held nor being fetched.
    pub(super) fn lowest_missing(&self) -> Option<u32> {
        self.missing_chunks(0).next()
    }

    /// The chunks being fetched.
    #[cfg(test)]
    pub(super) fn pending(&self) -> &ChunkMap {
        &self.pending
    }

    /// Records that a neighbour holds a chunk; true if that is new and we lack the chunk.
    fn add_holder(&mut self, index: usize, chunk: u32) -> bool {
        let Some(holders) = self
            .holders
            .get_mut(chunk as usize)
            .filter(|holders| **holders >> index & 1 == 0)
        else {
            return false;
        };
        *holders |= 1 << index;
        self.states[index].held_count += 1;
        let available = &mut self.availability[chunk as usize];
        *available += 1;
        let is_missing = !self.held.contains(chunk);
        self.unavailable -= u32::from(*available == 1 && is_missing);
        is_missing
    }

    fn remove_holder(&mut self, index: usize, chunk: u32) {
        let holders = &mut self.holders[chunk as usize];
        if *holders >> index & 1 == 1 {
            *holders &= !(1 << index);
            self.states[index].held_count -= 1;
            let available = &mut self.availability[chunk as usize];
            *available -= 1;
            self.unavailable += u32::from(*available == 0 && !self.held.contains(chunk));
        }
    }

    fn clear_neighbour(&mut self, index: usize) {
        for chunk in 0..self.chunks() {
            self.remove_holder(index, chunk);
        }
    }

    fn update_is_complete(&mut self, index: usize) {
        let chunks = self.chunks();
        let state = &mut self.states[index];
        state.is_complete = state.held_count == chunks;
    }
}

#[cfg(test)]
mod tests;
