//! What is known about one blob: what we hold, what is being fetched, and what each neighbour
//! holds.
//!
//! What neighbours hold is kept by chunk: a word per chunk with a bit per neighbour, so that
//! hearing of a chunk touches one word, and choosing looks only at chunks that are missing.
//! Counters follow it: `availability` says how many neighbours hold a chunk, `unseen` how many
//! chunks nobody around holds. Every change goes through the methods here, which keep them in step.

use core::time::Duration;

use super::have::Outbox;
use super::lease::Asked;
use super::waits::Waiting;
use super::{Have, PeerSlot};
use crate::chunk::Geometry;
use crate::map::{ChunkMap, bits};
use crate::time::Time;

/// Neighbours of a blob at most: one bit each.
pub(super) const MAX_MEMBERS: u32 = u64::BITS;
/// Peers of a handout that are remembered for a blob.
const MAX_HANDOUT: usize = 64;
/// Within this time of a handout those in it are met, or they are slow or dead.
const MEETING: Duration = Duration::from_millis(200);

/// Whether anybody here waits for the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// Nobody: it is only served.
    Idle,
    /// It is being fetched.
    Wanted,
    /// It was wanted, and is complete.
    Complete,
}

/// One neighbour with which the blob is exchanged.
#[derive(Debug)]
pub(super) struct Member {
    /// How many chunks it holds, as far as it said.
    pub(super) held_count: u32,
    /// Whether that is everything.
    pub(super) is_complete: bool,
    /// When we told it what we hold.
    pub(super) greeted_at: Option<Time>,
    /// It told us what it holds.
    pub(super) is_heard: bool,
    /// What it holds, while it is silent and that counts for nothing.
    set_aside: Option<ChunkMap>,
}

/// What a neighbour's words change.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    /// It holds something that it did not hold before and that we lack.
    pub(super) any_wanted: bool,
    /// It lacks something that it held before.
    pub(super) is_correction: bool,
}

/// One blob.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) geometry: Geometry,
    /// How long one chunk takes at the own rate.
    pub(super) chunk_time: Duration,
    pub(super) interest: Interest,
    /// The lowest chunk that a reader waits for.
    pub(super) reader: Option<u32>,
    pub(super) held: ChunkMap,
    pub(super) held_count: u32,
    /// Being fetched; never held.
    pub(super) pending: ChunkMap,
    /// The neighbours, and beside each its slot: `members[i]` belongs to `who[i]`.
    pub(super) who: Vec<PeerSlot>,
    pub(super) members: Vec<Member>,
    /// Who holds each chunk, as far as they said: bit `i` stands for `who[i]`.
    pub(super) holders: Vec<u64>,
    /// How many neighbours hold each chunk.
    pub(super) availability: Vec<u8>,
    /// Chunks that neither we nor any neighbour holds.
    pub(super) unseen: u32,
    /// Peers to meet over this blob, nearest first.
    pub(super) handout: Vec<PeerSlot>,
    /// When the last of them was first named.
    pub(super) handed_at: Time,
    pub(super) outbox: Outbox,
    /// Our request for a lease.
    pub(super) asked: Asked,
    /// When bytes of it last came, or it was wanted.
    pub(super) moved_at: Time,
    /// How long it may not move before the origin is asked without a lease, relative to the
    /// configured bound, as a power of two.
    pub(super) patience_log2: i32,
    /// How often in a row a starving request brought a lease, with nothing from neighbours in
    /// between: the next one is made so much sooner, as a power of two.
    pub(super) starved_log2: i32,
    /// Spreads peers that wait for the same thing, from 1 to 2.
    pub(super) jitter: f64,
    /// Nothing is fetched before this: our own store failed.
    pub(super) rests_until: Time,
    /// When the tracker may be asked for more neighbours again, and how long to wait after that.
    pub(super) refill_at: Time,
    pub(super) refill_wait: Duration,
    /// What its pull waits for.
    pub(super) waiting: Waiting,
}

