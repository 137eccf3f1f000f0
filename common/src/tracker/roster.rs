//! The roster: the members of each swarm, with their zone, progress and expiry.
//!
//! Progress has only sixteen steps and there are no chunk maps, because peers exchange those among
//! themselves. An entry costs four bytes in the swarm's list and eight in the peer's list, before
//! the slack of two growing vectors: at most 24 bytes per peer and digest. Members of a swarm are
//! kept by zone, and seeders apart from leechers, so a handout never walks a whole swarm. The
//! roster never decides anything; handout and leases do.

use bincode::{Decode, Encode};

use super::slots::{BlobSlot, PeerSlot, RegionSlot, ZoneSlot};
use crate::interner::Slot;
use crate::time::Time;

/// How much of a blob a peer holds, in sixteen steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Progress(u8);

impl Progress {
    /// No chunk.
    pub const NONE: Self = Self(0);
    /// Every chunk: a seeder.
    pub const COMPLETE: Self = Self(15);

    /// The step with this number, 0 (no chunk) to 15 (every chunk); `None` for larger numbers.
    pub const fn from_step(step: u8) -> Option<Self> {
        if step <= Self::COMPLETE.0 {
            Some(Self(step))
        } else {
            None
        }
    }

    /// The step's number, 0 to 15.
    pub const fn step(self) -> u8 {
        self.0
    }

    /// Whether the peer holds every chunk.
    pub fn is_complete(self) -> bool {
        self == Self::COMPLETE
    }
}

/// A peer's progress (the upper four bits) and its index in its zone's list (the lower 28 bits).
#[derive(Clone, Copy, Debug)]
struct RosterPosition(u32);

impl RosterPosition {
    const INDEX_BITS: u32 = 28;

    fn new(progress: Progress, index: usize) -> Self {
        Self((u32::from(progress.0) << Self::INDEX_BITS) | index as u32)
    }

    fn progress(self) -> Progress {
        Progress((self.0 >> Self::INDEX_BITS) as u8)
    }

    fn index(self) -> usize {
        (self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize
    }
}

/// One swarm that a peer is in.
#[derive(Clone, Copy, Debug)]
struct SwarmEntry {
    blob: BlobSlot,
    position: RosterPosition,
}

/// The record of one peer.
#[derive(Debug)]
pub(super) struct PeerRecord {
    pub(super) zone: ZoneSlot,
    pub(super) region: RegionSlot,
    /// Sequence of the last accepted announce.
    pub(super) sequence: u64,
    /// The peer is forgotten then, unless it announces again.
    pub(super) expires: Time,
    /// How often it was handed out lately; halved with each of its announces. Spreads dials evenly.
    pub(super) handed: u16,
    /// Sorted by blob.
    swarms: Vec<SwarmEntry>,
}

/// The members of one swarm in one zone.
#[derive(Debug)]
pub(super) struct ZoneMembers {
    pub(super) zone: ZoneSlot,
    pub(super) region: RegionSlot,
    pub(super) leechers: Vec<PeerSlot>,
    pub(super) seeders: Vec<PeerSlot>,
}

impl ZoneMembers {
    fn list(&mut self, progress: Progress) -> &mut Vec<PeerSlot> {
        if progress.is_complete() {
            &mut self.seeders
        } else {
            &mut self.leechers
        }
    }
}

/// The members of one swarm.
#[derive(Debug, Default)]
pub(super) struct Swarm {
    pub(super) zones: Vec<ZoneMembers>,
    /// Members that hold at least one chunk, as far as their progress shows.
    started: u32,
}

impl Swarm {
    pub(super) fn peers(&self) -> usize {
        self.zones
            .iter()
            .map(|zone| zone.leechers.len() + zone.seeders.len())
            .sum()
    }

