//! The handout: the peers that a peer should dial for a digest.
//!
//! By default three quarters are of the peer's own zone, the next ones of its region, and about one
//! in sixteen of other regions: this keeps the graph connected across zones, and the swarm survives
//! an outage of one region's origin. In each class, peers that the asking peer is connected to come
//! first, but a quarter is left to other peers, because otherwise neighbours would form cliques.
//! Seeders fill at most half of a class that has enough leechers, and a single seeder is not handed
//! to every peer. No function walks a whole swarm: the work is proportional to the size of the
//! handout.

use rand::{Rng, RngExt};

use super::roster::{Roster, Swarm};
use super::slots::{BlobSlot, PeerSlot, RegionSlot, ZoneSlot};

/// To about how many leechers a seeder is handed if seeders are scarce.
const HANDOUTS_PER_SCARCE_SEEDER: u64 = 32;
/// Peers that were handed out less often than this lately are preferred, because few peers know
/// them.
const RARELY_HANDED: u16 = 4;

/// The distance of a member.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Zone,
    Region,
    Elsewhere,
}

/// The peer that a handout is for.
pub(super) struct Asker<'a> {
    pub(super) peer: PeerSlot,
    /// Its neighbours; they are preferred.
    pub(super) connected: &'a [PeerSlot],
    /// Peers that it cannot reach; they are left out.
    pub(super) unreachable: &'a [PeerSlot],
}

/// Chooses up to `count` members of the swarm for the asker; of each 16 of them `near_of_16` are of
/// its own zone, if the zone has as many.
pub(super) fn choose(
    roster: &mut Roster,
    rng: &mut impl Rng,
    asker: &Asker<'_>,
    blob: BlobSlot,
    (count, near_of_16): (usize, usize),
) -> Vec<PeerSlot> {
    let Some(swarm) = roster.swarm(blob) else {
        return Vec::new();
    };
    let mut choice = Choice {
        roster,
        swarm,
        blob,
        asker,
        chosen: Vec::with_capacity(count),
    };
    let near = (count * near_of_16).div_ceil(16);
    let far = count.div_ceil(16);
    for (class, quota) in [
        (Class::Zone, near.min(count)),
        (Class::Elsewhere, far),
        (Class::Region, count),
        (Class::Zone, count),
        (Class::Elsewhere, count),
    ] {
        let open = count - choice.chosen.len();
        if open > 0 {
            choice.add(rng, class, quota.min(open));
        }
    }
    let chosen = choice.chosen;
    for peer in &chosen {
        if let Some(record) = roster.peer_mut(*peer) {
            record.handed = record.handed.saturating_add(1);
        }
    }
    chosen
}

/// A handout under construction.
struct Choice<'a> {
    roster: &'a Roster,
    swarm: &'a Swarm,
    blob: BlobSlot,
    asker: &'a Asker<'a>,
    chosen: Vec<PeerSlot>,
}

impl<'a> Choice<'a> {
    /// Adds up to `quota` members of `class`.
    fn add(&mut self, rng: &mut impl Rng, class: Class, quota: usize) {
        let full = self.chosen.len() + quota;
        self.add_connected(class, quota - quota / 4);
        let (leechers, seeders) = self.members(class);
        let leecher_count = leechers.iter().map(|list| list.len()).sum::<usize>();
        let seeder_count = seeders.iter().map(|list| list.len()).sum::<usize>();
        let open = full - self.chosen.len();
        let seeders_wanted = seeder_share(rng, open, leecher_count, seeder_count);
        self.add_random(rng, &seeders, seeders_wanted);
        self.add_random(rng, &leechers, full - self.chosen.len());
        self.add_random(rng, &seeders, full - self.chosen.len());
    }

    fn class_of(&self, zone: ZoneSlot, region: RegionSlot) -> Option<Class> {
        let record = self.roster.peer(self.asker.peer)?;
        Some(match () {
            () if zone == record.zone => Class::Zone,
            () if region == record.region => Class::Region,
            () => Class::Elsewhere,
        })
    }

