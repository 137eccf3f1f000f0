//! The chunk picker (others say piece picker): which chunk to fetch next, and from which neighbour.
//!
//! Usually the rarest chunk among the neighbours, one time in a few the lowest that a reader waits
//! for. Ties are broken at random, because peers with the same view must not all choose the same
//! chunk. Where every known peer holds every chunk, no chunk is rare and no other order helps
//! anyone: then the lowest comes first, for the reader and for the digest of the whole blob, which
//! is hashed as the chunks arrive. The chunk is asked of the nearest free neighbour that holds it.
//!
//! Neighbours that probably have an upload slot for us come first, for all but the reader's chunks:
//! the rarest chunk among theirs is asked of one of them. Any other request is refused nine times
//! in ten in a busy swarm, and two peers that serve each other's neighbours well stay together.
//!
//! Neighbours in other zones are asked only for chunks that no neighbour in the own zone holds, and
//! only in a few slots.

use super::blob_exchange::{BlobExchange, chunks_of};
use super::context::Context;
use super::io::{BlobSlot, Nearness, PeerSlot};
use super::neighbours::Neighbours;
use super::pull::{Pull, Pulls};
use super::request_window::RequestWindows;
use super::rng::Rng;
use crate::chunk_map::bits;
use crate::time::Time;

/// A chunk and the neighbour to ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) blob: BlobSlot,
    pub(super) chunk: u32,
    pub(super) peer: PeerSlot,
}

/// The inputs of a choice besides the context.
#[derive(Clone, Copy, Debug)]
pub(super) struct PickerView<'a> {
    pub(super) neighbours: &'a Neighbours,
    pub(super) windows: &'a RequestWindows,
    pub(super) pulls: &'a Pulls,
    /// Transfers from other zones under way.
    pub(super) count_from_other_zones: u32,
}

/// Chooses chunks. It keeps its buffer, so that a choice allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Picker {
    /// The rarest chunks found so far, equally rare.
    ties: Vec<Ties>,
}

/// The neighbours of which a chunk is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    /// Those that probably have an upload slot for us.
    Preferred,
    All,
}

/// Chunks of one word of a blob, at least one, that are as rare as any.
#[derive(Clone, Copy, Debug)]
struct Ties {
    blob: BlobSlot,
    word: usize,
    chunks: u64,
    free: FreeNeighbours,
}

impl Picker {
    /// The chunk to fetch next; `None` if no free neighbour holds a missing chunk.
    pub(super) fn pick(&mut self, ctx: &mut Context, view: PickerView<'_>) -> Option<Pick> {
        if ctx.rng.one_in(ctx.config.in_order_one_in)
            && let Some(pick) = pick_for_reader(ctx, view)
        {
            return Some(pick);
        }
        self.pick_rarest(ctx, view, Among::Preferred)
            .or_else(|| self.pick_rarest(ctx, view, Among::All))
    }

    fn pick_rarest(
        &mut self,
        ctx: &mut Context,
        view: PickerView<'_>,
        among: Among,
    ) -> Option<Pick> {
        let mut rarest = u8::MAX;
        self.ties.clear();
        for slot in ctx.blobs.wanted() {
            let Some((blob, _)) = active_pull(ctx, view, *slot) else {
                continue;
            };
            let mut free = FreeNeighbours::of(blob, ctx.now, ctx.slots, view);
            if among == Among::Preferred {
                free.retain(|index| view.windows.is_preferred(blob.neighbours()[index]));
            }
            if free.is_empty() {
                continue;
            }
            let is_in_order = view.neighbours.has_only_seeders(ctx, *slot);
            for word in 0..blob.word_count() {
                let offered = free.offered(blob, word);
                if offered == 0 {
                    continue;
                }
                let (mut chunks, available) = blob.rarest_in(word, offered);
                if available > rarest {
                    continue;
                }
                if available < rarest {
                    rarest = available;
                    self.ties.clear();
                }
                if is_in_order {
                    // Seeders hold every chunk: none is rarer than the lowest.
                    chunks &= chunks.wrapping_neg();
                }
                self.ties.push(Ties {
                    blob: *slot,
                    word,
                    chunks,
                    free,
                });
                if is_in_order {
                    break;
                }
            }
        }
        let (ties, chunk) = self.pick_tie(&mut ctx.rng)?;
        pick_neighbour(ctx, view, ties.free, ties.blob, chunk)
    }

    /// One of the rarest chunks; all have equal chances.
    fn pick_tie(&self, rng: &mut Rng) -> Option<(Ties, u32)> {
        let counts = self.ties.iter().map(|ties| ties.chunks.count_ones());
        let count: u32 = counts.sum();
        if count == 0 {
            return None;
        }
        let mut skip = rng.below(count as usize) as u32;
        self.ties.iter().find_map(|ties| {
            let count = ties.chunks.count_ones();
            if skip < count {
                let mut chunks = chunks_of(ties.word, ties.chunks);
                return Some((*ties, chunks.nth(skip as usize)?));
            }
            skip -= count;
            None
        })
    }
}