    pub(super) fn seeders(&self) -> usize {
        self.zones.iter().map(|zone| zone.seeders.len()).sum()
    }
}

/// Peers and swarms.
#[derive(Debug, Default)]
pub(super) struct Roster {
    peers: Vec<Option<PeerRecord>>,
    swarms: Vec<Option<Swarm>>,
    peer_count: u32,
}

impl Roster {
    /// Maximum number of peers that an index can address.
    pub(super) const MAX_PEERS: u32 = 1 << RosterPosition::INDEX_BITS;

    pub(super) fn peer_count(&self) -> u32 {
        self.peer_count
    }

    pub(super) fn peer(&self, peer: PeerSlot) -> Option<&PeerRecord> {
        self.peers.get(peer.index() as usize)?.as_ref()
    }

    pub(super) fn peer_mut(&mut self, peer: PeerSlot) -> Option<&mut PeerRecord> {
        self.peers.get_mut(peer.index() as usize)?.as_mut()
    }

    pub(super) fn swarm(&self, blob: BlobSlot) -> Option<&Swarm> {
        self.swarms.get(blob.index() as usize)?.as_ref()
    }

    /// All swarms, in order of slots.
    pub(super) fn swarms(&self) -> impl Iterator<Item = (BlobSlot, &Swarm)> {
        (0_u32..)
            .zip(&self.swarms)
            .filter_map(|(index, swarm)| Some((BlobSlot::at(index), swarm.as_ref()?)))
    }

    /// The swarms of `peer`, in order of slots.
    pub(super) fn swarms_of(&self, peer: PeerSlot) -> impl Iterator<Item = BlobSlot> + '_ {
        self.peer(peer)
            .into_iter()
            .flat_map(|record| record.swarms.iter().map(|entry| entry.blob))
    }

    /// The progress of `peer` in the swarm of `blob`, if it is in it.
    pub(super) fn progress(&self, peer: PeerSlot, blob: BlobSlot) -> Option<Progress> {
        let record = self.peer(peer)?;
        let at = record
            .swarms
            .binary_search_by_key(&blob, |entry| entry.blob)
            .ok()?;
        Some(record.swarms[at].position.progress())
    }

    /// Whether a member of the swarm has made progress.
    pub(super) fn has_started(&self, blob: BlobSlot) -> bool {
        self.swarm(blob).is_some_and(|swarm| swarm.started > 0)
    }