    fn add_connected(&mut self, class: Class, quota: usize) {
        let full = self.chosen.len() + quota;
        for &other in self.asker.connected {
            if self.chosen.len() == full {
                return;
            }
            let Some(record) = self.roster.peer(other) else {
                continue;
            };
            let is_member = self.roster.progress(other, self.blob).is_some();
            if is_member
                && self.class_of(record.zone, record.region) == Some(class)
                && self.is_new(other)
            {
                self.chosen.push(other);
            }
        }
    }

    /// The lists of leechers and of seeders of a class.
    fn members(&self, class: Class) -> (Vec<&'a [PeerSlot]>, Vec<&'a [PeerSlot]>) {
        let zones = self
            .swarm
            .zones
            .iter()
            .filter(|zone| self.class_of(zone.zone, zone.region) == Some(class));
        zones
            .map(|zone| (zone.leechers.as_slice(), zone.seeders.as_slice()))
            .unzip()
    }

    /// Adds up to `quota` random peers of the lists, preferring peers that were rarely handed out.
    /// An even distribution would be worse: it would connect each new peer of a burst to the newest
    /// of the others, and the swarm would become a long chain.
    fn add_random(&mut self, rng: &mut impl Rng, lists: &[&[PeerSlot]], quota: usize) {
        if quota == 0 {
            return;
        }
        let total = lists.iter().map(|list| list.len()).sum::<usize>();
        let spare = self.chosen.len() + self.asker.unreachable.len() + 1;
        let mut candidates: Vec<PeerSlot> = distinct(rng, total, 2 * quota + spare)
            .into_iter()
            .filter_map(|index| nth(lists, index))
            .filter(|candidate| self.is_new(*candidate))
            .take(2 * quota)
            .collect();
        let is_known = |candidate: &PeerSlot| {
            self.roster
                .peer(*candidate)
                .is_none_or(|peer| peer.handed >= RARELY_HANDED)
        };
        candidates.sort_by_key(is_known);
        self.chosen.extend(candidates.into_iter().take(quota));
    }

    fn is_new(&self, candidate: PeerSlot) -> bool {
        candidate != self.asker.peer
            && !self.chosen.contains(&candidate)
            && !self.asker.unreachable.contains(&candidate)
    }
}

/// How many of the `open` entries seeders get at first.
fn seeder_share(rng: &mut impl Rng, open: usize, leechers: usize, seeders: usize) -> usize {
    if open == 0 || seeders == 0 {
        return 0;
    }
    // In proportion, but at most half. If the proportion gives none, one seeder with a probability
    // that limits how many leechers get it.
    let proportional = (open * seeders / (leechers + seeders)).min(open / 2);
    let scarce =
        rng.random_range(0..=leechers as u64) < HANDOUTS_PER_SCARCE_SEEDER * seeders as u64;
    proportional.max(usize::from(scarce))
}

/// The element at `index` of the concatenated lists.
fn nth(lists: &[&[PeerSlot]], mut index: usize) -> Option<PeerSlot> {
    for list in lists {
        match list.get(index) {
            Some(peer) => return Some(*peer),
            None => index -= list.len(),
        }
    }
    None
}

/// Up to `count` distinct numbers below `total` in random order: Floyd's sampling, then a shuffle.
fn distinct(rng: &mut impl Rng, total: usize, count: usize) -> Vec<usize> {
    let count = count.min(total);
    let mut chosen: Vec<usize> = Vec::with_capacity(count);
    for last in total - count..total {
        let drawn = rng.random_range(0..=last as u64) as usize;
        chosen.push(if chosen.contains(&drawn) { last } else { drawn });
    }
    for last in (1..chosen.len()).rev() {
        chosen.swap(last, rng.random_range(0..=last as u64) as usize);
    }
    chosen
}