impl Blob {
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
            reader: None,
            held,
            held_count,
            pending: ChunkMap::empty(chunks),
            who: Vec::new(),
            members: Vec::new(),
            holders: vec![0; chunks as usize],
            availability: vec![0; chunks as usize],
            unseen: chunks - held_count,
            handout: Vec::new(),
            handed_at: Time::ZERO,
            outbox: Outbox::default(),
            asked: Asked::default(),
            moved_at: Time::ZERO,
            patience_log2: 0,
            starved_log2: 0,
            jitter: 1.0,
            rests_until: Time::ZERO,
            refill_at: Time::ZERO,
            refill_wait: Duration::ZERO,
            waiting: Waiting::default(),
        }
    }

    pub(super) fn chunks(&self) -> u32 {
        self.held.len()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.held_count == self.chunks()
    }

    /// Wanted and not complete.
    pub(super) fn is_wanted(&self) -> bool {
        self.interest == Interest::Wanted
    }

    /// Whether somebody may gain by meeting us over it.
    pub(super) fn is_of_use(&self) -> bool {
        self.is_wanted() || self.held_count > 0
    }

    /// Marks a chunk as held; false if it was.
    pub(super) fn hold(&mut self, chunk: u32) -> bool {
        let is_new = self.held.insert(chunk);
        if is_new {
            self.held_count += 1;
            self.unseen -= u32::from(self.availability[chunk as usize] == 0);
        }
        is_new
    }

    /// Marks a chunk as not held; false if it was not.
    pub(super) fn lose(&mut self, chunk: u32) -> bool {
        let was_held = self.held.remove(chunk);
        if was_held {
            self.held_count -= 1;
            self.unseen += u32::from(self.availability[chunk as usize] == 0);
        }
        was_held
    }

    /// Whether everybody that is known to exchange it holds all of it. Peers that are yet to be met
    /// count as leechers for a while, but not for as long as a dial to a dead one takes.
    pub(super) fn has_only_seeders(&self, now: Time) -> bool {
        !self.members.is_empty()
            && self.members.iter().all(|member| member.is_complete)
            && (self.handed_at + MEETING <= now
                || self.handout.iter().all(|peer| self.who.contains(peer)))
    }

    /// Whether any neighbour holds any of it.
    pub(super) fn is_offered(&self) -> bool {
        self.members.iter().any(|member| member.held_count > 0)
    }

    pub(super) fn member(&self, peer: PeerSlot) -> Option<usize> {
        self.who.iter().position(|member| *member == peer)
    }

    /// Adds a neighbour of which nothing is known yet; it must not be one already, and there must
    /// be room for it.
    pub(super) fn add_member(&mut self, peer: PeerSlot) -> usize {
        self.who.push(peer);
        self.members.push(Member {
            held_count: 0,
            is_complete: false,
            greeted_at: None,
            is_heard: false,
            set_aside: None,
        });
        self.who.len() - 1
    }

    /// Forgets a neighbour and all it held.
    pub(super) fn remove_member(&mut self, peer: PeerSlot) {
        if let Some(index) = self.member(peer) {
            self.outdate_request();
            self.clear_member(index);
            self.who.remove(index);
            self.members.remove(index);
            let below = (1 << index) - 1;
            for holders in &mut self.holders {
                *holders = (*holders & below) | ((*holders >> 1) & !below);
            }
        }
    }

    /// The neighbours that hold all of these chunks, a bit each.
    pub(super) fn holders_of_all(&self, chunks: &[u32]) -> u64 {
        let holders = chunks
            .iter()
            .map(|chunk| self.holders.get(*chunk as usize).copied().unwrap_or(0));
        holders.fold(u64::MAX, |all, holders| all & holders)
    }

    /// Takes note of what a neighbour says it holds.
    pub(super) fn learn(&mut self, index: usize, have: &Have) -> News {
        let chunks = self.chunks();
        self.members[index].is_heard = true;
        let (mut any_wanted, mut is_correction) = (false, false);
        match have {
            Have::Chunks(batch) => {
                for chunk in batch.chunks() {
                    any_wanted |= self.member_holds(index, *chunk);
                }
            }
            Have::Map(map) if map.len() == chunks => {
                let bit = 1 << index;
                is_correction =
                    (0..chunks).any(|c| self.holders[c as usize] & bit != 0 && !map.contains(c));
                self.clear_member(index);
                for chunk in map.iter() {
                    any_wanted |= self.member_holds(index, chunk);
                }
            }
            Have::Map(_) => {}
            Have::Complete => {
                for chunk in 0..chunks {
                    any_wanted |= self.member_holds(index, chunk);
                }
            }
        }
        let member = &mut self.members[index];
        member.is_complete = member.held_count == chunks;
        News {
            any_wanted,
            is_correction,
        }
    }

    /// A neighbour turns out not to hold a chunk.
    pub(super) fn member_lacks(&mut self, peer: PeerSlot, chunk: u32) {
        if let Some(index) = self.member(peer)
            && chunk < self.chunks()
        {
            self.member_loses(index, chunk);
            self.members[index].is_complete = false;
        }
    }

    /// What a neighbour holds counts for nothing until [`Self::take_back`].
    pub(super) fn set_aside(&mut self, peer: PeerSlot) {
        let Some(index) = self
            .member(peer)
            .filter(|index| self.members[*index].set_aside.is_none())
        else {
            return;
        };
        let mut held = ChunkMap::empty(self.chunks());
        for chunk in
            (0..self.chunks()).filter(|chunk| self.holders[*chunk as usize] >> index & 1 == 1)
        {
            held.insert(chunk);
        }
        self.clear_member(index);
        self.members[index].is_complete = false;
        self.members[index].set_aside = Some(held);
        self.outdate_request();
    }

    /// What it holds counts again.
    pub(super) fn take_back(&mut self, peer: PeerSlot) {
        let Some(index) = self.member(peer) else {
            return;
        };
        if let Some(held) = self.members[index].set_aside.take() {
            for chunk in held.iter() {
                self.member_holds(index, chunk);
            }
            self.members[index].is_complete = self.members[index].held_count == self.chunks();
        }
    }

    /// The request for a lease that the tracker has does not name what just went.
    fn outdate_request(&mut self) {
        if let Asked::Parked { is_outdated, .. } = &mut self.asked {
            *is_outdated = true;
        }
    }

    /// Chunks that neither we nor any neighbour holds and that we are not fetching either.
    pub(super) fn missing(&self) -> ChunkMap {
        let mut missing = ChunkMap::empty(self.chunks());
        for chunk in self.unseen_chunks() {
            missing.insert(chunk);
        }
        missing
    }

    /// The chunks of [`Self::missing`], ascending.
    pub(super) fn unseen_chunks(&self) -> impl Iterator<Item = u32> + '_ {
        self.missing_chunks(0)
            .filter(|chunk| self.availability[*chunk as usize] == 0)
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

    /// Remembers peers to meet; true for those that are new.
    pub(super) fn remember(&mut self, now: Time, peer: PeerSlot) -> bool {
        let is_new = self.handout.len() < MAX_HANDOUT && !self.handout.contains(&peer);
        if is_new {
            self.handout.push(peer);
            self.handed_at = now;
        }
        is_new
    }

    /// A neighbour says it holds a chunk; true if that is new and we lack it.
    fn member_holds(&mut self, index: usize, chunk: u32) -> bool {
        let Some(holders) = self
            .holders
            .get_mut(chunk as usize)
            .filter(|holders| **holders >> index & 1 == 0)
        else {
            return false;
        };
        *holders |= 1 << index;
        self.members[index].held_count += 1;
        let available = &mut self.availability[chunk as usize];
        *available += 1;
        let is_missing = !self.held.contains(chunk);
        self.unseen -= u32::from(*available == 1 && is_missing);
        is_missing
    }

    fn member_loses(&mut self, index: usize, chunk: u32) {
        let holders = &mut self.holders[chunk as usize];
        if *holders >> index & 1 == 1 {
            *holders &= !(1 << index);
            self.members[index].held_count -= 1;
            let available = &mut self.availability[chunk as usize];
            *available -= 1;
            self.unseen += u32::from(*available == 0 && !self.held.contains(chunk));
        }
    }

    fn clear_member(&mut self, index: usize) {
        for chunk in 0..self.chunks() {
            self.member_loses(index, chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::swarm::Batch;

    const CHUNKS: u32 = 70;

    fn blob() -> Blob {
        Blob::new(
            Geometry::for_size(u64::from(CHUNKS) << 18),
            ChunkMap::empty(CHUNKS),
            Duration::ZERO,
        )
    }

    #[derive(Clone, Debug)]
    enum Step {
        Hold(u32),
        Lose(u32),
        Join(u32),
        Leave(u32),
        Says(u32, u32),
        Map(u32, Vec<u32>),
        Complete(u32),
        Lacks(u32, u32),
        SetAside(u32),
        TakeBack(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (chunk, peer) = (0..CHUNKS, 0_u32..4);
        prop_oneof![
            chunk.clone().prop_map(Step::Hold),
            chunk.clone().prop_map(Step::Lose),
            peer.clone().prop_map(Step::Join),
            peer.clone().prop_map(Step::Leave),
            (peer.clone(), 0..CHUNKS + 5).prop_map(|(peer, chunk)| Step::Says(peer, chunk)),
            (peer.clone(), prop::collection::vec(chunk.clone(), 0..70))
                .prop_map(|(p, map)| Step::Map(p, map)),
            peer.clone().prop_map(Step::Complete),
            (peer.clone(), chunk).prop_map(|(peer, chunk)| Step::Lacks(peer, chunk)),
            peer.clone().prop_map(Step::SetAside),
            peer.prop_map(Step::TakeBack),
        ]
    }

    fn apply(blob: &mut Blob, step: Step) {
        let says = |blob: &mut Blob, peer, have: Have| {
            if let Some(index) = blob.member(PeerSlot(peer)) {
                blob.learn(index, &have);
            }
        };
        match step {
            Step::Hold(chunk) => _ = blob.hold(chunk),
            Step::Lose(chunk) => _ = blob.lose(chunk),
            Step::Join(peer) if blob.member(PeerSlot(peer)).is_none() => {
                _ = blob.add_member(PeerSlot(peer))
            }
            Step::Join(_) => {}
            Step::Leave(peer) => blob.remove_member(PeerSlot(peer)),
            Step::Says(peer, chunk) => {
                let mut batch = Batch::default();
                batch.push(chunk);
                says(blob, peer, Have::Chunks(batch));
            }
            Step::Map(peer, chunks) => {
                let mut map = ChunkMap::empty(CHUNKS);
                for chunk in chunks {
                    map.insert(chunk);
                }
                says(blob, peer, Have::Map(map));
            }
            Step::Complete(peer) => says(blob, peer, Have::Complete),
            Step::Lacks(peer, chunk) => blob.member_lacks(PeerSlot(peer), chunk),
            Step::SetAside(peer) => blob.set_aside(PeerSlot(peer)),
            Step::TakeBack(peer) => blob.take_back(PeerSlot(peer)),
        }
    }

    proptest! {
        #[test]
        fn counters_follow_the_maps(steps in prop::collection::vec(step(), 0..60)) {
            let mut blob = blob();
            for step in steps {
                apply(&mut blob, step);
                prop_assert_eq!(blob.held_count, blob.held.count());
                for chunk in 0..CHUNKS {
                    let holders = blob.holders[chunk as usize].count_ones();
                    prop_assert_eq!(u32::from(blob.availability[chunk as usize]), holders);
                }
                prop_assert_eq!(blob.unseen, blob.missing().count());
                for from in [0, 1, 63, 64, 65, CHUNKS - 1, CHUNKS] {
                    let missing: Vec<u32> = blob.missing_chunks(from).collect();
                    let expected = (from..CHUNKS).filter(|chunk| !blob.held.contains(*chunk));
                    prop_assert_eq!(missing, expected.collect::<Vec<_>>());
                }
                for (index, member) in blob.members.iter().enumerate() {
                    let held = (0..CHUNKS).filter(|chunk| blob.holders[*chunk as usize] >> index & 1 == 1);
                    let count = held.count() as u32;
                    prop_assert_eq!(member.held_count, count);
                    prop_assert_eq!(member.is_complete, count == CHUNKS);
                }
            }
        }
    }
}