    /// The seeders of `blob` in `region`, in a fixed order.
    pub(super) fn seeders_in(
        &self,
        blob: BlobSlot,
        region: RegionSlot,
    ) -> impl Iterator<Item = PeerSlot> + '_ {
        let zones = self.swarm(blob).into_iter().flat_map(|swarm| &swarm.zones);
        zones
            .filter(move |zone| zone.region == region)
            .flat_map(|zone| zone.seeders.iter().copied())
    }

    /// Whether a peer of `region` is in the swarm.
    pub(super) fn is_in_region(&self, blob: BlobSlot, region: RegionSlot) -> bool {
        self.swarm(blob)
            .is_some_and(|swarm| swarm.zones.iter().any(|zone| zone.region == region))
    }

    /// Adds a peer, in no swarm. It must not be in the roster.
    pub(super) fn insert_peer(&mut self, peer: PeerSlot, zone: ZoneSlot, region: RegionSlot) {
        let index = peer.index() as usize;
        if self.peers.len() <= index {
            self.peers.resize_with(index + 1, || None);
        }
        debug_assert!(self.peers[index].is_none(), "a peer is inserted once");
        let record = PeerRecord {
            zone,
            region,
            sequence: 0,
            expires: Time::MAX,
            handed: 0,
            swarms: Vec::new(),
        };
        self.peers[index] = Some(record);
        self.peer_count += 1;
    }

    /// Removes a peer that has left all its swarms.
    pub(super) fn remove_peer(&mut self, peer: PeerSlot) {
        let removed = self
            .peers
            .get_mut(peer.index() as usize)
            .and_then(Option::take);
        if let Some(record) = removed {
            debug_assert!(
                record.swarms.is_empty(),
                "a peer leaves its swarms before it is removed"
            );
            self.peer_count -= 1;
        }
    }

    /// Sets the progress of `peer` in the swarm of `blob`, and adds it to the swarm if needed. Does
    /// nothing for an unknown peer.
    pub(super) fn set_progress(&mut self, peer: PeerSlot, blob: BlobSlot, progress: Progress) {
        match self.progress(peer, blob) {
            Some(before) if before.is_complete() == progress.is_complete() => {
                self.count_started(blob, before, progress);
                self.update_position(peer, blob, |position| {
                    RosterPosition::new(progress, position.index())
                });
            }
            Some(_) => {
                self.leave(peer, blob);
                self.join(peer, blob, progress);
            }
            None => self.join(peer, blob, progress),
        }
    }

    /// Removes `peer` from the swarm of `blob`; false if it was not in it. A swarm without members
    /// ends.
    pub(super) fn leave(&mut self, peer: PeerSlot, blob: BlobSlot) -> bool {
        let Some(record) = self.peer_mut(peer) else {
            return false;
        };
        let Ok(at) = record
            .swarms
            .binary_search_by_key(&blob, |entry| entry.blob)
        else {
            return false;
        };
        let position = record.swarms.remove(at).position;
        let zone = record.zone;
        self.count_started(blob, position.progress(), Progress::NONE);
        let Some(Some(swarm)) = self.swarms.get_mut(blob.index() as usize) else {
            return false;
        };
        let Some(at) = swarm.zones.iter().position(|members| members.zone == zone) else {
            return false;
        };
        let list = swarm.zones[at].list(position.progress());
        list.swap_remove(position.index());
        let moved = list.get(position.index()).copied();
        if swarm.zones[at].leechers.is_empty() && swarm.zones[at].seeders.is_empty() {
            swarm.zones.swap_remove(at);
        }
        if swarm.zones.is_empty() {
            self.swarms[blob.index() as usize] = None;
        }
        if let Some(moved) = moved {
            self.update_position(moved, blob, |moved| {
                RosterPosition::new(moved.progress(), position.index())
            });
        }
        true
    }

    fn join(&mut self, peer: PeerSlot, blob: BlobSlot, progress: Progress) {
        let Some(record) = self.peer(peer) else {
            return;
        };
        let zone = record.zone;
        let region = record.region;
        let index = blob.index() as usize;
        if self.swarms.len() <= index {
            self.swarms.resize_with(index + 1, || None);
        }
        let swarm = self.swarms[index].get_or_insert_default();
        let at = swarm
            .zones
            .iter()
            .position(|members| members.zone == zone)
            .unwrap_or_else(|| {
                swarm.zones.push(ZoneMembers {
                    zone,
                    region,
                    leechers: Vec::new(),
                    seeders: Vec::new(),
                });
                swarm.zones.len() - 1
            });
        let list = swarm.zones[at].list(progress);
        list.push(peer);
        let position = RosterPosition::new(progress, list.len() - 1);
        self.count_started(blob, Progress::NONE, progress);
        if let Some(record) = self.peer_mut(peer)
            && let Err(at) = record
                .swarms
                .binary_search_by_key(&blob, |entry| entry.blob)
        {
            record.swarms.insert(at, SwarmEntry { blob, position });
        }
    }

    fn update_position(
        &mut self,
        peer: PeerSlot,
        blob: BlobSlot,
        update: impl FnOnce(RosterPosition) -> RosterPosition,
    ) {
        if let Some(record) = self.peer_mut(peer)
            && let Ok(at) = record
                .swarms
                .binary_search_by_key(&blob, |entry| entry.blob)
        {
            record.swarms[at].position = update(record.swarms[at].position);
        }
    }

    fn count_started(&mut self, blob: BlobSlot, before: Progress, after: Progress) {
        if let Some(Some(swarm)) = self.swarms.get_mut(blob.index() as usize) {
            swarm.started -= u32::from(before > Progress::NONE);
            swarm.started += u32::from(after > Progress::NONE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_in_a_swarm_costs_twelve_bytes() {
        assert_eq!(size_of::<SwarmEntry>() + size_of::<PeerSlot>(), 12);
    }
}
