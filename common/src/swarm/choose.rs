//! Which chunk to fetch next, and from which neighbour.
//!
//! Mostly the rarest chunk among the neighbours, now and then the lowest that a reader waits for;
//! ties at random, for peers that all see the same must not all do the same. Where everybody known
//! has everything no chunk is rare and nobody gains by another order: there the lowest comes first,
//! for a reader, and so that the whole digest can be hashed along. Then the nearest neighbour that
//! has it and is free. Across zones only what no neighbour in the own zone has, and only in a few
//! slots.

use super::blob::Blob;
use super::machine::PeerMachine;
use super::rng::Rng;
use super::turns::Turns;
use super::{BlobSlot, Nearness, PeerSlot};
use crate::map::bits;
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
            let Some(blob) = self.blobs.get(*slot).filter(|blob| blob.rests_until <= now) else {
                continue;
            };
            let reach = Reach::of(blob, &self.turns, now, crossing, self.slots);
            if reach.is_nobody() {
                continue;
            }
            if is_for_reader
                && let Some(chunk) = blob.reader.and_then(|from| reach.lowest(blob, from))
            {
                return self.choose_neighbour(now, *slot, chunk, crossing);
            }
            let only_seeders = blob.has_only_seeders(now);
            for chunk in blob.missing_chunks(0) {
                let available = blob.availability[chunk as usize];
                if available > rarest || !reach.offers(blob.holders[chunk as usize]) {
                    continue;
                }
                if available < rarest {
                    rarest = available;
                    self.scratch.ties.clear();
                }
                self.scratch.ties.push((*slot, chunk));
                if only_seeders {
                    break;
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
    fn choose_neighbour(
        &mut self,
        now: Time,
        slot: BlobSlot,
        chunk: u32,
        crossing: u32,
    ) -> Option<Pick> {
        let blob = self.blobs.get(slot)?;
        let reach = Reach::of(blob, &self.turns, now, crossing, self.slots);
        let mut best = Best::default();
        for index in bits(blob.holders[chunk as usize] & (reach.near | reach.far)) {
            let peer = blob.who[index as usize];
            best.consider(self.turns.of(peer).nearness, peer, &mut self.rng);
        }
        best.peer.map(|peer| Pick {
            blob: slot,
            chunk,
            peer,
        })
    }
}

/// Whom of a blob's neighbours we may ask now, a bit each.
#[derive(Clone, Copy, Debug, Default)]
struct Reach {
    /// Free, in the own zone.
    near: u64,
    /// Free, in other zones; nobody while enough comes from there.
    far: u64,
    /// All in the own zone: what one of them has is not asked of others.
    zone: u64,
}

impl Reach {
    fn of(blob: &Blob, turns: &Turns, now: Time, crossing: u32, slots: u32) -> Self {
        let mut reach = Self::default();
        for (peer, bit) in blob.who.iter().zip(0..) {
            let turn = turns.of(*peer);
            let is_free = u64::from(turn.is_free(now));
            let is_near = u64::from(turn.is_near());
            reach.near |= (is_free & is_near) << bit;
            reach.far |= (is_free & (is_near ^ 1)) << bit;
            reach.zone |= is_near << bit;
        }
        if crossing >= crossing_limit(reach.zone.count_ones(), slots) {
            reach.far = 0;
        }
        reach
    }

    fn is_nobody(&self) -> bool {
        (self.near | self.far) == 0
    }

    /// Whether a chunk with these holders can be had.
    fn offers(&self, holders: u64) -> bool {
        holders & self.near != 0 || (holders & self.far != 0 && holders & self.zone == 0)
    }

    /// The lowest chunk at or after `from` that is missing and can be had.
    fn lowest(&self, blob: &Blob, from: u32) -> Option<u32> {
        blob.missing_chunks(from)
            .find(|chunk| self.offers(blob.holders[*chunk as usize]))
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

/// How many transfers may come from other zones at once: one, and the slots that neighbours in the
/// own zone are too few to fill.
fn crossing_limit(near: u32, slots: u32) -> u32 {
    slots.saturating_sub(near).max(1)
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::swarm::fixture::{BLOB, facts, meet, wanting};
    use crate::swarm::{Batch, Have, Input, Output};

    /// The first chunks that a peer asks for that knows these neighbours: seeders, and leechers
    /// with the last chunk.
    fn first_asked(seeders: u32, leechers: u32, met: u32, after: Duration) -> Vec<u32> {
        let mut machine = wanting(64);
        let everybody =
            (0..seeders + leechers).map(|peer| facts(PeerSlot(peer), Nearness::SameZone));
        machine.handle(
            Time::ZERO,
            Input::Handout {
                blob: BLOB,
                peers: everybody.collect(),
            },
        );
        let mut asked = Vec::new();
        let now = Time::ZERO + after;
        for peer in 0..met {
            let mut last = Batch::default();
            last.push(63);
            let have = if peer < seeders {
                Have::Complete
            } else {
                Have::Chunks(last)
            };
            meet(&mut machine, now, PeerSlot(peer), have);
        }
        while let Some(output) = machine.poll_output() {
            if let Output::Fetch {
                chunk, transfer, ..
            } = output
            {
                asked.push(chunk);
                machine.handle(now, Input::Received { transfer });
            }
            if asked.len() == 8 {
                break;
            }
        }
        asked
    }

    #[test]
    fn from_seeders_alone_chunks_come_in_order() {
        assert_eq!(
            first_asked(1, 0, 1, Duration::ZERO),
            [0, 1, 2, 3, 4, 5, 6, 7]
        );
        let after = Duration::from_secs(1);
        assert_eq!(
            first_asked(1, 1, 1, after),
            [0, 1, 2, 3, 4, 5, 6, 7],
            "whoever cannot be met is dead"
        );
    }

    #[test]
    fn with_leechers_about_chunks_do_not_come_in_order() {
        assert_ne!(
            first_asked(1, 1, 2, Duration::from_secs(9)),
            [0, 1, 2, 3, 4, 5, 6, 7]
        );
        assert_ne!(
            first_asked(1, 1, 1, Duration::ZERO),
            [0, 1, 2, 3, 4, 5, 6, 7],
            "one that is yet to be met"
        );
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
        assert!(
            wins.iter().all(|wins| (900..1100).contains(wins)),
            "{wins:?}"
        );
    }
}
