//! The state of each chunk of a blob in one region.
//!
//! ```text
//!            granted              done
//!   Free ──────────────> Open ──────────────> Held(by a live peer)
//!    ^                    │                      │  the holder is gone, or lacks the chunk now
//!    └────────────────────┘                      v
//!      failed, holder gone,                   Orphaned ──> Open, for a starving peer, once per term;
//!      term expired                              ^          │ back if the lease fails
//!                                                └──────────┘
//! ```

use core::time::Duration;
use std::collections::BTreeMap;

use crate::chunk_map::ChunkMap;
use crate::time::Time;
use crate::tracker::slots::PeerSlot;

/// The state of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkState {
    /// No peer has it: it was never granted, or its lease failed.
    Free,
    /// A peer has a lease on it.
    Open,
    /// This peer has it, or a neighbour of this peer.
    Held(PeerSlot),
    /// A peer of the swarm had it, but is gone.
    Orphaned,
}

/// The states of all chunks of a blob.
#[derive(Debug)]
pub(super) struct ChunkStates {
    states: Vec<ChunkState>,
    /// When each chunk was granted last; zero for never.
    granted_at: Vec<Time>,
    free: ChunkMap,
    orphaned: ChunkMap,
    /// How many chunks each holder has.
    holdings: BTreeMap<PeerSlot, u32>,
}

impl ChunkStates {
    /// All `chunks` are free.
    pub(super) fn new(chunks: u32) -> Self {
        Self {
            states: vec![ChunkState::Free; chunks as usize],
            granted_at: vec![Time::ZERO; chunks as usize],
            free: ChunkMap::full(chunks),
            orphaned: ChunkMap::empty(chunks),
            holdings: BTreeMap::new(),
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.states.len() as u32
    }

    pub(super) fn free_count(&self) -> u32 {
        self.free.count()
    }

    /// Whether every chunk is free.
    pub(super) fn is_untouched(&self) -> bool {
        self.free.is_full()
    }

    /// Whether a chunk is free.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether a chunk is free or orphaned.
    pub(super) fn has_grantable(&self) -> bool {
        !(self.free.is_empty() && self.orphaned.is_empty())
    }

    pub(super) fn get(&self, chunk: u32) -> Option<ChunkState> {
        self.states.get(chunk as usize).copied()
    }

    /// Does nothing for a chunk that the blob does not have.
    pub(super) fn set(&mut self, chunk: u32, state: ChunkState) {
        if let Some(entry) = self.states.get_mut(chunk as usize) {
            if let ChunkState::Held(holder) = *entry {
                let count = self.holdings.remove(&holder).unwrap_or(0);
                if count > 1 {
                    self.holdings.insert(holder, count - 1);
                }
            }
            if let ChunkState::Held(holder) = state {
                *self.holdings.entry(holder).or_default() += 1;
            }
            *entry = state;
            self.free.remove(chunk);
            self.orphaned.remove(chunk);
            match state {
                ChunkState::Free => _ = self.free.insert(chunk),
                ChunkState::Orphaned => _ = self.orphaned.insert(chunk),
                ChunkState::Open | ChunkState::Held(_) => {}
            }
        }
    }

    /// Opens a chunk and returns its former state.
    pub(super) fn open(&mut self, now: Time, chunk: u32) -> ChunkState {
        let former = self.states[chunk as usize];
        self.set(chunk, ChunkState::Open);
        self.granted_at[chunk as usize] = now;
        former
    }

    /// The chunks that a peer holds have no holder any more.
    pub(super) fn orphan(&mut self, holder: PeerSlot) {
        if !self.holdings.contains_key(&holder) {
            return;
        }
        for chunk in 0..self.count() {
            if self.states[chunk as usize] == ChunkState::Held(holder) {
                self.set(chunk, ChunkState::Orphaned);
            }
        }
    }

    /// Learns from a lease request which chunks the peer's neighbourhood has, and which holders it
    /// could not reach.
    pub(super) fn learn(&mut self, peer: PeerSlot, missing: &ChunkMap, unreachable: &[PeerSlot]) {
        let lost = core::iter::once(&peer).chain(unreachable);
        let lost: Vec<PeerSlot> = lost
            .filter(|holder| self.holdings.contains_key(holder))
            .copied()
            .collect();
        let is_around = |chunk: &u32| !missing.contains(*chunk);
        let around: Vec<u32> = (self.free.iter().chain(self.orphaned.iter()))
            .filter(is_around)
            .collect();
        for chunk in around {
            self.set(chunk, ChunkState::Held(peer));
        }
        if !lost.is_empty() {
            for chunk in missing.iter() {
                if let Some(ChunkState::Held(holder)) = self.get(chunk)
                    && lost.contains(&holder)
                {
                    self.set(chunk, ChunkState::Orphaned);
                }
            }
        }
    }

    /// The lowest missing chunk that is free.
    pub(super) fn first_free(&self, missing: &ChunkMap) -> Option<u32> {
        common_chunks(&self.free, missing).next()
    }

    /// The lowest missing chunk that is orphaned and was not granted within `term`.
    pub(super) fn first_orphaned(
        &self,
        missing: &ChunkMap,
        now: Time,
        term: Duration,
    ) -> Option<u32> {
        let may_grant_again = |chunk: &u32| {
            let granted_at = self.granted_at[*chunk as usize];
            granted_at == Time::ZERO || granted_at + term <= now
        };
        common_chunks(&self.orphaned, missing).find(may_grant_again)
    }

    /// The missing chunks that a peer holds, with the holder.
    pub(super) fn holders(&self, missing: &ChunkMap) -> impl Iterator<Item = (u32, PeerSlot)> {
        missing
            .iter()
            .filter_map(|chunk| match self.states[chunk as usize] {
                ChunkState::Held(holder) => Some((chunk, holder)),
                _ => None,
            })
    }
}

/// The chunks in both maps, ascending.
fn common_chunks<'a>(one: &'a ChunkMap, other: &'a ChunkMap) -> impl Iterator<Item = u32> + 'a {
    one.words()
        .iter()
        .zip(other.words())
        .zip(0_u32..)
        .flat_map(|((one, other), index)| {
            let mut word = one & other;
            core::iter::from_fn(move || {
                (word != 0).then(|| {
                    let bit = word.trailing_zeros();
                    word &= word - 1;
                    index * 64 + bit
                })
            })
        })
}