/// The lowest missing chunk that a reader waits for.
fn pick_for_reader(ctx: &mut Context, view: PickerView<'_>) -> Option<Pick> {
    let mut wanted = ctx.blobs.wanted().iter();
    let (slot, free, chunk) = wanted.find_map(|slot| {
        let (blob, pull) = active_pull(ctx, view, *slot)?;
        let cursor = pull.cursor()?;
        let free = FreeNeighbours::of(blob, ctx.now, ctx.slots, view);
        if free.is_empty() {
            return None;
        }
        let chunk = free.lowest(blob, cursor)?;
        Some((*slot, free, chunk))
    })?;
    pick_neighbour(ctx, view, free, slot, chunk)
}

/// A wanted blob of which chunks are fetched at present.
fn active_pull<'a>(
    ctx: &'a Context,
    view: PickerView<'a>,
    slot: BlobSlot,
) -> Option<(&'a BlobExchange, &'a Pull)> {
    let blob = ctx.blobs.get(slot)?;
    let pull = view.pulls.get(slot)?;
    (!pull.is_paused(ctx.now)).then_some((blob, pull))
}

/// The nearest of these free neighbours that holds the chunk, ties at random.
fn pick_neighbour(
    ctx: &mut Context,
    view: PickerView<'_>,
    free: FreeNeighbours,
    slot: BlobSlot,
    chunk: u32,
) -> Option<Pick> {
    let blob = ctx.blobs.get(slot)?;
    let mut best = NearestPeer::default();
    for index in bits(free.all() & blob.holders_of(chunk)) {
        let peer = blob.neighbours()[index as usize];
        best.consider(view.windows.nearness(peer), peer, &mut ctx.rng);
    }
    best.peer.map(|peer| Pick {
        blob: slot,
        chunk,
        peer,
    })
}

/// The neighbours of a blob that may be asked now, one bit each.
#[derive(Clone, Copy, Debug)]
struct FreeNeighbours {
    /// Free, in the own zone.
    same_zone: u64,
    /// Free, in other zones; none while enough chunks come from there.
    other_zones: u64,
    /// All in the own zone: chunks that one of them holds are not asked of other zones.
    all_same_zone: u64,
}

impl FreeNeighbours {
    fn of(blob: &BlobExchange, now: Time, slots: u32, view: PickerView<'_>) -> Self {
        let all = view.windows.free(now, blob.neighbours());
        let all_same_zone = view.windows.same_zone(blob.neighbours());
        let mut free = Self {
            same_zone: all & all_same_zone,
            other_zones: all & !all_same_zone,
            all_same_zone,
        };
        let limit = other_zones_limit(free.all_same_zone.count_ones(), slots);
        if view.count_from_other_zones >= limit {
            free.other_zones = 0;
        }
        free
    }

    /// Leaves those for whose index this is true.
    fn retain(&mut self, is_kept: impl Fn(usize) -> bool) {
        for index in bits(self.all()).filter(|index| !is_kept(*index as usize)) {
            self.same_zone &= !(1 << index);
            self.other_zones &= !(1 << index);
        }
    }

    fn all(&self) -> u64 {
        self.same_zone | self.other_zones
    }

    fn is_empty(&self) -> bool {
        self.all() == 0
    }

    /// The missing chunks of a word for which one of them may be asked.
    fn offered(&self, blob: &BlobExchange, word: usize) -> u64 {
        let missing = blob.missing_in(word);
        let near = blob.held_by_any(word, missing, self.same_zone);
        if self.other_zones == 0 {
            return near;
        }
        let far = blob.held_by_any(word, missing & !near, self.other_zones);
        near | (far & !blob.held_by_any(word, far, self.all_same_zone))
    }

    /// The lowest missing chunk at or after `from` for which one of them may be asked.
    fn lowest(&self, blob: &BlobExchange, from: u32) -> Option<u32> {
        let first = from as usize / 64;
        (first..blob.word_count()).find_map(|word| {
            let mut offered = self.offered(blob, word);
            if word == first {
                offered &= u64::MAX << (from % 64);
            }
            chunks_of(word, offered).next()
        })
    }
}

/// The nearest of several peers; equally near ones have equal chances.
#[derive(Default)]
struct NearestPeer {
    nearness: Option<Nearness>,
    peer: Option<PeerSlot>,
    /// Number of equally near peers.
    equals: usize,
}

impl NearestPeer {
    fn consider(&mut self, nearness: Nearness, peer: PeerSlot, rng: &mut Rng) {
        if self.nearness.is_none_or(|best| nearness < best) {
            self.nearness = Some(nearness);
            self.peer = Some(peer);
            self.equals = 1;
        } else if self.nearness == Some(nearness) {
            self.equals += 1;
            if rng.below(self.equals) == 0 {
                self.peer = Some(peer);
            }
        }
    }
}

/// Maximum number of concurrent transfers from other zones: one, and as many more as there are
/// slots that the neighbours in the own zone are too few to fill.
fn other_zones_limit(same_zone: u32, slots: u32) -> u32 {
    slots.saturating_sub(same_zone).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_peer_wins_and_ties_are_random() {
        let mut rng = Rng::new(1);
        let mut wins = [0; 3];
        for _ in 0..3000 {
            let mut best = NearestPeer::default();
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
