//! Which chunk to fetch next, and from which neighbour.
//!
//! Mostly the rarest chunk among the neighbours, now and then the lowest that a reader waits for; ties at random, for
//! peers that all see the same must not all do the same. Then the nearest neighbour that has it and is free. Across
//! zones only what no neighbour in the own zone has, and only in a few slots.

use super::blob::Blob;
use super::machine::PeerMachine;
use super::rng::Rng;
use super::turns::Turns;
use super::{BlobSlot, Nearness, PeerSlot};
use crate::time::Time;

/// A chunk and the neighbour to ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) blob: BlobSlot,
    pub(super) chunk: u32,
    pub(super) peer: PeerSlot,
}

/// Buffers that live as long as the machine, so that choosing allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// What any neighbour in the own zone holds.
    near: Vec<u64>,
    /// What a free neighbour offers.
    offered: Vec<u64>,
    /// The rarest chunks found so far, equally rare.
    ties: Vec<(BlobSlot, u32)>,
}

impl PeerMachine {
    /// What to fetch next; `None` if no free neighbour has anything that is missing.
    pub(super) fn pick(&mut self, now: Time) -> Option<Pick> {
        let is_for_reader = self.rng.one_in(self.config.in_order_one_in);
        let crossing = self.transfers.crossing(&self.turns);
        let mut rarest = u8::MAX;
        self.scratch.ties.clear();
        for slot in &self.wanted {
            let Some(blob) = self.blobs.get(*slot).filter(|blob| blob.rests_until <= now) else { continue };
            if !offer(&mut self.scratch, blob, &self.turns, now, crossing, self.slots) {
                continue;
            }
            if is_for_reader
                && let Some(chunk) = blob.reader.and_then(|from| lowest(&self.scratch.offered, from))
            {
                return self.choose_neighbour(now, *slot, chunk, crossing);
            }
            for (word, index) in self.scratch.offered.iter().zip(0_u32..) {
                let mut word = *word;
                while word != 0 {
                    let chunk = index * 64 + word.trailing_zeros();
                    word &= word - 1;
                    let available = blob.availability[chunk as usize];
                    if available < rarest {
                        rarest = available;
                        self.scratch.ties.clear();
                    }
                    if available == rarest {
                        self.scratch.ties.push((*slot, chunk));
                    }
                }
            }
        }
        if self.scratch.ties.is_empty() {
            return None;
        }
        let (slot, chunk) = self.scratch.ties[self.rng.below(self.scratch.ties.len())];
        self.choose_neighbour(now, slot, chunk, crossing)
    }

    /// The nearest free neighbour that has the chunk, ties at random.
    fn choose_neighbour(&mut self, now: Time, slot: BlobSlot, chunk: u32, crossing: u32) -> Option<Pick> {
        let blob = self.blobs.get(slot)?;
        let may_cross = crossing < crossing_limit(blob, &self.turns, self.slots);
        let free = blob.who.iter().zip(&blob.members).filter(|(peer, _)| self.turns.of(**peer).is_free(now));
        let holders = free.filter(|(_, member)| member.map.contains(chunk));
        let mut best = Best::default();
        for (peer, _) in holders {
            let turn = self.turns.of(*peer);
            if may_cross || turn.is_near() {
                best.consider(turn.nearness, *peer, &mut self.rng);
            }
        }
        best.peer.map(|peer| Pick { blob: slot, chunk, peer })
    }
}

/// The best of several, each of the equally good ones with the same chance.
#[derive(Default)]
struct Best {
    rank: Option<Nearness>,
    peer: Option<PeerSlot>,
    equals: usize,
}

impl Best {
    fn consider(&mut self, rank: Nearness, peer: PeerSlot, rng: &mut Rng) {
        if self.rank.is_none_or(|best| rank < best) {
            (self.rank, self.peer, self.equals) = (Some(rank), Some(peer), 1);
        } else if self.rank == Some(rank) {
            self.equals += 1;
            if rng.below(self.equals) == 0 {
                self.peer = Some(peer);
            }
        }
    }
}

/// Puts into `scratch.offered` the chunks that we lack and a free neighbour has and may be asked for; false if none.
fn offer(scratch: &mut Scratch, blob: &Blob, turns: &Turns, now: Time, crossing: u32, slots: u32) -> bool {
    let words = blob.held.words().len();
    scratch.offered.clear();
    scratch.offered.resize(words, 0);
    scratch.near.clear();
    scratch.near.resize(words, 0);
    let (mut any, mut any_far) = (false, false);
    for (peer, member) in blob.who.iter().zip(&blob.members) {
        let turn = turns.of(*peer);
        if !turn.is_free(now) {
            continue;
        }
        if !turn.is_near() {
            any_far |= member.is_heard;
        } else {
            any = true;
            add(&mut scratch.offered, member.map.words());
        }
    }
    if any_far && crossing < crossing_limit(blob, turns, slots) {
        any = true;
        for (peer, member) in blob.who.iter().zip(&blob.members) {
            if turns.of(*peer).is_near() {
                add(&mut scratch.near, member.map.words());
            }
        }
        for (peer, member) in blob.who.iter().zip(&blob.members) {
            let turn = turns.of(*peer);
            if !turn.is_near() && turn.is_free(now) {
                for ((offered, near), held) in
                    scratch.offered.iter_mut().zip(&scratch.near).zip(member.map.words())
                {
                    *offered |= held & !near;
                }
            }
        }
    }
    let mut left = 0;
    for ((offered, held), pending) in
        scratch.offered.iter_mut().zip(blob.held.words()).zip(blob.pending.words())
    {
        *offered &= !(held | pending);
        left |= *offered;
    }
    any && left != 0
}

/// How many transfers may come from other zones at once: one, and the slots that neighbours in the own zone are too few
/// to fill.
fn crossing_limit(blob: &Blob, turns: &Turns, slots: u32) -> u32 {
    let is_near = |peer: &&PeerSlot| turns.of(**peer).is_near();
    let near = blob.who.iter().filter(is_near).count() as u32;
    slots.saturating_sub(near).max(1)
}

fn add(to: &mut [u64], more: &[u64]) {
    for (word, more) in to.iter_mut().zip(more) {
        *word |= more;
    }
}

/// The lowest chunk at or after `from`.
fn lowest(words: &[u64], from: u32) -> Option<u32> {
    let first = from as usize / 64;
    words.iter().enumerate().skip(first).find_map(|(index, word)| {
        let word = if index == first { word & (u64::MAX << (from % 64)) } else { *word };
        (word != 0).then(|| index as u32 * 64 + word.trailing_zeros())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_starts_at_the_cursor() {
        let words = [0b1001, 0, 1 << 63];
        assert_eq!(lowest(&words, 0), Some(0));
        assert_eq!(lowest(&words, 1), Some(3));
        assert_eq!(lowest(&words, 4), Some(191));
        assert_eq!(lowest(&words, 191), Some(191));
        assert_eq!(lowest(&words, 192), None);
    }

    #[test]
    fn equals_have_equal_chances_and_the_nearer_wins() {
        let mut rng = Rng::new(1);
        let mut wins = [0; 3];
        for _ in 0..3000 {
            let mut best = Best::default();
            best.consider(Nearness::Elsewhere, PeerSlot(9), &mut rng);
            for peer in 0..3 {
                best.consider(Nearness::SameZone, PeerSlot(peer), &mut rng);
            }
            wins[best.peer.expect("one of them").0 as usize] += 1;
        }
        assert!(wins.iter().all(|wins| (900..1100).contains(wins)), "{wins:?}");
    }
}
